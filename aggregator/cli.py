"""The `gcm-sentinel` command: finds the subcommand's module and imports nothing else.

Exit codes: 0 done; 1 a demo's or check's expectation failed; 2 usage or configuration error, with the variable named, or a missing
extra; 3 a needed service could not be reached; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

COMMANDS = {
    "serve": "run the aggregator",
    "agent": "run the node agent",
    "diagnose": "read logs, print the verdict; needs no server",
    "explain": "what is known about an XID, SXid or signal kind",
    "demo": "play fault scenarios through the real agent and aggregator",
    "evidence": "show a node's evidence",
    "investigate": "have a node looked into, and print the verdict",
    "transcript": "what an investigation asked, got and concluded",
    "audit": "show what was decided about actions on a node, and why",
    "eval": "does a model beat the rules: play recorded worlds to it; needs no server",
    "rejudge": "judge stored incidents again under a rules overlay; list what would change",
    "backup": "copy the aggregator's database while it runs",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    try:
        return _run(argv)
    except KeyboardInterrupt:
        return 130


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="gcm-sentinel", description="Tells GPU-cluster operators what broke, why, and what to do."
    )
    parser.add_argument("--version", action="version", version=f"gcm-sentinel {_version()}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name == chosen:
            try:
                module = importlib.import_module(f"aggregator.commands.{name}")
            except ModuleNotFoundError as error:
                return _missing_extra(name, error)
            module.add_arguments(subparser)
    args = parser.parse_args(arguments)
    try:
        code: int = module.run(args)
    except ModuleNotFoundError as error:
        return _missing_extra(args.command, error)
    return code


def _version() -> str:
    try:
        return version("gcm-sentinel")
    except PackageNotFoundError:
        return "from a checkout that is not installed"


def _missing_extra(command: str, error: ModuleNotFoundError) -> int:
    """Exit 2 and the extra's name when a dependency is not installed; anything else is a bug and is raised."""
    if error.name is None or error.name.split(".")[0] in ("aggregator", "node_agent", "protos"):
        raise error
    extra = "agent" if command == "agent" else "aggregator"
    sys.stderr.write(
        f"gcm-sentinel {command}: the Python package {error.name} is missing; "
        f"install the extra [{extra}]: pip install 'gcm-sentinel[{extra}]'\n"
    )
    return 2
