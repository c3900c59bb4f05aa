"""`gcm-sentinel serve`: run the aggregator. All settings come from the environment."""

from __future__ import annotations

import argparse

from aggregator.__main__ import main


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has no arguments: what a container is told, it is told by variables."""
    parser.epilog = "Settings are environment variables that begin with GCM_SENTINEL_."


def run(_: argparse.Namespace) -> int:
    """Run until SIGTERM; return the exit code."""
    return main()
