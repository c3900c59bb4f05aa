"""The cheap check that runs before any parsing: which grammars could have something to say about a line.

Each grammar names words one of which its lines hold; each word holds one of a few stems. A line without a stem, as nearly every
line of a log is, costs a search for the stems and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aggregator.rules.formats import RECORD_WORDS
from aggregator.rules.grammar import GRAMMARS
from aggregator.rules.grammar.nvidia_smi import OPENING_WORDS
from aggregator.rules.grammar.reading import Grammar

STEMS = (
    "nv", "gpu", "xid", "error", "fail", "reset", "power", "link", "watchdog", "permission", "no devices",
    "pcie", "aer:", "dpc:", "cmpltto", "sdes", "flr", "temperature", "thermal", "slowdown", "suppressed",
    "repeated", "oops", "lockup", "rcu", "edac", "panic", "killed", "blocked for", "protection", "unable to",
    "segfault", "xfs (", "reboot:", "version", "mlx", "bnxt", "cuda", "dcgm", "nccl", "fabric", "nouveau",
    "i915", "habana", "tesla", "imex", "psu", "[10de:", "dmar", "amd-vi", "smmu", "driver not", "(rev ff)",
    '"pri":', '"message":', '"__realtime', '"_transport',
)  # fmt: skip

# Words that matter to the reading of a log as a whole and to no grammar.
_LOG_WORDS = (*OPENING_WORDS, *RECORD_WORDS, "last message repeated")

WORDS: tuple[tuple[str, Grammar | None], ...] = (
    *((word, grammar) for grammar in GRAMMARS for word in grammar.words),
    *((word, None) for word in _LOG_WORDS),
)
_BY_STEM: Mapping[str, tuple[tuple[str, Grammar | None], ...]] = {
    stem: tuple(entry for entry in WORDS if stem == next(known for known in STEMS if known in entry[0]))
    for stem in STEMS
}


def stems_in(lowered: str) -> list[str]:
    """The stems that a lower-case text holds, one line or many."""
    return [stem for stem in STEMS if stem in lowered]


def grammars_for(lowered: str, stems: Iterable[str] = STEMS) -> list[Grammar] | None:
    """The grammars to ask about a lower-case line, in their order; None for a line that matters to nobody.

    `stems` may be narrowed to those known to occur in the text that the line is from.
    """
    found = {
        id(grammar): grammar for stem in stems if stem in lowered for word, grammar in _BY_STEM[stem] if word in lowered
    }
    if not found:
        return None
    return [grammar for grammar in found.values() if grammar is not None]
