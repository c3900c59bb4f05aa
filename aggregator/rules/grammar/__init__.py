"""Grammars: one file per driver or subsystem; each turns its lines into readings."""

from aggregator.rules.grammar import dcgm, host, network, nvrm, other_gpus, pcie, programs, smi_states, sxid, xid
from aggregator.rules.grammar.reading import Grammar

GRAMMARS: tuple[Grammar, ...] = (
    xid.GRAMMAR,
    *sxid.GRAMMARS,
    *nvrm.GRAMMARS,
    *pcie.GRAMMARS,
    *host.GRAMMARS,
    *network.GRAMMARS,
    other_gpus.GRAMMAR,
    *programs.GRAMMARS,
    smi_states.LONE_LEAF,
    dcgm.GRAMMAR,
)
