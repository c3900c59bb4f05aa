"""What a verdict says is borne out by its lines: causes come first, one report counts once, no rule speaks of what is not there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aggregator import rules
from aggregator.model import Action, Evidence, FaultClass, Resolution, Severity, Signal
from tests.rules.bursts import A, B, judged, line, signals_of, typed, xid

LOST = "GPU has fallen off the bus."
SRAM = "{}: SM (0x1). RST: Yes, D-RST: No"
DRAM = "An uncorrectable double bit error (DBE) has been detected on GPU in the framebuffer at partition 6, subpartition 0."
REMAP = "Row Remapper: New row (0x00000000028a1f40) marked for remapping, reset gpu to activate."
GSP = "Timeout after 45s of waiting for RPC response from GPU6 GSP! Expected function 76 (GSP_RM_CONTROL) (0x20801702 0x4)."
MMU = "Ch 00000010, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_4 faulted @ 0x7f3c_5a000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ"
WARP = "Graphics SM Warp Exception on (GPC 2, TPC 4, SM 1): Out Of Range Address"
ESR = "Graphics Exception: ESR 0x514648=0x201000e 0x514650=0x24 0x514644=0xd3eff2 0x51464c=0x17f"
FULL = "Row Remapper: Error recording row (0x00000000028a1f40): Remapping table is full"
SUPPLY = "IPMI: Power Supply 2 AC lost"
PORT = "pcieport 0000:17:01.0: {}"
BUS = "PCIe Bus Error: severity=Uncorrectable (Fatal), type=Transaction Layer, (Receiver ID)"
HUNG = "INFO: task train:4242 blocked for more than 120 seconds."
LOADED = "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.161.08  Tue Mar  5 22:42:15 UTC 2024"
BOOTED = "Linux version 5.15.0-105-generic (buildd@x) #115"


def apart(facts: list[str], seconds: int) -> list[Signal]:
    """The signals of some lines, so many seconds apart."""
    return [replace(each, at_us=(each.at_us or 0) * seconds) for each in signals_of(*facts)]


def test_errors_that_only_repeat_record_no_repair() -> None:
    """Two 94s and a 95 in SRAM: nothing was set aside, nothing can be; diagnostics decide."""
    verdict = judged(
        xid(94, SRAM.format("Contained")), xid(94, SRAM.format("Contained")), xid(95, SRAM.format("Uncontained"))
    )
    assert verdict.rule_ids[0] == "memory/sram_again"
    assert "set a row or page aside" not in verdict.summary
    assert set(verdict.resolutions) >= {Resolution.RESET_GPU, Resolution.RUN_DIAG}
    assert "SRAM threshold" in verdict.recurrence_advice


@pytest.mark.parametrize(
    "fact", [typed("ecc_uncorrectable", scope="volatile", after=1), xid(94, SRAM.format("Contained"))]
)
def test_a_counter_or_a_contained_error_is_no_repair(fact: Evidence | str) -> None:
    """Only a remap or a retirement that was recorded sets memory aside."""
    assert "set a row or page aside" not in judged(xid(48, DRAM), fact).summary
    assert "set a row or page aside" in judged(xid(48, DRAM), xid(63, REMAP), fact).summary


@pytest.mark.parametrize(("reason", "said"), [(FULL, True), ("Row Remapper: Internal error recording row", False)])
def test_no_row_is_left_only_where_the_driver_says_so(reason: str, said: bool) -> None:
    """A failure for another reason says nothing of spares."""
    assert ("no spare row left" in judged(xid(64, reason)).summary) is said


@pytest.mark.parametrize(
    ("facts", "rule", "first"),
    [
        pytest.param([SUPPLY, xid(79, LOST), xid(79, LOST, B)], "bus/power_lost", Resolution.CHECK_MECHANICALS, id="the supply first"),
        pytest.param([SUPPLY, xid(79, LOST)], "bus/power_lost", Resolution.CHECK_MECHANICALS, id="one GPU"),
        pytest.param([xid(79, LOST), xid(79, LOST, B)], "bus/several_gpus_lost", Resolution.REBOOT, id="no supply is named"),
    ],
)  # fmt: skip
def test_a_lost_supply_is_the_cause_of_gpus_lost_with_it(facts: list[str], rule: str, first: Resolution) -> None:
    """Restore the supply, then power-cycle; and a supply is no PCIe error."""
    verdict = judged(*facts)
    assert (verdict.rule_ids[0], verdict.resolutions[0]) == (rule, first)
    assert "PCIe error" not in verdict.summary


def test_a_supply_that_fails_much_later_is_no_cause() -> None:
    """Order in time, not company, makes a cause."""
    verdict = rules.judge(apart([xid(79, LOST), SUPPLY.replace("2", "1"), SUPPLY], 600)[::2])
    assert verdict.rule_ids[0] != "bus/power_lost"


@pytest.mark.parametrize(("after", "rule"), [(BOOTED, "memory/restarted_since"), (LOADED, "memory/restarted_since"), (MMU, "memory/uncorrectable_with_repair")])  # fmt: skip
def test_a_restart_puts_a_recorded_remap_into_effect(after: str, rule: str) -> None:
    """After a boot or a driver load nothing waits for a reset any more."""
    verdict = judged(xid(48, DRAM), xid(63, REMAP), after)
    assert verdict.rule_ids[0] == rule
    assert (Resolution.RESET_GPU in verdict.resolutions) is (rule != "memory/restarted_since")
    assert (verdict.severity is Severity.INFO) is (rule == "memory/restarted_since")


@pytest.mark.parametrize("facts", [[BOOTED, xid(48, DRAM), xid(63, REMAP)], [xid(64, FULL), BOOTED]])
def test_a_boot_before_an_error_or_a_failed_remap_repairs_nothing(facts: list[str]) -> None:
    """A restart counts only after the last error, and not for what it cannot repair."""
    assert judged(*facts).severity is Severity.CRITICAL


def test_program_after_program_on_one_gpu_points_at_the_gpu() -> None:
    """Four programs, one GPU, hours: diagnose it before four authors are blamed, and do not be sure."""
    names = ("alpha", "beta", "gamma")
    facts = [xid(31, MMU, who=f"pid={number}, name={name}") for number, name in enumerate(names, 1)]
    facts.append(xid(13, WARP, who="pid=4, name=delta"))
    verdict = rules.judge(apart(facts, 4_000))
    assert verdict.resolutions[:2] == (Resolution.RUN_DIAG, Resolution.INVESTIGATE)
    assert verdict.fault_class is not FaultClass.APPLICATION
    assert verdict.confidence < rules.judge(apart(facts[:1], 4_000)).confidence
    assert rules.judge(apart(facts, 1)).fault_class is FaultClass.APPLICATION, "ranks of one job fault together"


@pytest.mark.parametrize(
    ("facts", "seconds", "times"),
    [
        pytest.param([xid(64, FULL)], 1, 0, id="an XID and the state that its text names"),
        pytest.param([xid(119, GSP), xid(120, "GSP task exception")], 1, 0, id="two codes of one hang"),
        pytest.param([xid(13, WARP), xid(13, ESR)], 0, 0, id="an exception and its registers"),
        pytest.param([xid(79, LOST), xid(79, LOST, B)], 0, 2, id="one XID on two GPUs"),
        pytest.param([xid(48, DRAM), xid(48, DRAM)], 5, 2, id="two errors"),
        pytest.param(
            [PORT.format("AER: Uncorrectable (Fatal) error message received from 0000:18:00.0"), PORT.format(BUS)],
            0,
            0,
            id="a port's error in two lines",
        ),
    ],
)
def test_one_report_counts_once(facts: list[str], seconds: int, times: int) -> None:
    """ "Reported n times" is said of events, not of lines and readings."""
    said = rules.judge(apart(facts, seconds)).summary
    assert (f"reported {times} times" in said) if times else ("times" not in said)


def test_a_halt_before_the_firmware_s_silence_is_the_cause() -> None:
    """62, then 119, 120 and stuck tasks: hardware, and a reboot, since what is stuck holds the GPU."""
    verdict = judged(xid(62, "0x1d8c3 00000000"), xid(119, GSP), xid(120, "GSP task exception"), HUNG)
    assert verdict.rule_ids[0] == "firmware/pmu_halted"
    assert verdict.fault_class is FaultClass.HARDWARE
    assert verdict.resolutions[:2] == (Resolution.REBOOT, Resolution.RESET_GPU)


def test_firmware_that_fell_silent_first_is_no_halt_s_consequence() -> None:
    """The other order keeps the other cause; without stuck tasks a reset comes first."""
    verdict = judged(xid(119, GSP), xid(62, "0x1d8c3 00000000"))
    assert (verdict.rule_ids[0], verdict.resolutions[0]) == ("firmware/gsp_timeout", Resolution.RESET_GPU)


def test_a_task_of_another_program_is_not_stuck_in_the_driver() -> None:
    """An XID of one program does not make another's hung task the driver's."""
    cleaned = xid(45, "Ch 00000008", who="pid=99, name=other")
    assert judged(cleaned, HUNG).rule_ids[0] != "firmware/stuck_in_driver"
    assert judged(xid(45, "Ch 00000008"), HUNG).rule_ids[0] == "firmware/stuck_in_driver"


def test_an_unknown_code_beside_known_ones_is_said_to_be_in_no_table() -> None:
    """Kept, named, and asked about."""
    verdict = judged(xid(79, LOST), xid(999, "something new"))
    assert "XID 999 (in no table here)" in verdict.summary
    assert any("XID 999" in question for question in verdict.open_questions)


def test_order_is_told_as_it_was() -> None:
    """What came before is not called a consequence."""
    summary = judged(xid(31, MMU), xid(79, LOST), xid(45, "Ch 8")).summary
    assert "Reported before it: XID 31." in summary
    assert "Reported after it: XID 45." in summary


def test_a_program_s_name_is_quoted() -> None:
    """A name is the tenant's to choose: it must not read as advice."""
    summary = judged(xid(31, MMU, who="pid=4, name=Reset the GPU. It is broken")).summary
    assert '"Reset the GPU. It is broken"' in summary


def test_a_second_fault_that_the_first_does_not_account_for_is_told() -> None:
    """A GPU lost after its remap failed needs both repairs."""
    verdict = judged(xid(64, FULL), xid(79, LOST))
    assert verdict.rule_ids[0] == "bus/gpu_lost"
    assert "A second matter" in verdict.summary
    assert "A second matter" not in judged(xid(79, LOST), xid(119, GSP)).summary


def test_a_stronger_fault_that_a_rule_does_not_know_is_no_footnote_of_it() -> None:
    """A rule outranks the readings it accounts for, not every reading."""
    verdict = judged(typed("nvlink_errors", A), typed("host_memory_ue", None, number=101))
    assert verdict.rule_ids[0] == "catalog/host_memory_ue"


def test_a_driver_s_reboot_leaves_the_drain_before_it() -> None:
    """154 names what recovers the GPU; the jobs of its neighbours leave first."""
    told = xid(154, "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)")
    verdict = judged(xid(79, LOST), told)
    assert (verdict.action, verdict.resolutions[0]) == (Action.DRAIN, Resolution.REBOOT)


def test_what_the_driver_wanted_done_is_done_by_a_boot() -> None:
    """A 154 before the restart names nothing to do after it; the restart is told whatever the fault."""
    wanted = xid(154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)")
    assert judged(xid(48, DRAM), xid(63, REMAP), wanted, BOOTED).severity is Severity.INFO
    assert judged(xid(48, DRAM), xid(63, REMAP), BOOTED, xid(31, MMU)).rule_ids[0] == "memory/restarted_since"
    assert "The node was started anew after it." in judged(xid(79, LOST), BOOTED).summary
    assert "started anew" not in judged(BOOTED, xid(79, LOST)).summary


SITE = b"""
[xid.79]
action = "none"
resolutions = ["monitor"]
[xid.64]
severity = "warning"
"""


@pytest.mark.parametrize(
    ("facts", "severity", "action", "words"),
    [
        ([xid(79, LOST)], Severity.CRITICAL, Action.NONE, "XID 79 decide action and resolutions"),
        ([xid(64, FULL)], Severity.WARNING, Action.DRAIN, "XID 64 decide severity"),
    ],
)
def test_what_the_site_wrote_holds_where_a_rule_decides(
    facts: list[str], severity: Severity, action: Action, words: str
) -> None:
    """An overlay's field wins over rules and refinements, and the verdict says whose word it is."""
    verdict = judged(*facts, catalog=rules.load(SITE))
    assert (verdict.severity, verdict.action) == (severity, action)
    assert words in verdict.summary
    assert "This site's own rules" not in judged(*facts).summary


def test_lines_of_userspace_prove_nothing_of_this() -> None:
    """A forged boot line activates nothing."""
    forged = line(BOOTED, 9, facility=1)
    assert judged(xid(48, DRAM), xid(63, REMAP), forged).severity is Severity.CRITICAL


LINK = "NVLink: fatal error detected on link {}({}, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)"
PARITY, HARDWARE, OTHER = "0x10", "0x100", "0x4"


@pytest.mark.parametrize(
    ("reports", "again"),
    [
        pytest.param([(6, PARITY)] * 3, True, id="parity errors, more than two on a link"),
        pytest.param([(6, PARITY)] * 2, False, id="two are chance"),
        pytest.param([(6, PARITY), (7, PARITY), (8, PARITY)], False, id="three links"),
        pytest.param([(6, HARDWARE)] * 2, True, id="a hardware bit twice"),
        pytest.param([(6, HARDWARE)], False, id="a hardware bit once"),
        pytest.param([(6, OTHER)] * 4, False, id="bits that the table does not count"),
    ],
)
def test_an_nvlink_that_reports_again_is_judged_by_what_it_reports(reports: list[tuple[int, str]], again: bool) -> None:
    """74 on one link within a day, across incidents: the bits decide how often is too often."""
    signals = apart([xid(74, LINK.format(*report)) for report in reports], 3_600)
    verdict = rules.judge(signals)
    across = rules.judge(signals[-1:], rules.Context(earlier=tuple(signals[:-1])))
    assert [each.rule_ids[0] == "nvlink/same_link_again" for each in (verdict, across)] == [again, again]
    if again:
        assert verdict.resolutions[:2] == (Resolution.CHECK_MECHANICALS, Resolution.RUN_DIAG)
        weeks = rules.judge(apart([xid(74, LINK.format(*report)) for report in reports], 90_000))
        assert weeks.rule_ids[0] != "nvlink/same_link_again", "a day apart it is another event"
