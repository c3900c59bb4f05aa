"""Up to 200 different lines of a minute of kernel time are sent; the rest is counted, the same whenever it is read."""

from __future__ import annotations

import json

import pytest

from node_agent.evidence import Storm
from node_agent.kernel_log import LINES_PER_MINUTE, OPENINGS_PER_MINUTE, KernelCursor, StormMeter

MINUTE = 60_000_000


def run(records: list[tuple[int, str]], restart_at: int | None = None) -> tuple[list[int], list[Storm]]:
    """Which of the records (kernel time, line) are sent, and the storms, with a restart before one of them."""
    meter, sent, storms = StormMeter(), [], []
    for seq, (usec, line) in enumerate(records):
        if seq == restart_at:
            meter = StormMeter(json.loads(json.dumps(meter.state)))
        if ended := meter.begin(usec):
            storms.append(ended)
        if meter.admit(line, seq):
            sent.append(seq)
    if ended := meter.end():
        storms.append(ended)
    return sent, storms


STORMY = [(usec * 100_000, f"line {usec % 450}") for usec in range(1000)] + [
    (3 * MINUTE + n, "again") for n in range(5)
]


def test_what_is_sent_and_what_is_counted_make_up_everything() -> None:
    sent, storms = run(STORMY)
    assert len(sent) + sum(storm.suppressed_count for storm in storms) == len(STORMY)
    assert [storm.boot_minute for storm in storms] == [0, 1, 3]
    assert storms[0] == Storm(0, 600 - LINES_PER_MINUTE, 200, 599, "line 149")
    assert storms[-1] == Storm(3, 4, 1001, 1004, "again")


CHATTY = [(n, f"NVRM: Xid (PCI:0000:18:00): 13, Graphics SM Warp Exception on SM {n}") for n in range(300)]


def test_a_chatty_fault_does_not_hide_another() -> None:
    """An application error of one GPU writes a line for each of its units; another GPU that falls off the bus meanwhile is seen."""
    lost = [(301, f"NVRM: Xid (PCI:0000:2a:00): 79, pid={n}, GPU has fallen off the bus.") for n in range(2)]
    sent, (storm,) = run([*CHATTY, *lost])
    assert sent == [*range(LINES_PER_MINUTE), 300]
    assert storm.suppressed_count == 300 - LINES_PER_MINUTE + 1


def test_lines_that_all_begin_anew_are_bounded_too() -> None:
    sent, _ = run([*CHATTY, *((400, f"NVRM: Xid (PCI:0000:2a:00): {n}, x") for n in range(300))])
    assert len(sent) == LINES_PER_MINUTE + OPENINGS_PER_MINUTE


ANEW = [*CHATTY, *((400, f"NVRM: Xid (PCI:0000:2a:00): {n % 100}, x") for n in range(300))]


@pytest.mark.parametrize("records", [STORMY, ANEW])
@pytest.mark.parametrize("restart_at", [1, 150, 201, 310, 350, 599, 600, 601, 999, 1003])
def test_a_restart_in_the_middle_changes_nothing(records: list[tuple[int, str]], restart_at: int) -> None:
    assert run(records, restart_at) == run(records)


def test_the_same_line_comes_again_in_the_next_minute() -> None:
    assert run([(0, "a"), (1, "a"), (MINUTE, "a")]) == ([0, 2], [Storm(0, 1, 1, 1, "a")])


def test_a_record_stamped_a_little_early_counts_for_the_minute_that_is_open() -> None:
    sent, storms = run([(MINUTE, "a"), (MINUTE - 1, "a"), (MINUTE + 1, "a")])
    assert (sent, storms) == ([0], [Storm(1, 2, 1, 2, "a")])


def test_a_record_that_comes_after_its_minute_was_told_is_counted_for_the_next() -> None:
    meter = StormMeter()
    assert meter.admit("a", 0)
    assert not meter.admit("a", 1)
    assert meter.end() == Storm(0, 1, 1, 1, "a")
    assert meter.begin(5) is None
    assert meter.admit("a", 2)
    assert not meter.admit("a", 3)
    assert meter.begin(2 * MINUTE) == Storm(1, 1, 3, 3, "a")


def test_lines_that_differ_in_bytes_that_are_no_text_differ() -> None:
    assert run([(0, "a\udcff"), (1, "a\udcfe"), (2, "a\udcff")])[0] == [0, 1]


def test_a_cursor_is_what_it_was() -> None:
    cursor = KernelCursor("boot", 17, 5, 2)
    for seq in range(300):
        cursor.kernel_storm.admit(f"line {seq} \udcff", seq)
        cursor.userspace_storm.admit("forged", seq)
    read = KernelCursor.decode(cursor.encode())
    assert read is not None
    assert (read.boot_id, read.next_seq, read.monotonic_usec, read.malformed) == ("boot", 17, 5, 2)
    assert read.encode() == cursor.encode()


@pytest.mark.parametrize(
    "value", [None, b"", b"[]", b"not json", b'["boot", 1, 2, 3, {}, {}]', b'["b",1,2,3,{"sent":"zz","minute":1,"storm":null},null]', b"3"]
)  # fmt: skip
def test_a_cursor_of_another_version_is_none(value: bytes | None) -> None:
    assert KernelCursor.decode(value) is None
