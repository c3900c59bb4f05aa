"""What changed on a GPU between what is known and a new reading. Pure: the one place where NVML values become facts.

Steady values are state and never evidence. A value that could not be read changes nothing; neither does "unsupported".

VALUES (per GPU; number, text, flag, unsupported or error)
    critical, each second
        nvml_return                              0, or the code with which the GPU as a whole cannot be read
        unreadable_values                        names of the values whose calls fail
        clocks_event_reasons                     NVML's bits: 0x1 idle, 0x4 power cap, 0x8 HW slowdown, 0x20 SW thermal,
                                                 0x40 HW thermal, 0x80 power brake
        temperature_celsius, memory_temperature_celsius, temperature_margin_celsius (degrees left to T.Limit)
        recovery_action                          none, gpu_reset, node_reboot, drain_p2p, drain_and_reset, recover_imex,
                                                 bus_reset, system_reboot
        and, where offered as fields: ecc_volatile_uncorrected_total, row_remap_pending, row_remap_failure, retired_page_pending
    counters, each ten seconds
        ecc_{volatile,aggregate}_{corrected,uncorrected}_total
        sram_{volatile,aggregate}_{corrected,uncorrected}_total, sram_threshold_exceeded (flag)
        row_remap_{corrected,uncorrected}_total, row_remap_pending (flag), row_remap_failure (flag)
        retired_pages_{single,double}_bit_total, retired_page_pending (flag)
        nvlink_states                            one word per link: active, inactive, sleep, traffic_disabled, unknown
        nvlink_active_links
        nvlink_{replay,recovery,crc_flit}_errors_total, nvlink_recovery_{,failed_}events_total   sums over links
        the same with _by_link                   "3:54000 7:2", links that have any
        fabric_state (not_started, in_progress, completed), fabric_status (NVML code), fabric_health_mask, fabric_health,
        fabric_cluster_uuid, fabric_clique_id
        pcie_width_lanes, pcie_generation, pcie_replay_total
        power_watts, power_limit_watts, clock_sm_mhz, clock_memory_mhz, utilization_percent
        mig_enabled, mig_pending_enabled (flags), mig_layout ("1/0 2/0": GPU instance/compute instance)
    with a snapshot
        row_remap_banks_{max,high,partial,low,none}, pcie_width_max_lanes, pcie_generation_max
        clock_{sm,memory}_max_mhz, temperature_{shutdown,slowdown,memory_max,gpu_max}_celsius and …_tlimit_celsius
        board_part_number, vbios_version, ecc_enabled, ecc_pending_enabled, xid_events_registered (flags)

KINDS, source "nvml"
    states of a GPU (BEGAN, ENDED; Observation: field, before, after, limit; a BEGAN while it holds says that it changed)
        nvml_gpu_lost, gpu_reset_required        field nvml_return
        recovery_action, row_remap_pending, row_remap_failure, retired_page_pending, sram_threshold_exceeded
        nvlink_link_down                         field nvlink_links_down, after "3,7": links that were active once
        fabric_state                             field fabric_state, fabric_status or fabric_health_mask
        pcie_gpu_degraded                        field pcie_width_lanes, or pcie_generation (judged under load alone)
        hw_slowdown, hw_thermal_slowdown, hw_power_brake, sw_thermal_slowdown    field clocks_event_reasons, limit: the bit
        thermal_margin_violation                 field temperature_margin_celsius, temperature_celsius or memory_…
        nvml_value_unreadable                    field unreadable_values, after: their names
    points of a GPU (POINT; Observation)
        ecc_uncorrectable, ecc_corrected, row_remapped, retired_page, nvlink_errors, pcie_replay    field: the counter
        ecc_counter_reset                        counter_reset true: the counter fell, nothing was repaired
        mig_layout_changed                       field mig_enabled or mig_layout
        xid, nvml_event                          GpuEvent, with mig where the driver attributes it (made by the collector)
    of the node (made by the collector)
        nvml_unavailable, driver_version_mismatch, nvml_permission_denied, nvml_hung, nvml_child_crashed, driver_yielded
                                                 BEGAN, ENDED; no body
        gpu_count_low                            BEGAN, ENDED; Observation field gpu_count, limit: expected
        inventory_changed                        POINT; Inventory
        evidence_gap                             POINT; Gap where "nvml_events"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from node_agent.evidence import Fact, Gpu, Observation, Phase, Unreadable, Value
from node_agent.nvml.counters import COUNTERS, Count, Counter, advance
from node_agent.nvml.protocol import GpuReading
from node_agent.nvml.states import STATES, UNKNOWN, Problem, State, View, active_links

SOURCE = "nvml"


@dataclass(frozen=True, slots=True)
class Known:
    """One GPU as far as readings have told. Replaced, never changed."""

    gpu: Gpu
    values: Mapping[str, Value] = field(default_factory=dict)
    told: Mapping[str, Problem] = field(default_factory=dict)  # states that began, by kind
    differs_since: Mapping[str, float] = field(
        default_factory=dict
    )  # by kind: since when a state differs from what was told
    counts: Mapping[str, Count] = field(default_factory=dict)
    links: frozenset[int] = frozenset()  # NVLinks that were ever active
    was_read: bool = False

    @property
    def lost(self) -> bool:
        """Whether NVML can read nothing of it."""
        return "nvml_gpu_lost" in self.told

    @property
    def name(self) -> str:
        """For people."""
        return self.gpu.pci or self.gpu.uuid or "a GPU"


def compare(known: Known, reading: GpuReading, at: float) -> tuple[Known, list[Fact]]:
    """Take in one reading at `at` (monotonic seconds): what is known now, and the facts that the reading makes."""
    if reading.gone is not None:
        return _compare_states(known, known, {"nvml_return": reading.gone.code}, at)
    read: dict[str, Value] = {"nvml_return": 0, "unreadable_values": _unreadable(known, reading), **reading.values}
    links = known.links | active_links(read)
    after, facts = _compare_states(known, replace(known, links=links, was_read=True), read, at)
    after, counted = _compare_counters(known, after, read, at)
    return after, facts + counted + _mig_changes(known, after)


def _unreadable(known: Known, reading: GpuReading) -> str:
    """Names of the values whose calls fail, apart by spaces."""
    before = known.values.get("unreadable_values")
    stale = {name for name in str(before or "").split() if name not in reading.values}
    failing = {name for name, value in reading.values.items() if isinstance(value, Unreadable)}
    return " ".join(sorted(stale | failing))


def _compare_states(known: Known, after: Known, read: Mapping[str, Value], at: float) -> tuple[Known, list[Fact]]:
    """A settled state is looked at when a value it depends on changed; an unsettled one whenever such a value was read."""
    values = {**known.values, **read}
    changed = {name for name, value in read.items() if known.values.get(name) != value}
    told, differs_since = dict(known.told), dict(known.differs_since)
    facts = []
    for state in STATES:
        if state.reads.isdisjoint(read if state.kind in differs_since else changed):
            continue
        before = told.get(state.kind)
        problem = state.check(View(values, before, after.links))
        if problem is UNKNOWN or _same(before, problem):
            differs_since.pop(state.kind, None)
            continue
        wait = state.end_after_seconds if problem is None else state.begin_after_seconds
        if at - differs_since.setdefault(state.kind, at) < wait:
            continue
        del differs_since[state.kind]
        if problem is None:
            facts.append(_ended(after, state, told.pop(state.kind), values))
        else:
            told[state.kind] = problem
            facts.append(_began(after, state, problem, known.values))
    return replace(after, values=values, told=told, differs_since=differs_since), facts


def _same(before: Problem | None, problem: Problem | None) -> bool:
    if before is None or problem is None:
        return before is problem
    return (before.field, before.variant) == (problem.field, problem.variant)


def _began(known: Known, state: State, problem: Problem, values_before: Mapping[str, Value]) -> Fact:
    before = values_before.get(problem.field)
    body = Observation(problem.field, None if before == problem.value else before, problem.value, problem.limit)
    return Fact(SOURCE, state.kind, f"{known.name}: {problem.text}", Phase.BEGAN, known.gpu, body=body)


def _ended(known: Known, state: State, problem: Problem, values: Mapping[str, Value]) -> Fact:
    body = Observation(problem.field, problem.value, values.get(problem.field), problem.limit)
    return Fact(SOURCE, state.kind, f"{known.name}: no longer {state.kind}", Phase.ENDED, known.gpu, body=body)


def _compare_counters(known: Known, after: Known, read: Mapping[str, Value], at: float) -> tuple[Known, list[Fact]]:
    counts = dict(known.counts)
    facts = []
    for name in COUNTERS.keys() & read.keys():
        step = advance(COUNTERS[name], counts.get(name), read, at, first=not known.was_read)
        if step is not None:
            counts[name] = step.count
            facts += [_counter_fact(after, COUNTERS[name], kind, observation) for kind, observation in step.told]
    return replace(after, counts=counts), facts


def _counter_fact(after: Known, counter: Counter, kind: str, body: Observation) -> Fact:
    if body.counter_reset:
        detail = f"{after.name}: {body.field} fell from {body.before} to {body.after}: the counter was reset, nothing was repaired"
    else:
        links = (
            after.values.get(counter.field.replace("_total", "_by_link")) if counter.kind == "nvlink_errors" else None
        )
        where = f" (link:count {links})" if isinstance(links, str) and links else ""
        detail = f"{after.name}: {counter.text} rose from {body.before or 0} to {body.after}{where}"
    return Fact(SOURCE, kind, detail, gpu=after.gpu, body=body)


def _mig_changes(known: Known, after: Known) -> list[Fact]:
    for name in ("mig_enabled", "mig_layout"):
        before, now = known.values.get(name), after.values.get(name)
        if isinstance(before, (bool, str)) and isinstance(now, (bool, str)) and before != now:
            detail = f"{after.name}: {name} changed from {before!r} to {now!r}"
            return [Fact(SOURCE, "mig_layout_changed", detail, gpu=after.gpu, body=Observation(name, before, now))]
    return []
