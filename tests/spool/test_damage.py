"""Files cut, overwritten or taken away anywhere: what is readable is read, what is not is counted, and nothing raises."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.spool.opening import SMALL, eventually, gaps, numbers, open_spool, payload, read_all, segment_files

RECORDS = 500


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed spool of several segments, with cursors among the records."""
    directory = tmp_path_factory.mktemp("intact")
    with open_spool(directory, **SMALL) as spool:
        spool.events.resume_at(0)
        for number in range(RECORDS):
            spool.append_event(payload(number, 60 + number % 90))
            if number % 40 == 0:
                spool.put_cursor("kmsg", b"behind %d" % number)
                eventually(lambda: not spool.events.has_unwritten)
    assert len(segment_files(directory)) >= 3
    return directory


@dataclass(frozen=True)
class Damage:
    """What happens to the log's bytes. `at` and `size` are parts of the whole, so that they fit every file."""

    kind: str
    at: float
    size: float
    segment: float

    def do(self, directory: Path) -> None:
        """Damage one of the events' segments."""
        paths = segment_files(directory)
        path = paths[min(int(self.segment * len(paths)), len(paths) - 1)]
        data = bytearray(path.read_bytes())
        at = int(self.at * len(data))
        until = at + 1 + int(self.size * 400)
        match self.kind:
            case "cut":
                del data[at:]
            case "zeroes":
                data[at:until] = bytes(len(data[at:until]))
            case "flip":
                if at < len(data):
                    data[at] ^= 0x41
            case "remove":
                del data[at:until]
            case "insert":
                data[at:at] = b"\xff" * (until - at)
            case "repeat":
                data[at:at] = data[:at][-300:]
        path.write_bytes(data)
        if self.kind == "unlink":
            path.unlink()


part = st.floats(0, 1, allow_nan=False)
damages = st.builds(
    Damage, st.sampled_from(["cut", "zeroes", "flip", "remove", "insert", "repeat", "unlink"]), part, part, part
)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(damage=st.lists(damages, min_size=1, max_size=3))
def test_any_damage_is_survived_and_counted(intact: Path, tmp_path: Path, damage: list[Damage]) -> None:
    directory = tmp_path / "damaged"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(intact, directory)
    for each in damage:
        each.do(directory)
    segments = segment_files(directory)
    begin = (
        int(segments[0].name.split("-")[3]) if segments else RECORDS
    )  # what was before may have been deleted for room
    with open_spool(directory, **SMALL) as spool:
        records = read_all(spool.events)
        left, told = numbers(records), gaps(records)
        spool.append_event(payload(RECORDS))
        assert numbers(read_all(spool.events))[-1] == RECORDS, "it goes on working"
        unclosed = not spool.closed_before
    assert left == sorted(set(left)), "in order, none twice"
    lost = sum(gap.lost_count for _, gap in told)
    missing = sum(1 for number in range(begin, RECORDS) if number not in left)
    behind = RECORDS - 1 - left[-1] if left else RECORDS - begin
    assert unclosed == any(evidence.epoch.endswith("/unclosed") for evidence, _ in told)
    assert lost == missing or (unclosed and lost >= missing - behind), "exact, but for a tail of which nothing is left"


@pytest.mark.parametrize("part_of_file", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_everything_before_a_cut_is_readable(intact: Path, tmp_path: Path, part_of_file: float) -> None:
    shutil.copytree(intact, tmp_path / "cut")
    *before, last = segment_files(tmp_path / "cut")
    first_in_last = next(number for number in range(RECORDS) if payload(number, 60 + number % 90) in last.read_bytes())
    kept = last.read_bytes()[: int(last.stat().st_size * part_of_file)]
    whole = kept.count(b"record ")
    last.write_bytes(kept)
    with open_spool(tmp_path / "cut", **SMALL) as spool:
        left = numbers(read_all(spool.events))
    assert before
    assert left == list(range(len(left)))
    assert first_in_last + whole - 1 <= len(left) <= first_in_last + whole


def test_one_flipped_bit_costs_one_record_and_is_told_with_the_same_identity_each_time(
    intact: Path, tmp_path: Path
) -> None:
    shutil.copytree(intact, tmp_path / "flipped")
    path = segment_files(tmp_path / "flipped")[0]
    data = bytearray(path.read_bytes())
    data[data.index(b"record 20 ") + 3] ^= 1
    path.write_bytes(data)
    identities = []
    for _ in range(2):
        with open_spool(tmp_path / "flipped", **SMALL) as spool:
            records = read_all(spool.events)
        assert numbers(records) == [number for number in range(RECORDS) if number != 20]
        identities += [(evidence.epoch, evidence.seq) for evidence, _ in gaps(records)]
        assert gaps(records)[-1][1].lost_count == 1
    assert len(set(identities)) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes().replace(b"record 21 ", b"record xx ")),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:3000]),
    ],
    ids=["flip", "unlink", "cut"],
)
def test_damage_under_a_running_spool_is_found_by_reading(
    intact: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(intact, tmp_path / "running")
    with open_spool(tmp_path / "running", **SMALL) as spool:
        damage(segment_files(tmp_path / "running")[0])
        for _ in range(2):
            left = numbers(read_all(spool.events))
        eventually(lambda: bool(gaps(read_all(spool.events))))
        told = gaps(read_all(spool.events))
        assert sum(gap.lost_count for _, gap in told) == RECORDS - len(left)
        assert len(told) == 1, "told once, however often it is read"


def test_a_reader_that_asks_for_damaged_records_again_is_told_and_gets_to_the_end(tmp_path: Path) -> None:
    with open_spool(tmp_path) as spool:
        spool.append_event(payload(0))
        eventually(lambda: not spool.events.has_unwritten)
        spool.events.acknowledge(spool.events.end_offset)
        (path,) = segment_files(tmp_path)
        path.write_bytes(path.read_bytes().replace(b"record 0 ", b"record x "))
        assert spool.events.resume_at(0) == 0
        assert gaps(read_all(spool.events))[0][1].lost_count == 1


def test_a_payload_that_imitates_an_entry_is_not_taken_for_one(tmp_path: Path) -> None:
    with open_spool(tmp_path / "other") as other:
        other.append_event(payload(666))
    (forged,) = segment_files(tmp_path / "other")
    with open_spool(tmp_path / "spool") as spool:
        spool.append_event(payload(0))
        spool.append_event(forged.read_bytes())
        spool.append_event(payload(1))
    (path,) = segment_files(tmp_path / "spool")
    data = bytearray(path.read_bytes())
    at = data.index(forged.read_bytes()) - 1
    data[at] ^= 1  # the carrier's checksum: its payload is searched for the next entry
    path.write_bytes(data)
    with open_spool(tmp_path / "spool") as spool:
        records = read_all(spool.events)
        assert numbers(records) == [0, 1]
        assert gaps(records)[0][1].lost_count == 1


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    names = ["events-1.seg", "events-00000001-0-0-nouuid.seg", "notes.txt", "events-00000001-x-0-.seg.tmp"]
    for name in names:
        (tmp_path / name).write_text("mine")
    with open_spool(tmp_path) as spool:
        spool.append_event(payload(0))
    assert [(tmp_path / name).read_text() for name in names] == ["mine"] * 4
