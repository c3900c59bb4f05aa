"""Exporters on a node, asked directly: what they say now, also where Prometheus is down or does not scrape them.

An exporter is found by who owns it, never by what it is called: its address comes from a finder, which knows the DaemonSet's pods
or an operator's own list. A pod that merely looks like an exporter is not asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import re2

from aggregator.investigator.sources import Answer, Scope, Tool, Unavailable
from aggregator.investigator.sources.asking import NODE_NAME, Refused, node_in_scope, parameters, refusing
from aggregator.investigator.sources.exposition import MAX_SAMPLES, Exposition, Sample, read, shown
from aggregator.investigator.sources.http import Endpoint, TooLarge
from aggregator.investigator.sources.labels import TENANT_LABELS
from aggregator.model import Trust

Finder = Callable[[str], Awaitable[str]]  # node → URL of its exporter's metrics; raises Unavailable

MAX_BYTES = 16 * 2**20
TIMEOUT_SECONDS = 10.0

_DCGM = (
    r"^DCGM_(FI_DEV_(GPU_TEMP|MEMORY_TEMP|POWER_USAGE|SM_CLOCK|MEM_CLOCK|GPU_UTIL|FB_USED|FB_FREE|XID_ERRORS"
    r"|ECC_[SD]BE_(VOL|AGG)_TOTAL|RETIRED_(SBE|DBE|PENDING)|(UN)?CORRECTABLE_REMAPPED_ROWS|ROW_REMAP_(FAILURE|PENDING)"
    r"|PCIE_REPLAY_COUNTER|NVLINK_(CRC_FLIT|CRC_DATA|REPLAY|RECOVERY)_ERROR_COUNT_TOTAL|NVLINK_BANDWIDTH_TOTAL"
    r"|CLOCKS?_(THROTTLE|EVENT)_REASONS|(POWER|THERMAL)_VIOLATION)|EXP_.*)$"
)
_NODE = (
    r"^node_(hwmon_(temp_celsius|fan_rpm|power_average_watt)$|thermal_zone_temp$|power_supply_|load|pressure_|edac_|boot_time_seconds$|uname_info$"
    r"|memory_(MemTotal|MemAvailable|HardwareCorrupted)_bytes$|vmstat_oom_kill$|timex_offset_seconds$|disk_io_(now|time_seconds_total)$"
    r"|filesystem_(avail_bytes|size_bytes|readonly|device_error)$|infiniband_(port|state|physical_state|rate)"
    r"|network_(receive|transmit)_(errs|drop)_total$|network_up$)"
)
_INFINIBAND = r"^node_infiniband_"
_NETWORK = r"^node_network_((receive|transmit)_(errs|drop|fifo|frame|carrier|colls)_total|up|carrier_changes_total|speed_bytes)$"

_DCGM_LABELS = frozenset(
    ("gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname", "GPU_I_ID", "GPU_I_PROFILE", "DCGM_FI_DRIVER_VERSION",
     "xid", "err_code", "err_msg", "nvlink", "nvswitch", "window_size_in_ms", "health_watch", "health_error_code"),
)  # fmt: skip
_FILTER = {
    "type": "string",
    "maxLength": 200,
    "description": "RE2 regular expression that metric names must match, anywhere and in any case; default: a summary",
}
_LIMITS = f"NaN and infinities are words. At most {MAX_SAMPLES} series are given; `total_series` counts all."
_ASK_DCGM = f"""\
Asks dcgm-exporter on a node directly, now. Returns per GPU temperature (°C), power (W), clocks (MHz), the last XID, \
ECC counts, retired pages, row remapping (pending, failed, remapped rows), PCIe replays, NVLink errors and throttle \
reasons. DCGM shows its last XID until another one comes, so that says nothing of when. A value that DCGM cannot read \
is missing, which is no health. {_LIMITS}"""
_ASK_HOST = f"""\
Asks node-exporter on a node directly, now. Returns host temperatures (°C), fans (rpm), power supplies, load, memory, \
corrupted memory, EDAC, disks, InfiniBand state, network errors and drops, and when it booted (s since 1970). \
{_LIMITS}"""
_ASK_LINKS = f"""\
Asks node-exporter on a node directly, now, for every InfiniBand port: state, rate, errors, links that went down, \
discards. On a node without InfiniBand it gives the network interfaces' errors, drops and carrier changes instead \
(`infiniband` is false). {_LIMITS}"""
_PARAMETERS = parameters({"node_name": NODE_NAME, "metric_filter": _FILTER}, "node_name")


@dataclass(frozen=True)
class Dcgm:
    """dcgm-exporter."""

    find: Finder
    name: str = "dcgm-exporter"

    @property
    def tools(self) -> Sequence[Tool]:
        return (Tool("query_dcgm_direct", _ASK_DCGM, _PARAMETERS, refusing(self.query), live=True),)

    async def unavailable(self) -> str:
        return ""  # it may run on one node and not on another: who asks is told

    async def query(self, scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        """The tool."""
        pattern = _pattern(arguments.get("metric_filter") or _DCGM)
        node, found = await _scrape(self.name, self.find, scope, arguments["node_name"])
        return Answer(_shown(self.name, node, found, _matching(found, pattern), _DCGM_LABELS), Trust.CLUSTER)


@dataclass(frozen=True)
class NodeExporter:
    """node-exporter."""

    find: Finder
    name: str = "node-exporter"

    @property
    def tools(self) -> Sequence[Tool]:
        only_node = parameters({"node_name": NODE_NAME}, "node_name")
        return (
            Tool("query_node_exporter_direct", _ASK_HOST, _PARAMETERS, refusing(self.query), live=True),
            Tool("query_infiniband_direct", _ASK_LINKS, only_node, refusing(self.query_infiniband), live=True),
        )

    async def unavailable(self) -> str:
        return ""

    async def query(self, scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        """What the host says of itself."""
        pattern = _pattern(arguments.get("metric_filter") or _NODE)
        node, found = await _scrape(self.name, self.find, scope, arguments["node_name"])
        return Answer(_shown(self.name, node, found, _matching(found, pattern)), Trust.CLUSTER)

    async def query_infiniband(self, scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        """InfiniBand's counters, else the network's."""
        node, found = await _scrape(self.name, self.find, scope, arguments["node_name"])
        samples = _matching(found, _pattern(_INFINIBAND))
        value = _shown(self.name, node, found, samples or _matching(found, _pattern(_NETWORK)))
        return Answer({**value, "infiniband": bool(samples)}, Trust.CLUSTER)


async def _scrape(name: str, find: Finder, scope: Scope, node_name: str) -> tuple[str, Exposition]:
    """The node, and what its exporter says. Raises Refused or Unavailable."""
    node = node_in_scope(scope, node_name)
    endpoint = Endpoint(await find(node), max_bytes=MAX_BYTES, timeout_seconds=TIMEOUT_SECONDS)
    try:
        reply = await endpoint.get("")
    except TooLarge as error:
        raise Unavailable(f"{name} on {node} answers with {error}") from error
    if reply.status != 200:
        raise Unavailable(f"{name} on {node} answers with status {reply.status}")
    return node, await asyncio.to_thread(read, reply.body)


def _shown(
    name: str, node: str, found: Exposition, samples: Sequence[Sample], keeps: frozenset[str] | None = None
) -> dict[str, Any]:
    """Some of what an exporter says, and how much there is."""
    names = {sample.name for sample in found.samples}
    value: dict[str, Any] = {"node": node, "exporter": name, **shown(samples, keeps, TENANT_LABELS)}
    value["metrics_exposed"] = len(names)
    if not samples:
        value["exposed"] = sorted(names)[:100]
    if found.unreadable_lines:
        value["unreadable_lines"] = found.unreadable_lines
    return value


def by_url(urls: Mapping[str, str]) -> Finder:
    """Outside Kubernetes: node → URL as an operator wrote it; "*" stands for all others, with {node} for the node's name."""

    async def find(node: str) -> str:
        template = urls.get(node) or urls.get("*")
        if template is None:
            raise Unavailable(f"no exporter is configured for node {node}")
        return template.replace("{node}", quote(node, safe=""))

    return find


def _pattern(text: str) -> Any:
    options = re2.Options()
    options.log_errors, options.case_sensitive = False, False
    try:
        return re2.compile(text, options)
    except re2.error as error:
        raise Refused(f"metric_filter is no RE2 regular expression: {error}") from error


def _matching(found: Exposition, pattern: Any) -> list[Sample]:
    return [sample for sample in found.samples if pattern.search(sample.name)]
