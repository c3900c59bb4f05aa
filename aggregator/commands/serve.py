"""`gcm-sentinel serve`: run the aggregator. All settings come from the environment."""

from __future__ import annotations

import argparse
import os

from aggregator.__main__ import main
from aggregator.settings import PREFIX


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a container is told, it is told by variables; the one argument is for trying out."""
    parser.epilog = "Settings are environment variables that begin with GCM_SENTINEL_."
    parser.add_argument(
        "--dry-run", action="store_true", help="in execute mode: decide and record every action, and do none"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run until SIGTERM; return the exit code."""
    if arguments.dry_run:
        os.environ[f"{PREFIX}DRY_RUN"] = "true"
    return main()
