"""Asks a Prometheus about some nodes and no others: each selector by the label that really names the node in its series.

Which label that is, is found by asking first. The same answer says who produced the series: what was pushed, or scraped in a
tenant's namespace, is tenant-class whatever it is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aggregator.investigator.sources import Unavailable, promql
from aggregator.investigator.sources.asking import Refused, readable
from aggregator.investigator.sources.http import Endpoint, TooLarge
from aggregator.investigator.sources.labels import (
    ADDRESS_LABELS,
    NODE_LABELS,
    SYSTEM_NAMESPACES,
    NodeNames,
    quoted,
)

LEAST_LOOK_SECONDS = 300  # how far back a series may end and still be known
SERVER_TIMEOUT = "15s"

_Series = Mapping[str, Any]
_PUSHED = "count by (job,instance)(last_over_time(push_time_seconds[1h]))"


@dataclass(frozen=True, slots=True)
class Question:
    """A query with its bounds. Times are seconds since the epoch."""

    query: promql.Query
    names: NodeNames
    end: float
    duration: float
    step: float


@dataclass(frozen=True, slots=True)
class Choice:
    """How one selector knows the node, and who makes its series."""

    label: str
    producers: tuple[str, ...] = ()
    tenant: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What Prometheus said to a confined query."""

    sent: str
    result: Mapping[str, Any]  # resultType and result, as Prometheus has them
    warnings: tuple[str, ...]
    choices: tuple[Choice, ...]
    step_seconds: float = 0.0  # 0 for an instant

    @property
    def is_empty(self) -> bool:
        """True where nothing was found."""
        return not self.result["result"]

    @property
    def is_tenants(self) -> bool:
        """True where a tenant may have made any of it."""
        return any(choice.tenant for choice in self.choices)


@dataclass(frozen=True)
class ConfinedPrometheus:
    """A Prometheus, or what speaks its query API."""

    endpoint: Endpoint
    system_namespaces: tuple[str, ...] = SYSTEM_NAMESPACES

    async def unavailable(self) -> str:
        """Why it cannot be asked now; empty while it can."""
        try:
            reply = await self.endpoint.get("/api/v1/query", {"query": "1"})
        except (Unavailable, TooLarge) as error:
            return str(error)
        return "" if reply.status == 200 else f"{self.endpoint.shown} answers with status {reply.status}"

    async def ask(self, question: Question, *, mode: str = "instant", label: str = "") -> Found:
        """`mode` is instant, range, or auto: a range where the instant finds nothing. Raises Refused or Unavailable."""
        choices = await self._choose(question, label)
        found = await self._ask(question, choices, ranged=mode == "range")
        if mode == "auto" and found.is_empty:
            found = await self._ask(question, choices, ranged=True)
        return found

    async def _choose(self, question: Question, label: str) -> dict[str, Choice]:
        """For each selector the label that names the node in most of its series."""
        labels = (label,) if label else (*NODE_LABELS, *ADDRESS_LABELS)
        look = readable(max(LEAST_LOOK_SECONDS, question.duration) + question.query.reach_seconds)
        counts = [
            _counting(promql.with_matchers(selector, question.names.matchers(candidate)), look, position, candidate)
            for position, selector in enumerate(question.query.selectors)
            for candidate in labels
        ]
        at = f"{question.end:.3f}"
        counted, pushed = await asyncio.gather(
            self._api("query", query=" or ".join(counts), time=at), self._api("query", query=_PUSHED, time=at)
        )
        groups = frozenset(_group(series) for series in pushed["data"]["result"])
        found: dict[str, list[_Series]] = {}
        for series in counted["data"]["result"]:
            found.setdefault(series["metric"]["sentinel_selector"], []).append(series)
        return {
            selector.key: self._choice(found.get(str(position), []), groups, label)
            for position, selector in enumerate(question.query.selectors)
        }

    def _choice(self, counted: Sequence[_Series], pushed: frozenset[tuple[str, str]], label: str) -> Choice:
        totals: dict[str, int] = {}
        for series in counted:
            named = series["metric"]["sentinel_label"]
            totals[named] = totals.get(named, 0) + int(float(series["value"][1]))
        if not totals:
            return Choice(label or "node", note="a selector found no series of these nodes in this time")
        best = max(totals, key=lambda named: totals[named])
        others = {named: count for named, count in totals.items() if named != best}
        makers = [series for series in counted if series["metric"]["sentinel_label"] == best]
        return Choice(
            best,
            tuple(sorted({_maker(series["metric"]) for series in makers})),
            any(self._is_tenant(series, pushed) for series in makers),
            f"more series of these nodes are known by another node_label: {others}" if others else "",
        )

    def _is_tenant(self, maker: _Series, pushed: frozenset[tuple[str, str]]) -> bool:
        namespace = maker["metric"].get("namespace", "")
        return bool(namespace and namespace not in self.system_namespaces) or _group(maker) in pushed

    async def _ask(self, question: Question, choices: Mapping[str, Choice], *, ranged: bool) -> Found:
        sent = question.query.confined(lambda selector: question.names.matchers(choices[selector.key].label))
        if ranged:
            end = question.end - question.end % question.step
            times = {"start": f"{end - question.duration:.3f}", "end": f"{end:.3f}", "step": f"{question.step:g}"}
            reply = await self._api("query_range", query=sent, **times)
        else:
            reply = await self._api("query", query=sent, time=f"{question.end:.3f}")
        said = (*reply.get("warnings", ()), *reply.get("infos", ()))
        warnings = tuple(str(warning)[:300] for warning in said[:20])
        return Found(sent, reply["data"], warnings, tuple(choices.values()), question.step if ranged else 0.0)

    async def _api(self, path: str, **form: str) -> Mapping[str, Any]:
        """Raises Refused with Prometheus' own words where it refuses the question, else Unavailable."""
        try:
            reply = await self.endpoint.post(f"/api/v1/{path}", {**form, "timeout": SERVER_TIMEOUT})
        except TooLarge as error:
            raise Refused(f"the answer has {error}: aggregate (sum by, max by) or take topk(10, …)") from error
        try:
            body = reply.json()
            said = f"{reply.status} {body['errorType']}: {body['error']}" if body["status"] == "error" else ""
            well_formed = bool(said) or _is_result(body["data"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._no_result(reply.status) from error
        if said:
            raise Refused(f"Prometheus refuses the query: {said[:800]}")
        if not well_formed:
            raise self._no_result(reply.status)
        found: Mapping[str, Any] = body
        return found

    def _no_result(self, status: int) -> Unavailable:
        return Unavailable(f"{self.endpoint.shown} answers with status {status} and no Prometheus result")


def _is_result(data: Mapping[str, Any]) -> bool:
    if not isinstance(data["result"], list):
        return False
    if data["resultType"] in ("scalar", "string"):
        return len(data["result"]) == 2
    return all(
        isinstance(series["metric"], dict) and ("value" in series or "values" in series) for series in data["result"]
    )


def _counting(selector: str, look: str, position: int, label: str) -> str:
    """How many series a selector finds, by producer, marked with what was asked."""
    counted = f"count by (job,namespace,instance)(last_over_time({selector}[{look}]))"
    marked = f'label_replace({counted},"sentinel_label",{quoted(label)},"","")'
    return f'label_replace({marked},"sentinel_selector","{position}","","")'


def _group(series: _Series) -> tuple[str, str]:
    """Job and instance: a Pushgateway stamps each group that was pushed to it with push_time_seconds under these."""
    return series["metric"].get("job", ""), series["metric"].get("instance", "")


def _maker(labels: Mapping[str, str]) -> str:
    shown = [f"{name}={labels[name][:100]}" for name in ("job", "namespace") if labels.get(name)]
    return " ".join(shown) or "unnamed"
