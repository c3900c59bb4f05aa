"""What the sources need of an API server: a few reads, bounded, their refusals in words for the model.

Names that come from tenants (an owner's kind, a pod's name) become part of a path only escaped, and only below paths that are ours.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from aggregator.investigator.sources import Unavailable
from aggregator.investigator.sources.asking import Refused
from aggregator.investigator.sources.exporters import Finder
from aggregator.kube.errors import ApiError, NotFound

Json = dict[str, Any]
Params = Mapping[str, str | int]

PAGE = 500
MAX_OBJECTS = 2000  # of one list that are read
MAX_LOG_BYTES = 64 * 1024  # of one container's log


class Reader(Protocol):
    """An API server, read: `aggregator.kube.client.KubeClient` is one. Raises ApiError."""

    async def get(self, path: str, params: Params | None = None) -> Json:
        """One object, or one page of a list."""
        ...

    async def text(self, path: str, params: Params | None = None) -> str:
        """An answer that is no JSON."""
        ...


@dataclass(frozen=True, slots=True)
class Listed:
    """A list, as far as it was read."""

    items: tuple[Json, ...]
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Cluster:
    """An API server, asked in the terms of the sources."""

    reader: Reader

    async def node(self, name: str) -> Json:
        """Raises Refused where there is none, or Unavailable."""
        async with _told(f"node {name}"):
            return await self.reader.get(f"/api/v1/nodes/{_part(name)}")

    async def object(self, path: str, name: str) -> Json:
        """An object below a path of ours. Raises Refused where there is none, or Unavailable."""
        async with _told(f"{path.rpartition('/')[2]} {name}"):
            return await self.reader.get(f"{path}/{_part(name)}")

    async def list(self, path: str, params: Params | None = None) -> Listed:
        """At most MAX_OBJECTS of a list. Raises Unavailable, or Refused where there is no such list."""
        items: list[Json] = []
        asked: dict[str, str | int] = {**(params or {}), "limit": PAGE}
        async with _told(path):
            while True:
                found = await self.reader.get(path, asked)
                items += found.get("items") or ()
                token = (found.get("metadata") or {}).get("continue", "")
                if not token or len(items) >= MAX_OBJECTS:
                    return Listed(tuple(items[:MAX_OBJECTS]), not token)
                asked["continue"] = token

    async def pods_on(self, node: str) -> Listed:
        """The pods of a node."""
        return await self.list("/api/v1/pods", {"fieldSelector": f"spec.nodeName={node}"})

    async def log(self, namespace: str, pod: str, container: str, *, tail: int, previous: bool = False) -> str:
        """The end of a container's log. Raises Refused where there is none, or Unavailable."""
        params: dict[str, str | int] = {
            "container": container,
            "tailLines": tail,
            "limitBytes": MAX_LOG_BYTES,
            "timestamps": "true",
        }
        if previous:
            params["previous"] = "true"
        async with _told(f"the log of {namespace}/{pod}"):
            return await self.reader.text(f"/api/v1/namespaces/{_part(namespace)}/pods/{_part(pod)}/log", params)

    async def addresses(self, node: str) -> Sequence[str]:
        """A node's own addresses; none where the node is not known."""
        try:
            found = await self.node(node)
        except (Refused, Unavailable):
            return ()
        return addresses_of(found)


def addresses_of(node: Json) -> tuple[str, ...]:
    """The addresses in a Node's status."""
    addresses = (node.get("status") or {}).get("addresses") or ()
    return tuple(address["address"] for address in addresses if address.get("type") in ("InternalIP", "ExternalIP"))


def controller(thing: Json) -> Json:
    """The ownerReference of the controller; empty where there is none."""
    owners = thing["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), {})


def by_daemon_set(cluster: Cluster, namespace: str, selector: str, port: int, path: str) -> Finder:
    """Finds an exporter as the running pod, on a node, of a DaemonSet that a selector finds in a namespace."""
    root = f"/apis/apps/v1/namespaces/{namespace}"

    async def find(node: str) -> str:
        owners = await cluster.list(f"{root}/daemonsets", {"labelSelector": selector})
        uids = {owner["metadata"]["uid"] for owner in owners.items}
        if not uids:
            raise Unavailable(f"namespace {namespace} has no DaemonSet with {selector}")
        pods = await cluster.list(f"/api/v1/namespaces/{namespace}/pods", {"fieldSelector": f"spec.nodeName={node}"})
        for pod in pods.items:
            status = pod.get("status") or {}
            if controller(pod).get("uid") in uids and status.get("phase") == "Running" and status.get("podIP"):
                address = status["podIP"]
                return f"http://{f'[{address}]' if ':' in address else address}:{port}{path}"
        raise Unavailable(f"the DaemonSet with {selector} in {namespace} has no running pod on {node}")

    return find


@asynccontextmanager
async def _told(what: str) -> AsyncIterator[None]:
    """An API error in the terms of a tool."""
    try:
        yield
    except NotFound as error:
        raise Refused(f"there is no {what}") from error
    except ApiError as error:
        raise Unavailable(f"the API server does not give {what}: {error}") from error


def _part(name: str) -> str:
    """One part of a path."""
    if name in ("", ".", ".."):
        raise Refused(f"{name!r} is no name")
    return quote(name, safe="")
