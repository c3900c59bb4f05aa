"""Builds signals for the engine's tests, from kernel lines as the driver prints them or typed as agents send them."""

from __future__ import annotations

from aggregator import rules
from aggregator.model import Evidence, EvidenceKey, Gpu, Phase, Signal, Verdict

A, B = "0000:18:00", "0000:2a:00"


def xid(code: int, text: str = "", gpu: str = A, who: str = "pid=4242, name=train") -> str:
    """An XID line."""
    words = ", ".join(part for part in (who, text) if part)
    return f"NVRM: Xid (PCI:{gpu}): {code}, {words}"


def signals_of(*facts: str | Evidence) -> list[Signal]:
    """What the reader makes of lines and typed evidence, a second apart."""
    found: list[Signal] = []
    for number, fact in enumerate(facts):
        evidence = line(fact, number) if isinstance(fact, str) else fact
        found.extend(rules.read(evidence))
    return found


def line(text: str, number: int, facility: int = 0) -> Evidence:
    """A kernel record."""
    key = EvidenceKey("node", "kmsg", "boot", number)
    return Evidence(key, "kernel_line", number * 1_000_000, text=text, facility=facility, level=4)


def typed(
    kind: str, gpu: str | None = A, *, phase: Phase = Phase.BEGAN, number: int = 100, **values: float | str
) -> Evidence:
    """A fact as the NVML or sysfs collector sends it."""
    key = EvidenceKey("node", "nvml", "epoch", number)
    where = Gpu(pci=f"{gpu}.0") if gpu else None
    return Evidence(key, kind, number * 1_000_000, phase=phase, gpu=where, values=values, detail=kind)


def judged(*facts: str | Evidence, **context: object) -> Verdict:
    """The verdict on lines and typed evidence."""
    return rules.judge(signals_of(*facts), rules.Context(**context))  # type: ignore[arg-type]
