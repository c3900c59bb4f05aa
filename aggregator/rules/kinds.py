"""The kinds of signal: what each means, what it is about, and which attributes its grammar sets.

The one list that the reader, the engine, `explain` and the metrics share. Names are a contract (DESIGN §5): they may be added,
never renamed. An attribute is absent from a signal when the text did not hold it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class About(StrEnum):
    """What a signal of a kind is about."""

    GPU = "gpu"
    LINK = "link"  # an NVLink, seen from its GPU or its switch
    NODE = "node"
    DEVICE = "device"  # a PCI device that is no GPU of ours: bridge, NIC, NVMe, another vendor's GPU
    OBSERVER = "observer"  # the watching itself: agent, NVML, DCGM


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of signal. `attributes` maps an attribute's name to its meaning."""

    name: str
    about: About
    meaning: str
    attributes: Mapping[str, str] = field(default_factory=dict)


# Attributes that a signal of any kind may have.
COMMON: Mapping[str, str] = {
    "text": "the message, or what a collector says about it",
    "container": "true where a container's log says that it cannot use the driver",
    "workload": "namespace/pod of whoever held the GPU, comma separated",
    "uptime_seconds": "kernel time of the line, in a pasted log",
    "previous_boot": "true for a line saved from before this boot",
    "minor": "the GPU as N of /dev/nvidiaN",
    "index": "the GPU as nvidia-smi numbers it",
    "instance": "the GPU as the driver numbers it, as in GPU4",
    "places": "of a fault that many nodes show: where its node stands, separated by semicolons",
}

_COUNTER = {"before": "value before", "after": "value now", "limit": "the limit that matters", "field": "which counter"}
_PCIE = {
    "device": "gpu, port, nic, nvme or other: what the address is, as far as the text tells",
    "bdf": "the address as printed, where it is no GPU's",
    "error": "the error's own name: CmpltTO, SDES, BadTLP …",
    "layer": "Physical, Data Link or Transaction Layer",
    "source": "the address on whose behalf a port reports",
    "slot": "hot-plug slot",
    "would_be": "pcie_error_other_device: the kind it would be on a GPU",
}
_THROTTLE = {"reason": "the reason as printed", "bit": "NVML clocks-event bit"}
_CONDITION = {
    "condition": "its type",
    "status": "True, False or Unknown",
    "reason": "the reason given",
    "message": "the message given: a hint, which may contradict the status",
    "hint_codes": "XIDs that message or reason speak of, comma separated: hints",
}
_SECONDHAND = {"reported_code": "the XID or SXid that the text mentions", "reporter": "whose text it is"}

_G, _L, _N, _D, _O = About.GPU, About.LINK, About.NODE, About.DEVICE, About.OBSERVER

_ALL = (
    # --- the NVIDIA driver's own numbered reports
    Kind(
        "xid",
        _G,
        "The NVIDIA driver reported an XID; `code` is its number.",
        {
            "text": "the driver's words after pid and name",
            "pid": "process that owned the channel (not who is guilty)",
            "process": "its name",
            "channel": "channel id as printed",
            "previous_xid": "45: the XID that caused this cleanup",
            "gpc": "13: graphics cluster",
            "tpc": "13: texture cluster",
            "sm": "13: streaming multiprocessor",
            "exception": "13: Illegal Instruction Parameter, Out Of Range Address …",
            "fault_type": "31: FAULT_PDE, FAULT_PTE …",
            "access": "31: ACCESS_TYPE_VIRT_READ …",
            "engine": "31, 109 …: engine named by the driver",
            "client": "31: client named by the driver",
            "address": "31: faulting address; 63, 64: row or page address",
            "memory": "dram or sram, where the text says which",
            "unit": "48, 94, 95, 140: memory unit (FBPA, LTC, SM …); 144-150: NVLink unit",
            "partition": "48, 92, 94: memory partition",
            "remap": "63, 64, 177: recorded, pending, failed (a real failure), page_recorded, page_failed",
            "remap_reason": "64: table_full, bank_full, reserved_row, internal_error, no_spare, already_pending",
            "activate": "63, 64, 160, 177: gpu_reset, node_reboot or driver_reload, where the text says what makes it take effect",
            "repair": "156, 157, 160, 161: armed or failed",
            "gpu_reset_needed": "94, 95: the RST flag",
            "drain_reset_needed": "94, 95: the D-RST flag",
            "rpc_function": "119: function number the driver waited for (no XID)",
            "rpc_name": "119: its name",
            "timeout_seconds": "119: how long it waited",
            "recovery_action": "154: none, gpu_reset, node_reboot, drain_p2p, drain_and_reset, recover_imex, bus_reset, "
            "system_reboot, unknown",
            "recovery_action_before": "154: what it was before",
            "recovery_text": "154: the action as printed",
            "link": "74, 144-150: NVLink number; -1 when the driver names none",
            "registers": "74: the seven registers, comma separated hex",
            "register_bits": "74: set bits as REG:BIT, comma separated, registers counted from 1",
            "fatal": "144-150: true when the line says Fatal",
            "intr_info": "144-150: hex",
            "error_status": "144-150: hex",
            "subcode": "144-150: decoded unit and sub-unit of NVIDIA's table",
            "link_down_reason": "149: intrInfo bits 25:20",
            "decoded_severity": "144-150: Fatal, Non-fatal, Link Fatal …",
            "immediate": "144-150: the table's immediate action bucket; several joined by | when ambiguous",
            "investigatory": "144-150: the table's investigatory bucket",
            "hw_sw": "144-150: HW, SW, HW/SW, FW",
            "local": "144-150: what happens on this GPU",
            "remote": "144-150: what happens on its peers",
            "decode": "144-150: v1, v2, ambiguous or none",
            "body_suggests": "the XID whose wording the body has, when it is not this code: the line contradicts itself",
            "truncated": "true when the line ends inside the driver's format",
        },
    ),
    Kind(
        "sxid",
        _L,
        "An NVSwitch reported an SXid; `code` is its number, `pci` the switch.",
        {
            "fatal": "true, false, or absent when the lines do not say",
            "link": "switch port; absent when the report names none",
            "text": "the switch driver's words",
            "switch": "nvidia-nvswitchN, or the physical id in fabricmanager.log",
            "words": "error, warning or info: the worst word in the text",
            "reporter": "fabric_manager when read from its log",
        },
    ),
    Kind(
        "sxid_detail",
        _L,
        "A Severity or Data line that describes the SXid `code`: no event of its own.",
        {
            "switch": "nvidia-nvswitchN",
            "severity": "number in the Severity line",
            "engine_instance": "number in the Severity line",
            "data": "the Data line's registers",
        },
    ),
    Kind(
        "xid_malformed",
        _G,
        "The driver reported an XID that cannot be read: kept, never counted as an XID.",
        {
            "words": "error, warning or info: the worst word in the text",
            "unstamped": "true where no log's prefix says that the kernel wrote the line",
        },
    ),
    # --- GPU presence, start and reset
    Kind(
        "gpu_identity",
        _G,
        "The text names a GPU: which UUID, serial number or minor belongs to which address. No event.",
        {
            "serial": "board serial",
            "minor": "N of /dev/nvidiaN",
            "index": "nvidia-smi's number",
            "model": "product name",
        },
    ),
    Kind(
        "gpu_fallen_off_bus",
        _G,
        "The driver says a GPU has fallen off the bus, without an XID.",
        {"stage": "probe, runtime or config_space (lspci reads rev ff)", "vendor_device": "PCI ID"},
    ),
    Kind(
        "gpu_init_failure",
        _G,
        "The driver could not initialise a GPU.",
        {
            "stage": "adapter, probe, gsp_firmware, bar, firmware_file (a file of the driver's package is missing)",
            "file": "which file",
            "rm_status": "RmInitAdapter triple, for example 0x22:0x56:894",
        },
    ),
    Kind("nvml_gpu_lost", _G, "NVML or nvidia-smi says a GPU is lost."),
    Kind(
        "gpu_reset_required",
        _G,
        "NVML, nvidia-smi or the driver says a GPU must be reset.",
        {
            "rate_limited": "true when the driver says it prints only some",
            "rpc_function": "number",
            "timeout_seconds": "seconds",
        },
    ),
    Kind(
        "recovery_action",
        _G,
        "NVML's recovery action for a GPU changed.",
        {"recovery_action": "as for XID 154", **_COUNTER},
    ),
    Kind("gpu_count_low", _N, "Fewer GPUs than expected.", {"after": "how many", "limit": "how many there should be"}),
    Kind(
        "gpu_handle_error",
        _G,
        "nvidia-smi cannot get a GPU's handle or reads Unknown Error or ERR! for it.",
        {},
    ),
    Kind("gpu_not_in_nvml", _G, "The PCI bus shows a GPU that NVML does not offer."),
    Kind("gpu_not_on_bus", _G, "NVML offers a GPU that the PCI bus does not show."),
    Kind("gpu_count_differs", _N, "A node has fewer GPUs than identical nodes have.", _COUNTER),
    Kind("gpu_reset_done", _G, "A GPU was reset."),
    Kind(
        "gpu_reset_failed",
        _G,
        "A reset of a GPU failed.",
        {"in_use": "true when it was refused because something uses the GPU"},
    ),
    Kind("inventory_changed", _N, "The node's GPUs or driver changed."),
    Kind("mig_layout_changed", _G, "The MIG layout changed: planned."),
    Kind("gpu_assigned", _G, "A workload got this GPU."),
    # --- memory
    Kind(
        "ecc_uncorrectable",
        _G,
        "Uncorrectable ECC errors on a GPU.",
        {**_COUNTER, "memory": "dram or sram", "scope": "volatile or aggregate", "unit": "unit named by the text"},
    ),
    Kind(
        "ecc_corrected",
        _G,
        "Corrected ECC errors rose.",
        {**_COUNTER, "memory": "dram or sram", "scope": "volatile or aggregate"},
    ),
    Kind(
        "ecc_counter_reset", _G, "A volatile ECC counter fell: the counter was reset, nothing was repaired.", _COUNTER
    ),
    Kind("sram_threshold_exceeded", _G, "The GPU's SRAM error threshold flag is set.", _COUNTER),
    Kind("row_remapped", _G, "Memory rows were remapped.", {**_COUNTER, "cause": "correctable or uncorrectable"}),
    Kind(
        "row_remap_pending",
        _G,
        "A row remap waits for a GPU reset.",
        {
            "xid": "the XID whose text says so",
            **_COUNTER,
        },
    ),
    Kind(
        "row_remap_failure",
        _G,
        "A row remap failed: the vendor's replacement criterion.",
        {
            "xid": "the XID whose text says so",
            **_COUNTER,
        },
    ),
    Kind(
        "retired_page",
        _G,
        "Memory pages were retired (before Ampere).",
        {**_COUNTER, "cause": "single_bit or double_bit"},
    ),
    Kind(
        "retired_page_pending",
        _G,
        "A page retirement waits for a driver reload (before Ampere).",
        {**_COUNTER, "xid": "the XID whose text says so"},
    ),
    # --- GPU firmware and driver
    Kind("pmu_halt", _G, "The GPU's micro-controller halted, without an XID."),
    Kind(
        "gsp_rpc_timeout",
        _G,
        "The GSP firmware did not answer an RPC, without an XID.",
        {
            "rpc_function": "number",
            "timeout_seconds": "seconds",
            "rate_limited": "true when the driver says it prints only some",
        },
    ),
    Kind("gsp_heartbeat_timeout", _G, "The GSP firmware's heartbeat stopped."),
    Kind("gsp_error", _G, "The GSP firmware reported an error, without an XID."),
    Kind("rc_watchdog", _G, "The driver's channel watchdog fired."),
    Kind(
        "driver_assert",
        _G,
        "An assertion of the NVIDIA driver failed: usually a consequence.",
        {"status": "NV_ERR_… code"},
    ),
    Kind(
        "driver_message",
        _N,
        "A line of the NVIDIA driver whose wording is not known here: kept.",
        {"words": "error, warning or info"},
    ),
    Kind("driver_loaded", _N, "The NVIDIA driver was loaded.", {"driver_version": "its version"}),
    Kind("driver_unloaded", _N, "The NVIDIA driver was unloaded: planned."),
    Kind(
        "driver_version_mismatch",
        _N,
        "Kernel module and user library have different versions.",
        {"kernel_version": "module", "library_version": "library"},
    ),
    Kind("nvml_unavailable", _N, "NVML cannot be used: no driver, no library or no answer."),
    Kind("nvml_permission_denied", _O, "NVML refuses for lack of permission: a configuration fault, not the GPU's."),
    Kind("nvml_value_unreadable", _O, "NVML fails for one value of a GPU: cannot observe.", _COUNTER),
    Kind("nvml_event", _G, "An NVML event that is no XID: context.", {"type": "event type bit", "data": "its data"}),
    Kind("nvml_hung", _O, "An NVML call did not return in time: the driver may hang."),
    Kind("nvml_child_crashed", _O, "The process that calls NVML died."),
    Kind(
        "driver_task_stuck",
        _N,
        "A process is stuck in the kernel inside the NVIDIA driver.",
        {"process": "its name", "pid": "its id", "seconds": "for how long"},
    ),
    Kind("driver_yielded", _O, "The agent let go of the driver on request: planned."),
    Kind(
        "unsupported_gpu",
        _G,
        "The driver does not support this GPU, or it needs another driver flavour: configuration.",
        {},
    ),
    Kind(
        "module_conflict",
        _N,
        "Kernel modules do not fit: wrong kernel, signature, missing symbol, another driver holds the GPU.",
        {},
    ),
    # --- PCIe
    Kind("pcie_aer_corrected", _G, "PCIe corrected errors.", _PCIE),
    Kind("pcie_aer_nonfatal", _G, "PCIe uncorrectable, non-fatal errors.", _PCIE),
    Kind("pcie_aer_fatal", _G, "PCIe uncorrectable, fatal errors.", _PCIE),
    Kind("pcie_surprise_down", _G, "A PCIe link went down without warning.", _PCIE),
    Kind("pcie_completion_timeout", _G, "A PCIe request was never answered.", _PCIE),
    Kind("pcie_recovery_failed", _G, "The kernel could not recover a device after a PCIe error.", _PCIE),
    Kind("pcie_link_down", _G, "Hot-plug or DPC says a slot's link is down.", {**_PCIE, "slot": "slot as printed"}),
    Kind(
        "pcie_gpu_degraded",
        _G,
        "A GPU's PCIe link is narrower or slower than it can be.",
        {
            "device": "gpu",
            "width": "lanes now",
            "width_max": "lanes possible",
            "speed": "GT/s now",
            "speed_max": "GT/s possible",
            "width_degraded": "true when lanes are missing",
            "limited_by": "the bridge that limits it",
        },
    ),
    Kind("pcie_replay", _G, "The PCIe replay counter rose.", _COUNTER),
    Kind("pcie_error_other_device", _D, "A PCIe error on a device that is no GPU.", _PCIE),
    Kind(
        "pci_power_state_failure",
        _G,
        "A PCI device cannot change its power state (D3cold): it no longer answers.",
        {
            **_PCIE,
        },
    ),
    Kind(
        "pci_config_failure",
        _G,
        "A GPU's PCI configuration is wrong: no BAR space, not assigned, disabled.",
        {},
    ),
    Kind(
        "iommu_fault",
        _D,
        "The IOMMU or SMMU blocked an access.",
        {
            "bdf": "requester",
        },
    ),
    # --- NVLink and fabric
    Kind(
        "nvlink_link_training_failed",
        _L,
        "An NVLink could not be trained.",
        {
            "link": "number",
        },
    ),
    Kind(
        "nvlink_link_down",
        _L,
        "An NVLink is down or inactive.",
        {"link": "number", "links": "several numbers, comma separated", **_COUNTER},
    ),
    Kind(
        "nvlink_errors",
        _L,
        "NVLink error counters rose or are above zero.",
        {"link": "number", "counter": "crc, replay, recovery, ecc …", **_COUNTER},
    ),
    Kind(
        "nvlink_fabric_error",
        _L,
        "The NVLink fabric or its state is in error, or CUDA reports it (802).",
        {},
    ),
    Kind(
        "nvswitch_error",
        _L,
        "An NVSwitch reported an error without an SXid.",
        {"switch": "nvidia-nvswitchN"},
    ),
    Kind("fabric_manager_failed", _N, "The fabric manager failed or does not run."),
    Kind("fabric_manager_not_needed", _N, "The fabric manager found no NVSwitch: harmless."),
    Kind(
        "fabric_state", _G, "A GPU's fabric state changed.", {**_COUNTER, "state": "as printed", "status": "as printed"}
    ),
    Kind("imex_error", _N, "The IMEX domain is degraded or its daemon failed."),
    # --- clocks, heat and power
    Kind("hw_slowdown", _G, "Clocks are lowered by hardware, without saying why.", _THROTTLE),
    Kind(
        "hw_power_brake",
        _G,
        "Clocks are lowered because the power brake is asserted: power supply or its limits.",
        _THROTTLE,
    ),
    Kind("hw_thermal_slowdown", _G, "Clocks are lowered by hardware for heat.", _THROTTLE),
    Kind("sw_thermal_slowdown", _G, "Clocks are lowered by the driver for heat.", _THROTTLE),
    Kind("sw_power_cap", _G, "Clocks are lowered by the power limit: normal under load.", _THROTTLE),
    Kind(
        "thermal_limit_low",
        _G,
        "A temperature limit was set lower than the hardware's own: configuration.",
        {
            "limit": "set, °C",
            "default": "hardware's own, °C",
        },
    ),
    Kind(
        "power_limit_low",
        _G,
        "The power limit is set below the default: configuration.",
        {"limit": "set, W", "default": "default, W"},
    ),
    Kind(
        "thermal_violation",
        _G,
        "A temperature crossed its limit.",
        {
            "temperature_celsius": "read",
            "limit": "limit, °C",
        },
    ),
    Kind(
        "thermal_margin_violation",
        _G,
        "The margin to the thermal limit crossed a monitor's threshold.",
        {
            "margin_celsius": "margin",
            "limit": "threshold, °C",
        },
    ),
    Kind("power_violation", _G, "Power is out of its limits, or auxiliary power is missing."),
    Kind(
        "temperature_high",
        _G,
        "A GPU's temperature as read: context.",
        {"temperature_celsius": "read", "memory": "true for HBM"},
    ),
    Kind("fan_failure", _G, "A GPU's fan failed or cannot be read."),
    # --- the host
    Kind(
        "host_memory_ue",
        _N,
        "Uncorrectable error in host memory.",
        {"location": "DIMM or address"},
    ),
    Kind("host_memory_ce", _N, "Corrected errors in host memory.", {"location": "DIMM or address"}),
    Kind(
        "host_machine_check",
        _N,
        "The CPU reported a machine check or the firmware a hardware error.",
        {
            "severity": "fatal, recoverable, corrected or info",
            "component": "section type: PCIe, memory, processor …",
            "bdf": "address of the device that firmware reports",
            "vendor": "its vendor in hexadecimal: 10de is NVIDIA",
        },
    ),
    Kind("host_thermal", _N, "A CPU is above its temperature limit."),
    Kind("host_power_event", _N, "The host lost power, or a power supply failed."),
    Kind(
        "soft_lockup",
        _N,
        "A CPU was stuck in the kernel.",
        {
            "in_nvidia": "true when its name is NVIDIA's",
            "process": "name",
            "pid": "id",
            "seconds": "for how long",
            "cpu": "which",
        },
    ),
    Kind(
        "hard_lockup",
        _N,
        "A CPU stopped answering.",
        {
            "cpu": "which",
        },
    ),
    Kind("rcu_stall", _N, "RCU stalled: CPUs or tasks do not make progress."),
    Kind(
        "hung_task",
        _N,
        "A task is blocked in the kernel.",
        {
            "process": "name",
            "pid": "id",
            "seconds": "for how long",
            "in_nvidia": "true when its name or stack is NVIDIA's",
        },
    ),
    Kind("kernel_panic", _N, "The kernel crashed.", {"module": "module named by the trace"}),
    Kind(
        "oom_kill",
        _N,
        "The kernel killed a process for lack of memory.",
        {"process": "name", "pid": "id", "cgroup": "true when a container's own limit was hit"},
    ),
    Kind(
        "io_error",
        _N,
        "A disk or file system failed.",
        {
            "device": "name",
        },
    ),
    Kind("host_shutdown", _N, "The host was shut down or restarted: planned."),
    Kind("kernel_boot", _N, "The kernel started."),
    # --- network
    Kind(
        "nic_event",
        _D,
        "A network adapter reported trouble.",
        {
            "bdf": "address",
            "event": "insufficient_power, command_failed, health, firmware, link_down, high_temperature, other",
        },
    ),
    Kind(
        "nic_pcie_degraded",
        _D,
        "A network adapter's PCIe link is narrower or slower than it can be.",
        {
            "speed": "GT/s now",
            "speed_max": "GT/s possible",
            "width_degraded": "true when lanes are missing",
            "limited_by": "the bridge that limits it",
            "bdf": "address",
            "width": "lanes now",
            "width_max": "lanes possible",
        },
    ),
    Kind("infiniband_port_down", _D, "An InfiniBand port is down."),
    Kind("infiniband_errors", _D, "InfiniBand error counters rose.", _COUNTER),
    Kind("nccl_error", _N, "NCCL says it failed: usually a consequence."),
    Kind("nccl_segfault", _N, "A process crashed inside NCCL.", {"library": "file", "process": "name", "pid": "id"}),
    Kind(
        "app_segfault",
        _N,
        "A process crashed in a library of CUDA or the driver.",
        {"process": "name", "pid": "id", "library": "file"},
    ),
    Kind("cuda_error", _G, "A program reported a CUDA error.", {"error": "CUDA's name or number"}),
    Kind(
        "peermem_error",
        _N,
        "nvidia-peermem reported an error: usually harmless after an application's end.",
        {},
    ),
    # --- other vendors
    Kind(
        "amdgpu_fault",
        _D,
        "The amdgpu driver reported a fault.",
        {"bdf": "address", "event": "ras, reset, ring_timeout, page_fault, fallen_off_bus, other"},
    ),
    Kind(
        "nouveau_fault",
        _D,
        "The nouveau driver reported a fault: not the NVIDIA driver.",
        {
            "bdf": "address",
        },
    ),
    Kind(
        "other_gpu_fault",
        _D,
        "Another vendor's accelerator reported a fault.",
        {
            "driver": "i915, xe, habanalabs …",
            "bdf": "address",
        },
    ),
    # --- what others said
    Kind("secondhand_xid", _O, "A program's text mentions an XID; the driver's own line is not here.", _SECONDHAND),
    Kind("last_xid_gauge", _O, "DCGM's gauge of the last XID: it never clears, so only a change counts.", _SECONDHAND),
    Kind(
        "nvlddmkm_event",
        _G,
        "The Windows driver's event: its numbers are no XIDs.",
        {
            "event_id": "its number",
        },
    ),
    Kind(
        "dcgm_health",
        _G,
        "DCGM's diagnosis or health watch says so.",
        {"error": "DCGM_FR_… or check name", "passed": "false"},
    ),
    Kind(
        "userspace_kernel_line",
        _O,
        "Userspace wrote a line into the kernel log that looks like a driver's: it proves nothing.",
        {"claims": "the signal it pretends to be", "facility": "syslog facility"},
    ),
    # --- the watching itself
    Kind(
        "kernel_storm",
        _O,
        "Kernel lines were counted instead of sent; `count` says how many.",
        {"last_kind": "the last line's kind", "last_code": "its code"},
    ),
    Kind(
        "evidence_gap",
        _O,
        "Evidence is known to be lost; `count` says how much at least.",
        {"where": "where it was lost", "reason": "why"},
    ),
    Kind("rate_limited", _O, "The kernel or journal suppressed messages; `count` says how many.", {}),
    Kind(
        "previous_boot_line",
        _N,
        "A line from before this boot whose wording is not known here: kept.",
        {},
    ),
    Kind("collector_failed", _O, "A collector of the agent failed."),
    Kind(
        "dcgm_unobservable",
        _O,
        "DCGM gives no values for a GPU: cannot observe.",
        {"field": "which field is blank", "after": "how it is unreadable"},
    ),
    Kind("sysfs_unreadable", _O, "A file of the kernel cannot be read: cannot observe."),
    Kind("sysfs_read_stuck", _O, "Reading a file of the kernel does not return: its driver may hang."),
    Kind("workloads_unobservable", _O, "Who holds a GPU cannot be learned."),
    Kind("duplicate_agent", _O, "Two agents claim one node."),
    Kind("agent_stalled", _O, "The agent's own loop stood still."),
    Kind("agent_started", _O, "The agent started."),
    Kind("agent_stopped", _O, "The agent stopped on request."),
    Kind("agent_silent", _O, "The agent of a node is not heard."),
    # --- what the API server says of a node
    Kind("node_condition", _N, "A health check of the cluster holds the node to be unwell.", _CONDITION),
    Kind("node_condition_xid", _N, "A health check of the cluster found XIDs in the kernel log.", _CONDITION),
    Kind("node_condition_ecc", _N, "A health check of the cluster found too many memory errors.", _CONDITION),
    Kind("node_condition_gpu_lost", _N, "A health check of the cluster finds fewer GPUs than it should.", _CONDITION),
    Kind("node_condition_nvlink", _N, "A health check of the cluster finds NVLinks or switches unwell.", _CONDITION),
    Kind("node_condition_diagnostics", _N, "A health check of the cluster failed in diagnosing a GPU.", _CONDITION),
    Kind("node_condition_process", _N, "A health check of the cluster found processes that do not end.", _CONDITION),
    Kind("node_condition_pcie", _N, "A health check of the cluster finds PCIe unwell.", _CONDITION),
    Kind("node_condition_thermal", _N, "A health check of the cluster finds a GPU too hot.", _CONDITION),
    Kind("node_condition_power", _N, "A health check of the cluster finds a GPU's power unwell.", _CONDITION),
    Kind(
        "node_condition_driver",
        _N,
        "A health check of the cluster, or an operator, finds the driver unwell.",
        _CONDITION,
    ),
    Kind("node_condition_network", _N, "A health check of the cluster finds a NIC's driver unwell.", _CONDITION),
    Kind(
        "node_condition_dcgm", _O, "A health check of the cluster cannot speak with DCGM: cannot observe.", _CONDITION
    ),
    Kind("node_condition_unknown", _O, "A health check of the cluster could not tell: cannot observe.", _CONDITION),
    Kind("node_unreachable", _N, "The node's kubelet is not heard: nobody knows what happens there.", _CONDITION),
    Kind("node_cordoned", _N, "Somebody cordoned the node.", _CONDITION),
    Kind("node_maintenance", _N, "Somebody declared maintenance of the node.", _CONDITION),
    Kind("node_driver_upgrade", _N, "The GPU operator replaces the node's driver.", _CONDITION),
    Kind("node_mig_change", _N, "The MIG manager changes how the node's GPUs are partitioned.", _CONDITION),
)

CLUSTER_KINDS = frozenset(kind.name for kind in _ALL if kind.attributes is _CONDITION)

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _ALL}
