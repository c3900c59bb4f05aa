"""The last wall, with the two before it removed: a role that may do everything, and requests made by hand."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from aggregator.kube.errors import ApiError, Forbidden
from aggregator.kube.walls import WallAbsent, prove
from tests.cluster.api_server import ApiServer, Object
from tests.cluster.walls import await_allowed, standing
from tests.kube.conftest import Connect

ACCOUNT = "system:serviceaccount:default:sentinel"
EVERYTHING = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
NODE = "/api/v1/nodes/n1"
OURS: Object = {"key": "gcm-sentinel/fault", "value": "xid", "effect": "NoSchedule"}
THEIRS: Object = {"key": "example.com/theirs", "value": "v", "effect": "NoSchedule"}
MINE = {"metadata": {"annotations": {"gcm-sentinel/severity": "critical"}}}
CORDON = {"spec": {"unschedulable": True}}
NOT_READY: Object = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}  # every new node has it
OUR_TAINT = {"spec": {"taints": [THEIRS, NOT_READY, OURS]}}

NEVER = {
    "a label": (NODE, {"metadata": {"labels": {"a": "b"}}}),
    "a label through status": (f"{NODE}/status", {"metadata": {"labels": {"a": "b"}}}),
    "an annotation of others": (NODE, {"metadata": {"annotations": {"example.com/owner": "us"}}}),
    "removing an annotation of others": (NODE, {"metadata": {"annotations": {"example.com/owner": None}}}),
    "an annotation through status": (f"{NODE}/status", MINE),
    "a condition": (f"{NODE}/status", {"status": {"phase": "Running"}}),
    "a taint of others": (NODE, {"spec": {"taints": [THEIRS, NOT_READY, {**THEIRS, "key": "example.com/more"}]}}),
    "removing a taint of others": (NODE, {"spec": {"taints": [NOT_READY, OURS]}}),
    "changing a taint of others": (NODE, {"spec": {"taints": [{**THEIRS, "effect": "NoExecute"}, NOT_READY]}}),
    "another spec field": (NODE, {"spec": {"providerID": "aws:///x"}}),
    "a finalizer": (NODE, {"metadata": {"finalizers": ["gcm-sentinel/hold"]}}),
}  # fmt: skip


@pytest.fixture
def token(api_server: ApiServer) -> Iterator[str]:
    api_server.node("n1", annotations={"example.com/owner": "them"}, taints=[THEIRS])
    made = api_server.service_account("sentinel", EVERYTHING)
    await_allowed(api_server, made, "n1")
    yield made
    for namespace in ("default", "kube-system"):
        api_server.request("DELETE", f"/api/v1/namespaces/{namespace}/pods", {"gracePeriodSeconds": 0})
    api_server.permit("sentinel", [])


def pod(server: ApiServer, namespace: str) -> str:
    """Make a pod; its eviction's path."""
    spec = {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}
    server.namespace(namespace)
    server.request("POST", f"/api/v1/namespaces/{namespace}/pods", {"metadata": {"name": "p"}, "spec": spec})
    return f"/api/v1/namespaces/{namespace}/pods/p"


def evict(server: ApiServer, path: str, token: str) -> None:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}}
    server.request("POST", f"{path}/eviction", body, token=token)


def denied(error: pytest.ExceptionInfo[httpx2.HTTPStatusError]) -> bool:
    return error.value.response.status_code in (403, 422) and "gcm-sentinel" in str(error.value)


@pytest.mark.parametrize("mode", ["annotate", "execute"])
def test_what_neither_mode_may_do_is_denied(api_server: ApiServer, token: str, mode: str) -> None:
    with standing(api_server, mode, ACCOUNT, token, "n1"):
        before = api_server.request("GET", NODE)
        for path, change in NEVER.values():
            with pytest.raises(httpx2.HTTPStatusError) as error:
                api_server.patch(path, change, token=token)
            assert denied(error), (path, change)
        with pytest.raises(httpx2.HTTPStatusError) as error:
            api_server.request("DELETE", NODE, token=token)
        assert denied(error)
        with pytest.raises(httpx2.HTTPStatusError) as error:
            api_server.request("POST", "/api/v1/nodes", {"metadata": {"name": "n2"}}, token=token)
        assert denied(error)
        path = pod(api_server, "kube-system")
        for refused in (
            lambda: evict(api_server, path, token),
            lambda: api_server.request("DELETE", path, token=token),
        ):
            with pytest.raises(httpx2.HTTPStatusError) as error:
                refused()
            assert denied(error)
        assert api_server.request("GET", NODE) == before
        api_server.patch(NODE, MINE, token=token)


def test_annotate_mode_may_neither_cordon_nor_taint_nor_evict(api_server: ApiServer, token: str) -> None:
    path = pod(api_server, "default")
    with standing(api_server, "annotate", ACCOUNT, token, "n1"):
        for change in (CORDON, OUR_TAINT):
            with pytest.raises(httpx2.HTTPStatusError) as error:
                api_server.patch(NODE, change, token=token)
            assert denied(error)
        with pytest.raises(httpx2.HTTPStatusError) as error:
            evict(api_server, path, token)
        assert denied(error)


def test_execute_mode_may_do_what_it_is_for(api_server: ApiServer, token: str) -> None:
    path = pod(api_server, "default")
    with standing(api_server, "execute", ACCOUNT, token, "n1"):
        api_server.patch(NODE, {**MINE, **CORDON}, token=token)
        api_server.patch(NODE, OUR_TAINT, token=token)
        evict(api_server, path, token)
        api_server.patch(NODE, {"spec": {"taints": [THEIRS, NOT_READY], "unschedulable": None}}, token=token)


def test_others_are_not_confined(api_server: ApiServer, token: str) -> None:
    with standing(api_server, "annotate", ACCOUNT, token, "n1"):
        api_server.patch(NODE, CORDON)


@pytest.mark.parametrize("mode", ["annotate", "execute"])
async def test_a_standing_wall_is_proved_without_changing_anything(
    api_server: ApiServer, connect: Connect, token: str, mode: str
) -> None:
    with standing(api_server, mode, ACCOUNT, token, "n1"):
        before = api_server.request("GET", NODE)
        async with connect(api_server, token) as client:
            await prove(client, mode)  # type: ignore[arg-type]
        assert api_server.request("GET", NODE) == before


@pytest.mark.parametrize("mode", ["annotate", "execute"])
async def test_an_absent_wall_is_noticed(api_server: ApiServer, connect: Connect, token: str, mode: str) -> None:
    before = api_server.request("GET", NODE)
    async with connect(api_server, token) as client:
        with pytest.raises(WallAbsent, match="to label nodes"):
            await prove(client, mode)  # type: ignore[arg-type]
    assert api_server.request("GET", NODE) == before


async def test_a_wall_for_execute_is_none_for_annotate(api_server: ApiServer, connect: Connect, token: str) -> None:
    with standing(api_server, "execute", ACCOUNT, token, "n1"):
        async with connect(api_server, token) as client:
            with pytest.raises(WallAbsent, match="to cordon nodes"):
                await prove(client, "annotate")


async def test_a_wall_that_cannot_be_asked_about_is_not_proved(own_api_server: ApiServer, connect: Connect) -> None:
    own_api_server.node("n1")
    async with connect(own_api_server) as client:
        own_api_server.stop_server()
        with pytest.raises(ApiError):
            await prove(client, "annotate")


async def test_a_role_that_hides_the_policy_proves_nothing(api_server: ApiServer, connect: Connect) -> None:
    """It may be made wider a moment later: roles reach an API server after a while."""
    api_server.node("n1")
    token = api_server.service_account(
        "reader", [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list"]}]
    )
    async with connect(api_server, token) as client:
        with pytest.raises(Forbidden, match="cannot patch resource"):
            await prove(client, "annotate")
