"""Advice that must never reach a reader as ours, whoever talked a model into it: found in its words, replaced where it stood."""

from __future__ import annotations

import re
from dataclasses import replace

from aggregator.model import SEVERITY_ORDER, Claim, Severity

_CHECKS = r"(?:ecc|checks?|monitor\w*|alerts?|alarms?|agent|sentinel|conditions?|health)"
_STOP = r"(?:disabl\w+|turn(?:ing)? off|switch(?:ing)? off|silenc\w+|mut(?:e|ing)|suppress\w*)"
_PROGRAMS = r"(?:kubectl|helm|curl|wget|rm|chmod|modprobe|bash|sh|sudo|ssh|dd)"
_MAY = r"(?:can|may|should|must|please|to|and|safe|safely|be|just)"
_FEW = r"(?:\S+ ){0,4}"

_ALWAYS: tuple[tuple[str, str], ...] = (
    ("force-delete", r"--force\b|--grace-period[= ]?0"),
    ("force-delete", r"\bforc(?:e|ed|ibly|ing)[- ]?(?:ly )?(?:delet|remov|terminat|evict|kill)"),
    ("uncordon", rf"\buncordon|\bmake {_FEW}schedulable again|\b(?:remove|lift|undo|delete) {_FEW}(?:cordon|taint)"),
    ("disable checks", rf"\b{_STOP} {_FEW}{_CHECKS}|nvidia-smi (?:-\S+ )*-e (?:0|disabled)"),
    ("run a command", rf"\b{_PROGRAMS}\s+(?:-|delete|drain|exec|apply|edit|patch|install)"),
)
_OF_A_FAULT: tuple[tuple[str, str], ...] = (
    ("ignore the fault", rf"\b{_MAY}\s+(?:be\s+)?(?:safely\s+)?(?:ignor|disregard|dismiss)(?:e|ed)?\b"),
    ("ignore the fault", r"^(?:please\s+)?(?:ignore|disregard|dismiss)\b|\bfalse[- ]?(?:alarm|positive)"),
    (
        "ignore the fault",
        r"\bno (?:further |other )?(?:action|intervention|repair|follow[- ]?up)s? (?:is |are )?(?:needed|required)",
    ),
    (
        "ignore the fault",
        r"\bno (?:further |other )?(?:action|intervention|repair) (?:is )?necessary|\bnothing (?:\w+ ){1,2}be done",
    ),
)


def _compiled(patterns: tuple[tuple[str, str], ...]) -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in patterns)


_ALWAYS_PATTERNS, _FAULT_PATTERNS = _compiled(_ALWAYS), _compiled(_OF_A_FAULT)
_SENTENCE = re.compile(r"(?<=[.!?;])\s+")


def without_forbidden(text: str, severity: Severity) -> tuple[str, tuple[str, ...]]:
    """The text with each forbidden sentence replaced, and the names of what was removed. What may be ignored, and what may not,
    depends on how bad it is."""
    patterns = _ALWAYS_PATTERNS
    if SEVERITY_ORDER[severity] >= SEVERITY_ORDER[Severity.WARNING]:
        patterns += _FAULT_PATTERNS
    sentences, removed = [], []
    for sentence in _SENTENCE.split(text):
        found = [name for name, pattern in patterns if pattern.search(sentence)]
        sentences.append(f"[advice removed: {found[0]}]" if found else sentence)
        removed.extend(found[:1])
    return " ".join(sentences), tuple(dict.fromkeys(removed))


def cleaned(claim: Claim, severity: Severity) -> tuple[Claim, tuple[str, ...]]:
    """A claim without forbidden advice; one that says nothing else is dropped."""
    text, removed = without_forbidden(claim.text, severity)
    left = re.sub(r"\[advice removed: [^\]]*\]", "", text).strip()
    because = claim.dropped_because or ("" if left else f"it advises what must not be done: {', '.join(removed)}")
    return (replace(claim, text=text, dropped_because=because), removed) if removed else (claim, ())
