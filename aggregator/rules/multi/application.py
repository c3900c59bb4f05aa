"""Application faults: told from hardware faults, and merged when one crash prints several codes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aggregator.model import Action, FaultClass, Resolution, Scalar, Severity, Signal
from aggregator.rules import wording
from aggregator.rules.burst import Burst, Reading, event_order
from aggregator.rules.context import Context
from aggregator.rules.finding import Finding, Rule, others

FAULTS = (13, 31, 32, 69)
CLEANUP = (43, 45)
ONE_JOB_US = 60_000_000  # ranks of one job fault within this
SUSPICIOUS_PROGRAMS = 3  # two may both have a bug
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
        explanation=_explanation(faults, len(gpus)),
        recurrence_advice="If it comes back on the same GPU under different programs, run diagnostics on that GPU.",
        open_questions=_questions(faults, context),
        do_not=HARM,
    )


def _explanation(faults: tuple[Reading, ...], gpus: int) -> str:
    programs = sorted(_programs(reading.signal for reading in faults))
    told = f"Its channel was the program {wording.quoted(programs[0])}'s. " if len(programs) == 1 else ""
    if gpus == 1:
        return told + "The driver stopped the program; the GPU itself reports no error."
    if len(programs) <= 1 and _within(faults, ONE_JOB_US):
        return told + f"{gpus} GPUs report it together, as ranks of one job do: the job is the common cause."
    return told + f"{gpus} GPUs report it, none of them an error of its own."


def _questions(faults: tuple[Reading, ...], context: Context) -> tuple[str, ...]:
    if any(context.happened_before(reading.signal.name) for reading in faults):
        return ("Did different programs fail on this GPU, or always the same one? Job history tells.",)
    return ()


def _programs(signals: Iterable[Signal]) -> set[str]:
    """The programs whose channels faults named."""
    return {str(signal.attributes["process"]) for signal in signals if signal.attributes.get("process")}


def _within(readings: Iterable[Reading], span_us: int) -> bool:
    times = [reading.signal.at_us or 0 for reading in readings]
    return max(times) - min(times) <= span_us


def several_programs(burst: Burst, context: Context) -> Finding | None:
    """Program after program faults on one GPU: each may have its own bug, and the GPU is what they have in common."""
    faults = burst.of("xid", *FAULTS)
    seen = [*(s for s in context.earlier if s.kind == "xid" and s.code in FAULTS), *(r.signal for r in faults)]
    cause = tuple(r for r in faults if len(_apart(seen, r.subject)) >= SUSPICIOUS_PROGRAMS)
    if not cause or others(burst, (*cause, *burst.of("xid", *CLEANUP), *burst.kinds(*TRACES))):
        return None
    programs = _apart(seen, cause[0].subject)
    return Finding(
        rule_id="application/several_programs",
        priority=49,
        severity=Severity.WARNING,
        fault_class=FaultClass.UNKNOWN,
        action=Action.NONE,
        resolutions=(Resolution.RUN_DIAG, Resolution.INVESTIGATE),
        confidence=0.5,
        caution=0.75,
        cause=cause,
        root_cause=f"{wording.place(cause[0])}: {len(programs)} different programs faulted on it one after the other "
        f"({wording.listed([wording.quoted(name) for name in programs])}).",
        explanation="Each may have a bug of its own; the GPU is what they have in common, so it is checked before they are blamed.",
        recurrence_advice="If the diagnostics pass, see whether the programs fault on other GPUs too before this one is suspected.",
        open_questions=("Do the same programs fault on other GPUs, or other programs on this one? Job history tells.",),
        do_not=(Resolution.RMA, Resolution.RESET_GPU, Resolution.REBOOT),
        permits=(Resolution.CORDON, Resolution.DRAIN),
    )


def _apart(seen: Sequence[Signal], gpu: str | None) -> list[str]:
    """Programs that faulted on this GPU, each more than a minute after the one before: ranks of one job fault together."""
    programs: list[str] = []
    last_us: int | None = None
    for signal in sorted((s for s in seen if gpu and (s.pci or s.gpu_uuid) == gpu), key=event_order):
        program, at_us = signal.attributes.get("process"), signal.at_us
        if program and str(program) not in programs and at_us is not None:
            if last_us is None or at_us - last_us > ONE_JOB_US:
                programs.append(str(program))
            last_us = at_us
    return programs


def one_place(burst: Burst, context: Context) -> Finding | None:
    """13 at one place of one GPU under different programs: programs differ, the place does not, so the place is suspect."""
    cause = tuple(r for r in burst.of("xid", 13) if len(_programs_at(_place(r.signal), burst, context)) > 1)
    if not cause:
        return None
    gpc, tpc = _place(cause[0].signal)[1:]
    programs = sorted(_programs_at(_place(cause[0].signal), burst, context))
    return Finding(
        rule_id="application/one_place",
        priority=50,
        severity=Severity.WARNING,
        fault_class=FaultClass.HARDWARE,
        action=Action.NONE,
        resolutions=(Resolution.RUN_DIAG, Resolution.INVESTIGATE),
        confidence=0.7,
        cause=cause,
        explanation=f"It came back at GPC {gpc}, TPC {tpc} under different programs "
        f"({wording.listed([wording.quoted(name) for name in programs])}): "
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
    return _programs(there)


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
        explanation="The kernel killed a program for lack of memory; the GPU only cleaned up." if killed else "",
        open_questions=("Was the job ended on purpose? Its exit status tells.",),
        do_not=HARM,
    )


RULES: tuple[Rule, ...] = (crash, several_programs, one_place, cleanup_alone)
