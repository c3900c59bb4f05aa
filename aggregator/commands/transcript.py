"""`gcm-sentinel transcript ID`: what an investigation asked, got and concluded."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from google.protobuf import json_format

from aggregator.client import CALL_SECONDS, CommandFailed, connect, report
from aggregator.render import visible
from protos.v1 import sentinel_pb2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """ID and the form of the answer."""
    parser.epilog = (
        "Asks the aggregator at GCM_SENTINEL_AGGREGATOR_ADDRESS (localhost:50051). An assessment names its transcript."
    )
    parser.add_argument("investigation_id", metavar="ID", help="the investigation, for example inv-0123456789abcdef")
    parser.add_argument("--format", choices=("text", "json", "md"), default="text", help="default text")


def run(arguments: argparse.Namespace) -> int:
    """Print the transcript; return the exit code."""
    request = sentinel_pb2.GetTranscriptRequest(investigation_id=arguments.investigation_id)
    try:
        with connect() as (stub, metadata):
            found = stub.GetTranscript(request, metadata=metadata, timeout=CALL_SECONDS)
    except CommandFailed as error:
        return report(error)
    if arguments.format == "json":
        sys.stdout.write(json_format.MessageToJson(found, preserving_proto_field_name=True) + "\n")
    else:
        lines = _markdown(found) if arguments.format == "md" else _text(found)
        sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _head(found: sentinel_pb2.GetTranscriptResponse) -> str:
    spent = f"{found.rounds} rounds, {found.input_tokens:,} tokens read ({found.cached_tokens:,} cached), "
    spent += f"{found.output_tokens:,} written, ${found.cost_usd:.4f}"
    ended = found.state + (f": {visible(found.stop_reason)}" if found.stop_reason else "")
    return f"incident {visible(found.incident_id)} · {visible(found.model) or 'no model'} · {ended} · {spent}"


def _title(entry: sentinel_pb2.TranscriptEntry) -> str:
    names = (f"round {entry.round}", entry.kind, entry.id, entry.title, entry.trust)
    return " · ".join(visible(name) for name in names if name)


def _text(found: sentinel_pb2.GetTranscriptResponse) -> Iterator[str]:
    yield f"{found.investigation_id}  {_head(found)}"
    for entry in found.entries:
        yield ""
        yield f"--- {_title(entry)}"
        yield from (f"    {visible(line)}" for line in entry.text.splitlines())
        yield from _rest(entry)


def _markdown(found: sentinel_pb2.GetTranscriptResponse) -> Iterator[str]:
    """Every text in an indented block: nothing in it is a heading, a link or an image."""
    yield f"# {found.investigation_id}"
    yield ""
    yield f"    {_head(found)}"
    for number, entry in enumerate(found.entries, 1):
        yield ""
        yield f"## Step {number}"
        yield ""
        yield f"    {_title(entry)}"
        yield "    "
        yield from (f"    {visible(line)}" for line in entry.text.splitlines())
        yield from _rest(entry)


def _rest(entry: sentinel_pb2.TranscriptEntry) -> Iterator[str]:
    if entry.total_bytes > len(entry.text.encode()):
        yield f"    … of {entry.total_bytes:,} bytes"
