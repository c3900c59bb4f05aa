"""After an unclean end, the boot before is asked once what it said last."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from node_agent.collectors import CollectorAbsent
from node_agent.collectors.previous_boot import MAX_LINES, PreviousBootCollector
from node_agent.evidence import Fact, Gap, TextCapture, TimeBasis
from node_agent.kernel_log import KernelCursor
from node_agent.spool import Spool
from tests.kernel_log.conftest import BOOT_ID

OLD_BOOT = "0f0e0d0c-0b0a-0908-0706-050403020100"
DUMP = """Panic#1 Part1
<6>[ 1843.100000] usb 1-1: dull
<4>[ 1843.308145] NVRM: Xid (PCI:0000:41:00): 79, GPU has fallen off the bus.
<12>[ 1843.400000] NVRM: forged
<0>[ 1843.500000] Kernel panic - not syncing: Fatal exception
"""


def entry(message: Any, usec: int, **fields: str) -> dict[str, Any]:
    """A journal entry as `journalctl -o json` prints it."""
    return {
        "MESSAGE": message,
        "_BOOT_ID": OLD_BOOT.replace("-", ""),
        "_SOURCE_MONOTONIC_TIMESTAMP": str(usec),
        "__REALTIME_TIMESTAMP": str(1_700_000_000_000_000 + usec),
        "PRIORITY": "4",
        "SYSLOG_FACILITY": "0",
        **fields,
    }


def journal(tmp_path: Path, *entries: Any, then: str = "") -> tuple[str, ...]:
    """A command that prints the entries, then does something else."""
    text = tmp_path / "journal"
    lines = (each if isinstance(each, str) else json.dumps(each) for each in entries)
    text.write_text("".join(line + "\n" for line in lines))
    return (
        sys.executable,
        "-c",
        f"import sys, time; sys.stdout.write(open({str(text)!r}).read()); sys.stdout.flush(); {then}",
    )


def pstore(tmp_path: Path, **files: str | bytes) -> Path:
    """A sysfs with these files in pstore."""
    directory = tmp_path / "sys/fs/pstore"
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = directory / name.replace("_", "-")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return tmp_path / "sys"


def killed_in_another_boot(state: Path, monotonic_usec: int) -> None:
    """Leave a spool as an agent does that was running when its node went down."""
    with closing(Spool.open(state)) as spool:
        spool.put_cursor("kmsg", KernelCursor(OLD_BOOT, 17, monotonic_usec).encode())
    path = next(state.glob("events-*.seg"))
    path.write_bytes(path.read_bytes()[:-5])  # without its last entry, which says that it was closed


async def collect(
    state: Path, sysfs: Path, command: tuple[str, ...] = ("/nonexistent",), boot: str = BOOT_ID
) -> list[Fact]:
    """What one run of the agent reports."""
    facts: list[Fact] = []
    with closing(Spool.open(state)) as spool:
        await PreviousBootCollector(sysfs, boot_id=boot, spool=spool, journal_command=command).collect(facts.append)
    return facts


def captures(facts: list[Fact]) -> list[TextCapture]:
    """The captured lines."""
    return [fact.body for fact in facts if isinstance(fact.body, TextCapture)]


async def test_a_crash_dump_becomes_evidence_with_the_same_identity_each_time(tmp_path: Path) -> None:
    sysfs = pstore(tmp_path, dmesg_efi_1=DUMP, console_ramoops_0=DUMP.encode() + b"NVRM: \xff\n")
    first, second = [await collect(tmp_path / state, sysfs) for state in ("one", "two")]
    assert [fact.identity for fact in first] == [fact.identity for fact in second]
    assert len({fact.identity for fact in first}) == len(first) == 9
    dump = [fact for fact in first if fact.detail.startswith("dmesg-efi-1: ")]
    assert {(fact.source, fact.kind, fact.occurred_at, fact.time_basis) for fact in dump} == {
        ("pstore", "previous_boot_line", 1_700_000_000, TimeBasis.RECORDED)
    }
    assert [(line.line_number, line.line) for line in captures(dump)] == [
        (number, text) for number, text in enumerate(DUMP.splitlines(), start=1) if "dull" not in text
    ]


async def test_another_crash_under_the_same_name_is_other_evidence(tmp_path: Path) -> None:
    first = await collect(tmp_path / "one", pstore(tmp_path, dmesg_efi_1=DUMP))
    second = await collect(tmp_path / "two", pstore(tmp_path, dmesg_efi_1=DUMP.replace("79", "48")))
    assert {fact.identity for fact in first}.isdisjoint(fact.identity for fact in second)


async def test_it_is_looked_for_once_a_boot(tmp_path: Path) -> None:
    sysfs = pstore(tmp_path, dmesg_efi_1=DUMP)
    assert len(await collect(tmp_path / "state", sysfs)) == 4
    assert await collect(tmp_path / "state", sysfs) == []
    assert len(await collect(tmp_path / "state", sysfs, boot="the next boot")) == 4


async def test_the_journal_is_asked_for_what_was_not_read_before_the_node_went_down(tmp_path: Path) -> None:
    killed_in_another_boot(tmp_path / "state", monotonic_usec=5_000_000)
    command = journal(
        tmp_path,
        entry("NVRM: read before", 4_999_999),
        entry("NVRM: read last", 5_000_000),
        entry("dull", 5_000_001),
        entry("NVRM: Xid (PCI:0000:41:00): 79", 6_000_001),
        entry([78, 86, 82, 77, 58, 32, 255], 7_000_000),
        entry("NVRM: forged", 8_000_000, SYSLOG_FACILITY="1"),
        entry(None, 9_000_000),
        "not json, but nvidia",
        '["a list of nvidia"]',
    )
    facts = await collect(tmp_path / "state", pstore(tmp_path), command)
    assert [line.line for line in captures(facts)] == [
        "<4>[    6.000001] NVRM: Xid (PCI:0000:41:00): 79",
        "<4>[    7.000000] NVRM: \udcff",
        "<12>[    8.000000] NVRM: forged",
        "<0>[    0.000000] not json, but nvidia",
        "<0>[    0.000000] ['a list of nvidia']",
    ]
    first = facts[0]
    assert (first.source, first.identity) == ("kmsg_previous_boot", (OLD_BOOT, 4))
    assert captures(facts)[0].boot_id == OLD_BOOT
    assert first.occurred_at == pytest.approx(1_700_000_006.000001)
    assert await collect(tmp_path / "state", pstore(tmp_path), command) == []


async def test_after_a_clean_end_the_journal_is_left_alone(tmp_path: Path) -> None:
    with closing(Spool.open(tmp_path / "state")) as spool:
        spool.put_cursor("kmsg", KernelCursor(OLD_BOOT, 17, 5).encode())
    command = journal(tmp_path, entry("NVRM: Xid (PCI:0000:41:00): 79", 6_000_001))
    assert await collect(tmp_path / "state", pstore(tmp_path), command) == []


@pytest.mark.parametrize("why", ["no pstore", "no journal"])
async def test_what_is_not_there_is_no_failure(tmp_path: Path, why: str) -> None:
    killed_in_another_boot(tmp_path / "state", monotonic_usec=0)
    if why == "no pstore":
        command = journal(tmp_path, entry("NVRM: x", 1), then="sys.exit(1)")
        assert len(await collect(tmp_path / "state", tmp_path / "nowhere", command)) == 1
    else:
        assert len(await collect(tmp_path / "state", pstore(tmp_path, dmesg_efi_1=DUMP))) == 4


async def test_where_nothing_is_kept_the_collector_is_absent(tmp_path: Path) -> None:
    with pytest.raises(CollectorAbsent, match="nothing is kept of the boot before"):
        await collect(tmp_path / "state", tmp_path / "nowhere")


async def test_only_the_last_lines_are_sent_and_the_rest_is_counted(tmp_path: Path) -> None:
    dump = "".join(f"NVRM: line {number}\n" for number in range(MAX_LINES + 50))
    facts = await collect(tmp_path / "state", pstore(tmp_path, dmesg_efi_1=dump))
    gap, *lines = facts
    assert isinstance(gap.body, Gap)
    assert gap.body.lost_count == 50
    assert len(lines) == MAX_LINES
    assert captures(lines)[-1].line == f"NVRM: line {MAX_LINES + 49}"


async def test_a_journal_that_does_not_end_is_given_up_and_that_is_told(tmp_path: Path) -> None:
    killed_in_another_boot(tmp_path / "state", monotonic_usec=0)
    command = journal(tmp_path, entry("NVRM: x", 1), "y" * 600_000, entry("NVRM: z", 2), then="time.sleep(60)")
    facts: list[Fact] = []
    before = time.monotonic()
    with closing(Spool.open(tmp_path / "state")) as spool:
        collector = PreviousBootCollector(
            pstore(tmp_path), boot_id=BOOT_ID, spool=spool, journal_command=command, journal_seconds=1.0
        )
        await collector.collect(facts.append)
    assert time.monotonic() - before < 10
    assert [fact.kind for fact in facts] == ["evidence_gap", "previous_boot_line", "previous_boot_line"]
