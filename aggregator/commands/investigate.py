"""`gcm-sentinel investigate NODE`: has a running aggregator look into a node, shows how it goes, and prints the verdict."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys

from google.protobuf import json_format

from aggregator import wire
from aggregator.client import CALL_SECONDS, CommandFailed, connect, report
from aggregator.commands.private_aggregator import private_aggregator
from aggregator.render import render_text, visible
from protos.v1 import sentinel_pb2

LONGEST_SECONDS = 7_500.0  # of one investigation, the bound of INVESTIGATION_SECONDS and some

ERASE = "\r\x1b[2K"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """NODE, what is said of it, and how to answer."""
    parser.epilog = "Asks the aggregator at GCM_SENTINEL_AGGREGATOR_ADDRESS (localhost:50051)."
    parser.add_argument("node", metavar="NODE", help="the node's name")
    parser.add_argument(
        "--condition", default="", metavar="C", help="a condition of the node; without one, its worst open incident"
    )
    parser.add_argument("--message", default="", metavar="M", help="the condition's message: a hint")
    parser.add_argument("--incident", default="", metavar="ID", help="this incident")
    parser.add_argument(
        "--standalone",
        action="store_true",
        help="with no aggregator running: start one for this question, with the settings of `serve` from the environment",
    )
    parser.add_argument("--json", action="store_true", help="the incident with its assessment as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Investigate; return the exit code."""
    try:
        incident = _investigate(arguments)
    except CommandFailed as error:
        return report(error)
    if arguments.json:
        found = json_format.MessageToDict(incident, preserving_proto_field_name=True)
        sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        sys.stdout.write(render_text(*wire.read_incident(incident), width=width, colour=sys.stdout.isatty()))
    return 0


def _investigate(arguments: argparse.Namespace) -> sentinel_pb2.Incident:
    if arguments.message and not arguments.condition:
        raise CommandFailed(2, "--message says more about a --condition: give that too")
    request = sentinel_pb2.InvestigateRequest(
        node=arguments.node,
        condition=arguments.condition,
        message=arguments.message,
        incident_id=arguments.incident,
    )
    if arguments.standalone and not arguments.condition:
        raise CommandFailed(2, "--standalone knows no incidents: say what is wrong with --condition")
    with contextlib.ExitStack() as stack:
        private = stack.enter_context(private_aggregator()) if arguments.standalone else None
        stub, metadata = stack.enter_context(connect(private))
        incident_id = ""
        for step in stub.Investigate(request, metadata=metadata, timeout=LONGEST_SECONDS):
            _show(step)
            incident_id = step.assessment.incident_id
        if not incident_id:
            raise CommandFailed(3, "the aggregator ended the investigation without an assessment")
        asked = sentinel_pb2.GetIncidentRequest(id=incident_id)
        return stub.GetIncident(asked, metadata=metadata, timeout=CALL_SECONDS).incident


def _show(step: sentinel_pb2.InvestigateResponse) -> None:
    """One line that follows the work on a terminal; a line each elsewhere."""
    spent = f" · {step.input_tokens + step.output_tokens:,} tokens · ${step.cost_usd:.3f}" if step.input_tokens else ""
    where = f"round {step.round}" + (f" · {visible(step.tool)}" if step.tool else "") if step.round else ""
    line = " · ".join(part for part in (where, visible(step.progress)) if part) + spent
    if not sys.stderr.isatty():
        sys.stderr.write(line + "\n")
        return
    width = shutil.get_terminal_size((100, 24)).columns
    ended = step.HasField("assessment")
    sys.stderr.write(ERASE + ("" if ended else line[: width - 1]))
    sys.stderr.flush()
