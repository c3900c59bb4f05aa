"""`gcm-sentinel agent`: becomes the node agent. The aggregator's code never imports the agent's; the process is replaced by it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from typing import NoReturn

NEEDED = ("grpc", "google.protobuf", "grpc_health", "grpc_reflection", "prometheus_client", "pynvml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Without options it runs the agent; with one it talks to the agent that runs on this node."""
    parser.description = (
        "Run the node agent, configured by GCM_SENTINEL_* variables; or talk to the one that runs here (as root)."
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--yield",
        dest="yield_seconds",
        metavar="SECONDS",
        nargs="?",
        const="600",
        help="make the running agent let go of every NVIDIA device for so long (600), for a driver upgrade or a GPU reset",
    )
    group.add_argument("--resume", action="store_true", help="make it take the devices up again now")


def run(args: argparse.Namespace) -> NoReturn:
    """Replace this process by the agent. Raises ModuleNotFoundError when a package of the extra [agent] is missing."""
    for name in NEEDED:
        _require(name)
    options = ["--resume"] if args.resume else []
    if args.yield_seconds is not None:
        options = ["--yield", args.yield_seconds]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "node_agent", *options])  # noqa: S606  # no shell, on purpose


def _require(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
