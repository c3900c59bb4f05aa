"""Where nodes stand and who uses them: what correlation and investigations know beside evidence.

Places come from labels, whose keys a site may set. A place that every GPU node shares tells nothing apart and is left out. Who
holds a node's GPUs is asked of the API server when somebody wants to know, owners up to the top included.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aggregator.kube.client import Json, KubeClient
from aggregator.kube.errors import ApiError, Forbidden, NotFound
from aggregator.kube.nodes import GPU_RESOURCES, MIG_RESOURCES, Node

# What people call a place → label keys that name it, the first that is set holds.
PLACES: Mapping[str, tuple[str, ...]] = {
    "NVLink domain": ("nvidia.com/gpu.clique",),
    "rack": ("topology.kubernetes.io/rack", "topology.gke.io/rack"),
    "switch": ("network.topology.nvidia.com/leaf",),
    "pool": (
        *("cloud.google.com/gke-nodepool", "eks.amazonaws.com/nodegroup"),
        *("kubernetes.azure.com/agentpool", "karpenter.sh/nodepool"),
    ),
    "zone": ("topology.kubernetes.io/zone",),
    "driver": ("nvidia.com/cuda.driver-version.full",),
    "GPU model": ("nvidia.com/gpu.product",),
}
COUNT_SECONDS = 10.0  # how old the count of who shares a place may be
MAX_OWNERS = 8  # steps up a chain of owners


@dataclass(frozen=True, slots=True)
class NodeContext:
    """What the cluster knows of a node."""

    name: str
    places: Mapping[str, str]  # "rack" → "r7"
    gpus: int
    ready: str  # True, False, Unknown
    cordoned_by: str  # empty where nobody did


@dataclass(frozen=True, slots=True)
class Owner:
    """What a pod belongs to."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Holder:
    """A pod that asks for GPUs. Its names are a tenant's."""

    namespace: str
    pod: str
    uid: str
    phase: str
    gpus: int  # over all its containers, MIG devices included
    owners: tuple[Owner, ...] = ()  # the nearest first; the last is the top, as far as it could be seen
    unseen: str = ""  # why the chain ends early


class Topology:
    """Places of nodes, by label keys. May be asked from any thread."""

    def __init__(self, nodes: Callable[[], Mapping[str, Node]], keys: Mapping[str, tuple[str, ...]] = PLACES) -> None:
        self._nodes = nodes
        self._keys = keys
        self._shared: frozenset[tuple[str, str]] = frozenset()  # places of every GPU node
        self._counted_at = -COUNT_SECONDS

    def contexts(self) -> dict[str, NodeContext]:
        """What is known of each node."""
        return {
            node.name: NodeContext(node.name, self.places(node), node.gpus, node.ready, node.cordoned_by)
            for node in list(self._nodes().values())
        }

    def places(self, node: Node) -> dict[str, str]:
        """Where a node stands, by what people call it."""
        named = ((what, next(filter(None, map(node.labels.get, keys)), "")) for what, keys in self._keys.items())
        return {what: name for what, name in named if name}

    def telling(self, name: str) -> tuple[str, ...]:
        """A node's places that not every GPU node shares: "rack r7", "driver 570.86.15"."""
        node = self._nodes().get(name)
        if node is None:
            return ()
        if time.monotonic() - self._counted_at > COUNT_SECONDS:
            self._count()
        return tuple(
            f"{what} {place}" for what, place in self.places(node).items() if (what, place) not in self._shared
        )

    def _count(self) -> None:
        others = [self.places(node).items() for node in list(self._nodes().values()) if node.has_gpus]
        counts = Counter(place for places in others for place in places)
        self._shared = frozenset(place for place, count in counts.items() if count == len(others) > 1)
        self._counted_at = time.monotonic()


async def holders(client: KubeClient, node: str) -> tuple[Holder, ...]:
    """Pods on a node that ask for GPUs, and what they belong to. Raises ApiError where pods may not be listed."""
    params = {"fieldSelector": f"spec.nodeName={node}"}
    found = [pod async for page in client.pages("/api/v1/pods", params) for pod in page.get("items") or ()]
    known: dict[tuple[str, str, str], Json] = {}
    return tuple([await _holder(client, pod, known) for pod in found if _gpus(pod)])


async def _holder(client: KubeClient, pod: Json, known: dict[tuple[str, str, str], Json]) -> Holder:
    metadata = pod["metadata"]
    owners, unseen = await _owners(client, pod, known)
    phase = str((pod.get("status") or {}).get("phase", ""))
    return Holder(metadata["namespace"], metadata["name"], metadata["uid"], phase, _gpus(pod), owners, unseen)


async def _owners(
    client: KubeClient, pod: Json, known: dict[tuple[str, str, str], Json]
) -> tuple[tuple[Owner, ...], str]:
    """The chain of controllers above an object. What may not be read ends it, and is said."""
    owners: list[Owner] = []
    namespace, below = pod["metadata"]["namespace"], pod
    while (above := _controller(below)) is not None and len(owners) < MAX_OWNERS:
        owners.append(Owner(str(above.get("kind", "")), str(above.get("name", ""))))
        path = _path(namespace, above)
        key = (namespace, path, owners[-1].name)
        try:
            if key not in known:
                known[key] = await client.get(path)
        except NotFound:
            return tuple(owners), f"{owners[-1].kind} {owners[-1].name} is gone"
        except Forbidden as error:
            return tuple(owners), f"may not {error.verb} {error.resource}"
        except ApiError as error:
            return tuple(owners), str(error)
        below = known[key]
    return tuple(owners), ""


def _controller(below: Json) -> Json | None:
    references: list[Json] = (below.get("metadata") or {}).get("ownerReferences") or []
    return next((one for one in references if one.get("controller")), references[0] if references else None)


def _path(namespace: str, reference: Json) -> str:
    """Where an owner is read; a kind's plural is its name and an s, as every built-in and every training controller has it."""
    version, kind = str(reference.get("apiVersion", "v1")), str(reference.get("kind", "")).lower()
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    return f"{root}/namespaces/{namespace}/{kind}s/{reference.get('name', '')}"


def _gpus(pod: Mapping[str, Any]) -> int:
    containers = (pod.get("spec") or {}).get("containers") or ()
    limits = [((container.get("resources") or {}).get("limits") or {}) for container in containers]
    return sum(
        int(amount)
        for limit in limits
        for name, amount in limit.items()
        if (name in GPU_RESOURCES or name.startswith(MIG_RESOURCES)) and str(amount).isdecimal()
    )
