"""Stored evidence becomes signals: kernel text through the grammars, typed facts as they are."""

from __future__ import annotations

from typing import Any

import pytest

from aggregator.model import Evidence, EvidenceKey, Gpu, Phase, Signal, Trust, Workload
from aggregator.rules import read

GPU = Gpu(uuid="GPU-509665ad-b600-ac93-3616-d754b23d636d", pci="0000:9b:00.0")
FALLEN = "NVRM: Xid (PCI:0000:9b:00): 79, pid=1, name=x, GPU has fallen off the bus."


def evidence(kind: str = "kernel_line", source: str = "kmsg", **fields: Any) -> Evidence:
    """A fact as the store hands it out."""
    return Evidence(EvidenceKey("node-1", source, "boot-1", 7), kind, 1_700_000_000_000_000, boot_id="boot-1", **fields)


def one(fact: Evidence) -> Signal:
    """The only signal of a fact."""
    (signal,) = read(fact)
    return signal


def test_a_kernel_line_becomes_a_signal_with_the_evidence_s_identity() -> None:
    """What assessments cite is the evidence id."""
    signal = one(evidence(text=FALLEN))
    assert (signal.id, signal.name, signal.pci, signal.node) == (
        "node-1/kmsg/boot-1/7",
        "xid 79",
        "0000:9b:00.0",
        "node-1",
    )
    assert (signal.at_us, signal.order, signal.boot_id) == (1_700_000_000_000_000, 7, "boot-1")
    assert (signal.source, signal.raw, signal.trust) == ("kmsg", FALLEN, Trust.HARDWARE)


def test_several_signals_of_one_fact_are_numbered() -> None:
    """Each can be cited by itself."""
    text = (
        "NVRM: Xid (PCI:0000:9b:00): 63, Row Remapper: New row (0x4c1b00) marked for remapping, reset gpu to activate."
    )
    assert [(signal.id[-4:], signal.kind) for signal in read(evidence(text=text))] == [
        ("-1/7", "xid"),
        ("/7#2", "row_remap_pending"),
    ]


def test_a_record_with_newlines_in_it_is_one_message() -> None:
    """The driver prints the probe-time text over three lines of one record."""
    text = (
        "NVRM: The NVIDIA GPU 0000:b3:00.0\nNVRM: (PCI ID: 10de:26b5) installed in this system has\n"
        "NVRM: fallen off the bus and is not responding to commands."
    )
    assert one(evidence(text=text)).kind == "gpu_fallen_off_bus"


def test_a_record_may_hold_several_messages() -> None:
    """Lines that do not belong together are read one by one."""
    text = f"{FALLEN}\nnvidia-nvswitch0: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 30 LTSSM Fault Up"
    assert [signal.name for signal in read(evidence(text=text))] == ["xid 79", "sxid 20034"]


def test_uninteresting_text_gives_no_signal() -> None:
    """The agent's filter is broad on purpose."""
    assert read(evidence(text="nvidia-uvm: Loaded the UVM driver, major device number 509.")) == ()


@pytest.mark.parametrize("facility", [1, 3, 16])
def test_what_userspace_wrote_proves_nothing_and_is_seen(facility: int) -> None:
    """A forged line is one signal of tenant trust that names its claim, whatever it says."""
    signal = one(evidence(text=FALLEN, facility=facility))
    assert (signal.kind, signal.trust, signal.code) == ("userspace_kernel_line", Trust.TENANT, None)
    assert signal.attributes["claims"] == "xid 79"
    assert (signal.pci, signal.gpu_uuid) == (None, None)


def test_userspace_text_that_claims_nothing_is_nothing() -> None:
    """systemd writes to the kernel log all day."""
    assert read(evidence(text="systemd[1]: Started nvidia-persistenced.service.", facility=3)) == ()


def test_an_nvml_xid_event_carries_its_code() -> None:
    """The second witness of an XID has no text."""
    signal = one(evidence("xid", "nvml", values={"type": 8, "data": 79}, gpu=GPU, mig="3/0", detail="XID 79"))
    assert (signal.name, signal.pci, signal.gpu_uuid, signal.mig) == ("xid 79", GPU.pci, GPU.uuid, "3/0")
    assert signal.source == "nvml"


@pytest.mark.parametrize(
    ("after", "action"),
    [
        (0.0, "none"),
        (1.0, "gpu_reset"),
        (4, "drain_and_reset"),
        (7, "system_reboot"),
        (99, "unknown"),
        ("Reset", "gpu_reset"),
        (None, "unknown"),
    ],
)
def test_nvml_s_recovery_action_has_the_driver_s_name(after: Any, action: str) -> None:
    """XID 154 and NVML's field 230 say the same thing: the same attribute holds it."""
    values = {"field": "recovery_action", "before": 0.0, "after": after}
    assert one(evidence("recovery_action", "nvml", values=values, gpu=GPU)).attributes["recovery_action"] == action


def test_a_typed_fact_passes_with_its_values_phase_and_workload() -> None:
    """Collectors decide what a typed fact is; the reader adds nothing."""
    fact = evidence(
        "ecc_uncorrectable",
        "nvml",
        gpu=GPU,
        phase=Phase.BEGAN,
        detail="uncorrectable ECC errors rose to 2",
        values={"field": "ecc_volatile_uncorrected_total", "before": 0.0, "after": 2.0, "limit": None},
        workloads=(Workload(namespace="ml", pod="train-0"), Workload(namespace="ml", pod="train-0")),
        simulated=True,
        replayed=True,
    )
    signal = one(fact)
    assert (signal.kind, signal.phase, signal.simulated, signal.replayed) == (
        "ecc_uncorrectable",
        Phase.BEGAN,
        True,
        True,
    )
    assert dict(signal.attributes) == {
        "field": "ecc_volatile_uncorrected_total",
        "before": 0.0,
        "after": 2.0,
        "text": "uncorrectable ECC errors rose to 2",
        "workload": "ml/train-0",
    }


def test_a_kind_of_a_newer_agent_is_kept() -> None:
    """Unknown kinds travel: what is not understood is not lost."""
    assert one(evidence("quantum_flux_low", "nvml", detail="flux at 3")).kind == "quantum_flux_low"


def test_a_storm_keeps_its_count_and_its_last_line_is_read() -> None:
    """How many lines were counted instead of sent, and what the last of them was."""
    values = {"boot_minute": 12, "suppressed_count": 4711, "first_seq": 100, "last_seq": 4810}
    storm, last = read(evidence("kernel_storm", "kmsg_storm", text=FALLEN, values=values))
    assert (storm.kind, storm.count) == ("kernel_storm", 4711)
    assert (storm.attributes["last_kind"], storm.attributes["last_code"]) == ("xid", 79)
    assert (last.name, last.count) == ("xid 79", 1)


@pytest.mark.parametrize("text", ["", FALLEN])
def test_a_storm_that_programs_wrote_is_a_tenants_word(text: str) -> None:
    """Whoever may write to /dev/kmsg can make one: it counts for nothing that lowers or executes, whatever its last line claims."""
    key = EvidenceKey("node-1", "kmsg_storm", "boot-1/userspace", 7)
    fact = Evidence(key, "kernel_storm", 1_700_000_000_000_000, text=text, values={"suppressed_count": 4711})
    signals = read(fact)
    assert {signal.trust for signal in signals} == {Trust.TENANT}
    assert [signal.kind for signal in signals] == ["kernel_storm"] + ["userspace_kernel_line"] * bool(text)
    assert signals[0].count == 4711
    assert "last_code" not in signals[0].attributes


def test_a_storm_of_unknown_lines_is_still_a_storm() -> None:
    """Without a readable last line the count alone remains."""
    assert one(evidence("kernel_storm", "kmsg_storm", text="", values={"suppressed_count": 3})).count == 3


def test_a_gap_carries_how_much_was_lost() -> None:
    """A known loss may be zero nowhere: one is the least."""
    assert one(evidence("evidence_gap", "gap", values={"where": "kernel_ring", "lost_count": 12})).count == 12
    assert one(evidence("evidence_gap", "gap", values={"where": "spool", "lost_count": None})).count == 1


def test_a_line_from_before_the_boot_keeps_its_own_boot() -> None:
    """pstore saves lines with their prefix, of another boot."""
    values = {"origin": "dmesg-efi-1", "line_number": 3, "captured_boot_id": "boot-0"}
    signal = one(evidence("previous_boot_line", "pstore", text=f"<4>[ 1843.308145] {FALLEN}", values=values))
    assert (signal.name, signal.boot_id, signal.attributes["previous_boot"]) == ("xid 79", "boot-0", True)


def test_a_line_from_before_the_boot_that_nobody_understands_is_kept() -> None:
    """The last words of a machine matter."""
    assert one(evidence("previous_boot_line", "pstore", text="<0>[ 1.0] something broke")).kind == "previous_boot_line"


def test_a_malformed_record_is_read_as_it_came() -> None:
    """A record whose prefix the agent could not read may still hold a message."""
    signal = one(evidence(text=f"4,1227,437812449932,c,1,-;{FALLEN}", values={"malformed": True}))
    assert signal.name == "xid 79"


def test_the_text_s_address_wins_over_the_collector_s() -> None:
    """The line names the GPU it is about."""
    assert one(evidence(text=FALLEN, gpu=Gpu(pci="0000:01:00.0"))).pci == "0000:9b:00.0"
