"""What the conditions of a Kubernetes node mean: which status is bad, and which kind of signal a condition's name stands for.

A condition is a second-hand verdict: a check ran somewhere, minutes ago, and its message may contradict its status. So the name and
the status decide; codes found in message and reason are hints, kept as attributes and trusted by nobody.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from aggregator.model import Evidence, Scalar
from aggregator.rules.grammar.reading import Reading

EVIDENCE_KINDS = ("node_condition", "node_condition_unknown")  # as evidence; as signals they are told apart by name
TRUE, FALSE, UNKNOWN = "True", "False", "Unknown"
MAX_CODES = 16


@dataclass(frozen=True, slots=True)
class Family:
    """Conditions that are read alike."""

    names: tuple[str, ...]  # globs
    kind: str  # of the signals
    bad: str = TRUE  # the status that says that something is wrong
    clear_seconds: float = 60.0  # how long the good status must last before it is believed

    @property
    def blind(self) -> str:
        """The status that says that the check itself could not tell; empty where there is none."""
        return "" if self.bad == UNKNOWN else UNKNOWN


def _npd(kind: str, *names: str) -> Family:
    """A check that the node problem detector runs each five minutes: when that restarts, every condition is False until the check
    has run again."""
    return Family(names, kind, clear_seconds=600.0)


# The first that fits holds.
FAMILIES = (
    # GCM's health checks, under both prefixes
    _npd("node_condition_xid", "*XidErrorsProblem"),
    _npd("node_condition_ecc", "*SmiEccProblem"),
    _npd("node_condition_gpu_lost", "*SmiDisconnectedProblem"),
    _npd("node_condition_process", "*ProcZombieProblem"),
    _npd("node_condition_nvlink", "*DcgmiNvlinkStatusProblem"),
    _npd("node_condition_diagnostics", "*DcgmiDiagProblem"),
    _npd("node_condition_dcgm", "*DcgmRunningProblem"),
    _npd("node_condition_pcie", "GcmPci*Problem", "NPDGcmPci*Problem"),
    _npd("node_condition", "Gcm*Problem", "NPD*"),
    # NVSentinel: named after the check
    Family(("SysLogsXIDError",), "node_condition_xid"),
    Family(("SysLogsSXIDError", "GpuNvlinkWatch", "GpuNvswitch*Watch"), "node_condition_nvlink"),
    Family(("SysLogsGPUFallenOff",), "node_condition_gpu_lost"),
    Family(("SysLogsNICDriverError",), "node_condition_network"),
    Family(("GpuMemWatch",), "node_condition_ecc"),
    Family(("GpuPcieWatch",), "node_condition_pcie"),
    Family(("GpuThermalWatch",), "node_condition_thermal"),
    Family(("GpuPowerWatch",), "node_condition_power"),
    Family(("GpuDriverWatch",), "node_condition_driver"),
    Family(("GpuDcgm*",), "node_condition_dcgm"),
    Family(("Gpu*Watch",), "node_condition_diagnostics"),
    # EKS node monitoring agent: True is the good status
    Family(("AcceleratedHardwareReady",), "node_condition", bad=FALSE),
    # the kubelet is not heard
    Family(("Ready",), "node_unreachable", bad=UNKNOWN),
    # anybody else's
    Family(("*Ready", "*Healthy"), "node_condition", bad=FALSE),
    Family(("*",), "node_condition"),
)

_CODES = re.compile(
    r"Xid\s?\(PCI:[0-9a-fA-F:.]{1,20}\):\s?(\d{1,3})(?!\d)|XIDs?[\s:=#]{0,3}(\d{1,3})(?!\d)|ErrorCode:(\d{1,3})(?!\d)",
    re.IGNORECASE,
)


def family_of(condition: str) -> Family:
    """How a condition of this name is read."""
    return next(family for family in FAMILIES if any(fnmatchcase(condition, glob) for glob in family.names))


def hinted_codes(*texts: str) -> tuple[int, ...]:
    """XIDs that a message or reason speaks of, in ascending order: hints."""
    found = {int(next(filter(None, match.groups()))) for text in texts for match in _CODES.finditer(text)}
    return tuple(sorted(found))[:MAX_CODES]


def read(evidence: Evidence) -> Reading:
    """The signal of a condition; its kind follows from the condition's name alone."""
    values = evidence.values
    name, message, reason = (str(values.get(key) or "") for key in ("condition", "message", "reason"))
    kind = family_of(name).kind if evidence.kind == "node_condition" else evidence.kind
    codes = hinted_codes(message, reason)
    attributes: dict[str, Scalar] = {key: value for key, value in values.items() if value not in (None, "")}
    if codes:
        attributes["hint_codes"] = ",".join(map(str, codes))
    return Reading(kind, attributes)
