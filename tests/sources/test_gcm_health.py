"""get_gcm_health over a real Prometheus and a real API server, each of which may be missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from aggregator.investigator.sources import Answer, Scope, Unavailable
from aggregator.investigator.sources.cluster import Cluster
from aggregator.investigator.sources.confined import ConfinedPrometheus
from aggregator.investigator.sources.gcm_health import GcmHealth
from aggregator.investigator.sources.http import Endpoint
from aggregator.kube.access import find_access
from aggregator.kube.client import KubeClient
from aggregator.model import Trust
from tests.cluster.api_server import ApiServer
from tests.sources.history import ADDRESSES, NODE, OTHER


async def addresses(node: str) -> Sequence[str]:
    return (ADDRESSES[node],)


async def ask(source: GcmHealth, scope: Scope, node: str = NODE) -> Answer:
    answer = await source.tools[0].ask(scope, {"node_name": node})
    json.dumps(answer.value, allow_nan=False)
    return answer


async def test_both_halves_speak_of_the_node_alone(
    prometheus_url: str, api_server: ApiServer, tmp_path: Path, scope: Scope
) -> None:
    """The gauge has the condition in `type`; the counter is counted by reason; conditions of other kinds stay out."""
    api_server.node(NODE)
    api_server.condition(NODE, "GcmXidErrorsProblem", "True", message="check passed")
    api_server.condition(NODE, "Ready", "True")
    config = api_server.kubeconfig(tmp_path / "kubeconfig")
    client = KubeClient(find_access({"KUBECONFIG": str(config)}, wanted=True))
    try:
        source = GcmHealth(ConfinedPrometheus(Endpoint(prometheus_url)), Cluster(client), addresses)
        answer = await ask(source, scope)
    finally:
        await client.close()
    gauges = {series["labels"]["type"]: series["value"] for series in answer.value["problem_gauge"]}
    assert gauges == {"GcmXidErrorsProblem": 1, "GcmSmiEccProblem": 0}
    assert [series["value"] for series in answer.value["problem_counter"]] == [5]
    assert [condition["type"] for condition in answer.value["conditions"]] == ["GcmXidErrorsProblem"]
    assert (answer.value["not_asked"], answer.trust) == ([], Trust.CLUSTER)


async def test_the_half_that_is_missing_is_said(prometheus_url: str, scope: Scope) -> None:
    """Without Kubernetes the metrics come alone; without either it cannot be asked."""
    source = GcmHealth(ConfinedPrometheus(Endpoint(prometheus_url)), None, addresses)
    assert (await ask(source, scope)).value["not_asked"] == ["conditions: there is no Kubernetes"]
    with pytest.raises(Unavailable, match=r"^metrics: http://127\.0\.0\.1:9: .*; conditions: there is no Kubernetes$"):
        await ask(GcmHealth(ConfinedPrometheus(Endpoint("http://127.0.0.1:9"))), scope)


async def test_a_node_outside_is_refused(prometheus_url: str, scope: Scope) -> None:
    """Also where Prometheus knows it."""
    assert (await ask(GcmHealth(ConfinedPrometheus(Endpoint(prometheus_url))), scope, OTHER)).is_error
