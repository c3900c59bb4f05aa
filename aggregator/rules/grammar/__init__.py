"""Grammars: one file per driver or subsystem; each turns its lines into readings."""

from aggregator.rules.grammar import sxid, xid
from aggregator.rules.grammar.reading import Grammar

GRAMMARS: tuple[Grammar, ...] = (xid.GRAMMAR, *sxid.GRAMMARS)
