"""Spans of time as people type them: 30m, 12h, 7d."""

from __future__ import annotations

import argparse
import re

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def span(text: str) -> int:
    """Seconds; for `type=` of an argument. Raises ArgumentTypeError."""
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a span like 30m, 12h or 7d")
    return int(found[1]) * _SECONDS[found[2]]
