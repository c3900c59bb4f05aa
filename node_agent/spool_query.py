"""Answers questions about this node's evidence from the spool, a page at a time, without holding up the event loop."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from node_agent.spool import SpoolLog
from protos.v1 import evidence_pb2, sentinel_pb2

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
MAX_PAGE_BYTES = 2 * 1024 * 1024  # half of what a gRPC client accepts by default
MAX_PAGE_SCAN_BYTES = 8 * 1024 * 1024
READ_BYTES = 64 * 1024  # some milliseconds of decoding: the loop runs in between

_PCI = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})(?:\.([0-7]))?")


class BadQuery(Exception):
    """A request that cannot be answered as it is; the text says which field and what it must be."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What to show. `gpu` is a UUID or `dddd:bb:dd`, in lower case; times are nanoseconds since the epoch."""

    kinds: frozenset[str] = frozenset()
    gpu: str = ""
    since_ns: int = 0
    until_ns: int | None = None

    def admits(self, evidence: evidence_pb2.Evidence) -> bool:
        """Whether the evidence is asked for. The node does not interpret text: a line is about a GPU if it names it."""
        if self.kinds and evidence.kind not in self.kinds:
            return False
        occurred_ns = evidence.occurred_at.ToNanoseconds()
        if occurred_ns < self.since_ns or (self.until_ns is not None and occurred_ns >= self.until_ns):
            return False
        return not self.gpu or self.gpu in _names_of_gpus(evidence)


@dataclass(slots=True)
class Page:
    """Evidence in the order it was collected, and the offset to go on from; None at the end of the spool."""

    evidence: list[sentinel_pb2.StoredEvidence] = field(default_factory=list)
    next_offset: int | None = None


def filter_of(request: sentinel_pb2.ListEvidenceRequest) -> Filter:
    """The request's filter. Raises BadQuery."""
    since_ns, until_ns = request.since.ToNanoseconds(), request.until.ToNanoseconds()
    if request.HasField("until") and until_ns <= since_ns:
        raise BadQuery("until must be later than since")
    return Filter(
        kinds=frozenset(request.kinds),
        gpu=_gpu_name(request.gpu),
        since_ns=since_ns,
        until_ns=until_ns if request.HasField("until") else None,
    )


def watch_filter_of(request: sentinel_pb2.WatchEvidenceRequest) -> Filter:
    """The request's filter. Raises BadQuery."""
    return Filter(kinds=frozenset(request.kinds), gpu=_gpu_name(request.gpu))


def page_size_of(requested: int) -> int:
    """The page size to use. Raises BadQuery."""
    if requested > MAX_PAGE_SIZE:
        raise BadQuery(f"page_size must be at most {MAX_PAGE_SIZE}, not {requested}")
    return requested or DEFAULT_PAGE_SIZE


def page_token(log: SpoolLog, offset: int | None) -> str:
    """Where the next page begins; empty for none."""
    return "" if offset is None else f"{log.spool_id}:{offset}"


def page_offset(log: SpoolLog, token: str) -> int:
    """The offset a token stands for. Raises BadQuery when it is not one of this spool's."""
    if not token:
        return log.begin_offset
    spool_id, _, offset = token.rpartition(":")
    if spool_id != log.spool_id or not offset.isdecimal() or int(offset) > log.end_offset:
        raise BadQuery("page_token is not one of this node's spool: begin again without it")
    return int(offset)


async def read_page(log: SpoolLog, offset: int, wanted: Filter, page_size: int) -> Page:
    """One page from the offset on. It may hold less than it could, even nothing, and still have a next one: how much is read for a
    page is bounded."""
    page = Page()
    page_bytes = 0
    limit = offset + MAX_PAGE_SCAN_BYTES
    async for end_offset, evidence in read_evidence(log, offset):
        if wanted.admits(evidence):
            page.evidence.append(as_stored(evidence))
            page_bytes += evidence.ByteSize()
        if len(page.evidence) >= page_size or page_bytes >= MAX_PAGE_BYTES or end_offset >= limit:
            page.next_offset = end_offset if end_offset < log.end_offset else None
            break
    return page


async def read_evidence(log: SpoolLog, offset: int) -> AsyncIterator[tuple[int, evidence_pb2.Evidence]]:
    """Every evidence from the offset to the log's present end, each with the offset behind it."""
    while records := log.read(offset, max_bytes=READ_BYTES, max_records=1000):
        for record in records:
            offset = record.end_offset
            try:
                yield offset, evidence_pb2.Evidence.FromString(record.payload)
            except DecodeError:
                continue  # written by a version that this one cannot read; the aggregator gets it verbatim
        await asyncio.sleep(0)


def as_stored(evidence: evidence_pb2.Evidence) -> sentinel_pb2.StoredEvidence:
    """Evidence as the query service shows it; stored_at is the aggregator's to say."""
    key = f"{evidence.node}/{evidence.source}/{evidence.epoch}/{evidence.seq}"
    return sentinel_pb2.StoredEvidence(id=key, evidence=evidence)


def _gpu_name(text: str) -> str:
    """A GPU's name as it is compared: UUIDs as they are, PCI addresses as dddd:bb:dd without the function. Raises BadQuery."""
    name = text.strip().lower()
    if not name or name.startswith(("gpu-", "mig-")):
        return name
    match = _PCI.fullmatch(name)
    if match is None:
        raise BadQuery(f"gpu must be a UUID or a PCI address, not {text!r}")
    domain, bus, device, _ = match.groups()
    return f"{int(domain or '0', 16):04x}:{bus}:{device}"


def _names_of_gpus(evidence: evidence_pb2.Evidence) -> str:
    texts: Iterable[str] = (
        evidence.gpu.uuid,
        evidence.gpu.pci,
        evidence.kernel_record.line,
        evidence.text_capture.line,
        evidence.storm.last_line,
    )
    return "\n".join(texts).lower()
