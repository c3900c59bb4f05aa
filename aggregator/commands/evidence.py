"""`gcm-sentinel evidence NODE`: what is stored of a node, and with --follow what is being stored."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

from google.protobuf import json_format

from aggregator.client import CALL_SECONDS, CommandFailed, connect, report
from aggregator.commands.spans import span
from protos.v1 import sentinel_pb2

PAGE_SIZE = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """NODE and what to show of it."""
    parser.epilog = "Asks the aggregator at GCM_SENTINEL_AGGREGATOR_ADDRESS (localhost:50051)."
    parser.add_argument("node", metavar="NODE", help="the node's name")
    parser.add_argument(
        "--follow", action="store_true", help="go on with what is stored from now on, until interrupted"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--since", type=span, default=86_400, metavar="SPAN", help="30m, 12h, 7d … (default 24h)")
    parser.add_argument("--kind", action="append", default=[], metavar="KIND", help="only this kind; may be repeated")
    parser.add_argument("--gpu", default="", help="only this GPU: a UUID or PCI address")


def run(arguments: argparse.Namespace) -> int:
    """Print evidence, oldest first; return the exit code."""
    try:
        found = False
        for stored in _evidence(arguments):
            found = True
            sys.stdout.write((_as_json(stored) if arguments.json else _as_line(stored)) + "\n")
            if arguments.follow:
                sys.stdout.flush()
    except CommandFailed as error:
        return report(error)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us has read enough
        return 0
    if not found:
        sys.stderr.write(f"gcm-sentinel evidence: nothing of node {arguments.node!r} is stored that fits\n")
    return 0


def _evidence(arguments: argparse.Namespace) -> Iterator[sentinel_pb2.StoredEvidence]:
    with connect() as (stub, metadata):
        watch = sentinel_pb2.WatchEvidenceRequest(node=arguments.node, kinds=arguments.kind, gpu=arguments.gpu)
        following = stub.WatchEvidence(watch, metadata=metadata) if arguments.follow else ()
        request = sentinel_pb2.ListEvidenceRequest(
            node=arguments.node, kinds=arguments.kind, gpu=arguments.gpu, page_size=PAGE_SIZE
        )
        request.since.FromSeconds(int(time.time()) - arguments.since)
        seen: set[str] = set()
        while True:
            page = stub.ListEvidence(request, metadata=metadata, timeout=CALL_SECONDS)
            seen = {stored.id for stored in page.evidence}
            yield from page.evidence
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        for response in following:
            if response.skipped:
                sys.stderr.write(f"gcm-sentinel: {response.skipped} passed over: this reader was too slow\n")
            if response.evidence.id not in seen:
                yield response.evidence


def _as_json(stored: sentinel_pb2.StoredEvidence) -> str:
    return json_format.MessageToJson(stored, preserving_proto_field_name=True, indent=None)


def _as_line(stored: sentinel_pb2.StoredEvidence) -> str:
    """Time, source, signals or kind, and the fact's own words with control characters made harmless."""
    fact = stored.evidence
    text = fact.kernel_record.line or fact.text_capture.line or fact.detail
    plain = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    place = fact.gpu.pci or fact.gpu.uuid
    name = ", ".join(stored.signals) or fact.kind
    ended = " ended" if fact.phase == 3 else ""
    return "  ".join(
        part for part in (fact.occurred_at.ToJsonString(), fact.source, name + ended, place, plain) if part
    )
