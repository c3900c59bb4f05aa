"""Reads a dcgm-exporter: one bounded HTTP request, one exposition, one reading per GPU.

DCGM marks what it cannot read with numbers of its own ("blanks"), and the exporter leaves such series out. Both become None here,
and None is never zero. Everything in this module may block: callers run `scrape` through a `deadline.Sources`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from node_agent.evidence import Gpu
from node_agent.pci import normalise_address

if TYPE_CHECKING:  # costs memory: imported where a DCGM exporter is configured
    from http.client import HTTPResponse

MAX_BODY_BYTES = 8 << 20
MAX_GPUS = 256
SOCKET_TIMEOUT_SECONDS = 3.0
CHUNK_BYTES = 1 << 16

# What is read, and what each is called here; anything else the exporter offers stays with Prometheus.
FIELDS: Mapping[str, str] = {
    "DCGM_FI_DEV_XID_ERRORS": "xid_last",
    "DCGM_FI_DEV_ROW_REMAP_PENDING": "row_remap_pending",
    "DCGM_FI_DEV_ROW_REMAP_FAILURE": "row_remap_failure",
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": "rows_remapped_uncorrectable_total",
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": "rows_remapped_correctable_total",
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": "ecc_volatile_corrected_total",
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": "ecc_volatile_uncorrected_total",
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": "pcie_replay_total",
    "DCGM_FI_DEV_GPU_TEMP": "temperature_celsius",
    "DCGM_FI_DEV_MEMORY_TEMP": "memory_temperature_celsius",
    "DCGM_FI_DEV_POWER_USAGE": "power_watts",
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": "energy_millijoules_total",
    "DCGM_FI_DEV_GPU_UTIL": "utilization_percent",
}

_BLANK_CODES = 16  # each blank value starts a range: blank, not found, not supported, not permitted
_INT32_BLANK = 0x7FFFFFF0
_INT64_BLANK = 0x7FFFFFFFFFFFFFF0  # the parser gives whole numbers as int; as a float the range collapses into 2**63
_FP64_BLANK = 2.0**47


class ScrapeFailed(Exception):
    """The exporter gave no usable exposition; the text says why."""


@dataclass(slots=True)
class GpuSeries:
    """One GPU's series by our names. Several series of one name (MIG instances, pods) keep all their values; blanks keep none."""

    gpu: Gpu
    values: dict[str, set[float]] = field(default_factory=dict)

    def highest(self, name: str) -> float | None:
        """The largest value of that name; None when it is blank or absent."""
        return max(self.values.get(name, ()), default=None)


def scrape(url: str, deadline_seconds: float) -> dict[str, GpuSeries]:
    """GPUs by UUID (or index, where the exporter gives no UUID). Raises ScrapeFailed."""
    return parse(_fetch(urlsplit(url), time.monotonic() + deadline_seconds))


def parse(exposition: str) -> dict[str, GpuSeries]:
    """GPUs of an exposition. A line that cannot be parsed costs that line. Raises ScrapeFailed when it names none, or too many."""
    found: dict[str, GpuSeries] = {}
    for name, labels, value in _samples([line for line in exposition.splitlines() if _wanted(line)]):
        key = labels.get("UUID") or f"gpu {labels.get('gpu', '?')}"
        series = found.setdefault(key, GpuSeries(_gpu(labels)))
        values = series.values.setdefault(FIELDS[name], set())
        if not is_blank(value):
            values.add(value)
    if not 0 < len(found) <= MAX_GPUS:
        raise ScrapeFailed(f"the exposition names {len(found) or 'no'} GPUs")
    return found


def is_blank(value: float) -> bool:
    """Whether DCGM says with this number that it has none."""
    return (
        math.isnan(value)
        or _INT32_BLANK <= value < _INT32_BLANK + _BLANK_CODES
        or _FP64_BLANK <= value < _FP64_BLANK + _BLANK_CODES
        or value >= _INT64_BLANK
    )


def _wanted(line: str) -> bool:
    return line.partition("{")[0] in FIELDS


def _samples(lines: list[str]) -> Iterator[tuple[str, Mapping[str, str], float]]:
    try:
        yield from list(_parsed(lines))
    except ValueError:
        for line in lines:
            try:
                yield from list(_parsed([line]))
            except ValueError:
                continue


def _parsed(lines: Iterable[str]) -> Iterator[tuple[str, Mapping[str, str], float]]:
    from prometheus_client.parser import text_string_to_metric_families

    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def _gpu(labels: Mapping[str, str]) -> Gpu:
    minor = labels.get("device", "").removeprefix("nvidia")
    return Gpu(
        uuid=labels.get("UUID", ""),
        pci=normalise_address(labels.get("pci_bus_id", "")),
        minor=int(minor) if minor.isdecimal() else None,
        model=labels.get("modelName", ""),
    )


def _fetch(url: SplitResult, until: float) -> str:
    import http.client

    connect = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = connect(url.hostname or "", url.port, timeout=SOCKET_TIMEOUT_SECONDS)
    path = url.path if url.path.strip("/") else "/metrics"
    try:
        connection.request("GET", f"{path}?{url.query}" if url.query else path, headers={"Accept": "text/plain"})
        with connection.getresponse() as response:  # it may outlive its connection
            if response.status != http.client.OK:
                raise ScrapeFailed(f"the exporter answers HTTP {response.status}")
            return _body(response, until).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise ScrapeFailed(f"the exporter does not answer: {error or type(error).__name__}") from error
    finally:
        connection.close()


def _body(response: HTTPResponse, until: float) -> bytes:
    body = bytearray()
    while chunk := response.read1(CHUNK_BYTES):
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ScrapeFailed(f"the exposition is larger than {MAX_BODY_BYTES} bytes")
        if time.monotonic() > until:
            raise ScrapeFailed("the exporter sends too slowly")
    if response.length or (body and not body.endswith(b"\n")):  # read1 does not say so; half a number is another number
        raise ScrapeFailed("the exposition was cut short")
    return bytes(body)
