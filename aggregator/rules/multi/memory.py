"""GPU memory: uncorrectable errors, containment, row remapping and its states."""

from __future__ import annotations

from aggregator.model import SEVERITY_ORDER, Action, FaultClass, Resolution, Severity, Signal
from aggregator.rules import wording
from aggregator.rules.burst import Burst, Reading, fact
from aggregator.rules.context import Context
from aggregator.rules.finding import Finding, Rule, others

REMAPS = (63, 64, 177)
ERRORS = (48, 95, 140)
SRAM_UNITS = ("SM", "GPC", "TPC", "LTC", "L1", "L2", "MMU", "SRAM")
EXHAUSTED = ("table_full", "bank_full", "no_spare")
STATES = (
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
        explanation=("The memory has no spare row left where one is needed. " if _exhausted(cause) else "")
        + "The vendor replaces a GPU whose remap failure flag is set: nvidia-smi -q shows it.",
        permits=(Resolution.RMA,),
    )


def _exhausted(cause: tuple[Reading, ...]) -> bool:
    return any(reading.signal.attributes.get("remap_reason") in EXHAUSTED for reading in cause)


def _says_failed(signal: Signal) -> bool:
    remap = signal.attributes.get("remap") if signal.kind == "xid" and signal.code in REMAPS else None
    return signal.kind == "row_remap_failure" or remap in ("failed", "page_failed")


def uncorrectable(burst: Burst, _: Context) -> Finding | None:
    """A double-bit error together with its repair record: the error is the cause, the pending remap says what ends it."""
    errors = burst.of("xid", *ERRORS)
    if not errors or not burst.where(_records_a_repair):
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
        explanation="The driver has set a row or page aside; the repair takes effect when the GPU is reset.",
        recurrence_advice="If errors return after the reset, run field diagnostics; replacement waits for the remap failure flag.",
        do_not=(Resolution.RMA,),
    )


def _records_a_repair(signal: Signal) -> bool:
    if signal.kind == "xid":
        return signal.code == 63 or (signal.code == 64 and signal.attributes.get("remap") == "pending")
    return signal.kind in ("row_remap_pending", "retired_page_pending")


def sram_again(burst: Burst, context: Context) -> Finding | None:
    """Uncorrectable SRAM errors more than once on one GPU: no row can be remapped there, so only diagnostics tell what is next."""
    errors = [r for r in burst.of("xid", 94, *ERRORS) if _in_sram(r.signal)]
    known = [*(r.signal for r in errors), *(s for s in context.earlier if s.code in (94, *ERRORS) and _in_sram(s))]
    counts = {r.subject: wording.occurrences(s for s in known if _is_of(s, r)) for r in errors}
    again = [r for r in errors if counts[r.subject] > 1]
    if not again or burst.where(_records_a_repair):
        return None
    worst = max((r.entry.severity for r in again), key=SEVERITY_ORDER.__getitem__)
    cause = tuple(sorted(again, key=lambda r: r.entry.severity is not worst))
    return Finding(
        rule_id="memory/sram_again",
        priority=85,
        severity=worst,
        fault_class=FaultClass.MEMORY,
        action=Action.DRAIN if worst is Severity.CRITICAL else Action.NONE,
        resolutions=(Resolution.RESET_GPU, Resolution.RUN_DIAG, Resolution.CONTACT_SUPPORT),
        confidence=0.8,
        cause=cause,
        explanation=f"{counts[cause[0].subject]} uncorrectable errors in this GPU's SRAM: SRAM has no rows that could be remapped.",
        recurrence_advice="If it comes back after the reset, run field diagnostics; they, or the SRAM threshold flag, decide on "
        "a replacement.",
        open_questions=("Is this GPU's SRAM threshold flag set? nvidia-smi -q shows it.",),
        do_not=(Resolution.RMA,),
    )


def _in_sram(signal: Signal) -> bool:
    unit = str(signal.attributes.get("unit") or "").upper()
    return signal.attributes.get("memory") == "sram" or unit in SRAM_UNITS


def _is_of(signal: Signal, reading: Reading) -> bool:
    return (signal.pci or signal.gpu_uuid) == reading.subject


def restarted_since(burst: Burst, _: Context) -> Finding | None:
    """The GPU was started anew after its last memory fault: repairs that waited for it are in effect."""
    faults = burst.where(lambda s: (s.kind == "xid" and s.code in (63, 64, 94, *ERRORS)) or s.kind in STATES)
    if not faults or burst.where(_says_failed) or burst.kinds("sram_threshold_exceeded"):
        return None
    since = burst.restarts_after(faults)
    if not since:
        return None
    return Finding(
        rule_id="memory/restarted_since",
        priority=89,
        severity=Severity.INFO,
        fault_class=FaultClass.MEMORY,
        action=Action.NONE,
        resolutions=(Resolution.MONITOR, Resolution.RUN_DIAG),
        confidence=0.8,
        cause=tuple(sorted(faults, key=lambda r: -r.entry.weight)),
        proof=since,
        explanation="No memory error was reported since: what waited for that is in effect.",
        recurrence_advice="If errors return, run field diagnostics; replacement waits for the remap failure flag.",
        open_questions=("Does nvidia-smi -q still show a pending remap or page retirement?",),
        do_not=(Resolution.RMA,),
    )


def remap_recorded(burst: Burst, _: Context) -> Finding | None:
    """The driver recorded a remap and nothing else is known to wait or to fail: nothing is lost, and a reset is to be planned."""
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
        explanation="The faulty row is set aside; the spare takes its place at the next reset, whenever that suits.",
        recurrence_advice="Remaps in one bank exhaust its spares: watch the histogram; replacement waits for the failure flag.",
        do_not=(Resolution.RMA,),
    )


def _told_by(burst: Burst, xids: tuple[Reading, ...]) -> tuple[Reading, ...]:
    """What the same lines say besides their XID."""
    lines = {fact(reading.signal) for reading in xids}
    return tuple(reading for reading in burst.kinds(*STATES) if fact(reading.signal) in lines)


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
        explanation="The error was contained: the application that owned the memory dies, others on the GPU do not.",
        do_not=(Resolution.RMA,),
    )


RULES: tuple[Rule, ...] = (
    remap_failed,
    uncorrectable,
    sram_again,
    restarted_since,
    remap_recorded,
    remap_pending,
    sram_threshold,
    contained,
)
