"""Application faults: told from hardware faults, and merged when one crash prints several codes."""

from __future__ import annotations

from aggregator.model import Action, FaultClass, Resolution, Scalar, Severity, Signal
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
    if any(context.happened_before(reading.signal.name) for reading in faults):
        return ("Did different programs fail on this GPU, or always the same one? Job history tells.",)
    return ()


def one_place(burst: Burst, context: Context) -> Finding | None:
    """13 at one place of one GPU under different programs: programs differ, the place does not, so the place is suspect."""
    cause = tuple(r for r in burst.of("xid", 13) if len(_programs_at(_place(r.signal), burst, context)) > 1)
    if not cause:
        return None
    gpc, tpc = _place(cause[0].signal)[1:]
    programs = sorted(_programs_at(_place(cause[0].signal), burst, context))
    return Finding(
        rule_id="application/one_place",
        priority=49,
        severity=Severity.WARNING,
        fault_class=FaultClass.HARDWARE,
        action=Action.NONE,
        resolutions=(Resolution.RUN_DIAG, Resolution.INVESTIGATE),
        confidence=0.7,
        cause=cause,
        consequences=others(burst, cause),
        explanation=f"It came back at GPC {gpc}, TPC {tpc} under different programs ({', '.join(programs[:4])}): "
        "a program's bug is not bound to one place.",
        recurrence_advice="If the diagnostics pass, run the vendor's field diagnostics before this GPU is trusted again.",
        do_not=(Resolution.RMA, Resolution.RESET_GPU, Resolution.REBOOT),
        permits=(Resolution.CORDON, Resolution.DRAIN),
    )


def _place(signal: Signal) -> tuple[Scalar, Scalar, Scalar]:
    """The GPU and the part of it that an exception names."""
    return (signal.pci or signal.gpu_uuid, signal.attributes.get("gpc"), signal.attributes.get("tpc"))


def _programs_at(place: tuple[Scalar, Scalar, Scalar], burst: Burst, context: Context) -> set[str]:
    """The programs that met an exception there, now and in earlier incidents; none where the place is not known."""
    if None in place:
        return set()
    known = (*context.earlier, *(reading.signal for reading in burst.of("xid", 13)))
    there = (signal for signal in known if signal.kind == "xid" and signal.code == 13 and _place(signal) == place)
    return {str(signal.attributes["process"]) for signal in there if signal.attributes.get("process")}


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


RULES: tuple[Rule, ...] = (crash, one_place, cleanup_alone)
