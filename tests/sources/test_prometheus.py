"""query_prometheus against a real Prometheus that holds three nodes' series, of which one is out of scope."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from aggregator.investigator.sources import Answer, Scope, Unavailable
from aggregator.investigator.sources.confined import ConfinedPrometheus
from aggregator.investigator.sources.http import Endpoint
from aggregator.investigator.sources.prometheus import Prometheus
from aggregator.model import Trust
from tests.sources.history import ADDRESSES, FOREIGN, NODE, OTHER, PEER


async def addresses(node: str) -> Sequence[str]:
    return (ADDRESSES[node],)


@pytest.fixture
def source(prometheus_url: str) -> Prometheus:
    return Prometheus(ConfinedPrometheus(Endpoint(prometheus_url)), addresses=addresses)


async def ask(source: Prometheus, scope: Scope, query: str, **arguments: object) -> Answer:
    answer = await source.tools[0].ask(scope, {"query": query, **arguments})
    json.dumps(answer.value, allow_nan=False)
    return answer


def values(answer: Answer) -> list[Any]:
    assert isinstance(answer.value, Mapping), answer.value
    result = answer.value["result"]
    if not isinstance(result, list):
        return [result]
    return [value for series in result for value in _of(series)]


def _of(series: Mapping[str, Any]) -> list[Any]:
    if "value" in series:
        return [series["value"]]
    return [*series.get("values", ()), *(value for _, value in series.get("samples", ()))]


TRICKY = [
    "DCGM_FI_DEV_GPU_TEMP",
    "DCGM_FI_DEV_GPU_TEMP{}",
    'DCGM_FI_DEV_GPU_TEMP{Hostname=~".+"}',
    'DCGM_FI_DEV_GPU_TEMP{Hostname="gpu-10"}',
    'DCGM_FI_DEV_GPU_TEMP{Hostname!=""}',
    'DCGM_FI_DEV_GPU_TEMP{Hostname!~"gpu-1"}',
    'DCGM_FI_DEV_GPU_TEMP{instance="10.0.0.10:9400"}',
    '{__name__=~".+"}',
    '{__name__!=""}',
    '{__name__=~"DCGM_.*|node_.*", job=~".*"}',
    '{__name__="node_load1"}',
    '{"node_load1"}',
    '{job="node-exporter"}',
    "node_load1 or node_load1",
    'node_load1 or on() node_load1{instance=~".*"}',
    'node_load1 unless node_load1{instance="10.0.0.1:9100"}',
    "node_load1 and on() DCGM_FI_DEV_GPU_TEMP",
    "node_load1 + on() group_left() max(DCGM_FI_DEV_GPU_TEMP)",
    "DCGM_FI_DEV_GPU_TEMP * on(namespace) group_right() max by (namespace) (DCGM_FI_DEV_GPU_TEMP)",
    "sum(DCGM_FI_DEV_GPU_TEMP)",
    "sum without () (DCGM_FI_DEV_GPU_TEMP)",
    "max by (Hostname) (DCGM_FI_DEV_GPU_TEMP)",
    "topk(10, DCGM_FI_DEV_GPU_TEMP)",
    "bottomk(10, -DCGM_FI_DEV_GPU_TEMP)",
    "quantile(0.99, DCGM_FI_DEV_GPU_TEMP)",
    "topk(scalar(max(node_load1)), DCGM_FI_DEV_GPU_TEMP)",
    "vector(scalar(max(node_load1)))",
    "scalar(max(node_load1))",
    'count_values("Hostname", DCGM_FI_DEV_GPU_TEMP)',
    "clamp_min(DCGM_FI_DEV_GPU_TEMP, scalar(max(node_load1)))",
    'label_replace(DCGM_FI_DEV_GPU_TEMP, "Hostname", "gpu-1", "Hostname", ".*")',
    'label_replace(node_load1, "node", "gpu-1", "", "")',
    'label_join(node_load1, "node", "-", "instance", "job")',
    "max_over_time(DCGM_FI_DEV_GPU_TEMP[1h])",
    "max_over_time(max(DCGM_FI_DEV_GPU_TEMP)[1h:5m])",
    "max_over_time(max_over_time(node_load1[10m])[1h:10m] offset 10m)",
    "max_over_time(sum(rate(node_load1[10m]) + node_load1)[30m:5m])",
    "node_load1 offset 1h",
    "node_load1 offset -5m",
    "node_load1 @ end()",
    "DCGM_FI_DEV_GPU_TEMP[10m]",
    "last_over_time(node_load1[5m])",
    "absent(node_load1)",
    'absent(node_load1{job="none"})',
    "sort_desc(DCGM_FI_DEV_GPU_TEMP)",
    "-DCGM_FI_DEV_GPU_TEMP",
    "DCGM_FI_DEV_GPU_TEMP > bool 0",
    "DCGM_FI_DEV_GPU_TEMP > 1000",
    "((node_load1))",
    "node_load1 # {} or node_load1",
    'node_load1{instance=~"10.*"} or node_secrets_total{instance!="}"}',
    "kube_node_status_condition",
    'kube_node_status_condition{node="gpu-1"}',
    "ipmi_inlet_celsius",
    'ipmi_inlet_celsius{instance="10.0.0.1:9290"}',
    "up == 1e9 + 1",
    "histogram_quantile(0.9, sum by (gpu) (DCGM_FI_DEV_GPU_TEMP))",
    "node_secrets_total",
]


@pytest.mark.parametrize("mode", ["instant", "range"])
@pytest.mark.parametrize("query", TRICKY)
async def test_no_query_brings_another_nodes_series(source: Prometheus, scope: Scope, query: str, mode: str) -> None:
    """Whatever is asked, nothing of gpu-10 comes back: neither its name nor a value that any of its series has a part in."""
    answer = await ask(source, scope, query, mode=mode, duration="30m")
    if answer.is_error:
        assert any(said in answer.value for said in ("refuses the query", "names no node that this query is about"))
        return
    text = json.dumps(answer.value["result"])
    assert OTHER not in text
    assert ADDRESSES[OTHER] not in text
    assert all(abs(value) < FOREIGN for value in values(answer) if isinstance(value, int | float))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("max(DCGM_FI_DEV_GPU_TEMP)", [61]),  # by Hostname
        ("node_load1", [3]),  # by address
        ("node_secrets_total", [4]),  # by name in the address label
        ("kube_node_status_condition", [1]),  # by exported_node, though the exporter's own node label says gpu-1
        ("ipmi_inlet_celsius", [38]),  # by node, though the exporter runs at gpu-1's address
        ('{__name__="node_load1"}', [3]),
        ("DCGM_FI_DEV_GPU_TEMP * on() group_left() node_load1", [180, 183]),
        ('max_over_time(DCGM_FI_DEV_GPU_TEMP{gpu="0"}[1h])', [60]),
        ("count(DCGM_FI_DEV_GPU_TEMP)", [2]),
        ("0 / 0 * node_load1", ["NaN"]),
        ("-1 / 0 * node_load1", ["-Inf"]),
    ],
)
async def test_a_node_is_found_under_the_label_that_names_it(
    source: Prometheus, scope: Scope, query: str, expected: list[Any]
) -> None:
    """The node's own series are found whichever label names it, and arithmetic over them means what it says."""
    answer = await ask(source, scope, query)
    assert values(answer) == expected
    assert answer.trust is Trust.CLUSTER
    assert answer.value["total_series"] == len(expected)
    assert answer.value["truncated"] is False


async def test_peers_in_scope_are_compared(source: Prometheus, scope: Scope) -> None:
    """A declared peer may be asked about beside the node; both are told apart."""
    answer = await ask(source, scope, "max by (Hostname) (DCGM_FI_DEV_GPU_TEMP)", nodes=[NODE, PEER])
    assert [series["labels"] for series in answer.value["result"]] == [{"Hostname": NODE}, {"Hostname": PEER}]


async def test_a_node_outside_is_refused_with_what_may_be_asked(source: Prometheus, scope: Scope) -> None:
    """The error names the nodes in scope."""
    answer = await ask(source, scope, "up", nodes=[OTHER])
    assert answer.is_error
    assert answer.value.endswith("Nodes that may be asked about: gpu-1, gpu-2")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sum(", "not PromQL: "),
        ("node_load1 +", "not PromQL: "),
        ("app_payload", "metric 'app_payload' is not among those that may be asked for: DCGM_FI_, "),
        ('{__name__="app_payload"}', "metric 'app_payload' is not among"),
        ("upload", "metric 'upload' is not among"),
        ('up{Hostname="gpu-10"}', "Hostname='gpu-10' names no node that this query is about (gpu-1)"),
        ("vector(1)", "selects no series"),
        ('up{a="1" or b="2"}', "`or` between matchers"),
        ('up{"a.b"="c"}', "plain names"),
        ("up @ -1", "cannot be passed on unchanged"),
        ("up[40d]", "at most 30d"),
        ("up offset 31d", "at most 30d"),
        ("up @ 5", "at most 30d"),
        ("max_over_time(up[7d:1s])", "use a longer step"),
        (" or ".join(f'up{{a="{number}"}}' for number in range(9)), "9 selectors, at most 8"),
        ("(" * 90 + "up" + ")" * 90, "more than 60 operators"),
        ("-" * 1500 + "up", "more than 60 operators"),
        ("+".join(["1"] * 900), "more than 60 operators"),
        ("up * up", "many-to-many"),
    ],
)
async def test_what_cannot_be_asked_is_refused_in_words_to_act_on(
    source: Prometheus, scope: Scope, query: str, said: str
) -> None:
    """A query that is not understood, not allowed or too large is refused with the reason; Prometheus' own errors come back."""
    if query == "up * up":
        query = "DCGM_FI_DEV_GPU_TEMP * on(job) DCGM_FI_DEV_XID_ERRORS"
    answer = await ask(source, scope, query)
    assert answer.is_error
    assert said in answer.value


async def test_a_name_that_is_not_allowed_never_comes_through_a_selector_without_name(
    source: Prometheus, scope: Scope
) -> None:
    """{job="web"} holds app_payload too, and gives only what is allowed."""
    answer = await ask(source, scope, '{job="web"}', node_label="node")
    names = {series["labels"]["__name__"] for series in answer.value["result"]}
    assert names == {"gpu_forged_celsius"}


@pytest.mark.parametrize(
    ("query", "trust"),
    [
        ("gpu_forged_celsius", Trust.TENANT),  # scraped in a tenant's namespace
        ("gpu_pushed_celsius", Trust.TENANT),  # held by a Pushgateway
        ("node_load1 + on() group_left() gpu_pushed_celsius", Trust.TENANT),
        ("max by (exported_pod) (DCGM_FI_DEV_GPU_TEMP)", Trust.TENANT),
        ('label_replace(DCGM_FI_DEV_GPU_TEMP, "gpu", "$1", "exported_pod", "(.*)")', Trust.TENANT),
        ('DCGM_FI_DEV_GPU_TEMP{exported_namespace="team-a"}', Trust.TENANT),
        ("DCGM_FI_DEV_GPU_TEMP", Trust.CLUSTER),
        ("problem_gauge", Trust.CLUSTER),
    ],
)
async def test_what_tenants_could_have_written_is_tenant_class(
    source: Prometheus, scope: Scope, query: str, trust: Trust
) -> None:
    """Pushed metrics, metrics of tenants' namespaces and labels that tenants write never count as the cluster's word."""
    assert (await ask(source, scope, query)).trust is trust


async def test_tenants_labels_are_left_out_unless_asked_for(source: Prometheus, scope: Scope) -> None:
    """A pod's name does not ride along in a cluster-class answer."""
    answer = await ask(source, scope, "DCGM_FI_DEV_GPU_TEMP")
    assert "train-of" not in json.dumps(answer.value)
    assert answer.value["labels_left_out"] == ["exported_namespace", "exported_pod", "namespace"]
    named = await ask(source, scope, "max by (exported_pod) (DCGM_FI_DEV_GPU_TEMP)")
    assert named.value["result"][0]["labels"] == {"exported_pod": "train-of-gpu-1"}


async def test_a_range_has_a_step_that_fits(source: Prometheus, scope: Scope) -> None:
    """Six hours come in about sixty points with their extremes; a step that gives too many is refused with one that fits."""
    answer = await ask(source, scope, "node_load1", mode="range", duration="5h")
    (series,) = answer.value["result"]
    assert answer.value["step"] == "5m"
    assert len(series["values"]) == 61
    assert (series["least"], series["most"], series["last"]) == (3, 3, 3)
    refused = await ask(source, scope, "node_load1", mode="range", duration="5h", step="10s")
    assert refused.value.endswith("use a step of 2m30s or more")


async def test_an_instant_that_finds_nothing_becomes_a_range(source: Prometheus, scope: Scope) -> None:
    """A node that vanished is still found in the time before."""
    end = "2026-11-23T00:00:00Z"
    gone = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    answer = await ask(source, scope, "node_load1", end=gone, duration="2h")
    assert answer.value["result"][0]["last"] == 3
    assert (await ask(source, scope, "node_load1", end=end)).value["result"] == []


async def test_too_many_series_give_what_multiplies_them(source: Prometheus, scope: Scope) -> None:
    """Instead of an arbitrary cut: how many, by which labels, and a query that fits."""
    query = 'count_values("second", timestamp(node_load1)) or label_replace(node_load1, "a", "b", "", "")'
    assert (await ask(source, scope, query)).value["total_series"] == 2
    everything = await ask(source, scope, "DCGM_FI_DEV_GPU_TEMP", mode="range", duration="1h", nodes=[NODE, PEER])
    assert everything.value["total_series"] == 4


async def test_a_server_that_is_down_is_unavailable(scope: Scope) -> None:
    """Nothing listens: the tool and the source say so in one line, without the credentials in the address."""
    source = Prometheus(ConfinedPrometheus(Endpoint("http://someone:secret@127.0.0.1:9")))
    assert (await source.unavailable()).startswith("http://127.0.0.1:9")
    with pytest.raises(Unavailable, match=r"^http://127\.0\.0\.1:9: "):
        await ask(source, scope, "up")


async def test_a_prometheus_that_answers_is_available(source: Prometheus) -> None:
    """No reason is given."""
    assert await source.unavailable() == ""
