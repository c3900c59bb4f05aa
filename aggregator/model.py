"""The nouns of the aggregator: frozen values without I/O, shared by every layer above.

Times are integer microseconds since the epoch (`…_us`), UTC. PCI addresses are `dddd:bb:dd.f` in lower case. Wire messages are
turned into these at the edge (`aggregator.wire`) and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Scalar = str | int | float | bool | None


class Severity(StrEnum):
    """How bad it is, worst first in `SEVERITY_ORDER`."""

    CRITICAL = "critical"  # GPU or node unusable, or data at risk, until reset, reboot or repair
    WARNING = "warning"  # work lost or degraded: follow up
    INFO = "info"  # worth a record
    OK = "ok"  # no fault


SEVERITY_ORDER: Mapping[Severity, int] = {
    Severity.CRITICAL: 3,
    Severity.WARNING: 2,
    Severity.INFO: 1,
    Severity.OK: 0,
}


class FaultClass(StrEnum):
    """Where the fault lies."""

    HARDWARE = "hardware"
    SOFTWARE = "software"
    APPLICATION = "application"
    DRIVER = "driver"
    THERMAL = "thermal"
    NVLINK = "nvlink"
    PCIE = "pcie"
    MEMORY = "memory"
    UNKNOWN = "unknown"
    NONE = "none"


class Action(StrEnum):
    """What to do with the node: the enum that operators know."""

    CORDON = "cordon"
    DRAIN = "drain"
    TAINT = "taint"
    REBOOT = "reboot"
    NONE = "none"


class Resolution(StrEnum):
    """What to actually do."""

    NONE = "none"
    RESTART_APP = "restart_app"
    FIX_APP = "fix_app"
    RESET_GPU = "reset_gpu"
    REBOOT = "reboot"
    POWER_CYCLE = "power_cycle"
    CORDON = "cordon"
    DRAIN = "drain"
    RMA = "rma"
    RUN_DIAG = "run_diag"
    CHECK_MECHANICALS = "check_mechanicals"
    UPDATE_DRIVER = "update_driver"
    UPDATE_FIRMWARE = "update_firmware"
    CONTACT_SUPPORT = "contact_support"
    INVESTIGATE = "investigate"
    MONITOR = "monitor"
    CONFIG_CHANGE = "config_change"


class Phase(StrEnum):
    """Whether a fact has a duration."""

    POINT = "point"
    BEGAN = "began"
    ENDED = "ended"


class Trust(StrEnum):
    """Who could have written an item: only hardware-class items lower a severity floor or support an executed action."""

    HARDWARE = "hardware"  # the agent, the kernel
    CLUSTER = "cluster"  # API server, Prometheus
    TENANT = "tenant"  # pod logs, names, labels, userspace writes to the kernel log


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU's names, as far as they are known. Two describe the same device when any known name is equal."""

    uuid: str | None = None
    pci: str | None = None
    serial: str | None = None
    minor: int | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """Who held a GPU. Names are set by tenants."""

    namespace: str = ""
    pod: str = ""
    pod_uid: str = ""
    container: str = ""
    pid: int | None = None
    slurm_job: str = ""


@dataclass(frozen=True, slots=True)
class EvidenceKey:
    """What makes a fact one fact: re-sending it changes nothing."""

    node: str
    source: str
    epoch: str
    seq: int

    def __str__(self) -> str:
        return f"{self.node}/{self.source}/{self.epoch}/{self.seq}"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One fact about one node, as stored."""

    key: EvidenceKey
    kind: str
    occurred_us: int
    phase: Phase = Phase.POINT
    gpu: Gpu | None = None
    mig: str | None = None  # "I" or "I/C": GPU instance, compute instance
    boot_id: str = ""
    detail: str = ""  # one line for a person
    text: str | None = None  # a kernel line or captured text, verbatim: what rules read
    facility: int = 0  # syslog facility of text; other than 0 was written by userspace
    level: int | None = None  # syslog level of text
    monotonic_us: int | None = None  # kernel time of text
    values: Mapping[str, Scalar] = field(default_factory=dict)  # typed body: see wire.py for the names
    workloads: tuple[Workload, ...] = ()
    simulated: bool = False
    replayed: bool = False  # an earlier store acknowledged it: rebuild quietly
    time_estimated: bool = False
    stored_us: int = 0

    @property
    def id(self) -> str:
        """What assessments cite."""
        return str(self.key)


@dataclass(frozen=True, slots=True)
class Signal:
    """What one piece of evidence, or one line of a pasted log, means: the unit that rules judge."""

    id: str  # evidence id, with "#n" when one fact holds several signals
    kind: str  # xid, sxid, gpu_fallen_off_bus …: DESIGN §5
    code: int | None = None  # XID or SXid number
    node: str = ""
    pci: str | None = None
    gpu_uuid: str | None = None
    mig: str | None = None
    at_us: int | None = None  # None when the text has no time
    order: int = 0  # position in its input: breaks ties, and orders text without times
    line: int | None = None  # line number in a pasted log, from 1
    raw: str = ""  # the words it was read from
    source: str = ""  # kmsg, nvml, …: two witnesses of one fault differ in it
    boot_id: str = ""
    phase: Phase = Phase.POINT
    trust: Trust = Trust.HARDWARE
    attributes: Mapping[str, Scalar] = field(default_factory=dict)  # what the grammar read: see rules/kinds.py
    count: int = 1  # how many identical reports it stands for
    simulated: bool = False
    replayed: bool = False

    @property
    def name(self) -> str:
        """For people: "xid 79", "gpu_fallen_off_bus"."""
        return self.kind if self.code is None else f"{self.kind} {self.code}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rule engine says about a set of signals. Severity, class, action, resolutions and confidence are judged apart."""

    severity: Severity
    fault_class: FaultClass
    action: Action
    resolutions: tuple[Resolution, ...]
    root_cause: str
    summary: str
    confidence: float
    citations: tuple[str, ...]  # signal ids
    rule_ids: tuple[str, ...]
    recurrence_advice: str = ""
    open_questions: tuple[str, ...] = ()
    do_not: tuple[str, ...] = ()
    next_steps: tuple[str, ...] = ()
    rules_version: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """What an incident is about."""

    kind: str  # gpu, node, nvlink_peers, fleet
    node: str
    pci: str | None = None
    gpu_uuid: str | None = None


class IncidentState(StrEnum):
    """Where an incident stands. History stays in either."""

    OPEN = "open"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Incident:
    """Signals about one subject in one window, in their order of events."""

    id: str  # deterministic: replayed facts rebuild the same incident
    subject: Subject
    nodes: tuple[str, ...]
    signals: tuple[Signal, ...]
    state: IncidentState
    opened_us: int  # first fact
    updated_us: int  # last fact
    resolved_us: int | None = None
    resolved_because: str = ""  # recovered, rebooted, quiet, or "merged into" another incident
    quiet: bool = False  # rebuilt from replayed facts: publish nothing anew
    held_until_us: int | None = None  # a planned state: pages and actions wait
    held_because: str = ""
    fleet_id: str = ""  # the incident across nodes that pages for this one

    @property
    def simulated(self) -> bool:
        """True when any fact comes from a simulated driver: such an incident is never acted on."""
        return any(signal.simulated for signal in self.signals)


@dataclass(frozen=True, slots=True)
class Support:
    """A verbatim quote of an item that an investigation was shown."""

    item_id: str
    quote: str
    trust: Trust
    evidence_id: str = ""  # the fact the item shows, empty where it shows a tool's answer
    live: bool = False  # read from the node during the investigation: later than anything it is asked about


class ClaimRole(StrEnum):
    """What a claim is for."""

    ROOT_CAUSE = "root_cause"
    FINDING = "finding"  # a step on the way from cause to effect, or a cause that was ruled out
    IMPACT = "impact"
    COUNTER_EVIDENCE = "counter_evidence"  # speaks against the root cause


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement of a model with what it stands on: checked in code before anybody sees it as more than a claim."""

    role: ClaimRole
    text: str
    support: tuple[Support, ...]
    dropped_because: str = ""  # empty where it was accepted


class StopReason(StrEnum):
    """How an investigation ended."""

    COMPLETED = "completed"  # an answer, checked
    PARTIAL = "partial"  # claims were accepted, the answer as a whole was not
    DEGRADED = "degraded"  # nothing of the model's stands: the rules' verdict does


@dataclass(frozen=True, slots=True)
class Spent:
    """What an investigation used. Token counts come from the endpoint's own `usage` alone."""

    rounds: int = 0
    tool_calls: int = 0
    input_tokens: int = 0  # all that were read, cached ones included
    cached_tokens: int = 0  # of them, read from the provider's cache
    output_tokens: int = 0  # reasoning included
    cost_usd: float = 0.0  # by the price table; 0 where the model has no price


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a model concluded about an incident, as far as it was accepted. `assessor` joins it with the rules' verdict."""

    severity: Severity
    fault_class: FaultClass
    action: Action
    resolutions: tuple[Resolution, ...]
    confidence: float  # 0 to 1, as the model gave it
    claims: tuple[Claim, ...]  # accepted ones
    open_questions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Investigation:
    """One bounded run and its outcome. Its transcript is kept beside it."""

    id: str
    incident_id: str
    basis: str  # digest of the codes and the rules' verdict it was asked about: stale once those change
    stop: StopReason
    reason: str  # in one line why it is not completed; empty where it is
    model: str
    started_us: int
    ended_us: int
    opinion: Opinion | None = None  # None where degraded
    dropped: tuple[Claim, ...] = ()
    unchecked: tuple[str, ...] = ()  # what could not be looked at, and why
    spent: Spent = Spent()


@dataclass(frozen=True, slots=True)
class Assessment:
    """A verdict on an incident, published; a later revision replaces it."""

    id: str  # incident id and revision
    incident_id: str
    node: str
    revision: int
    created_us: int
    verdict: Verdict
    origin: str = "rules"  # rules or llm
    degraded_reason: str = ""
    claims: tuple[Claim, ...] = ()
    dropped_claims: tuple[Claim, ...] = ()
    counter_evidence: tuple[str, ...] = ()
    disputed: tuple[str, ...] = ()  # where rules and model differ, a sentence each
    unchecked: tuple[str, ...] = ()  # what could not be looked at, and why
    investigation_id: str = ""
    model: str = ""
    cost_usd: float = 0.0
    partial: bool = False  # claims were accepted, the investigation as a whole was not


def normalise_pci(text: str) -> str | None:
    """Any common form of a PCI address as `dddd:bb:dd.f` in lower case; None when it is none.

    Accepts 8-digit domains (`00000000:3A:00.0`), a missing function (`0000:3a:00`) and a missing domain (`3a:00.0`).
    """
    head, dot, function = text.strip().lower().partition(".")
    parts = head.split(":")
    if len(parts) == 2:
        parts = ["0", *parts]
    try:
        domain, bus, device = (int(part, 16) for part in parts)
        number = int(function, 16) if dot else 0
    except ValueError:
        return None
    if domain > 0xFFFFFFFF or bus > 0xFF or device > 0xFF or number > 0xF:
        return None
    return f"{domain:04x}:{bus:02x}:{device:02x}.{number:x}"
