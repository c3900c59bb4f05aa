"""What the engine concludes from combinations of signals, each with the reason why it must."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from aggregator import rules
from aggregator.model import Action, Evidence, FaultClass, Phase, Resolution, Severity
from tests.rules.bursts import A, B, judged, line, signals_of, typed, xid

DBE = "An uncorrectable double bit error (DBE) has been detected on GPU in the framebuffer at partition 6, subpartition 0."
REMAP = "Row Remapper: New row (0x00000000028a1f40) marked for remapping, reset gpu to activate."
GSP = "Timeout after 45s of waiting for RPC response from GPU6 GSP! Expected function 76 (GSP_RM_CONTROL) (0x20801702 0x4)."
LINK = "NVLink: fatal error detected on link 6(0x10000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)"
MMU = "Ch 00000010, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_4 faulted @ 0x7f3c_5a000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ"
WARP = "Graphics SM Warp Exception on (GPC 2, TPC 4, SM 1): Out Of Range Address"
SWITCH = "nvidia-nvswitch1: SXid (PCI:0000:87:00.0): 24007, Fatal, Link 30 sourcetrack timeout error (First)"
PEER = "nvidia-nvswitch0: SXid (PCI:0000:87:00.0): 20034, Fatal, Link 30 LTSSM Fault Up"
LOST = "GPU has fallen off the bus."
NETIR = "NETIR_LINK_EVT {} XC0 i0 Link 00 ({} 0x00000000 0x00000000 0x00000000 0x00000000 0x00000000)"
REMAP5 = "RLW_REMAP Nonfatal XC0 i0 Link 02 (0x00000004 {} 0x00000000 0x00000000 0x00000000 0x00000000)"
REGISTERS = "NVLink: fatal error detected on link 6({})"
CHECK = "mce: [Hardware Error]: CPU 33: Machine Check Exception: 5 Bank 6: be00000000800400"
PANIC = "Kernel panic - not syncing: Fatal machine check"
FIRMWARE = (
    "{1}[Hardware Error]: event severity: fatal",
    "{1}[Hardware Error]:   section_type: PCIe error",
    "{1}[Hardware Error]:   device_id: 0000:4b:00.0",
)


@pytest.mark.parametrize(
    ("facts", "severity", "fault_class", "action", "first", "rule"),
    [
        pytest.param([xid(48, DBE), xid(63, REMAP), xid(45, "Ch 00000008")], "critical", "memory", "drain", "drain", "memory/uncorrectable_with_repair", id="a double-bit error is the cause, the remap its repair, the 45 cleanup"),
        pytest.param([xid(63, REMAP)], "info", "memory", "none", "monitor", "memory/remap_recorded", id="a recorded remap alone asks for nothing now"),
        pytest.param([xid(63, REMAP), typed("row_remap_pending")], "warning", "memory", "none", "reset_gpu", "memory/remap_pending", id="NVML says the remap waits for a reset"),
        pytest.param([typed("row_remap_failure")], "critical", "memory", "drain", "drain", "memory/remap_failed", id="the remap failure flag is the vendor's replacement criterion"),
        pytest.param([xid(94, "Contained: SM (0x1). RST: No, D-RST: No")], "warning", "memory", "none", "restart_app", "memory/contained", id="a contained error costs its owner, not the GPU"),
        pytest.param([typed("ecc_uncorrectable", scope="aggregate", after=1)], "info", "memory", "none", "monitor", "catalog/ecc_uncorrectable", id="what was counted over the board's life is history"),
        pytest.param([typed("ecc_uncorrectable", scope="volatile", after=1)], "critical", "memory", "drain", "reset_gpu", "catalog/ecc_uncorrectable", id="what was counted since the driver's load is now"),
        pytest.param([typed("ecc_uncorrectable", scope="aggregate", before=1, after=2)], "critical", "memory", "drain", "reset_gpu", "catalog/ecc_uncorrectable", id="a lifetime count that was seen to rise is now"),
        pytest.param([typed("sram_threshold_exceeded")], "critical", "memory", "drain", "drain", "memory/sram_threshold", id="SRAM cannot be remapped"),
        pytest.param([xid(79, LOST)], "critical", "pcie", "drain", "reboot", "bus/gpu_lost", id="a GPU that left the bus needs a reboot"),
        pytest.param([xid(45, "Ch 00000008", B), xid(79, LOST), PEER], "critical", "pcie", "drain", "reboot", "bus/gpu_lost", id="the switch complains because the GPU is gone"),
        pytest.param([xid(79, LOST), xid(79, LOST, B)], "critical", "pcie", "drain", "reboot", "bus/several_gpus_lost", id="several at once speak for the host"),
        pytest.param([typed("nvml_gpu_lost")], "critical", "pcie", "drain", "reboot", "bus/gpu_lost", id="NVML alone is witness enough"),
        pytest.param([xid(119, GSP)], "critical", "driver", "drain", "reset_gpu", "firmware/gsp_timeout", id="the GPU's system processor does not answer"),
        pytest.param([xid(119, GSP), typed("nvml_hung", None)], "critical", "driver", "drain", "reset_gpu", "firmware/gsp_timeout", id="hung calls follow from the firmware's silence"),
        pytest.param([SWITCH, *(xid(74, LINK, gpu) for gpu in (A, B, "0000:3a:00"))], "critical", "nvlink", "drain", "drain", "nvlink/switch_fault", id="the switch that all share is to blame"),
        pytest.param([xid(74, LINK), xid(74, LINK, B)], "critical", "nvlink", "drain", "reset_gpu", "nvlink/origin", id="both ends report a link: the earlier is the likelier origin"),
        pytest.param([typed("nvlink_errors", A), typed("nvlink_errors", B, number=101)], "warning", "nvlink", "cordon", "cordon", "nvlink/counted_errors", id="counters alone: marginal link, working GPUs"),
        pytest.param([xid(31, MMU), xid(13, WARP), xid(43, "Ch 00000010")], "warning", "application", "none", "restart_app", "application/crash", id="one crash prints several codes"),
        pytest.param([xid(43, "Ch 00000010")], "info", "application", "none", "restart_app", "application/cleanup_alone", id="43 alone is a stopped channel"),
        pytest.param(["Out of memory: Killed process 4242 (train) total-vm:1kB, anon-rss:1kB, file-rss:0kB, shmem-rss:0kB", xid(45, "Ch 00000008")], "warning", "application", "none", "restart_app", "application/killed_for_memory", id="the host ran out of memory first"),
        pytest.param([xid(31, MMU), xid(79, LOST, B)], "critical", "pcie", "drain", "reboot", "bus/gpu_lost", id="an application fault does not hide a dying GPU"),
        pytest.param([typed("hw_thermal_slowdown", f"0000:{bus}:00", number=100 + n) for n, bus in enumerate(("18", "2a", "3a", "5d"))], "critical", "thermal", "drain", "drain", "thermal/node_overheats", id="half of the GPUs hot at once: the cooling failed"),
        pytest.param([typed("hw_power_brake", f"0000:{bus}:00", number=100 + n) for n, bus in enumerate(("18", "2a", "3a", "5d"))], "critical", "hardware", "drain", "check_mechanicals", "thermal/node_lacks_power", id="half of the GPUs braked at once: the supply failed"),
        pytest.param([typed("thermal_limit_low"), typed("sw_thermal_slowdown")], "warning", "thermal", "none", "config_change", "thermal/limit_was_set", id="the driver keeps a limit that somebody set"),
        pytest.param([typed("thermal_margin_violation", margin_celsius=-3, limit=-2)], "warning", "thermal", "none", "check_mechanicals", "catalog/thermal_margin_violation", id="a margin that is used up is heat"),
        pytest.param([typed("thermal_margin_violation", margin_celsius=59, limit=200)], "info", "thermal", "none", "investigate", "catalog/thermal_margin_violation", id="a margin of 59 degrees is a monitor's mistake"),
        pytest.param([CHECK, PANIC], "critical", "hardware", "drain", "reboot", "host/machine_check", id="the kernel stopped for the processor's error"),
        pytest.param(["BUG: unable to handle page fault for address: ffffb0c001e4c000", "RIP: 0010:_nv034219rm+0x1c/0x30 [nvidia]"], "critical", "driver", "drain", "reboot", "host/crash_in_driver", id="the kernel crashed inside the driver"),
        pytest.param(["Kernel panic - not syncing: VFS: Unable to mount root fs"], "critical", "software", "drain", "investigate", "catalog/kernel_panic", id="a crash without a known owner"),
        pytest.param([*FIRMWARE, "{1}[Hardware Error]:   vendor_id: 0x10de, device_id: 0x2331"], "critical", "pcie", "drain", "reboot", "host/firmware_reports_gpu", id="firmware's own report of a fatal error of a GPU"),
        pytest.param([*FIRMWARE, "{1}[Hardware Error]:   vendor_id: 0x15b3, device_id: 0x1021"], "critical", "hardware", "drain", "reboot", "catalog/host_machine_check", id="firmware's report of another vendor's device"),
        pytest.param(["nvidia 0000:17:00.0: Direct firmware load for nvidia/550.90.07/gsp_ga10x.bin failed with error -2", "NVRM: GPU 0000:17:00.0: RmInitAdapter failed! (0x61:0x56:1697)"], "critical", "driver", "drain", "update_driver", "catalog/gpu_init_failure", id="a firmware file that is missing is no broken board"),
        pytest.param([xid(149, NETIR.format("Fatal", "0x02601c11"))], "warning", "nvlink", "none", "monitor", "catalog/xid/149", id="the decoded row says ignore, whatever the line calls it"),
        pytest.param([xid(149, NETIR.format("Fatal", "0x02001c11"))], "critical", "nvlink", "drain", "reset_gpu", "catalog/xid/149", id="the decoded row says reset"),
        pytest.param([xid(145, REMAP5.format("0x00000004"))], "warning", "nvlink", "none", "restart_app", "catalog/xid/145", id="the decoded row leaves it to a 154 that did not come"),
        pytest.param([xid(145, "RLW_NOWHERE Nonfatal XC0 i0 Link 02 (0x00000001 0x00000001)")], "warning", "nvlink", "none", "investigate", "catalog/xid/145", id="a non-fatal error that no row describes"),
        pytest.param([xid(74, REGISTERS.format("0x100002, 0x0, 0x0, 0x30000, 0x0"))], "warning", "nvlink", "none", "investigate", "catalog/xid/74", id="the registers speak of the other end's error"),
        pytest.param([xid(74, REGISTERS.format("0x1, 0x0, 0x0, 0x0, 0x100000"))], "warning", "nvlink", "none", "monitor", "catalog/xid/74", id="the registers count towards a threshold"),
        pytest.param([xid(74, REGISTERS.format("0x1, 0x0, 0x0, 0x0, 0x0"))], "info", "nvlink", "none", "monitor", "catalog/xid/74", id="the registers hold what the vendor ignores"),
        pytest.param([xid(74, REGISTERS.format("0x10002, 0x0, 0x0, 0x0, 0x0"))], "critical", "nvlink", "cordon", "reset_gpu", "catalog/xid/74", id="one bit of this end's own hardware decides"),
        pytest.param(["nvidia-nvswitch1: SXid (PCI:0000:87:00.0): 24007, Non-fatal, Link 30 sourcetrack timeout error"], "warning", "nvlink", "none", "monitor", "catalog/sxid/24007", id="the line's own Non-fatal outranks the table"),
        pytest.param([typed("fabric_manager_not_needed", None), typed("fabric_manager_failed", None)], "info", "none", "none", "none", "nvlink/fabric_manager_not_needed", id="no NVSwitch, nothing to manage"),
        pytest.param([xid(154, "GPU recovery action changed from 0x0 (None) to 0x9 (Recalibrate)")], "warning", "unknown", "none", "investigate", "catalog/xid/154", id="an action that nobody documents is not guessed at"),
        pytest.param(["NVRM: Xid (PCI:0000:18:00): 154 ("], "info", "unknown", "none", "investigate", "catalog/xid/154", id="a line that was cut names no action"),
        pytest.param([xid(154, "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)")], "info", "none", "none", "none", "catalog/xid/154", id="the driver asks for nothing any more"),
        pytest.param([xid(155, "NVLink: SW Defined Error on link 3"), "nvidia-nvlink: Unregistered Nvlink Core, major device number 511"], "info", "nvlink", "none", "monitor", "planned/links_taken_down", id="unloading the driver takes links down"),
        pytest.param([xid(155, "NVLink: SW Defined Error on link 3")], "critical", "nvlink", "cordon", "reset_gpu", "catalog/xid/155", id="a link taken down without a plan"),
        pytest.param(["INFO: task nvidia-smi:88121 blocked for more than 120 seconds."], "critical", "driver", "drain", "reboot", "catalog/hung_task", id="a task of NVIDIA's hangs in the driver"),
        pytest.param(["INFO: task kworker/u8:2:311 blocked for more than 120 seconds."], "warning", "software", "none", "investigate", "catalog/hung_task", id="another task hangs anywhere"),
        pytest.param([typed("cuda_error", error="uncorrectable ECC error encountered")], "critical", "memory", "drain", "reset_gpu", "catalog/cuda_error", id="an ECC error that CUDA tells of"),
        pytest.param([typed("gpu_reset_failed", in_use=True)], "warning", "software", "none", "drain", "catalog/gpu_reset_failed", id="a reset refused because somebody uses the GPU"),
        pytest.param([typed("gpu_reset_failed")], "critical", "hardware", "drain", "reboot", "catalog/gpu_reset_failed", id="a reset that failed"),
        pytest.param([typed("nvml_hung", None)], "warning", "driver", "cordon", "investigate", "observer/driver_hung", id="what cannot be observed is not called healthy"),
        pytest.param([xid(999, "future driver detail")], "warning", "unknown", "none", "investigate", "unknown/xid/999", id="an unknown code is kept and not guessed at"),
    ],
)  # fmt: skip
def test_combinations_give_the_verdict_they_must(
    facts: list[str | Evidence], severity: str, fault_class: str, action: str, first: str, rule: str
) -> None:
    """Severity, class, action, first resolution and the rule that decided."""
    verdict = judged(*facts)
    got = (verdict.severity, verdict.fault_class, verdict.action, verdict.resolutions[0], verdict.rule_ids[0])
    assert got == (severity, fault_class, action, first, rule)


def test_a_port_s_report_of_a_nic_s_error_is_the_nic_s() -> None:
    """Two facts of one incident: only the second tells whose address the first one names."""
    port = "pcieport 0000:b0:01.0: AER: Uncorrectable (Fatal) error message received from 0000:b1:00.0"
    nic = (
        "mlx5_core 0000:b1:00.0: PCIe Bus Error: severity=Uncorrectable (Fatal), type=Transaction Layer, (Requester ID)"
    )
    assert judged(port).severity is Severity.CRITICAL
    both = judged(port, nic)
    assert (both.severity, both.action, both.rule_ids[0]) == (
        Severity.WARNING,
        Action.NONE,
        "catalog/pcie_error_other_device",
    )


def test_hardware_that_slows_itself_is_hot_whatever_limit_was_set() -> None:
    """A set limit explains what the driver does, never what the hardware does."""
    verdict = judged(typed("thermal_limit_low"), typed("hw_thermal_slowdown", number=101))
    assert "thermal/limit_was_set" not in verdict.rule_ids


@pytest.mark.parametrize(
    ("program", "place", "rule"),
    [
        ("vllm", "GPC 2, TPC 4, SM 0", "application/one_place"),
        ("vllm", "GPC 2, TPC 5, SM 1", "application/crash"),
        ("train", "GPC 2, TPC 4, SM 1", "application/crash"),
    ],
)
def test_one_place_that_fails_under_different_programs_is_suspect(program: str, place: str, rule: str) -> None:
    """The same GPC and TPC in an earlier incident: another program there points at the hardware, the same one at itself."""
    earlier = signals_of(
        xid(13, f"Graphics SM Warp Exception on ({place}): Out Of Range Address", who=f"pid=1, name={program}")
    )
    verdict = judged(xid(13, WARP), earlier=tuple(earlier))
    assert verdict.rule_ids[0] == rule
    assert (Resolution.RUN_DIAG in verdict.resolutions) is (rule == "application/one_place")


def test_the_driver_s_named_action_outranks_the_table() -> None:
    """A later 154 replaces an earlier one and the catalog's advice; the node is drained before what it names is done."""
    earlier = xid(154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)")
    later = xid(154, "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x2 (Node Reboot Required)")
    verdict = judged(xid(119, GSP), earlier, later)
    assert verdict.resolutions[0] is Resolution.REBOOT
    assert verdict.action is Action.DRAIN


@pytest.mark.parametrize(
    ("named", "first"),
    [("0x1 (GPU Reset Required)", Resolution.RESET_GPU), ("0x2 (Node Reboot Required)", Resolution.REBOOT)],
)
def test_what_the_driver_asks_for_is_never_forbidden_by_an_application_s_fault(named: str, first: Resolution) -> None:
    """A program's fault that leaves the GPU in need of a reset is not answered with `do not reset`."""
    verdict = judged(xid(31, "MMU Fault"), xid(154, f"GPU recovery action changed from 0x0 (None) to {named}"))
    assert (verdict.severity, verdict.resolutions[0]) == (Severity.CRITICAL, first)
    assert not [text for text in verdict.do_not if "reset the GPU" in text and first is Resolution.RESET_GPU]
    assert not [text for text in verdict.do_not if "reboot" in text and first is Resolution.REBOOT]


def test_a_driver_change_explains_that_the_gpus_are_out_of_sight() -> None:
    """The same absence without a planned change is a fault."""
    gone = typed("nvml_unavailable", None)
    planned = judged("nvidia-modeset: Unloading", gone)
    assert (planned.severity, planned.action) == (Severity.INFO, Action.NONE)
    assert judged(gone).severity is not Severity.INFO


def test_two_witnesses_of_one_fault_are_both_cited() -> None:
    """Kernel log and NVML: one verdict, two citations."""
    nvml = Evidence(
        line("", 0).key.__class__("node", "nvml", "e", 1), "xid", 500_000, gpu=None, values={"data": 94, "type": 8}
    )
    signals = [*signals_of(xid(94, "Contained: SM (0x1). RST: No, D-RST: No")), *rules.read(nvml)]
    verdict = rules.judge(signals)
    assert set(verdict.citations) == {signal.id for signal in signals}


@pytest.mark.parametrize(
    ("witnesses", "count", "told"),
    [
        ("kmsg,nvml", 1, "It was seen by the kernel log and NVML."),
        ("kmsg,nvml", 3, "It was reported 3 times, seen by the kernel log and NVML."),
        ("kmsg", 1, "It was seen by the kernel log only."),
    ],
)
def test_a_second_witness_is_no_repeat(witnesses: str, count: int, told: str) -> None:
    """As the correlator marks them: `witnesses` says who saw it, `witness_of` whose report another one confirms."""
    (first,) = signals_of(xid(94, "Contained: SM (0x1). RST: No, D-RST: No"))
    first = replace(first, count=count, attributes={**first.attributes, "witnesses": witnesses})
    second = replace(first, id="second", source="nvml", attributes={**first.attributes, "witness_of": first.id})
    verdict = rules.judge([first, second] if "," in witnesses else [first])
    assert told in verdict.summary
    assert "2 times" not in verdict.summary


def test_a_line_that_contradicts_its_code_lowers_the_confidence() -> None:
    """Code 74 with the text of an MMU fault: the code counts, with caution, and the summary says so."""
    odd = judged(xid(74, MMU))
    plain = judged(xid(74, LINK))
    assert odd.fault_class is FaultClass.NVLINK
    assert odd.confidence < plain.confidence
    assert "contradicts" in odd.summary


def test_lines_from_userspace_prove_nothing() -> None:
    """The same words with another syslog facility give no fault."""
    forged = list(rules.read(line(xid(79, LOST), 1, facility=1)))
    verdict = rules.judge(forged)
    assert verdict.severity is Severity.OK
    assert not [signal for signal in forged if rules.is_fault(signal)]


def test_the_order_in_which_signals_are_given_does_not_matter() -> None:
    """Time and input order decide what came first, not the order of the list."""
    signals = signals_of(
        xid(48, DBE), xid(63, REMAP), xid(45, "Ch 1"), xid(79, LOST, B), PEER, typed("nvml_hung", None)
    )
    expected = rules.judge(signals)
    for seed in range(20):
        shuffled = signals[:]
        random.Random(seed).shuffle(shuffled)
        assert rules.judge(shuffled) == expected


def test_no_signals_is_no_fault() -> None:
    """Nothing in, nothing claimed beyond that nothing was found."""
    verdict = rules.judge([])
    assert (verdict.severity, verdict.fault_class, verdict.resolutions) == (
        Severity.OK,
        FaultClass.NONE,
        (Resolution.NONE,),
    )


def test_an_ended_state_is_no_fault_by_itself() -> None:
    """A recovery alone opens nothing."""
    (signal,) = rules.read(typed("row_remap_pending", phase=Phase.ENDED))
    assert not rules.is_fault(signal)
    assert rules.judge([signal]).severity is Severity.OK


def test_every_verdict_names_its_rules_and_their_version() -> None:
    """What judged, and from which data."""
    verdict = judged(xid(79, LOST))
    assert verdict.rule_ids == ("bus/gpu_lost", "catalog/xid/79")
    assert verdict.rules_version == rules.VERSION
