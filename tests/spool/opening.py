"""Opens spools for tests, and reads them to their end."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from node_agent.evidence import Fact, Gap, Recorder
from node_agent.spool import Spool, SpoolLog, SpoolRecord
from protos.v1.evidence_pb2 import Evidence

SMALL = {"events_max_bytes": 128 * 1024, "samples_max_bytes": 128 * 1024}  # segments of 16 KiB
_RECORD = re.compile(rb"record (\d+) ")


def encode(fact: Fact) -> bytes:
    """As the agent's recorder does."""
    recorder = Recorder(node="n", boot_id="b", simulated=False, append_event=print, append_sample=print)
    return recorder.encode(fact)


@contextmanager
def open_spool(directory: Path, **options: Any) -> Iterator[Spool]:
    """A spool that tells its losses."""
    spool = Spool.open(directory, **options)
    try:
        spool.tell_losses_through(encode)
        yield spool
    finally:
        spool.close()


def payload(number: int, size_bytes: int = 100) -> bytes:
    """A record that says its number."""
    return (b"record %d " % number).ljust(size_bytes, b".")


def read_all(log: SpoolLog, offset: int = 0, *, max_bytes: int = 10_000, max_records: int = 64) -> list[SpoolRecord]:
    """Everything behind the offset, read as the uplink does; checks that offsets grow."""
    found: list[SpoolRecord] = []
    while records := log.read(offset, max_bytes=max_bytes, max_records=max_records):
        for record in records:
            assert record.end_offset > offset
            offset = record.end_offset
        found += records
    assert offset == max(log.end_offset, offset)
    return found


def numbers(records: list[SpoolRecord]) -> list[int]:
    """The numbers of the records made by `payload`, without the gaps among them."""
    return [int(match[1]) for record in records if (match := _RECORD.match(record.payload))]


def gaps(records: list[SpoolRecord]) -> list[tuple[Evidence, Gap]]:
    """The gaps among the records, as a server reads them."""
    found = []
    for record in records:
        if not _RECORD.match(record.payload):
            evidence = Evidence.FromString(record.payload)
            assert (evidence.kind, evidence.source) == ("evidence_gap", "gap")
            found.append((evidence, evidence.gap))
    return found


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for what the spool's thread does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def segment_files(directory: Path, log: str = "events") -> list[Path]:
    """The log's segments, oldest first."""
    return sorted(directory.glob(f"{log}-*.seg"))
