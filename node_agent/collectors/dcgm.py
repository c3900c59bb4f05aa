"""DCGM as a second witness, by scraping a dcgm-exporter where one is configured.

DCGM goes blind in ways that look like health: blank values, a GPU left out, numbers that stopped moving, no answer. Each of these
is `dcgm_unobservable`. Its XID gauge holds the last XID for ever, so only a change counts; what else it gives is state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from node_agent.collectors import CollectorAbsent
from node_agent.deadline import Sources, SourceStuck
from node_agent.evidence import Fact, Gpu, GpuEvent, Observation, Phase, Report, Unreadable, Value
from node_agent.exporter import MAX_GPUS, GpuSeries, ScrapeFailed, scrape
from node_agent.states import States

CONFIRM_SCRAPES = 2  # an exporter that restarts misses one
STALE_SCRAPES = 10
NEVER_STILL = ("energy_millijoules_total", "power_watts")  # these move on an idle GPU too; temperatures may not
NVML_EVENT_XID = 0x8
FLAGS = ("row_remap_pending", "row_remap_failure")


@dataclass(slots=True)
class _Known:
    """What earlier scrapes said of one GPU."""

    gpu: Gpu
    xids: frozenset[int] | None = None  # None until the gauge was readable
    fields: set[str] = field(default_factory=set)  # that ever had a value
    moving: tuple[float | None, ...] = ()
    unmoved_scrapes: int = 0


class DcgmCollector:
    """Scrapes one exporter. `gpu_values` holds each GPU's present values by UUID, for snapshots."""

    name = "dcgm"

    def __init__(self, url: str | None, *, interval_seconds: float = 30.0, deadline_seconds: float = 10.0) -> None:
        self._url = url
        self._interval_seconds = interval_seconds
        self._deadline_seconds = deadline_seconds
        self._exporter = Sources(deadline_seconds)
        self._known: dict[str, _Known] = {}
        self._flags: States[tuple[str, str]] = States()
        self._blind: States[str] = States()
        self.gpu_values: dict[str, dict[str, Value]] = {}

    async def collect(self, report: Report) -> None:
        """Scrape until cancelled. Raises CollectorAbsent when no exporter is configured."""
        if self._url is None:
            raise CollectorAbsent("GCM_SENTINEL_DCGM_EXPORTER_URL is not set")
        while True:
            problem = ""
            try:
                found = await self._exporter.call(
                    "the dcgm-exporter", partial(scrape, self._url, self._deadline_seconds)
                )
            except (ScrapeFailed, SourceStuck) as error:
                problem = str(error)
            else:
                for fact in self._judge(found):
                    report(fact)
            if phase := self._blind.update("", bool(problem), confirm=CONFIRM_SCRAPES):
                report(
                    _unobservable(None, f"no DCGM: {problem}" if problem else "the DCGM exporter answers again", phase)
                )
            await asyncio.sleep(self._interval_seconds)

    def _judge(self, found: Mapping[str, GpuSeries]) -> Iterator[Fact]:
        for key, series in found.items():
            if key not in self._known and len(self._known) >= MAX_GPUS:
                continue  # names that change with every scrape are no GPUs
            known = self._known.setdefault(key, _Known(series.gpu))
            yield from _new_xids(known, series)
            yield from self._judge_flags(key, series)
        for key, known in self._known.items():
            reason = _blindness(known, found.get(key))
            if phase := self._blind.update(key, bool(reason), confirm=CONFIRM_SCRAPES):
                yield _unobservable(
                    known.gpu, f"DCGM cannot observe {key}: {reason}" if reason else f"DCGM observes {key}", phase
                )
        self.gpu_values = {key: _values(series) for key, series in found.items()}

    def _judge_flags(self, key: str, series: GpuSeries) -> Iterator[Fact]:
        for name in FLAGS:
            value = series.highest(name)
            if phase := self._flags.update((key, name), None if value is None else value > 0):
                detail = f"DCGM: {name.replace('_', ' ')} {'began' if phase is Phase.BEGAN else 'ended'}"
                yield Fact("dcgm", name, detail, phase, series.gpu, body=Observation(name, after=phase is Phase.BEGAN))


def _new_xids(known: _Known, series: GpuSeries) -> Iterator[Fact]:
    """XIDs that the gauge did not show before. The same XID again is invisible to DCGM's readers."""
    values = series.values.get("xid_last")
    if not values:
        return
    xids = frozenset(int(value) for value in values if value > 0)
    for xid in sorted(xids - known.xids) if known.xids is not None else ():
        yield Fact("dcgm", "xid", f"DCGM: last XID is now {xid}", gpu=series.gpu, body=GpuEvent(NVML_EVENT_XID, xid))
    known.xids = xids


def _blindness(known: _Known, series: GpuSeries | None) -> str:
    """Why DCGM says nothing of a GPU; empty when it does. A field that never had a value may be unsupported and is not missed."""
    if series is None:
        return "it is missing from the exposition"
    readable = {name for name, values in series.values.items() if values}
    lost = known.fields - readable
    known.fields |= readable
    moving = tuple(series.highest(name) for name in NEVER_STILL)
    known.unmoved_scrapes = known.unmoved_scrapes + 1 if moving == known.moving and any(moving) else 0
    known.moving = moving
    if not readable:
        return "all values are blank"
    if lost:
        return f"no value any more for {', '.join(sorted(lost))}"
    if known.unmoved_scrapes >= STALE_SCRAPES:
        return f"stale: power and energy have not moved for {known.unmoved_scrapes} scrapes"
    return ""


def _values(series: GpuSeries) -> dict[str, Value]:
    return {f"dcgm_{name}": series.highest(name) for name in series.values}


def _unobservable(gpu: Gpu | None, detail: str, phase: Phase) -> Fact:
    body = Observation("dcgm_series", after=Unreadable(detail) if phase is Phase.BEGAN else "readable")
    return Fact("dcgm", "dcgm_unobservable", detail, phase, gpu, body=body)
