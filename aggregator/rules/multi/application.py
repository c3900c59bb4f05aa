"""Application faults: told from hardware faults, and merged when one crash prints several codes."""

from __future__ import annotations

from aggregator.model import Action, FaultClass, Resolution, Severity
from aggregator.rules.burst import Burst, Reading
from aggregator.rules.context import Context
from aggregator.rules.finding import Finding, Rule, others

FAULTS = (13, 31, 32, 69)
CLEANUP = (43, 45)
TRACES = ("nccl_error", "nccl_segfault", "app_segfault", "cuda_error", "peermem_error", "oom_kill")
HARM = (
    Resolution.CORDON,
    Resolution.DRAIN,
    Resolution.RESET_GPU,
    Resolution.REBOOT,
    Resolution.POWER_CYCLE,
    Resolution.RMA,
)


def crash(burst: Burst, context: Context) -> Finding | None:
    """A program's own fault and its cleanup: the GPU is well."""
    faults = burst.of("xid", *FAULTS)
    rest = others(burst, (*faults, *burst.of("xid", *CLEANUP), *burst.kinds(*TRACES)))
    if not faults or rest or any("body_suggests" in r.signal.attributes for r in faults):
        return None
    gpus = {reading.subject for reading in faults}
    return Finding(
        rule_id="application/crash",
        priority=48,
        severity=Severity.WARNING,
        fault_class=FaultClass.APPLICATION,
        action=Action.NONE,
        resolutions=(Resolution.RESTART_APP, Resolution.FIX_APP),
        confidence=0.8,
        cause=faults,
        consequences=others(burst, faults),
        explanation=_explanation(faults, len(gpus)),
        recurrence_advice="If it comes back on the same GPU under different programs, run diagnostics on that GPU.",
        open_questions=_questions(faults, context),
        do_not=HARM,
    )


def _explanation(faults: tuple[Reading, ...], gpus: int) -> str:
    programs = sorted({str(r.signal.attributes["process"]) for r in faults if r.signal.attributes.get("process")})
    told = f"The program {programs[0]} made the access. " if len(programs) == 1 else ""
    if gpus > 1:
        return told + f"{gpus} GPUs report it together, as ranks of one job do: the job is the common cause."
    return told + "The driver stopped the program; the GPU itself reports no error."


def _questions(faults: tuple[Reading, ...], context: Context) -> tuple[str, ...]:
    if any(reading.signal.name in context.earlier_codes for reading in faults):
        return ("Did different programs fail on this GPU, or always the same one? Job history tells.",)
    return ()


def cleanup_alone(burst: Burst, _: Context) -> Finding | None:
    """45 or 43 by itself: a program was ended, by its user, a crash or another node's failure."""
    cause = burst.of("xid", *CLEANUP)
    if not cause or others(burst, (*cause, *burst.kinds(*TRACES))):
        return None
    killed = burst.kinds("oom_kill")
    return Finding(
        rule_id="application/killed_for_memory" if killed else "application/cleanup_alone",
        priority=20,
        severity=Severity.WARNING if killed else Severity.INFO,
        fault_class=FaultClass.APPLICATION,
        action=Action.NONE,
        resolutions=(Resolution.RESTART_APP, Resolution.INVESTIGATE),
        confidence=0.65,
        cause=killed or cause,
        consequences=others(burst, killed or cause),
        explanation="The host ran out of memory and ended the program; the GPU only cleaned up." if killed else "",
        open_questions=("Was the job ended on purpose? Its exit status tells.",),
        do_not=HARM,
    )


RULES: tuple[Rule, ...] = (crash, cleanup_alone)
