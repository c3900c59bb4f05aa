"""Confines PromQL: what a model wrote is parsed, every selector in it gets matchers, and what is sent is our own print of it.

Prometheus never sees the model's text. The print is parsed again, and sent only when it still says the same and every selector in
it carries what was added; so neither the parser nor its printer is trusted alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import promql_parser
from promql_parser import (
    AggregateExpr,
    BinaryExpr,
    Expr,
    MatchOp,
    MatrixSelector,
    StringLiteral,
    SubqueryExpr,
    VectorSelector,
)

from aggregator.investigator.sources.asking import Refused, readable
from aggregator.investigator.sources.labels import quoted

MAX_LENGTH = 2000
MAX_SELECTORS = 8
MAX_OPERATORS = 60
MAX_REACH_SECONDS = 30 * 86_400  # how far back a query may look
MAX_SUBQUERY_POINTS = 2000
DEFAULT_SUBQUERY_STEP = timedelta(minutes=1)

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_OPERATOR = re.compile(r"[-+*/%^([{<>!]|=+|\b(?:and|or|unless|atan2)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Allowed:
    """Metrics that may be asked for: whole names, and beginnings of names, which end in "_", ":" or "*"."""

    entries: tuple[str, ...]

    def __contains__(self, name: str) -> bool:
        return any(name.startswith(entry.rstrip("*")) if _is_prefix(entry) else name == entry for entry in self.entries)

    @property
    def pattern(self) -> str:
        """RE2 for the whole name."""
        return "|".join(re.escape(entry.rstrip("*")) + (".*" if _is_prefix(entry) else "") for entry in self.entries)


@dataclass(frozen=True, slots=True)
class Selector:
    """One place in a query where series are chosen."""

    text: str  # confined to allowed metrics; without range, offset and @
    guard: str  # the matcher that confines it to allowed metrics, where it names none
    key: str  # as printed, with offset and @: what it is found again by


@dataclass(frozen=True, slots=True)
class Query:
    """A query that may be asked once its selectors are confined."""

    expression: Expr
    selectors: tuple[Selector, ...]  # each once
    reach_seconds: float  # how far before the moment of evaluation it looks, at most
    words: frozenset[str]  # labels it names, and its string literals
    equal: frozenset[tuple[str, str]]  # (label, value) of every matcher with "="

    def confined(self, added: Callable[[Selector], str]) -> str:
        """The query with matchers added to every selector. Raises Refused where that cannot be proved."""
        chosen = {s.key: ",".join(filter(None, (s.guard, added(s)))) for s in self.selectors}

        def visit(expression: Expr) -> Expr | None:
            if not isinstance(expression, VectorSelector):
                return None
            text = expression.prettify()
            return promql_parser.parse(_with_matchers(text, chosen[text]))

        confined = promql_parser.transform(self.expression, pre_visit=visit).prettify()
        _prove(self.expression, confined, chosen)
        return confined


def _is_prefix(entry: str) -> bool:
    return entry.endswith(("_", ":", "*"))


def read(text: str, allowed: Allowed, at_seconds: float) -> Query:
    """A query evaluated at a moment, checked. Raises Refused with the parser's words, or with what may be asked."""
    expression = _parsed(text)
    found: dict[str, Selector] = {}
    for node in _walked(expression):
        if isinstance(node, VectorSelector):
            selector = _selector(node, allowed)
            found[selector.key] = selector
    if not found:
        raise Refused("the query selects no series: name a metric")
    if len(found) > MAX_SELECTORS:
        raise Refused(f"the query has {len(found)} selectors, at most {MAX_SELECTORS} are taken: ask in parts")
    reach = _reach(expression, at_seconds)
    if reach > MAX_REACH_SECONDS:
        raise Refused(f"the query looks back {readable(reach)}; at most {readable(MAX_REACH_SECONDS)}")
    return Query(
        expression, tuple(found.values()), reach, frozenset(_words(expression)), frozenset(_equalities(expression))
    )


def with_matchers(selector: Selector, added: str) -> str:
    """A selector alone, with matchers added."""
    return _with_matchers(selector.text, added)


def _parsed(text: str) -> Expr:
    if len(text) > MAX_LENGTH:
        raise Refused(f"the query is longer than {MAX_LENGTH} characters")
    if len(_OPERATOR.findall(text)) > MAX_OPERATORS:  # the parser's time and memory grow with the cube of the depth
        raise Refused(f"the query has more than {MAX_OPERATORS} operators and brackets: ask in parts")
    try:
        expression = promql_parser.parse(text)
        if repr(promql_parser.parse(expression.prettify())) != repr(expression):  # they compare by identity alone
            raise Refused(
                "the query cannot be passed on unchanged: leave out empty `by ()`, negative `@` times and unusual escapes"
            )
    except ValueError as error:
        raise Refused(f"not PromQL: {str(error)[:500]}") from error
    return expression


def _selector(node: VectorSelector, allowed: Allowed) -> Selector:
    """Raises Refused."""
    key = node.prettify()
    if node.matchers.or_matchers:
        raise Refused("`or` between matchers is not taken: use =~ or write two selectors")
    for matcher in node.matchers.matchers:
        if not _NAME.fullmatch(matcher.name) or "\x00" in matcher.value:
            raise Refused(f"label name {matcher.name[:50]!r} is not taken: plain names and values only")
    named = [m.value for m in node.matchers.matchers if m.name == "__name__" and m.op == MatchOp.Equal]
    name = node.name or (named[0] if named else "")
    if name and (name not in allowed or not _NAME.fullmatch(name)):
        raise Refused(f"metric {name[:100]!r} is not among those that may be asked for: {', '.join(allowed.entries)}")
    matchers = ",".join(f"{m.name}{_SIGNS[str(m.op)]}{quoted(m.value)}" for m in node.matchers.matchers)
    text = f"{node.name or ''}{{{matchers}}}"
    guard = "" if name else f"__name__=~{quoted(allowed.pattern)}"
    return Selector(_with_matchers(text, guard) if guard else text, guard, key)


_SIGNS = {str(MatchOp.Equal): "=", str(MatchOp.NotEqual): "!=", str(MatchOp.Re): "=~", str(MatchOp.NotRe): "!~"}


def _with_matchers(text: str, added: str) -> str:
    """A printed selector with matchers in front of its own."""
    found = _NAME.match(text)
    name = found.group() if found else ""
    rest = text[len(name) :]
    if not rest.startswith("{"):
        return f"{name}{{{added}}}{rest}"
    return f"{name}{{{added}{'' if rest.startswith('{}') else ','}{rest[1:]}"


def _prove(original: Expr, printed: str, chosen: dict[str, str]) -> None:
    """Every selector of what will be sent holds what was added, and nothing else has changed. Raises Refused."""
    sent = promql_parser.parse(printed)
    before, after = _walked(original), _walked(sent)
    if len(before) != len(after) or repr(promql_parser.parse(sent.prettify())) != repr(sent):
        raise Refused("the query cannot be confined to the nodes in scope as it is written: simplify it")
    for old, new in zip(before, after, strict=True):
        if type(old) is not type(new):
            raise Refused("the query cannot be confined to the nodes in scope as it is written: simplify it")
        if isinstance(new, VectorSelector):
            wanted = _matcher_set(promql_parser.parse(f"{{{chosen[old.prettify()]}}}"))
            if new.matchers.or_matchers or not wanted <= _matcher_set(new):
                raise Refused("a selector of the query cannot be confined to the nodes in scope: simplify it")


def _matcher_set(selector: Any) -> set[tuple[str, str, str]]:
    return {(matcher.name, str(matcher.op), matcher.value) for matcher in selector.matchers.matchers}


def _walked(expression: Expr) -> list[Expr]:
    found: list[Expr] = []

    def visit(node: Expr) -> bool:
        found.append(node)
        return True

    promql_parser.walk(expression, visit)
    return found


def _words(expression: Expr) -> Iterable[str]:
    for node in _walked(expression):
        if isinstance(node, StringLiteral):
            yield node.val
        elif isinstance(node, AggregateExpr):
            yield from node.modifier.labels if node.modifier else ()
            yield from (node.param.val,) if isinstance(node.param, StringLiteral) else ()
        elif isinstance(node, BinaryExpr) and node.modifier:
            yield from node.modifier.matching.labels if node.modifier.matching else ()
            yield from node.modifier.group_labels or ()
        elif isinstance(node, VectorSelector):
            yield from (matcher.name for matcher in node.matchers.matchers)


def _equalities(expression: Expr) -> Iterable[tuple[str, str]]:
    for node in _walked(expression):
        if isinstance(node, VectorSelector):
            yield from ((m.name, m.value) for m in node.matchers.matchers if m.op == MatchOp.Equal)


def _reach(expression: Expr, at_seconds: float) -> float:
    """Ranges, offsets and @ of the whole query, added up: never less than what it really looks at. Raises Refused."""
    reach = 0.0
    points = 1.0
    for node in _walked(expression):
        if isinstance(node, MatrixSelector):
            reach += node.range.total_seconds()
        elif isinstance(node, SubqueryExpr):
            assert node.range is not None
            reach += node.range.total_seconds() + _moved(node, at_seconds)
            points *= max(node.range / (node.step or DEFAULT_SUBQUERY_STEP), 1)
        elif isinstance(node, VectorSelector):
            reach += _moved(node, at_seconds)
    if points > MAX_SUBQUERY_POINTS:
        raise Refused(f"its subqueries have {points:.0f} steps, at most {MAX_SUBQUERY_POINTS}: use a longer step")
    return reach


def _moved(node: VectorSelector | SubqueryExpr, at_seconds: float) -> float:
    moved = abs(node.offset.total_seconds()) if node.offset else 0.0
    if node.at is not None and node.at.at is not None:
        moved += abs(at_seconds - node.at.at.timestamp())
    return moved
