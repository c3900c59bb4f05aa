"""`gcm-sentinel audit NODE`: every decision about an action on a node, with its reasons, newest first."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from google.protobuf import json_format

from aggregator import render
from aggregator.client import CALL_SECONDS, CommandFailed, connect, report
from protos.v1 import sentinel_pb2

PAGE_SIZE = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """NODE and how to show its records."""
    parser.epilog = "Asks the aggregator at GCM_SENTINEL_AGGREGATOR_ADDRESS (localhost:50051)."
    parser.add_argument("node", metavar="NODE", help="the node's name")
    parser.add_argument("--incident", default="", metavar="ID", help="only of this incident")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with what each decision saw")


def run(arguments: argparse.Namespace) -> int:
    """Print the records; return the exit code."""
    found = False
    try:
        for record in _records(arguments):
            found = True
            sys.stdout.write((_as_json(record) if arguments.json else _as_text(record)) + "\n")
    except CommandFailed as error:
        return report(error)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us has read enough
        return 0
    if not found:
        sys.stderr.write(f"gcm-sentinel audit: nothing was ever decided about node {arguments.node!r}\n")
    return 0


def _records(arguments: argparse.Namespace) -> Iterator[sentinel_pb2.AuditRecord]:
    request = sentinel_pb2.ListAuditRecordsRequest(
        node=arguments.node, incident_id=arguments.incident, page_size=PAGE_SIZE
    )
    with connect() as (stub, metadata):
        while True:
            page = stub.ListAuditRecords(request, metadata=metadata, timeout=CALL_SECONDS)
            yield from page.records
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


def _as_json(record: sentinel_pb2.AuditRecord) -> str:
    return json_format.MessageToJson(record, preserving_proto_field_name=True, indent=None)


def _as_text(record: sentinel_pb2.AuditRecord) -> str:
    """One line, and one for each reason."""
    head = f"{record.at.ToJsonString()}  {record.action} {record.outcome}  {record.incident_id}  by {record.actor}"
    return "\n".join([render.visible(head), *(f"    {render.visible(reason)}" for reason in record.reasons)])
