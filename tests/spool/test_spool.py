"""What a spool gives back, in one run and over several."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest

from node_agent.spool import Spool, SpoolInUse
from tests.spool.opening import SMALL, eventually, gaps, numbers, open_spool, payload, read_all, segment_files


@pytest.mark.parametrize("max_records", [1, 7, 1000])
def test_records_come_back_in_order_whatever_the_page(tmp_path: Path, max_records: int) -> None:
    with open_spool(tmp_path, **SMALL) as spool:
        for number in range(600):
            spool.append_event(payload(number))
        assert numbers(read_all(spool.events, max_records=max_records)) == list(range(600))
    with open_spool(tmp_path, **SMALL) as spool:
        assert len(segment_files(tmp_path)) > 3
        assert numbers(read_all(spool.events, max_records=max_records)) == list(range(600))


def test_a_record_larger_than_the_page_still_comes(tmp_path: Path) -> None:
    with open_spool(tmp_path) as spool:
        spool.append_event(payload(1, 900_000))
        assert numbers(spool.events.read(0, max_bytes=1, max_records=1)) == [1]


def test_a_record_beyond_all_bounds_is_a_loss_that_is_told(tmp_path: Path) -> None:
    with open_spool(tmp_path) as spool:
        spool.append_event(payload(0))
        spool.append_event(payload(1, 2 << 20))
        spool.append_event(payload(2))
        eventually(lambda: len(gaps(read_all(spool.events))) == 1)
        assert numbers(read_all(spool.events)) == [0, 2]
        assert gaps(read_all(spool.events))[0][1].lost_count == 1


def test_reading_goes_on_anywhere(tmp_path: Path) -> None:
    with open_spool(tmp_path, **SMALL) as spool:
        for number in range(400):
            spool.append_event(payload(number))
        records = read_all(spool.events)
        for at in (0, 1, 150, 398):
            assert numbers(read_all(spool.events, records[at].end_offset)) == list(range(at + 1, 400))
        assert spool.events.read(spool.events.end_offset, max_bytes=1000, max_records=10) == []
        assert spool.events.read(spool.events.end_offset + 1000, max_bytes=1000, max_records=10) == []


def test_logs_are_apart(tmp_path: Path) -> None:
    with open_spool(tmp_path) as spool:
        spool.append_event(payload(1))
        spool.append_sample(payload(2))
        assert (spool.events.name, spool.samples.name) == ("events", "samples")
        assert numbers(read_all(spool.events)) == [1]
        assert numbers(read_all(spool.samples)) == [2]
        assert spool.events.spool_id != spool.samples.spool_id


def test_a_clean_restart_goes_on_as_if_there_was_none(tmp_path: Path) -> None:
    with open_spool(tmp_path) as spool:
        spool.append_event(payload(0))
        spool.events.resume_at(0)
        spool.events.acknowledge(spool.events.end_offset)
        spool.put_cursor("kmsg", b"\x00seq 17")
        before = (spool.installation_id, spool.events.spool_id, spool.events.end_offset, spool.events.acked_offset)
        assert spool.closed_before
    with open_spool(tmp_path) as spool:
        after = (spool.installation_id, spool.events.spool_id, spool.events.end_offset, spool.events.acked_offset)
        assert after == before
        assert spool.closed_before
        assert spool.get_cursor("kmsg") == b"\x00seq 17"
        assert spool.get_cursor("other") is None
        spool.append_event(payload(1))
        records = read_all(spool.events)
        assert numbers(records) == [0, 1]
        assert gaps(records) == []


@pytest.mark.parametrize("content", ["", "not a uuid\n", None])
def test_an_installation_id_that_cannot_be_read_is_made_anew(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "installation_id").write_text(content)
    with open_spool(tmp_path) as spool:
        made = spool.installation_id
    assert (tmp_path / "installation_id").read_text() == f"{uuid.UUID(made)}\n"


def test_a_second_process_is_refused_and_told_why(tmp_path: Path) -> None:
    with open_spool(tmp_path), pytest.raises(SpoolInUse, match=f"{tmp_path} is in use .* GCM_SENTINEL_STATE_DIR"):
        Spool.open(tmp_path)
    Spool.open(tmp_path).close()


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with open_spool(tmp_path, **SMALL) as spool:
            for number in range(400):
                spool.append_event(payload(number))
            read_all(spool.events)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_a_waiting_reader_wakes_for_a_record_and_not_for_a_cursor(tmp_path: Path) -> None:
    with open_spool(tmp_path) as spool:
        waiting = asyncio.create_task(spool.events.wait_beyond(0))
        other = asyncio.create_task(spool.events.wait_beyond(10_000))
        spool.put_cursor("kmsg", b"1")
        spool.append_sample(payload(0))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await asyncio.to_thread(spool.append_event, payload(1))  # any thread may append
        async with asyncio.timeout(5):
            await waiting
        assert not other.done()
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)
        spool.append_event(payload(2))
        async with asyncio.timeout(5):
            await spool.events.wait_beyond(0)


class TestResuming:
    """Where a server says its store ends, and what follows from it."""

    def test_a_server_is_sent_what_it_lacks(self, tmp_path: Path) -> None:
        with open_spool(tmp_path) as spool:
            for number in range(10):
                spool.append_event(payload(number))
            third = read_all(spool.events)[2].end_offset
            assert spool.events.resume_at(0) == 0
            assert spool.events.resume_at(third) == third
            assert spool.events.acked_offset == third
            assert spool.events.resume_at(0) == 0, "another store, or one restored to an older state, gets them again"
            assert spool.events.acked_offset == third, "and they are known to be replays"

    def test_a_log_that_lost_its_tail_takes_a_new_spool_id_and_sends_everything(self, tmp_path: Path) -> None:
        with open_spool(tmp_path) as spool:
            spool.append_event(payload(0))
            first_id = spool.events.spool_id
            assert spool.events.resume_at(spool.events.end_offset + 1) == 0
            second_id = spool.events.spool_id
            assert second_id != first_id
            assert spool.events.resume_at(0) == 0
            assert spool.events.spool_id == second_id
        with open_spool(tmp_path) as spool:
            assert spool.events.spool_id == second_id
            assert numbers(read_all(spool.events)) == [0]

    @pytest.mark.parametrize("runs", [1, 2])
    def test_new_records_where_the_lost_tail_was_are_not_taken_for_it(self, tmp_path: Path, runs: int) -> None:
        """A power loss took records that the server has; others have taken their offsets before it was asked, in one run or two."""
        with open_spool(tmp_path) as spool:
            spool.events.resume_at(0)
            spool.append_event(payload(0))
            first_id = spool.events.spool_id
            committed = 5 * spool.events.end_offset
        for run in range(runs):
            with open_spool(tmp_path) as spool:
                for number in range(5):
                    spool.append_event(payload(10 * run + number))
        with open_spool(tmp_path) as spool:
            assert spool.events.end_offset > committed
            assert spool.events.resume_at(committed) == 0
            assert spool.events.spool_id != first_id

    def test_what_this_run_sent_needs_no_new_spool_id(self, tmp_path: Path) -> None:
        with open_spool(tmp_path) as spool:
            spool.events.resume_at(0)
            first_id = spool.events.spool_id
            spool.append_event(payload(0))
            assert spool.events.resume_at(spool.events.end_offset) == spool.events.end_offset
        with open_spool(tmp_path) as spool:
            assert spool.events.resume_at(spool.events.end_offset) == spool.events.end_offset
            assert spool.events.spool_id == first_id
