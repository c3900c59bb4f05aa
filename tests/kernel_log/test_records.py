"""What one raw record says."""

from __future__ import annotations

import pytest

from node_agent.evidence import KernelRecord
from node_agent.kernel_log import parse, pid_of


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"3,1234,5678901,-;NVRM: Xid (PCI:0000:41:00): 79\n", KernelRecord("NVRM: Xid (PCI:0000:41:00): 79", 1234, 0, 3, 5678901, "-")),
        (b"6,0,0,-;Linux version 6.18\n", KernelRecord("Linux version 6.18", 0, 0, 6, 0, "-")),
        (b"12,7,8,-;from userspace\n", KernelRecord("from userspace", 7, 1, 4, 8, "-")),
        (b"30,7,8,-;systemd says\n", KernelRecord("systemd says", 7, 3, 6, 8, "-")),
        (b"4,7,8,c;begins\n", KernelRecord("begins", 7, 0, 4, 8, "c")),
        (b"4,7,8,-,caller=T123,more;with extras\n", KernelRecord("with extras", 7, 0, 4, 8, "-")),
        (b"4,7,8;without flags\n", KernelRecord("without flags", 7, 0, 4, 8, "")),
        (b"4,7,8,-;a;b,c;d\n", KernelRecord("a;b,c;d", 7, 0, 4, 8, "-")),
        (b"4,7,8,-;pcieport: AER\n SUBSYSTEM=pci\n DEVICE=+pci:0000:00:01.0\n", KernelRecord("pcieport: AER", 7, 0, 4, 8, "-")),
        (rb"4,7,8,-;tab\x09 back\x5cslash caf\xc3\xa9 two\x0alines", KernelRecord("tab\t back\\slash café two\nlines", 7, 0, 4, 8, "-")),
        (rb"4,7,8,-;not utf-8: \xff\xfe", KernelRecord("not utf-8: \udcff\udcfe", 7, 0, 4, 8, "-")),
        ("4,7,8,-;unescaped é\n".encode(), KernelRecord("unescaped é", 7, 0, 4, 8, "-")),
        (rb"4,7,8,-;no escape: \xZZ \x4", KernelRecord(r"no escape: \xZZ \x4", 7, 0, 4, 8, "-")),
        (b"4,7,8,-;", KernelRecord("", 7, 0, 4, 8, "-")),
    ],
)  # fmt: skip
def test_a_record_is_read_as_the_kernel_wrote_it(raw: bytes, expected: KernelRecord) -> None:
    assert parse(raw) == expected


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"NVRM: Xid (PCI:0000:41:00): 79",
        b"[ 1.234567] dmesg format",
        b"4,7;too few",
        b"-1,7,8,-;negative",
        b"4,1_0,8,-;not a number",
        b"4, 7,8,-;spaces",
        b"4," + b"9" * 30 + b",8,-;too large",
        b"4,7,8,-,no semicolon",
        b"\xff\x00;",
    ],
)
def test_a_record_without_a_readable_prefix_is_kept_whole(raw: bytes) -> None:
    assert parse(raw).malformed == raw


@pytest.mark.parametrize(
    ("line", "pid"),
    [
        ("NVRM: Xid (PCI:0000:41:00): 31, pid=1234, name=python, Ch 0000001b", 1234),
        ("NVRM: Xid (PCI:0000:41:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.", None),
        ("mypid=12", None),
        ("no process", None),
    ],
)
def test_the_process_that_the_driver_names_is_found(line: str, pid: int | None) -> None:
    assert pid_of(line) == pid
