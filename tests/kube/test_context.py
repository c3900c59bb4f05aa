"""Where nodes stand, and who holds their GPUs, on a real API server."""

from __future__ import annotations

from dataclasses import replace

from aggregator.kube.context import Holder, Owner, Topology, holders
from aggregator.kube.nodes import Node
from tests.cluster.api_server import ApiServer
from tests.kube.conftest import Connect
from tests.kube.test_conditions import NODE

PODS = "/api/v1/namespaces/default/pods"
RACK, CLIQUE, DRIVER = "topology.kubernetes.io/rack", "nvidia.com/gpu.clique", "nvidia.com/cuda.driver-version.full"


def node(name: str, **labels: str) -> Node:
    return replace(NODE, name=name, labels={key.replace("__", "/"): value for key, value in labels.items()})


def test_a_place_that_all_share_tells_nothing() -> None:
    nodes = {
        name: replace(NODE, name=name, labels={RACK: rack, DRIVER: "570.86.15", "other": "x"})
        for name, rack in (("a", "r1"), ("b", "r1"), ("c", "r2"))
    }
    topology = Topology(lambda: nodes)
    assert topology.telling("a") == ("rack r1",)
    assert topology.telling("absent") == ()
    assert topology.places(nodes["c"]) == {"rack": "r2", "driver": "570.86.15"}
    assert topology.contexts()["b"].gpus == 8


def test_a_site_may_name_its_own_labels() -> None:
    nodes = {"a": replace(NODE, name="a", labels={"site/row": "7", CLIQUE: "c.1"})}
    topology = Topology(lambda: nodes, {"row": ("site/row",)})
    assert topology.telling("a") == ("row 7",)


def made(
    server: ApiServer, path: str, kind: str, name: str, owner: dict[str, str] | None = None, **body: object
) -> dict[str, str]:
    """An object, and the reference by which another names it as its owner."""
    references = [{**owner, "controller": True}] if owner else []
    found = server.request("POST", path, {"metadata": {"name": name, "ownerReferences": references}, **body})
    return {"apiVersion": found["apiVersion"], "kind": kind, "name": name, "uid": found["metadata"]["uid"]}


async def test_who_holds_gpus_and_what_they_belong_to(api_server: ApiServer, connect: Connect) -> None:
    api_server.node("n1")
    container = {"name": "c", "image": "none"}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container], "restartPolicy": "Never"}}
    cron = made(api_server, "/apis/batch/v1/namespaces/default/cronjobs", "CronJob", "nightly", None, spec={"schedule": "0 0 * * *", "jobTemplate": {"spec": {"template": template}}})  # fmt: skip
    job = made(api_server, "/apis/batch/v1/namespaces/default/jobs", "Job", "nightly-1", cron, spec={"template": template})  # fmt: skip
    gone = {"apiVersion": "batch/v1", "kind": "Job", "name": "gone", "uid": "u"}

    def pod(name: str, owner: dict[str, str] | None, *gpus: dict[str, str]) -> None:
        containers = [{**container, "name": f"c{n}", "resources": {"limits": limits}} for n, limits in enumerate(gpus)]
        made(api_server, PODS, "Pod", name, owner, spec={"nodeName": "n1", "containers": containers})

    pod("train-0", job, {"nvidia.com/gpu": "4"}, {"nvidia.com/gpu": "2"})
    pod("mig-0", gone, {"nvidia.com/mig-1g.10gb": "1"})
    pod("bare", None, {"nvidia.com/gpu": "1"})
    pod("cpu", None, {"cpu": "1"})
    async with connect(api_server) as client:
        found = {holder.pod: holder for holder in await holders(client, "n1")}
    assert set(found) == {"train-0", "mig-0", "bare"}
    assert (found["train-0"].gpus, found["train-0"].owners) == (
        6,
        (Owner("Job", "nightly-1"), Owner("CronJob", "nightly")),
    )
    assert (found["mig-0"].gpus, found["mig-0"].owners, found["mig-0"].unseen) == (
        1,
        (Owner("Job", "gone"),),
        "Job gone is gone",
    )
    assert isinstance(found["bare"], Holder)
    assert found["bare"].owners == ()


async def test_an_owner_that_may_not_be_read_ends_the_chain_and_is_said(
    api_server: ApiServer, connect: Connect
) -> None:
    api_server.node("n1")
    owner = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": "llm", "uid": "u"}
    limits = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    made(api_server, PODS, "Pod", "w", owner, spec={"nodeName": "n1", "containers": [{"name": "c", "image": "none", **limits}]})  # fmt: skip
    token = api_server.service_account("reader", [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}])
    async with connect(api_server, token) as client:
        (found,) = await holders(client, "n1")
    assert found.owners == (Owner("PyTorchJob", "llm"),)
    assert found.unseen == "may not get pytorchjobs"
