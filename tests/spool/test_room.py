"""Room on disk is bounded; what has to go is told first."""

from __future__ import annotations

import os
import time
from pathlib import Path

from node_agent.spool import Spool, SpoolLog
from tests.spool.opening import SMALL, encode, eventually, gaps, numbers, open_spool, payload, read_all, segment_files

BUDGET_BYTES = SMALL["events_max_bytes"] + SMALL["samples_max_bytes"]


def on_disk(spool: Spool) -> int:
    """Room that the segments take."""
    return spool.events.size_bytes + spool.samples.size_bytes


def fill(spool: Spool, log: SpoolLog, first: int, count: int, room_bytes: int = BUDGET_BYTES) -> None:
    """Append numbered records at a pace that the disk keeps, until all is written and what is too much is deleted."""
    for number in range(first, first + count):
        log.append(payload(number, 500))
        if number % 100 == 0:
            eventually(lambda: not log.has_unwritten)
    eventually(lambda: not log.has_unwritten and on_disk(spool) <= room_bytes)


def test_overflow_deletes_the_oldest_and_counts_what_no_server_had(tmp_path: Path) -> None:
    with open_spool(tmp_path, **SMALL) as spool:
        fill(spool, spool.events, 0, 2000)
        assert sum(path.stat().st_size for path in segment_files(tmp_path)) <= BUDGET_BYTES
    with open_spool(tmp_path, **SMALL) as spool:
        records = read_all(spool.events)
        left = numbers(records)
        assert left == list(range(left[0], 2000))
        assert sum(gap.lost_count for _, gap in gaps(records)) == left[0]
        assert len({(evidence.epoch, evidence.seq) for evidence, _ in gaps(records)}) == len(gaps(records))
        assert spool.events.begin_offset > 0


def test_losses_are_still_told_when_the_records_that_told_them_were_deleted_too(tmp_path: Path) -> None:
    with open_spool(tmp_path, **SMALL) as spool:
        fill(spool, spool.events, 0, 6000)
        records = read_all(spool.events)
        assert sum(gap.lost_count for _, gap in gaps(records)) == numbers(records)[0] > 3000


def test_acknowledged_records_go_without_a_word(tmp_path: Path) -> None:
    with open_spool(tmp_path, **SMALL) as spool:
        for first in range(0, 2000, 200):
            fill(spool, spool.events, first, 200)
            spool.events.acknowledge(spool.events.end_offset)
        spool.append_event(payload(2000))
        eventually(lambda: on_disk(spool) <= BUDGET_BYTES)
        records = read_all(spool.events)
        assert numbers(records)[-1] == 2000
        assert gaps(records) == []


def test_only_what_is_not_known_to_be_acknowledged_counts_as_lost(tmp_path: Path) -> None:
    with open_spool(tmp_path, **SMALL) as spool:
        fill(spool, spool.events, 0, 100)
        spool.events.acknowledge(read_all(spool.events)[56].end_offset)  # in the middle of a segment
        fill(spool, spool.events, 100, 900)
        records = read_all(spool.events)
        assert sum(gap.lost_count for _, gap in gaps(records)) == numbers(records)[0] - 57


def test_samples_go_before_events(tmp_path: Path) -> None:
    with open_spool(tmp_path, **SMALL) as spool:
        fill(spool, spool.samples, 0, 220)
        fill(spool, spool.events, 0, 360)  # beyond the events' own share
        assert numbers(read_all(spool.events)) == list(range(360))
        left = numbers(read_all(spool.samples))
        assert left[-1] == 219
        told = gaps(read_all(spool.events))
        assert sum(gap.lost_count for _, gap in told) == left[0] > 0
        assert {gap.lost_epoch for _, gap in told} == {spool.samples.spool_id}


def test_without_an_encoder_nothing_goes_untold(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, **SMALL)
    fill(spool, spool.events, 0, 800, room_bytes=1 << 20)
    assert numbers(read_all(spool.events)) == list(range(800))
    spool.tell_losses_through(encode)
    spool.append_event(payload(800))
    eventually(lambda: on_disk(spool) <= BUDGET_BYTES)
    assert sum(gap.lost_count for _, gap in gaps(read_all(spool.events))) == numbers(read_all(spool.events))[0]
    spool.close()


def test_acknowledged_segments_go_with_age_and_others_stay(tmp_path: Path) -> None:
    with open_spool(tmp_path, **SMALL, keep_acked_seconds=3600) as spool:
        fill(spool, spool.events, 0, 100)
        acked = spool.events.end_offset
        spool.events.acknowledge(acked)
        fill(spool, spool.events, 100, 100)
        long_ago = time.time() - 4000
        for path in segment_files(tmp_path):
            os.utime(path, (long_ago, long_ago))
        spool.append_event(payload(200))
        eventually(lambda: spool.events.begin_offset > 0)
        left = numbers(read_all(spool.events))
        assert left[0] <= 100
        assert left[-1] == 200
        assert len(left) < 150
        assert gaps(read_all(spool.events)) == []


def test_cursors_outlive_the_segments_they_were_written_in(tmp_path: Path) -> None:
    with open_spool(tmp_path, **SMALL) as spool:
        spool.put_cursor("kmsg", b"here")
        fill(spool, spool.events, 0, 1000)
        assert spool.events.begin_offset > 0
    for path in segment_files(tmp_path)[:-1]:
        path.unlink()
    with open_spool(tmp_path, **SMALL) as spool:
        assert spool.get_cursor("kmsg") == b"here"


def test_cursors_take_less_room_than_the_records_they_follow(tmp_path: Path) -> None:
    with open_spool(tmp_path) as spool:
        for number in range(100):
            spool.append_event(payload(number))
            spool.put_cursor("kmsg", b"%d" % number * 2000)
            eventually(lambda: not spool.events.has_unwritten)
        assert sum(path.stat().st_size for path in segment_files(tmp_path)) < 40_000
    with open_spool(tmp_path) as spool:
        assert spool.get_cursor("kmsg") == b"99" * 2000, "a clean end writes the last of them"
