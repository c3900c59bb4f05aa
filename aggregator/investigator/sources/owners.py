"""Which pods are one job: the walk from a pod up its ownerReferences, by uid, and down again to the pods it made.

A reference is a tenant's words: only kinds named here are followed, within the pod's own namespace, and only to an object that
really has the uid. A kind that may not be read ends the walk there, and its uid still tells which pods belong together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from aggregator.investigator.sources import Unavailable
from aggregator.investigator.sources.asking import Refused
from aggregator.investigator.sources.cluster import Cluster, Json, Listed, controller

MAX_DEPTH = 5

# (API group, kind) → plural: what makes pods of a job, or what makes those.
OWNERS: Mapping[tuple[str, str], str] = {
    ("apps", "ReplicaSet"): "replicasets",
    ("apps", "StatefulSet"): "statefulsets",
    ("apps", "Deployment"): "deployments",
    ("batch", "Job"): "jobs",
    ("jobset.x-k8s.io", "JobSet"): "jobsets",
    ("leaderworkerset.x-k8s.io", "LeaderWorkerSet"): "leaderworkersets",
    ("ray.io", "RayCluster"): "rayclusters",
    ("ray.io", "RayJob"): "rayjobs",
    ("ray.io", "RayService"): "rayservices",
    ("kubeflow.org", "PyTorchJob"): "pytorchjobs",
    ("kubeflow.org", "MPIJob"): "mpijobs",
    ("kubeflow.org", "TFJob"): "tfjobs",
    ("kubeflow.org", "XGBoostJob"): "xgboostjobs",
    ("kubeflow.org", "JAXJob"): "jaxjobs",
    ("kubeflow.org", "PaddleJob"): "paddlejobs",
    ("trainer.kubeflow.org", "TrainJob"): "trainjobs",
    ("batch.volcano.sh", "Job"): "jobs",
    ("argoproj.io", "Workflow"): "workflows",
    ("slurm.schedmd.com", "NodeSet"): "nodesets",
    ("slinky.slurm.net", "NodeSet"): "nodesets",
}
_VERSION = re.compile(r"v[0-9]+((alpha|beta)[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Owner:
    """One step of a walk."""

    kind: str
    name: str
    uid: str
    path: str = ""  # of the list it stands in; empty for a kind that is not followed


@dataclass(frozen=True, slots=True)
class Family:
    """The pods of one job, as far as they can be told."""

    owners: tuple[Owner, ...]  # from the pod's own upwards
    pods: tuple[Json, ...]
    complete: bool = True


async def family(cluster: Cluster, pod: Json, pods: Listed) -> Family:
    """The job of a pod among the pods of its namespace. Without an owner it stands for itself."""
    owners = await walk(cluster, pod)
    if not owners:
        return Family((), (pod,))
    made = {owners[0].uid}
    complete = pods.complete
    if len(owners) > 1:
        made, complete = await _made_by(cluster, owners)
    kin = tuple(other for other in pods.items if controller(other).get("uid") in made)
    return Family(owners, kin, complete and pods.complete)


async def walk(cluster: Cluster, pod: Json) -> tuple[Owner, ...]:
    """A pod's owners, from its own upwards."""
    owners: list[Owner] = []
    thing, namespace = pod, pod["metadata"]["namespace"]
    while (reference := controller(thing)) and len(owners) < MAX_DEPTH:
        owner = _owner(reference, namespace)
        owners.append(owner)
        found = await _read(cluster, owner)
        if found is None:
            break
        thing = found
    return tuple(owners)


async def _made_by(cluster: Cluster, owners: tuple[Owner, ...]) -> tuple[set[str], bool]:
    """The uids of whatever made pods below the last owner, level by level: of the kinds that led up to it."""
    wanted, complete = {owners[-1].uid}, True
    made = set(wanted)
    for level in reversed(owners[:-1]):
        try:
            listed = await cluster.list(level.path)
        except (Unavailable, Refused):
            return {owners[0].uid}, False
        wanted = {item["metadata"]["uid"] for item in listed.items if controller(item).get("uid") in wanted}
        made |= wanted
        complete = complete and listed.complete
    return made, complete


async def _read(cluster: Cluster, owner: Owner) -> Json | None:
    if not owner.path:
        return None
    try:
        found = await cluster.object(owner.path, owner.name)
    except (Unavailable, Refused):
        return None
    return found if found["metadata"].get("uid") == owner.uid else None


def _owner(reference: Json, namespace: str) -> Owner:
    group, _, version = str(reference.get("apiVersion", "")).rpartition("/")
    kind = str(reference.get("kind", ""))
    plural = OWNERS.get((group, kind))
    path = f"/apis/{group}/{version}/namespaces/{namespace}/{plural}" if plural and _VERSION.fullmatch(version) else ""
    return Owner(kind, str(reference.get("name", "")), str(reference.get("uid", "")), path)
