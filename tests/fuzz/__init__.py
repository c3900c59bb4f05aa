"""Hostile input: a quick seed in CI, a million by `make fuzz`."""

from __future__ import annotations

import os

EXAMPLES = int(os.environ.get("GCM_SENTINEL_FUZZ_EXAMPLES", "300"))
