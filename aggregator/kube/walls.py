"""Whether the last wall stands: dry runs of what an admission policy must deny us, asked as ourselves.

Code that does not exist and verbs that RBAC lacks are the walls before it. The last one holds also against a bug in the first and
too generous a role: so a mode that writes to nodes is taken up only where every probe is denied. Nothing is changed by asking.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

from aggregator.kube.client import Json, KubeClient
from aggregator.kube.errors import ApiError, Forbidden, Invalid

Mode = Literal["annotate", "execute"]

PROVED_SECONDS = 600.0

NAME = "example.com/gcm-sentinel-probe"  # outside our prefix
DRY = {"dryRun": "All"}
POLICY = "ValidatingAdmissionPolicy"  # what a policy's denial says, whichever it is


class WallAbsent(Exception):
    """Something is allowed that must not be; the text says what."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One request that must be denied."""

    what: str
    path: str
    body: Json
    evicts: bool = False
    by_role: bool = False  # a role that lacks the verb is wall enough


async def prove(client: KubeClient, mode: Mode) -> None:
    """Return once every probe is denied. Raises WallAbsent, or ApiError where it cannot be asked.

    Where there is no node or pod there is nothing to ask about, and nothing to harm yet.
    """
    async for probe in _probes(client, mode):
        if not await _is_denied(client, probe):
            raise WallAbsent(
                f"in {mode} mode an admission policy must deny this account to {probe.what}, and nothing does: "
                "apply the chart's ValidatingAdmissionPolicy"
            )


class Walls:
    """The proof for one mode, which holds for a while."""

    def __init__(self, client: KubeClient, mode: Mode) -> None:
        self._client = client
        self._mode = mode
        self._proved_until = 0.0

    async def check(self, *, anew: bool = False) -> None:
        """As `prove`; asks again after a while, or at once."""
        if anew or time.monotonic() >= self._proved_until:
            await prove(self._client, self._mode)
            self._proved_until = time.monotonic() + PROVED_SECONDS


async def _probes(client: KubeClient, mode: Mode) -> AsyncIterator[Probe]:
    for node in (await client.get("/api/v1/nodes", {"limit": 1})).get("items") or ():
        for probe in _node_probes(node["metadata"]["name"], node.get("spec") or {}, mode):
            yield probe
    of_whom = "/namespaces/kube-system" if mode == "execute" else ""
    for pod in (await client.get(f"/api/v1{of_whom}/pods", {"limit": 1})).get("items") or ():
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": {"dryRun": ["All"]},
        }
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
        yield Probe(f"evict pods of {namespace}", path, eviction, evicts=True, by_role=True)


def _node_probes(node: str, spec: Json, mode: Mode) -> list[Probe]:
    path, mark = f"/api/v1/nodes/{node}", {NAME: "x"}
    taint: dict[str, Any] = {"key": NAME, "effect": "PreferNoSchedule"}
    probes = [
        Probe("label nodes", path, {"metadata": {"labels": mark}}),
        Probe("annotate nodes outside gcm-sentinel/", path, {"metadata": {"annotations": mark}}),
        Probe("taint nodes outside gcm-sentinel/", path, {"spec": {"taints": [*(spec.get("taints") or ()), taint]}}),
        Probe("label nodes through their status", f"{path}/status", {"metadata": {"labels": mark}}, by_role=True),
    ]
    if mode == "annotate":
        probes.append(Probe("cordon nodes", path, {"spec": {"unschedulable": not spec.get("unschedulable")}}))
    return probes


async def _is_denied(client: KubeClient, probe: Probe) -> bool:
    """Raises ApiError where a role's denial hides what the policy would say: the role may be made wider later."""
    try:
        if probe.evicts:
            await client.post(probe.path, probe.body, DRY)
        else:
            await client.patch(probe.path, probe.body, "merge", DRY)
    except (Forbidden, Invalid) as error:
        if POLICY in str(error) or (probe.by_role and isinstance(error, Forbidden)):
            return True
        raise
    except ApiError:
        if not probe.evicts:
            raise
    return False  # also where the eviction failed behind the policy: a budget, a pod that is gone
