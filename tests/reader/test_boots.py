"""Several boots in one log: the order of events is the order of the lines, and a boot is what the kernel calls one."""

from __future__ import annotations

import pytest

from aggregator.rules import read_log

BANNER = "Linux version 5.15.0-91-generic (buildd@lcy02) (gcc 11.4.0)"
FIRST = (
    "NVRM: Xid (PCI:0000:3b:00): 63, Row Remapper: New row (0x0000abcd) marked for remapping, reset gpu to activate."
)
SECOND = "NVRM: Xid (PCI:0000:3b:00): 31, pid=44, name=python, Ch 00000018"


def _xids(*lines: str) -> list[tuple[int | None, str, int | None]]:
    """Code, boot and time in seconds of the XIDs, in the order of their times."""
    signals = [signal for signal in read_log(lines) if signal.kind == "xid"]
    signals.sort(key=lambda signal: signal.at_us or 0)
    return [(signal.code, signal.boot_id, signal.at_us and signal.at_us // 1_000_000) for signal in signals]


@pytest.mark.parametrize(
    "between",
    [
        pytest.param(["[ 6000.0] reboot: Restarting system", f"[    0.000000] {BANNER}"], id="reboot and banner"),
        pytest.param(["[ 6000.0] reboot: Restarting system"], id="reboot alone"),
        pytest.param([f"[    0.000000] {BANNER}"], id="banner alone, after a crash"),
        pytest.param(["4,9,6000000000,-;reboot: Restarting system", f"5,0,0,-;{BANNER}"], id="raw records"),
        pytest.param(["[ 6000.0] reboot: Restarting system", "[ 6000.1] reboot: machine restart"], id="two last lines"),
    ],
)
def test_stamps_that_begin_anew_after_a_reboot_are_a_new_boot(between: list[str]) -> None:
    """What was reported before it came before it, whatever the stamps say."""
    first, second = _xids(f"[ 5000.000000] {FIRST}", *between, f"[  300.000000] {SECOND}")
    assert (first[:2], second[:2]) == ((63, ""), (31, "boot-2"))


def test_every_boot_is_told_apart() -> None:
    """Three boots, three ids, times that rise."""
    found = _xids(*(line for _ in range(3) for line in (f"[ 0.0] {BANNER}", f"[ 50.0] {SECOND}")))
    assert found == [(31, "", 50), (31, "boot-2", 100), (31, "boot-3", 150)]


def test_stamps_that_fall_back_without_a_reboot_keep_the_order_and_the_boot() -> None:
    """A log through grep: the lines that tell of the reboot are not there, and neither is a proof of one."""
    assert _xids(f"[ 5000.0] {FIRST}", f"[ 300.0] {SECOND}") == [(63, "", 5000), (31, "", 5300)]


def test_lines_a_little_out_of_order_stay_where_their_stamps_put_them() -> None:
    """Processors write at the same time."""
    found = _xids(f"[ 100.400000] {FIRST}", f"[ 100.000000] {SECOND}")
    assert [code for code, _, _ in found] == [31, 63]


def test_a_banner_marks_a_boot_where_there_is_no_kernel_time() -> None:
    """As journalctl's short format prints it; the log's own times stay."""
    found = _xids(
        f"Jul  9 10:00:00 node kernel: {FIRST}",
        f"Jul  9 10:20:00 node kernel: {BANNER}",
        f"Jul  9 10:30:00 node kernel: {SECOND}",
    )
    assert [boot for _, boot, _ in found] == ["", "boot-2"]


def test_the_banner_at_the_top_begins_no_second_boot() -> None:
    """A whole dmesg begins with it."""
    assert _xids(f"[ 0.000000] {BANNER}", f"[ 300.0] {SECOND}") == [(31, "", 300)]


def test_boots_of_one_host_are_not_those_of_another() -> None:
    """Logs of several nodes in one input."""
    found = _xids(
        f"Jul  9 10:00:00 a kernel: {FIRST}",
        f"Jul  9 10:20:00 b kernel: {BANNER}",
        f"Jul  9 10:30:00 a kernel: {SECOND}",
    )
    assert [boot for _, boot, _ in found] == ["", ""]


def test_the_journal_s_own_boot_id_counts() -> None:
    """It knows better."""
    record = '{"_TRANSPORT": "kernel", "_BOOT_ID": "b7", "MESSAGE": "NVRM: Xid (PCI:0000:3b:00): 8, x"}'
    assert _xids(record) == [(8, "b7", None)]


def test_the_same_words_in_two_boots_are_two_events() -> None:
    """However soon after the boot they come."""
    assert len(_xids(f"[ 5.0] {SECOND}", "[ 6.0] reboot: Restarting system", f"[ 4.0] {SECOND}")) == 2
