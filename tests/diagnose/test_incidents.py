"""What of one log is one incident and what is not, and whether it is over: whole logs as operators paste them."""

from __future__ import annotations

from typing import Any

import pytest

from aggregator import rules
from aggregator.commands.diagnose import as_json, diagnose

MMU = "Ch 00000010, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_4 faulted @ 0x7f3c_5a000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ"
DBE = "An uncorrectable double bit error (DBE) has been detected on GPU in the framebuffer at partition 6, subpartition 0."
REMAP = "Row Remapper: New row (0x00000000028a1f40) marked for remapping, reset gpu to activate."
GPU = "0000:18:00.0"


def xid(code: int, text: str, gpu: str = "0000:18:00", pid: int = 4242, name: str = "train") -> str:
    return f"NVRM: Xid (PCI:{gpu}): {code}, pid={pid}, name={name}, {text}"


def incidents(*lines: str) -> list[dict[str, Any]]:
    """The incidents of a log, as `diagnose --format json` prints them."""
    reader = rules.LogReader(now_us=1_800_000_000_000_000)
    reader.feed("\n".join(lines) + "\n")
    reader.finish()
    found: list[dict[str, Any]] = as_json(diagnose([reader], rules.Context()))["incidents"]
    return found


DISK = (
    "[  100.0] nvme nvme0: I/O 832 QID 5 timeout, aborting",
    "[  140.0] EXT4-fs error (device nvme0n1p2): ext4_find_entry:1455: inode #131: comm python3: reading directory lblock 0",
)
CRASHED = (
    "[  141.0] train[4242]: segfault at 10 ip 00007f1 sp 00007ffd error 4 in libnccl.so.2.18.3[7f1000000000+1000000]"
)
CABLE = (
    "[  100.0] mlx5_core 0000:b1:00.0: Port module event: module 0, Cable error, Bad or unsupported cable/module",
    "[  101.0] mlx5_core 0000:b1:00.0 eth2: Link down",
)
HUNG = "[  240.0] INFO: task python3:4242 blocked for more than 120 seconds."
SLOW = (
    "[    5.0] {} 0000:18:00.0: 63.008 Gb/s available PCIe bandwidth, limited by 8.0 GT/s PCIe x8 link at 0000:17:01.0 "
    "(capable of 252.048 Gb/s with 16.0 GT/s PCIe x16 link)"
)
PORT = "[   90.0] pcieport 0000:17:01.0: AER: Corrected error received: 0000:17:01.0"


def test_a_failing_disk_and_a_crashed_program_are_two_incidents() -> None:
    """The disk is hardware of the node; the program's 45 belongs to the program."""
    disk, program = incidents(*DISK, CRASHED, f"[  142.0] {xid(45, 'Ch 00000008')}")
    assert (disk["fault_class"], disk["subject"]["pci"], len(disk["citations"])) == ("hardware", None, 2)
    assert (program["fault_class"], program["subject"]["pci"], len(program["citations"])) == ("application", GPU, 2)


def test_another_process_s_cleanup_is_not_that_program_s() -> None:
    """A segfault explains the cleanup of its own process alone."""
    assert len(incidents(CRASHED, f"[  142.0] {xid(45, 'Ch 00000008', pid=99, name='other')}")) == 2


@pytest.mark.parametrize("driver", ["nvidia", "pci"])
def test_a_slow_link_is_no_part_of_a_program_s_fault(driver: str) -> None:
    """The link, with the errors of the port that limits it, is a matter of its own: whoever printed the line."""
    link, program = incidents(SLOW.format(driver), PORT, f"[  990.0] {xid(31, MMU)}")
    assert (link["severity"], link["fault_class"], link["resolutions"][0]) == ("warning", "pcie", "check_mechanicals")
    assert (link["subject"]["pci"], len(link["citations"])) == (GPU, 2)
    assert (program["fault_class"], len(program["citations"])) == ("application", 1)
    assert "ranks of one job" not in program["summary"]


def test_a_cable_is_not_hidden_under_the_task_that_hangs_for_it() -> None:
    """The network failed first: it leads, and somebody has to look at the cable."""
    (found,) = incidents(*CABLE, HUNG)
    assert (found["severity"], found["fault_class"]) == ("warning", "hardware")
    assert (found["resolutions"][0], found["action"]) == ("check_mechanicals", "none")
    (alone,) = incidents(CABLE[0])
    assert (alone["severity"], alone["resolutions"][0]) == ("warning", "check_mechanicals")


def test_a_power_brake_is_not_lost_in_a_memory_incident() -> None:
    """Two repairs, two incidents: a replacement ends no lack of power."""
    table = "NVRM: GPU 0000:18:00.0: HW Power Brake Slowdown"
    full = xid(64, "Row Remapper: Error recording row (0x00000000028a1f40): Remapping table is full")
    smi = (
        "Timestamp                                 : Wed May  1 10:00:05 2024",
        "GPU 00000000:18:00.0",
        "    Clocks Event Reasons",
        "        HW Slowdown                       : Active",
        "            HW Thermal Slowdown           : Not Active",
        "            HW Power Brake Slowdown       : Active",
    )
    memory, power = incidents(f"[Wed May  1 10:00:00 2024] {full}", *smi)
    assert (memory["fault_class"], power["fault_class"]) == ("memory", "hardware"), table
    assert (power["subject"]["pci"], power["resolutions"][0]) == (GPU, "check_mechanicals")


def test_a_pending_remap_stays_open_however_quiet_it_is() -> None:
    """Silence ends no state: only a reset, a reload or a boot does. What else happens to the GPU is another incident."""
    remap, program = sorted(
        incidents(f"[Wed May  1 10:00:00 2024] {xid(63, REMAP)}", f"[Fri May  2 10:00:00 2025] {xid(31, MMU)}"),
        key=lambda found: str(found["fault_class"]),
        reverse=True,
    )
    assert (remap["fault_class"], program["fault_class"]) == ("memory", "application")
    assert "Resolved" not in remap["summary"]


def test_a_pending_remap_that_is_reported_again_is_the_same_one() -> None:
    """A year later the state still holds: one GPU, one incident."""
    (found,) = incidents(f"[Wed May  1 10:00:00 2024] {xid(63, REMAP)}", f"[Thu May  1 10:00:00 2025] {xid(63, REMAP)}")
    assert (found["subject"]["pci"], len(found["citations"])) == (GPU, 4)


def test_a_reboot_after_a_remap_leaves_nothing_to_reset() -> None:
    """The remap took effect when the node started anew."""
    stamp = "2024-05-01T10:{}:00,000000+00:00 node1 kernel: "
    (found,) = incidents(
        stamp.format("00") + xid(48, DBE),
        stamp.format("01") + xid(63, REMAP),
        stamp.format("20") + "reboot: Restarting system",
        stamp.format("25") + "Linux version 5.15.0-105-generic (buildd@x) #115",
        stamp.format("26") + "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.161.08  Tue Mar  5 22:42:15 UTC 2024",
    )
    assert (found["severity"], found["action"], found["resolutions"][0]) == ("info", "none", "monitor")


def test_a_program_that_asked_for_too_much_memory_is_a_record() -> None:
    """The line proves a request that failed, not work that was lost."""
    (found,) = incidents("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.")
    assert (found["severity"], found["resolutions"][0]) == ("info", "fix_app")


MISMATCH = "Failed to initialize NVML: Driver/library version mismatch"


@pytest.mark.parametrize("prefix", ["2024-05-01T10:00:00.123456789Z stderr F ", "[pod/train-0/main] "])
def test_a_container_s_libraries_prove_nothing_of_the_node(prefix: str) -> None:
    """The same words are the node's where its own log holds them."""
    (found,) = incidents(prefix + MISMATCH)
    assert (found["severity"], found["action"], found["resolutions"][0]) == ("warning", "none", "investigate")
    assert any("on the node itself" in question for question in found["open_questions"])
    (node,) = incidents(MISMATCH)
    assert (node["severity"], node["action"]) == ("critical", "drain")
