"""A disk that takes nothing: records stay in bounded memory and can be read, it is said, and it ends when the disk is back."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node_agent.spool import Spool
from tests.spool.opening import eventually, gaps, numbers, open_spool, payload, read_all, segment_files


@contextmanager
def no_file_grows_beyond(size_bytes: int) -> Iterator[None]:
    """The kernel refuses writes behind this position, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_records_are_read_from_memory_meanwhile_and_written_afterwards(tmp_path: Path) -> None:
    with open_spool(tmp_path) as spool:
        spool.append_event(payload(0))
        with no_file_grows_beyond(20_000):
            for number in range(1, 1000):
                spool.append_event(payload(number))
            eventually(lambda: spool.problem != "")
            assert "refuses: File too large; records are kept in memory" in spool.problem
            assert numbers(read_all(spool.events)) == list(range(1000))
        eventually(lambda: spool.problem == "")
    with open_spool(tmp_path) as spool:
        assert spool.closed_before
        assert numbers(read_all(spool.events)) == list(range(1000))
        assert gaps(read_all(spool.events)) == []


def test_a_disk_that_takes_nothing_from_the_start_is_no_reason_not_to_observe(tmp_path: Path) -> None:
    with no_file_grows_beyond(0), open_spool(tmp_path) as spool:
        assert spool.problem != ""
        spool.append_event(payload(0))
        assert numbers(read_all(spool.events)) == [0]
        assert spool.installation_id
        assert spool.events.begin_offset == 0
    assert segment_files(tmp_path) == []


def test_memory_is_bounded_and_what_it_could_not_hold_is_told_once(tmp_path: Path) -> None:
    with open_spool(tmp_path, memory_max_bytes=100_000) as spool:
        with no_file_grows_beyond(0):
            spool.append_event(payload(0))
            eventually(lambda: spool.problem != "")
            for number in range(1, 2000):
                spool.append_event(payload(number))
            in_memory = numbers(read_all(spool.events))
            assert in_memory == list(range(in_memory[0], 2000))
            assert 100 < len(in_memory) < 300
            (told,) = gaps(read_all(spool.events))
            assert (told[1].where, told[1].lost_count) == ("memory", in_memory[0])
        eventually(lambda: spool.problem == "")
    with open_spool(tmp_path) as spool:
        records = read_all(spool.events)
        assert numbers(records) == in_memory
        told = {(evidence.epoch, evidence.seq): gap.lost_count for evidence, gap in gaps(records)}
        assert list(told.values()) == [in_memory[0]], "seen again on disk, it is the same evidence"


def test_what_was_acknowledged_from_memory_is_no_loss_when_memory_needs_the_room(tmp_path: Path) -> None:
    with open_spool(tmp_path, memory_max_bytes=100_000) as spool, no_file_grows_beyond(0):
        spool.append_event(payload(0))
        eventually(lambda: spool.problem != "")
        for number in range(1, 2000):
            spool.append_event(payload(number))
            spool.events.acknowledge(spool.events.end_offset)
        assert gaps(read_all(spool.events)) == []


def test_what_was_sent_from_memory_and_lost_is_noticed_by_its_offset(tmp_path: Path) -> None:
    """Killed while the disk refused: the server has offsets that the spool gives again."""
    spool = Spool.open(tmp_path)
    spool.events.resume_at(0)
    spool.append_event(payload(0))
    first_id = spool.events.spool_id
    eventually(lambda: not spool.events.has_unwritten)
    with no_file_grows_beyond(0):
        for number in range(1, 5):
            spool.append_event(payload(number))
        committed = read_all(spool.events)[-1].end_offset
        spool.close()
    with open_spool(tmp_path) as spool:
        for number in range(10):
            spool.append_event(payload(number))
        assert spool.events.end_offset > committed
        assert spool.events.resume_at(committed) == 0
        assert spool.events.spool_id != first_id


def _namespaces() -> bool:
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _namespaces(), reason="needs `unshare -rm` to mount a small disk")
def test_a_disk_that_is_really_full_and_one_that_is_really_read_only(tmp_path: Path) -> None:
    command = ["unshare", "-rm", sys.executable, "-m", "tests.spool.small_disk", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["full: ok", "read-only: ok"]
