"""Runs `gcm-sentinel diagnose` as an operator does, and a log in which one GPU falls off the bus."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aggregator import cli

FALLEN = "NVRM: Xid (PCI:0000:9b:00): 79, pid=1, name=x, GPU has fallen off the bus."
UUID = "GPU-509665ad-b600-ac93-3616-d754b23d636d"
LOG = f"[ 10.000000] usb 1-1: new device\n[ 11.000000] NVRM: GPU at PCI:0000:9b:00: {UUID}\n[ 12.000000] {FALLEN}\n"

MAIN = "import sys; from aggregator.cli import main; sys.exit(main())"


def diagnose(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    """Exit code, the JSON object (None when nothing was printed) and stderr."""
    code = cli.main(["diagnose", "--format", "json", *arguments])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err
