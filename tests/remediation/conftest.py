"""A real API server on which the aggregator's account is confined as in execute mode, and a remediator at a desk."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from aggregator.kube.access import find_access
from aggregator.kube.client import KubeClient
from aggregator.kube.nodes import Wanted
from aggregator.kube.walls import Walls
from aggregator.kube.watch import NodeWatch
from aggregator.model import Action, Assessment, Incident
from aggregator.outputs.courier import Patience
from aggregator.remediation.confirm import Answer
from aggregator.remediation.executor import Executor
from aggregator.remediation.pods import Rules
from aggregator.remediation.policy import Limits
from aggregator.remediation.remediator import Options, Pace, Remediator
from aggregator.remediation.situation import Surroundings
from aggregator.store import audit
from tests.cluster.api_server import ApiServer, Object
from tests.cluster.walls import await_allowed, standing
from tests.outputs.conftest import Desk, desk, fault, judged, open_desk

__all__ = ["desk", "open_desk"]  # fixtures that are shared

USER = "system:serviceaccount:default:sentinel"
ROLE = [
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch", "patch"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
    {"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]},
]
LIMITS = Limits(allowlist=("n*",), max_unavailable_percent=50)
NOTHING_LOST = Rules()
FAST = Pace(again=0.2, step=0.1, drain=60.0)
OPTIONS = Options(LIMITS, pace=FAST)
SOON = Patience(first_seconds=0.1, longest_seconds=0.3)


@dataclass
class Account:
    """The aggregator's own, on a server."""

    server: ApiServer
    kubeconfig: Path

    def client(self) -> KubeClient:
        return KubeClient(find_access({"KUBECONFIG": str(self.kubeconfig)}, wanted=True))

    def node(self, name: str = "n1") -> Object:
        return self.server.request("GET", f"/api/v1/nodes/{name}")

    def changes(self) -> list[tuple[str, str]]:
        """What it changed, as the API server's own log has it: verb, and what. Dry runs change nothing."""
        found = self.server.audited(USER, "create", "update", "patch", "delete", "deletecollection")
        done = (one for one in found if one["responseStatus"]["code"] < 300 and "dryRun" not in one["requestURI"])
        return [(one["verb"], _what(one["objectRef"])) for one in done]


def _what(ref: Mapping[str, str]) -> str:
    return "/".join(ref[part] for part in ("resource", "namespace", "name", "subresource") if part in ref)


def prepare(server: ApiServer, directory: Path, nodes: int = 4) -> Account:
    """Nodes n1 … with GPUs, ready, and the account with its role."""
    for number in range(1, nodes + 1):
        server.node(f"n{number}", capacity={"nvidia.com/gpu": "8"})
        server.condition(f"n{number}", "Ready", "True")
    token = server.service_account("sentinel", ROLE)
    await_allowed(server, token, "n1")
    account = Account(server, server.kubeconfig(directory / "kubeconfig", token))
    (directory / "token").write_text(token)
    return account


@pytest.fixture
def account(api_server: ApiServer, tmp_path: Path) -> Iterator[Account]:
    """Its last wall stands."""
    made = prepare(api_server, tmp_path)
    with standing(api_server, "execute", USER, (tmp_path / "token").read_text(), "n1"):
        api_server.mark_audit()
        yield made
    for namespace in ("default", "kube-system"):
        api_server.request("DELETE", f"/api/v1/namespaces/{namespace}/pods", {"gracePeriodSeconds": 0})


def proposed(number: int = 1, action: Action = Action.CORDON, **fields: object) -> tuple[Incident, Assessment]:
    """An incident of now on node n<number>, and what a model and the rules agree on."""
    old = fault(number)
    incident = replace(old, signals=(replace(old.signals[0], at_us=time.time_ns() // 1000),))
    incident = replace(incident, **{name: fields.pop(name) for name in list(fields) if hasattr(incident, name)})
    return incident, judged(incident, origin="llm", action=action, **fields)  # type: ignore[arg-type]


async def answers(_: str) -> Answer:
    return Answer(answered=True)


Acting = Callable[..., AbstractAsyncContextManager[Remediator]]


@contextlib.asynccontextmanager
async def acting(
    desk: Desk, account: Account, options: Options = OPTIONS, rules: Rules = NOTHING_LOST, **around: object
) -> AsyncIterator[Remediator]:
    """A remediator at work at a desk."""
    client = account.client()
    watch = NodeWatch(client, Wanted(lambda name: name == "Ready"))
    watching = asyncio.create_task(watch.run())
    surroundings = Surroundings(
        client=client,
        store=desk.store,
        walls=Walls(client, "execute"),
        kill_switch="default/gcm-sentinel-stop",
        persistent=True,
        fresh_seconds=900.0,
        view=lambda: watch.nodes if watch.up and watch.synced.is_set() else {},
        ask=answers,
        leads=lambda: True,
    )
    remediator = Remediator(
        replace(surroundings, **around),
        Executor(client, rules=rules),
        desk.metrics,
        options,  # type: ignore[arg-type]
    )
    try:
        await asyncio.wait_for(watch.synced.wait(), 10)
        async with desk.delivering(remediator, patience=SOON):
            yield remediator
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await client.close()


async def records(desk: Desk, incident_id: str = "inc-1") -> list[tuple[str, str, tuple[str, ...]]]:
    """Decisions about an incident, oldest first."""
    found = await desk.store.read(lambda connection: audit.list_records(connection, incident_id=incident_id))
    return [(one.record.action, one.record.outcome, one.record.reasons) for one in reversed(found)]


async def outcomes(desk: Desk, incident_id: str = "inc-1") -> list[str]:
    return [f"{action} {outcome}" for action, outcome, _ in await records(desk, incident_id)]
