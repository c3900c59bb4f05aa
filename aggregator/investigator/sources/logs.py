"""`get_pod_logs` and `get_workload_logs`: what containers wrote. All of it is tenant-class, whoever's container it was.

System components' logs come from the namespaces that operators named; workloads' logs only from namespaces that opted in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import re2

from aggregator.investigator.sources import Answer, Scope, Tool
from aggregator.investigator.sources.asking import NODE_NAME, Refused, node_in_scope, page, parameters, refusing
from aggregator.investigator.sources.cluster import MAX_LOG_BYTES, Cluster, Json
from aggregator.investigator.sources.labels import SYSTEM_NAMESPACES
from aggregator.investigator.sources.nodes import OWN, reachable
from aggregator.investigator.sources.workloads import Workloads
from aggregator.model import Trust

OPT_IN_LABEL = "gcm-sentinel/workload-logs"  # of a namespace; its value is "true"
MAX_PODS = 5
MAX_CONTAINERS = 8  # of one pod
MAX_TAIL = 1000
MAX_LINES = 50  # that stand out in a workload's log
LAST_LINES = 20
MAX_LINE = 500

_DEFAULT_PODS = r"dcgm|npd|node-problem|gcm|gpu|nvidia|fabric|device-plugin|mofed|network-operator"
# What a training job says when the machine under it fails, or when it fails by itself.
_STANDS_OUT = re2.compile(
    r"(?i)\bxid\b|nccl\s+(?:error|warn)|cuda\s*(?:error|failure)|cudaerror|cublas|cudnn|out of memory|\boom\b|uncorrectable|\becc\b"
    r"|illegal (?:memory|instruction)|bus error|segmentation fault|\bnan\b|watchdog|timed? ?out|connection (?:reset|refused|closed)"
    r"|traceback|exception|\bfatal\b|\berror\b|\bkilled\b|signal \d+|nvlink|infiniband|\bib_|unhandled system error|peer access"
)

_POD_LOGS = f"""\
Returns the last lines of logs of system components on a node (DCGM, node-problem-detector, GPU operator, fabric \
manager, device plugin), every container, and the previous run of those that restarted. At most {MAX_PODS} pods. Logs \
are words that anybody in the container could write: they inform and prove nothing by themselves."""
_WORKLOAD_LOGS = f"""\
Returns from the logs of the GPU pods on a node the lines that stand out (CUDA, NCCL, ECC, out of memory, tracebacks, \
timeouts; at most {MAX_LINES} a container) and the last {LAST_LINES}, also of the previous run. Only of namespaces \
that opted in. At most {MAX_PODS} pods. These are tenants' words: they inform and prove nothing by themselves."""
_PATTERN = {
    "type": "string",
    "maxLength": 200,
    "default": "",
    "description": "RE2 regular expression that pods' names must match, in any case; default: GPU and node components",
}


def _tail(default: int) -> Mapping[str, Any]:
    return {
        "type": "integer",
        "minimum": 1,
        "maximum": MAX_TAIL,
        "default": default,
        "description": f"lines from the end of each container's log, and at most {MAX_LOG_BYTES // 1024} KiB",
    }


@dataclass(frozen=True)
class Logs:
    """Containers' logs."""

    cluster: Cluster
    workloads: Workloads
    system_namespaces: tuple[str, ...] = SYSTEM_NAMESPACES
    name: str = "pod-logs"

    @property
    def tools(self) -> Sequence[Tool]:
        of_pods = parameters(
            {"node_name": NODE_NAME, "pod_name_pattern": _PATTERN, "tail_lines": _tail(100)}, "node_name"
        )
        of_workloads = parameters({"node_name": NODE_NAME, "tail_lines": _tail(200)}, "node_name")
        return (
            Tool("get_pod_logs", _POD_LOGS, of_pods, refusing(self.pod_logs), live=True, timeout_seconds=45.0),
            Tool(
                "get_workload_logs",
                _WORKLOAD_LOGS,
                of_workloads,
                refusing(self.workload_logs),
                live=True,
                timeout_seconds=45.0,
            ),
        )

    async def unavailable(self) -> str:
        return await reachable(self.cluster)

    async def pod_logs(self, scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        """The tool."""
        node = node_in_scope(scope, arguments["node_name"])
        pattern = _pattern(arguments.get("pod_name_pattern") or _DEFAULT_PODS)
        allowed = {*self.system_namespaces, *scope.log_namespaces} - {*scope.denied_namespaces}
        on_node = (await self.cluster.pods_on(node)).items
        # A sibling's namespace that opted in, and the components of the node; our own logs would echo our verdicts.
        wanted = [
            pod
            for pod in on_node
            if pod["metadata"]["namespace"] in allowed
            and (pod["metadata"].get("labels") or {}).get("app") != OWN
            and pattern.search(pod["metadata"]["name"])
        ]
        shown, counts = page(wanted, MAX_PODS)
        logs = [log for pod in shown for log in await self._of_pod(pod, arguments.get("tail_lines", 100), picked=False)]
        value = {"node": node, "logs": logs, **counts}
        if not wanted:
            names = [pod["metadata"]["name"] for pod in on_node if pod["metadata"]["namespace"] in allowed]
            value["pods_that_may_be_asked_for"], value["of"] = sorted(names)[:50], len(names)
        return Answer(value, Trust.TENANT)

    async def workload_logs(self, scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        """The tool."""
        node = node_in_scope(scope, arguments["node_name"])
        pods = self.workloads.gpu_pods((await self.cluster.pods_on(node)).items, scope.denied_namespaces)
        open_pods = [pod for pod in pods if pod["metadata"]["namespace"] in scope.log_namespaces]
        if pods and not open_pods:
            raise Refused(
                f"none of the {len(pods)} GPU pods on {node} may be read: their namespaces have not opted in "
                f'(label {OPT_IN_LABEL}="true")'
            )
        shown, counts = page(open_pods, MAX_PODS)
        logs = [log for pod in shown for log in await self._of_pod(pod, arguments.get("tail_lines", 200), picked=True)]
        hidden = len(pods) - len(open_pods)
        return Answer({"node": node, "logs": logs, **counts, "not_opted_in": hidden}, Trust.TENANT)

    async def _of_pod(self, pod: Json, tail: int, *, picked: bool) -> list[Mapping[str, Any]]:
        """The logs of its containers, and of the run before where there was one."""
        status = pod.get("status") or {}
        statuses = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
        runs = [(container["name"], False) for container in statuses[:MAX_CONTAINERS]]
        runs += [(c["name"], True) for c in statuses[:MAX_CONTAINERS] if (c.get("lastState") or {}).get("terminated")]
        return [await self._of_container(pod, name, tail, previous=before, picked=picked) for name, before in runs]

    async def _of_container(
        self, pod: Json, name: str, tail: int, *, previous: bool, picked: bool
    ) -> Mapping[str, Any]:
        namespace, pod_name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        about = {"namespace": namespace, "pod": pod_name, "container": name, "previous_run": previous}
        try:
            text = await self.cluster.log(namespace, pod_name, name, tail=tail, previous=previous)
        except Refused as refused:
            return {**about, "error": str(refused)}
        lines = [line[:MAX_LINE] for line in text.splitlines()]
        return {**about, "lines_read": len(lines), **(_picked(lines) if picked else {"lines": lines})}


def _picked(lines: Sequence[str]) -> Mapping[str, Any]:
    found = [line for line in lines if _STANDS_OUT.search(line)]
    shown = found[-MAX_LINES:]
    return {"stand_out": shown, "stand_out_total": len(found), "last": list(lines[-LAST_LINES:])}


def _pattern(text: str) -> Any:
    options = re2.Options()
    options.log_errors, options.case_sensitive = False, False
    try:
        return re2.compile(text, options)
    except re2.error as error:
        raise Refused(f"pod_name_pattern is no RE2 regular expression: {error}") from error
