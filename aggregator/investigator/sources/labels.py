"""Which series and alerts speak of a node, and which labels hold tenants' words.

A series belongs to the node that its most specific label names: `exported_node` before `node` (a target's own), before the
address it was scraped at. So a cluster-wide exporter that happens to run on a node is not taken for that node, and gpu-1 is never
gpu-10. Values are compared whole.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# The most specific first.
NODE_LABELS = ("exported_node", "node", "kubernetes_node", "nodename", "Hostname", "hostname")
ADDRESS_LABELS = ("exported_instance", "instance")  # an address, or a name, with or without a port

# Who holds a GPU, as the kubelet tells an exporter: names that tenants chose.
TENANT_LABELS = frozenset(
    f"{prefix}{name}"
    for prefix in ("", "exported_", "destination_", "source_")
    for name in ("pod", "namespace", "container", "pod_name", "pod_namespace", "container_name", "pod_uid", "job_name")
) | {"hpc_job", "persistentvolumeclaim", "created_by_name", "owner_name", "mountpoint"}
_TENANT_PREFIXES = ("label_", "annotation_", "exported_label_", "pod_label_")

# Namespaces that only the cluster's operators write to.
SYSTEM_NAMESPACES = (
    "kube-system",
    "monitoring",
    "observability",
    "prometheus",
    "gpu-operator",
    "nvidia-gpu-operator",
    "nvidia-network-operator",
    "nvidia-dra-driver-gpu",
    "network-operator",
    "node-problem-detector",
    "dcgm-exporter",
    "node-exporter",
)


def is_tenant_label(name: str) -> bool:
    """True where its value may be a tenant's own words."""
    return name in TENANT_LABELS or name.startswith(_TENANT_PREFIXES)


@dataclass(frozen=True, slots=True)
class NodeNames:
    """The nodes that may be looked at, as labels write them."""

    nodes: Mapping[str, Sequence[str]]  # name → its addresses

    def matchers(self, label: str) -> str:
        """PromQL matchers that select the series of these nodes, known by this label and by no more specific one."""
        order = (*NODE_LABELS, *ADDRESS_LABELS)
        absent = [f'{other}=""' for other in order[: order.index(label)]]
        return ",".join((f"{label}=~{quoted(self.pattern(label))}", *absent))

    def pattern(self, label: str) -> str:
        """An RE2 pattern for the label's whole value."""
        names = [*self.nodes]
        if label in ADDRESS_LABELS:
            names += [shown for addresses in self.nodes.values() for address in addresses for shown in _forms(address)]
        port = "(?::[0-9]+)?" if label in ADDRESS_LABELS else ""
        return f"(?:{'|'.join(map(re.escape, names))}){port}"

    def node_of(self, labels: Mapping[str, str]) -> str | None:
        """Which of these nodes a label set speaks of; "" where it speaks of none at all, None where of another."""
        for label in (*NODE_LABELS, *ADDRESS_LABELS):
            if labels.get(label):
                return self._named(label, labels[label])
        return ""

    def _named(self, label: str, value: str) -> str | None:
        for node, addresses in self.nodes.items():
            if re.fullmatch(NodeNames({node: addresses}).pattern(label), value):
                return node
        return None


def quoted(text: str) -> str:
    """A PromQL string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _forms(address: str) -> tuple[str, ...]:
    """How an address is written before a port."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return ()
    return (str(ip),) if ip.version == 4 else (str(ip), f"[{ip}]")
