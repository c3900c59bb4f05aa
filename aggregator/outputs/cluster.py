"""What targets in the cluster share: a node's uid, and what an API server's refusal means for a message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aggregator.kube.client import KubeClient
from aggregator.kube.errors import ApiError, Conflict, Invalid, NotFound, TooManyRequests
from aggregator.kube.walls import WallAbsent
from aggregator.outputs import Refused, Unavailable

LANES = 8  # requests at a time
PER_MINUTE = 6000


@contextmanager
def translated() -> Iterator[None]:
    """Turn an API server's refusals into a target's."""
    try:
        yield
    except Invalid as error:
        raise Refused(str(error)) from error
    except TooManyRequests as error:
        raise Unavailable(str(error), error.retry_after_seconds) from error
    except Conflict as error:
        raise Unavailable(f"the object changed meanwhile: {error}") from error
    except (ApiError, WallAbsent) as error:
        raise Unavailable(str(error)) from error


async def node_uid(client: KubeClient, node: str) -> str | None:
    """None where the cluster has no such node (any more): there is nobody to tell."""
    try:
        return str((await client.get(f"/api/v1/nodes/{node}"))["metadata"]["uid"])
    except NotFound:
        return None
