"""GPU memory: uncorrectable errors, containment, row remapping and its states."""

from __future__ import annotations

from aggregator.model import Action, FaultClass, Resolution, Severity, Signal
from aggregator.rules.burst import Burst, Reading
from aggregator.rules.context import Context
from aggregator.rules.finding import Finding, Rule, others

REMAPS = (63, 64, 177)
TRACES = (
    "ecc_uncorrectable",
    "ecc_corrected",
    "row_remap_pending",
    "row_remapped",
    "retired_page",
    "retired_page_pending",
)


def remap_failed(burst: Burst, _: Context) -> Finding | None:
    """The row-remap failure flag, or an XID 64 whose text says that no row is left: the vendor's replacement criterion."""
    cause = burst.where(_says_failed)
    if not cause:
        return None
    return Finding(
        rule_id="memory/remap_failed",
        priority=88,
        severity=Severity.CRITICAL,
        fault_class=FaultClass.MEMORY,
        action=Action.DRAIN,
        resolutions=(Resolution.DRAIN, Resolution.RMA, Resolution.CONTACT_SUPPORT, Resolution.RESET_GPU),
        confidence=0.9,
        cause=cause,
        consequences=others(burst, cause),
        explanation="The memory has no spare row left where one is needed: the vendor replaces a GPU on this flag.",
        permits=(Resolution.RMA,),
    )


def _says_failed(signal: Signal) -> bool:
    remap = signal.attributes.get("remap") if signal.kind == "xid" and signal.code in REMAPS else None
    return signal.kind == "row_remap_failure" or remap in ("failed", "page_failed")


def uncorrectable(burst: Burst, _: Context) -> Finding | None:
    """A double-bit error together with its repair record: the error is the cause, the pending remap says what ends it."""
    errors = burst.where(lambda s: s.kind == "xid" and s.code in (48, 95, 140))
    repairs = burst.where(lambda s: s.kind in TRACES or (s.kind == "xid" and s.code in (63, 64, 94)))
    if not errors or not repairs:
        return None
    return Finding(
        rule_id="memory/uncorrectable_with_repair",
        priority=86,
        severity=Severity.CRITICAL,
        fault_class=FaultClass.MEMORY,
        action=Action.DRAIN,
        resolutions=(Resolution.DRAIN, Resolution.RESET_GPU, Resolution.RUN_DIAG),
        confidence=0.88,
        cause=errors,
        consequences=others(burst, errors),
        explanation="The driver has set a row or page aside; the repair takes effect when the GPU is reset.",
        recurrence_advice="If errors return after the reset, run field diagnostics; replacement waits for the remap failure flag.",
        do_not=(Resolution.RMA,),
    )


def remap_recorded(burst: Burst, _: Context) -> Finding | None:
    """The driver recorded a remap and nothing else is known to wait or to fail: a record, not a fault."""
    cause = burst.of("xid", 63)
    if not cause or others(burst, (*cause, *_told_by(burst, cause))):
        return None
    return Finding(
        rule_id="memory/remap_recorded",
        priority=70,
        severity=Severity.INFO,
        fault_class=FaultClass.MEMORY,
        action=Action.NONE,
        resolutions=(Resolution.MONITOR, Resolution.RESET_GPU),
        confidence=0.8,
        cause=cause,
        consequences=_told_by(burst, cause),
        explanation="The faulty row is set aside; the spare takes its place at the next reset, whenever that suits.",
        recurrence_advice="Remaps in one bank exhaust its spares: watch the histogram; replacement waits for the failure flag.",
        do_not=(Resolution.RMA,),
    )


def _told_by(burst: Burst, xids: tuple[Reading, ...]) -> tuple[Reading, ...]:
    """What the same lines say besides their XID."""
    lines = {reading.signal.raw for reading in xids}
    return tuple(reading for reading in burst.kinds(*TRACES) if reading.signal.raw and reading.signal.raw in lines)


def remap_pending(burst: Burst, _: Context) -> Finding | None:
    """A remap waits for a reset, as NVML or an XID 64 says: schedule it, nothing is lost meanwhile."""
    recorded = {reading.signal.id for reading in _told_by(burst, burst.of("xid", 63))}
    pending = tuple(r for r in burst.kinds("row_remap_pending") if r.signal.id not in recorded)
    if not pending or burst.of("xid", 48, 95, 140):
        return None
    return Finding(
        rule_id="memory/remap_pending",
        priority=75,
        severity=Severity.WARNING,
        fault_class=FaultClass.MEMORY,
        action=Action.NONE,
        resolutions=(Resolution.RESET_GPU, Resolution.DRAIN, Resolution.MONITOR),
        confidence=0.85,
        cause=pending,
        consequences=others(burst, pending),
        explanation="The faulty row is isolated; applications may go on until a reset at a convenient time puts the spare row in.",
        recurrence_advice="Remaps in one bank exhaust its spares: watch the histogram; replacement waits for the failure flag.",
        do_not=(Resolution.RMA,),
    )


def sram_threshold(burst: Burst, _: Context) -> Finding | None:
    """The SRAM error threshold flag: the one SRAM condition that calls for field diagnostics."""
    cause = burst.kinds("sram_threshold_exceeded")
    if not cause:
        return None
    return Finding(
        rule_id="memory/sram_threshold",
        priority=87,
        severity=Severity.CRITICAL,
        fault_class=FaultClass.MEMORY,
        action=Action.DRAIN,
        resolutions=(Resolution.DRAIN, Resolution.RUN_DIAG, Resolution.CONTACT_SUPPORT),
        confidence=0.85,
        cause=cause,
        consequences=others(burst, cause),
        explanation="SRAM cannot be remapped: past the threshold the vendor asks for field diagnostics.",
    )


def contained(burst: Burst, _: Context) -> Finding | None:
    """A contained error and nothing worse: only its owner dies, the GPU goes on."""
    cause = burst.of("xid", 94)
    if not cause or burst.where(lambda s: s.kind == "xid" and s.code in (48, 64, 79, 95, 119, 120, 140)):
        return None
    return Finding(
        rule_id="memory/contained",
        priority=65,
        severity=Severity.WARNING,
        fault_class=FaultClass.MEMORY,
        action=Action.NONE,
        resolutions=(Resolution.RESTART_APP, Resolution.RESET_GPU, Resolution.MONITOR),
        confidence=0.82,
        cause=cause,
        consequences=others(burst, cause),
        explanation="The error was contained: the application that owned the memory dies, others on the GPU do not.",
        do_not=(Resolution.RMA,),
    )


RULES: tuple[Rule, ...] = (remap_failed, uncorrectable, remap_recorded, remap_pending, sram_threshold, contained)
