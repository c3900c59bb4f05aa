"""NVML: GPUs' values, faults and events, read by a child process that may hang while the agent does not.

One child at a time. It is opened, polled in three groups, and replaced when it hangs, crashes, or shows an outdated list of GPUs.
A child that SIGKILL does not end (uninterruptible sleep in the driver) is waited for, and no other is started until the kernel
lets it go: killing NVML's clients in a loop has frozen GPUs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from node_agent.attributes import Attributes
from node_agent.collectors import CollectorAbsent
from node_agent.evidence import Fact, Report, Snapshot
from node_agent.nvml.codes import (
    DRIVER_NOT_LOADED,
    LIB_RM_VERSION_MISMATCH,
    LIBRARY_NOT_FOUND,
    NO_PERMISSION,
    DriverError,
)
from node_agent.nvml.node import Node
from node_agent.nvml.process import ChildCrashed, ChildHung, Message, NvmlChild, start_ticks
from node_agent.nvml.protocol import read_event, read_opened, read_reading
from node_agent.nvml.remembered import dump, load, save
from node_agent.pci import Bus

log = logging.getLogger(__name__)

STATE_FILE: Final = "nvml.json"
_REFUSALS: Final = {LIB_RM_VERSION_MISMATCH: "driver_version_mismatch", NO_PERMISSION: "nvml_permission_denied"}
_ABSENT: Final = frozenset({DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND})


class SnapshotUnavailable(Exception):
    """The GPUs cannot be read now; the text says why."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. Deadlines allow for hardware far slower than a healthy one: opening wakes GPUs without persistence mode."""

    critical: float = 1.0
    counters: float = 10.0
    snapshot: float = 300.0
    reopen: float = 300.0  # how often a lost or missing GPU is looked for
    open_deadline: float = 60.0
    critical_deadline: float = 5.0
    counters_deadline: float = 10.0
    snapshot_deadline: float = 30.0
    close_deadline: float = 5.0
    leave_deadline: float = 0.8  # when the agent stops
    first_restart: float = 2.0
    longest_restart: float = 300.0  # after hangs and crashes: each kill of an NVML client is a risk
    longest_retry: float = 60.0  # after refusals: drivers get installed
    settled: float = 60.0  # after so long a run the next failure counts as the first

    def deadline(self, group: str) -> float:
        """How long a group of calls may take."""
        deadlines = {"critical": self.critical_deadline, "counters": self.counters_deadline}
        return deadlines.get(group, self.snapshot_deadline)

    def interval(self, group: str) -> float:
        """How often a group is read."""
        return {"critical": self.critical, "counters": self.counters}.get(group, self.snapshot)


class NvmlCollector:
    """The GPUs of this node. `required` says that a node without a driver is a fault, whatever else is known.

    `environ` is the child's environment; None passes the agent's own on, LD_LIBRARY_PATH with it.
    """

    name = "nvml"

    def __init__(
        self,
        *,
        state_dir: Path,
        report_snapshot: Callable[[Snapshot], None],
        sysfs_root: Path = Path("/sys"),
        kernel_version: str = "",
        expected_gpus: int | None = None,
        simulated: Path | None = None,
        required: bool = False,
        timing: Timing = Timing(),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.deadline_misses = 0
        self._path = state_dir / STATE_FILE
        self._report_snapshot = report_snapshot
        self._bus = Bus(sysfs_root, Attributes())
        self._arguments = ("--simulated", str(simulated)) if simulated else ()
        self._required = required or simulated is not None
        self._timing = timing
        self._environ = environ
        self._report: Report = lambda fact: None
        self._confirmed = False
        remembered = load(self._path, time.monotonic())
        self._saved = None if remembered is None else dump(remembered)
        self._stuck = remembered.stuck if remembered else None
        self._node = Node(remembered, expected_gpus=expected_gpus, kernel_version=kernel_version)
        self._failures = 0
        self._longest_rest = timing.longest_restart
        self._unreadable_because = ""
        self._reading = False
        self._due: dict[str, float] = {}
        self._nudged_at = 0.0
        self._waiting: list[asyncio.Future[Snapshot]] = []
        self._yield_until: float | None = None
        self._wake = asyncio.Event()
        self._released = asyncio.Event()
        self._released.set()

    # --- what others ask
    @property
    def yielded_until(self) -> float | None:
        """When the driver is taken up again, in seconds since the epoch; None while a handle on it is, or may be, held."""
        return self._yield_until if self._released.is_set() else None

    def nvml_gpus(self) -> frozenset[str] | None:
        """PCI addresses of the GPUs that NVML offers; None while that is not known, or simulated."""
        return self._node.pci_addresses() if self._reading and not self._arguments else None

    async def snapshot(self, timeout_seconds: float) -> Snapshot:
        """A fresh reading of every GPU. Raises SnapshotUnavailable, and TimeoutError when it takes longer."""
        if self._unreadable_because:
            raise SnapshotUnavailable(self._unreadable_because)
        answer: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._wake.set()
        async with asyncio.timeout(timeout_seconds):
            return await answer

    async def yield_driver(self, seconds: float) -> None:
        """Let go of every handle on the driver for so long. Returns when that is done, or cannot be done for now because a driver
        call hangs: `yielded_until` tells."""
        self._yield_until = time.time() + seconds
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * self._timing.close_deadline):
                await self._released.wait()

    async def resume(self) -> None:
        """Take the driver up again now."""
        self._yield_until = None
        self._wake.set()

    # --- the life of children
    async def collect(self, report: Report) -> None:
        """Read GPUs until cancelled. Raises CollectorAbsent when nothing says that this node has any."""
        self._report = report
        try:
            await self._outwait_stuck()
            while True:
                await self._stay_yielded()
                await self._run_child()
                await self._rest()
        finally:
            await self._save()

    async def _run_child(self) -> None:
        self._released.clear()
        child = await NvmlChild.start(self._take_message, self._arguments, self._environ)
        began = time.monotonic()
        try:
            await self._poll(child)
            await child.close(self._timing.close_deadline)
            self._failures = 0
        except DriverError as refusal:
            self._refused(refusal, began)
        except ChildCrashed as crash:
            self._failed("nvml_child_crashed", str(crash), began)
        except ChildHung as hang:
            self.deadline_misses += 1
            self._failed("nvml_hung", str(hang), began)
            await self._end_hung(child)
        finally:
            self._reading = False
            await self._leave(child)
            await self._save()

    async def _end_hung(self, child: NvmlChild) -> None:
        if await child.kill():
            return
        self._stuck = (child.pid, start_ticks(child.pid) or 0)
        await self._tell_stuck(child.pid)
        await asyncio.shield(child.exited)
        self._stuck = None

    async def _outwait_stuck(self) -> None:
        """An earlier run of the agent may have left a child that nothing could end: it too must be gone first."""
        while self._stuck is not None and start_ticks(self._stuck[0]) == self._stuck[1]:
            await self._tell_stuck(self._stuck[0])
            await asyncio.sleep(self._timing.critical)
        self._stuck = None

    async def _tell_stuck(self, pid: int) -> None:
        stuck = f"process {pid} hangs in the driver and SIGKILL does not end it; no other is started until the kernel lets it go"
        if stuck != self._unreadable_because:
            log.error(stuck)
            self._cannot_read(stuck)
            self._tell(self._node.hang_is_final(stuck))
            await self._save()

    async def _leave(self, child: NvmlChild) -> None:
        """Whatever happened, no child outlives its run, save one that even SIGKILL does not end."""
        if not child.exited.done() and not child.killed:
            try:
                await child.close(self._timing.leave_deadline)
            except (ChildHung, ChildCrashed):
                await child.kill()
        if child.exited.done():
            self._released.set()

    async def _poll(self, child: NvmlChild) -> None:
        """Read the groups as they fall due; returns when the driver must be let go of or opened anew."""
        timing, node = self._timing, self._node
        opened = read_opened(await child.ask("open", timing.open_deadline))
        began = time.monotonic()
        self._tell(node.opened(opened, began, confirmed=self._confirmed))
        self._confirmed = False
        self._due = {group: began + timing.interval(group) for group in ("critical", "counters", "snapshot")}
        await self._read(child, "snapshot")
        self._tell(node.driver_is(None))
        self._unreadable_because, self._reading = "", True
        self._report_snapshot(node.snapshot())
        await self._save()
        while self._yield_until is None and not self._opening_is_due(time.monotonic() - began):
            group = await self._next_due()
            if group is None:
                continue
            await self._read(child, group)
            if group == "snapshot":
                self._report_snapshot(node.snapshot())
            if group != "critical":
                await self._save()

    def _opening_is_due(self, age_seconds: float) -> bool:
        """Only a new opening shows a list of GPUs that changed, or finds one that came back."""
        if self._node.incomplete and age_seconds >= self._timing.reopen:
            return True
        return (self._node.outdated or self._confirmed) and age_seconds >= self._timing.counters

    async def _next_due(self) -> str | None:
        """The group that is due, when it is; None when woken for something else."""
        group = min(self._due, key=self._due.__getitem__)
        if self._waiting:
            group = "snapshot"
        elif not await self._sleep_until(self._due[group]):
            return None
        self._due[group] = time.monotonic() + self._timing.interval(group)
        return group

    async def _read(self, child: NvmlChild, group: str) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            reading = read_reading(await child.ask(group, self._timing.deadline(group)))
        except BaseException:
            self._waiting += waiting
            raise
        self._tell(self._node.read(reading, time.monotonic()))
        for answer in waiting:
            if not answer.done():
                answer.set_result(self._node.snapshot())

    async def _sleep_until(self, when: float) -> bool:
        """True when it is that time, False when woken before: a wake that nobody waited for counts at the next sleep."""
        try:
            async with asyncio.timeout(when - time.monotonic()):
                await self._wake.wait()
        except TimeoutError:
            return True
        self._wake.clear()
        return False

    async def _rest(self) -> None:
        """Wait before the next child, longer after each failure; a wish to yield is heard."""
        if not self._failures:
            return
        delay = min(self._timing.first_restart * 2 ** min(self._failures - 1, 16), self._longest_rest)
        until = time.monotonic() + delay
        while self._yield_until is None and not await self._sleep_until(until):
            pass

    async def _stay_yielded(self) -> None:
        while self._yield_until is not None and (left := self._yield_until - time.time()) > 0:
            until = time.strftime("%H:%M:%S UTC", time.gmtime(self._yield_until))
            self._cannot_read(f"the agent has let go of the driver until {until}")
            self._tell(self._node.yielded(self._unreadable_because))
            await self._save()
            await self._sleep_until(time.monotonic() + left)
            self._unreadable_because = ""
        self._yield_until = None
        self._tell(self._node.resumed())

    # --- what children tell
    def _take_message(self, message: Message) -> None:
        if "event_gap" in message:
            self._tell(self._node.event_gap(message["event_gap"]))
            return
        now = time.monotonic()
        self._tell(self._node.event(read_event(message), now))
        if self._due and now - self._nudged_at >= self._timing.critical:
            # What the event is about shows in the values: do not wait for their turn.
            self._nudged_at = now
            self._due["critical"] = self._due["counters"] = now
            self._wake.set()

    def _refused(self, refusal: DriverError, began: float) -> None:
        if refusal.code in _ABSENT and not self._required and not self._node.has_gpus and not self._bus.gpus():
            absent = f"no NVIDIA driver, and no sign of a GPU: {refusal}"
            self._cannot_read(absent)
            raise CollectorAbsent(absent) from refusal
        kind = _REFUSALS.get(refusal.code, "nvml_unavailable")
        self._failed(kind, f"NVML refuses with {refusal.code}: {refusal}", began)
        self._longest_rest = self._timing.longest_retry

    def _failed(self, kind: str, detail: str, began: float) -> None:
        self._failures = 1 if time.monotonic() - began >= self._timing.settled else self._failures + 1
        self._longest_rest = self._timing.longest_restart
        self._cannot_read(detail)
        log.warning("%s: %s", kind, detail)
        self._tell(self._node.driver_is(kind, detail))

    def _cannot_read(self, because: str) -> None:
        self._unreadable_because = because
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(SnapshotUnavailable(because))
        self._waiting.clear()

    def _tell(self, facts: Iterable[Fact]) -> None:
        for fact in facts:
            self._report(fact)

    async def _save(self) -> None:
        if self._saved is not None and not self._path.exists():
            self._confirmed = True  # someone removed the file: what is missing is missing on purpose
        text = dump(replace(self._node.remembered(), stuck=self._stuck))
        if text == self._saved and not self._confirmed:
            return
        try:
            await asyncio.to_thread(save, self._path, text)
        except OSError as error:
            log.warning("%s cannot be written (%s): a restart will not remember the GPUs", self._path, error)
        else:
            self._saved = text
