"""Confinement as a property: whatever query the grammar can make, a real Prometheus gives nothing of another node for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregator.investigator.sources import Scope
from aggregator.investigator.sources.asking import Refused
from aggregator.investigator.sources.labels import NodeNames, quoted
from aggregator.investigator.sources.promql import Allowed, read
from tests.sources.history import ADDRESSES, FOREIGN, OTHER
from tests.sources.test_prometheus import ask, source, values

__all__ = ["source"]

_METRICS = (
    "DCGM_FI_DEV_GPU_TEMP",
    "node_load1",
    "up",
    "kube_node_status_condition",
    "ipmi_inlet_celsius",
    "problem_gauge",
)
_LABELS = ("Hostname", "node", "instance", "exported_node", "gpu", "job", "__name__")
_VALUES = ("gpu-1", "gpu-10", ".*", "", "10.0.0.10:9400", '"', "\\", "} or up{", "10.0.0.1.*", "gpu-1|gpu-10", "1")

matchers = st.builds(
    lambda label, sign, value: f"{label}{sign}{quoted(value)}",
    st.sampled_from(_LABELS[:-1]),
    st.sampled_from(("=", "!=", "=~", "!~")),
    st.sampled_from(_VALUES),
)
selectors = st.builds(
    lambda name, inside: f"{name}{{{','.join(inside)}}}", st.sampled_from(_METRICS), st.lists(matchers, max_size=3)
) | st.builds(
    lambda inside: f'{{__name__=~".+",{",".join(inside)}}}', st.lists(matchers, max_size=2)
)  # fmt: skip
moved = st.builds("{}{}".format, selectors, st.sampled_from(("", " offset 5m", " offset -1m", " @ end()")))
ranges = st.builds("{}[{}]".format, selectors, st.sampled_from(("5m", "1h", "90s")))


def _deeper(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(
        (" + ", " * on() group_left() ", " or ", " unless ", " and on() ", " > bool ", " / ignoring(gpu) ")
    )
    by = st.sampled_from(("", " by (Hostname)", " without (gpu)", " by (instance, job)"))
    return st.one_of(
        st.builds("({}{}{})".format, inner, operators, inner),
        st.builds("{}{} ({})".format, st.sampled_from(("sum", "max", "count", "group")), by, inner),
        st.builds("topk(scalar({}), {})".format, inner, inner),
        st.builds("max_over_time(({})[30m:5m])".format, inner),
        st.builds("max_over_time({})".format, ranges),
        st.builds('label_replace({}, "Hostname", "$1", "instance", "(.*)")'.format, inner),
        st.builds('count_values("node", {})'.format, inner),
        st.builds("-({})".format, inner),
        st.builds("absent({})".format, inner),
        st.builds("vector(scalar({}))".format, inner),
    )


queries = st.recursive(moved, _deeper, max_leaves=5)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=queries, mode=st.sampled_from(("instant", "range")))
def test_no_query_leaves_the_node(source: Any, scope: Scope, query: str, mode: str) -> None:
    """Neither a name nor an address of another node comes back, nor a value in which its series had a part."""
    answer = asyncio.run(ask(source, scope, query, mode=mode))
    if answer.is_error:
        return
    text = json.dumps(answer.value["result"])
    if "absent(" not in query:  # which repeats the matchers it was given
        assert OTHER not in text
        assert ADDRESSES[OTHER] not in text
    assert all(abs(value) < FOREIGN for value in values(answer) if isinstance(value, int | float))


@given(query=queries)
def test_every_selector_carries_the_node(query: str) -> None:
    """What would be sent holds the node's matchers once for each selector, and reads the same when it is read again."""
    allowed, names = Allowed((*_METRICS,)), NodeNames({"gpu-1": ("10.0.0.1",)})
    try:
        sent = read(query, allowed, time.time()).confined(lambda _: names.matchers("node"))
    except Refused:
        return
    again = read(sent, allowed, time.time())
    assert all('node=~"(?:gpu\\\\-1)"' in selector.text for selector in again.selectors)


@given(text=st.text(alphabet='abc{}[]()"\\=~!,.:+-*/^%<> \n0123456789@#', max_size=60) | st.text(max_size=40))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    """Whatever a model writes is a query, or refused with a reason."""
    with contextlib.suppress(Refused):
        read(text, Allowed(("up", "a", "b", "c")), time.time()).confined(lambda _: 'node="x"')


@pytest.mark.parametrize("value", ["gpu-1", 'a"b', "a\\b", "a\nb", "é"])
def test_a_quoted_value_is_read_as_it_was(value: str) -> None:
    """Quoting and the parser agree."""
    query = read(f"up{{a={quoted(value)}}}", Allowed(("up",)), 0.0)
    assert query.selectors[0].text == f"up{{a={quoted(value)}}}"
