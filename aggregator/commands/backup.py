"""`gcm-sentinel backup FILE`: copy the aggregator's database while it runs. Needs the same STATE_DIR or DATABASE_URL, no server."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from aggregator.settings import Settings, SettingsError
from aggregator.store.backup import backup
from aggregator.store.opening import StoreUnusable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, which must not exist."""
    parser.epilog = "Run it with the aggregator's GCM_SENTINEL_STATE_DIR or GCM_SENTINEL_DATABASE_URL, on its machine."
    parser.add_argument("file", type=Path, metavar="FILE", help="where to copy to; must not exist")


def run(arguments: argparse.Namespace) -> int:
    """Copy, say where, and return the exit code."""
    try:
        size = backup(Settings.from_environment().database, arguments.file)
    except (SettingsError, StoreUnusable) as error:
        sys.stderr.write(f"gcm-sentinel backup: {error}\n")
        return 2
    sys.stdout.write(
        f"{arguments.file}: {size} bytes; to restore, stop the aggregator and put it in the database's place\n"
    )
    return 0
