"""`gcm-sentinel serve`: run the aggregator. All settings come from the environment."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has no arguments: what a container is told, it is told by GCM_SENTINEL_ variables."""
    parser.epilog = "Settings are environment variables that begin with GCM_SENTINEL_; docs/settings.md lists them."


def run(_: argparse.Namespace) -> int:
    """Run until SIGTERM; return the exit code."""
    from aggregator.__main__ import main

    return main()
