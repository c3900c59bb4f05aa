"""The collector on the machine's own kernel log, on FIFOs and on files."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from node_agent.collectors.kmsg import KmsgCollector
from node_agent.evidence import Fact, Gap, KernelRecord, Recorder, Storm, TimeBasis, Workload
from node_agent.spool import Spool
from tests.kernel_log.conftest import BOOT_ID, Watch, collecting

KMSG = Path("/dev/kmsg")


def record(seq: int, line: str, usec: int = 1_000_000, priority: int = 4) -> str:
    """A raw record."""
    return f"{priority},{seq},{usec},-;{line}\n"


def xid(seq: int, usec: int = 1_000_000) -> str:
    """A raw record that is kept and differs from all others."""
    return record(seq, f"NVRM: Xid (PCI:0000:41:00): 13, number {seq}", usec)


def seqs(watch: Watch) -> list[int]:
    """The kernel's numbers of the reported lines."""
    return [fact.body.seq for fact in watch.of("kernel_line") if isinstance(fact.body, KernelRecord)]


def gaps(watch: Watch) -> list[tuple[int | None, int | None, int | None]]:
    """First, last and count of the reported gaps."""
    bodies = [fact.body for fact in watch.of("evidence_gap")]
    return [(body.first, body.last, body.lost_count) for body in bodies if isinstance(body, Gap)]


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """An empty FIFO."""
    path = tmp_path / "kmsg"
    os.mkfifo(path)
    return path


def write(path: Path, text: str | bytes) -> None:
    """Append to a FIFO that is being read, or to a file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, text if isinstance(text, bytes) else text.encode())
    os.close(descriptor)


def _writable() -> bool:
    try:
        os.close(os.open(KMSG, os.O_RDWR))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _writable(), reason="needs to read and write /dev/kmsg")
class TestDevice:
    """The machine's own kernel log. Whatever else it holds is left out of account."""

    async def test_a_line_arrives_as_userspace_wrote_it_and_only_once_over_a_restart(self, spool: Spool) -> None:
        mark = uuid.uuid4().hex
        lines = [f"NVRM: Xid (PCI:0000:41:00): 31, pid=4242, name=é\\, {mark} {number}" for number in range(3)]

        def mine(watch: Watch) -> list[Fact]:
            return [fact for fact in watch.of("kernel_line") if mark in fact.detail]

        write(KMSG, f"<3>{lines[0]}\n")
        async with collecting(KMSG, spool) as watch:
            await watch.until(lambda watch: len(mine(watch)) == 1)
            await asyncio.sleep(0.05)
            write(KMSG, f"<3>{lines[1]}\n")
            await watch.until(lambda watch: len(mine(watch)) == 2)
            backlog, live = mine(watch)
        write(KMSG, f"<3>{lines[2]}\n")
        async with collecting(KMSG, spool) as watch:
            await watch.until(lambda watch: len(mine(watch)) == 1)
            (later,) = mine(watch)
        for fact, line in zip((backlog, live, later), lines, strict=True):
            assert isinstance(fact.body, KernelRecord)
            assert fact.body.line == line
            assert fact.body.facility != 0, "what userspace writes never passes for the kernel's"
            assert fact.body.level == 3
            assert fact.identity == (BOOT_ID, fact.body.seq)
        assert (backlog.time_basis, live.time_basis) == (TimeBasis.ESTIMATED, TimeBasis.OBSERVED)
        assert backlog.occurred_at is not None
        assert abs(backlog.occurred_at - time.time()) < 30
        assert live.occurred_at is None

    async def test_a_line_is_seen_within_milliseconds(self, spool: Spool) -> None:
        mark = uuid.uuid4().hex
        async with collecting(KMSG, spool) as watch:
            await asyncio.sleep(0.2)
            written = time.perf_counter()
            write(KMSG, f"<3>NVRM: {mark}\n")
            await watch.until(lambda watch: any(mark in line for line in watch.lines))
            assert time.perf_counter() - written < 1.0


class TestFifo:
    """What a FIFO is given is read as it comes, in whatever pieces."""

    async def test_records_in_pieces_are_joined(self, fifo: Path, spool: Spool) -> None:
        async with collecting(fifo, spool) as watch:
            whole = xid(1) + " SUBSYSTEM=pci\n DEVICE=+pci:0000:41:00.0\n" + record(2, "dull") + xid(3)
            for at in range(0, len(whole), 7):
                write(fifo, whole[at : at + 7])
                await asyncio.sleep(0)
            await watch.until(lambda watch: len(watch.facts) == 2)
            assert seqs(watch) == [1, 3]
            assert {fact.time_basis for fact in watch.facts} == {TimeBasis.OBSERVED}

    async def test_writers_come_and_go(self, fifo: Path, spool: Spool) -> None:
        async with collecting(fifo, spool) as watch:
            for seq in range(5):
                write(fifo, xid(seq))
                await watch.until(lambda watch, seq=seq: seqs(watch) == list(range(seq + 1)))  # type: ignore[misc]

    async def test_missing_numbers_are_a_gap(self, fifo: Path, spool: Spool) -> None:
        async with collecting(fifo, spool) as watch:
            write(fifo, xid(10) + xid(14) + record(20, "dull") + xid(21) + xid(3))
            await watch.until(lambda watch: len(seqs(watch)) == 4)
            assert gaps(watch) == [(11, 13, 3), (15, 19, 5)]
            gap = watch.of("evidence_gap")[0]
            assert (gap.source, gap.identity) == ("gap", (f"{BOOT_ID}/kernel_ring", 13))

    async def test_what_is_missing_over_a_restart_is_a_gap_too(self, fifo: Path, spool: Spool) -> None:
        async with collecting(fifo, spool) as watch:
            write(fifo, xid(10))
            await watch.until(lambda watch: seqs(watch) == [10])
        async with collecting(fifo, spool) as watch:
            write(fifo, xid(15))
            await watch.until(lambda watch: seqs(watch) == [15])
            assert gaps(watch) == [(11, 14, 4)]

    async def test_another_boot_begins_anew(self, fifo: Path, spool: Spool) -> None:
        async with collecting(fifo, spool) as watch:
            write(fifo, record(10, "NVRM: x") * 4)
            await watch.until(lambda watch: seqs(watch) == [10])
        async with collecting(fifo, spool, boot_id="other boot") as watch:
            write(fifo, xid(2))
            await watch.until(lambda watch: seqs(watch) == [2])
            assert gaps(watch) == []
            assert watch.of("kernel_line")[0].identity == ("other boot", 2)
            (storm,) = watch.of("kernel_storm")
            assert storm.identity == (BOOT_ID, 0), "what was counted when the boot ended is not lost"

    async def test_an_unreadable_record_travels_whole_and_stops_nothing(self, fifo: Path, spool: Spool) -> None:
        async with collecting(fifo, spool) as watch:
            write(fifo, xid(1).encode() + b"no prefix \xff\n" + b"no prefix \xff\n" + b"other\n" + xid(2).encode())
            await watch.until(lambda watch: len(watch.facts) == 4)
            bodies = [fact.body for fact in watch.facts if isinstance(fact.body, KernelRecord)]
            assert [body.malformed for body in bodies] == [b"", b"no prefix \xff", b"other", b""]
            identities = [fact.identity for fact in watch.facts]
            assert len(set(identities)) == 4
            assert identities[1] == (f"{BOOT_ID}/malformed", (2 << 20) + 1)

    async def test_a_line_without_end_is_cut_and_not_kept_in_memory(self, fifo: Path, spool: Spool) -> None:
        async with collecting(fifo, spool) as watch:
            descriptor = os.open(fifo, os.O_WRONLY)
            for _ in range(20):
                await asyncio.to_thread(os.write, descriptor, b"x" * 8192)
            os.close(descriptor)
            await asyncio.to_thread(write, fifo, "\n" + xid(1))
            await watch.until(lambda watch: 1 in seqs(watch))
            cut = [fact.body.malformed for fact in watch.facts if isinstance(fact.body, KernelRecord)]
            assert 65536 < len(cut[0]) < 65536 + 8192 * 2

    @pytest.mark.parametrize(("priority", "epoch"), [(4, BOOT_ID), (12, f"{BOOT_ID}/userspace")])
    async def test_a_storm_is_counted_and_told_when_its_minute_ends(
        self, fifo: Path, spool: Spool, priority: int, epoch: str
    ) -> None:
        async with collecting(fifo, spool) as watch:
            for seq in range(350):
                write(fifo, record(seq, f"NVRM: flood {seq}", priority=priority))
            await watch.until(lambda watch: len(seqs(watch)) == 200)
            write(fifo, record(350, "NVRM: next minute", usec=61_000_000))
            await watch.until(lambda watch: bool(watch.of("kernel_storm")))
            (storm,) = watch.of("kernel_storm")
            assert (storm.source, storm.identity) == ("kmsg_storm", (epoch, 0))
            assert isinstance(storm.body, Storm)
            assert (storm.body.suppressed_count, storm.body.first_seq, storm.body.last_seq) == (150, 200, 349)
            assert storm.body.last_line == ("NVRM: flood 349" if priority == 4 else "")
            assert "NVRM: flood 349" in storm.detail

    async def test_a_flood_from_userspace_does_not_drown_the_kernel(self, fifo: Path, spool: Spool) -> None:
        async with collecting(fifo, spool) as watch:
            for seq in range(300):
                write(fifo, record(seq, f"NVRM: forged {seq}", priority=12))
            write(fifo, record(300, "NVRM: forged 0", priority=4))
            await watch.until(lambda watch: bool(seqs(watch)) and seqs(watch)[-1] == 300)

    async def test_who_ran_the_process_is_asked_at_once(self, fifo: Path, spool: Spool) -> None:
        asked: list[int] = []

        def workloads_of_pid(pid: int) -> tuple[Workload, ...]:
            asked.append(pid)
            return (Workload(pod="trainer-0", pid=pid),)

        async with collecting(fifo, spool, workloads_of_pid=workloads_of_pid) as watch:
            write(
                fifo,
                record(1, "NVRM: Xid (PCI:0000:41:00): 31, pid=77, name=python") + record(2, "dull pid=78") + xid(3),
            )
            await watch.until(lambda watch: len(watch.facts) == 2)
            assert asked == [77]
            assert watch.facts[0].workloads == (Workload(pod="trainer-0", pid=77),)
            assert watch.facts[1].workloads == ()

    async def test_an_idle_reader_costs_nothing(self, fifo: Path, spool: Spool) -> None:
        async with collecting(fifo, spool) as watch:
            write(fifo, xid(1) + "4,2,3,-;half a reco")
            await watch.until(lambda watch: seqs(watch) == [1])
            before = time.process_time()
            await asyncio.sleep(0.5)
            assert time.process_time() - before < 0.1


class TestFile:
    """A file is read to its end, then followed."""

    async def test_what_it_holds_is_backlog_and_what_comes_is_live(self, tmp_path: Path, spool: Spool) -> None:
        path = tmp_path / "kmsg"
        path.write_text("".join(xid(seq) for seq in range(100, 700)) + "4,700,1000000,-;NVRM: half")
        async with collecting(path, spool) as watch:
            await watch.until(lambda watch: len(seqs(watch)) == 200)
            await asyncio.sleep(0.1)
            write(path, " a line\n" + xid(701, 70_000_000))
            await watch.until(lambda watch: seqs(watch)[-1] == 701)
            assert gaps(watch) == []
            assert watch.of("kernel_line")[0].time_basis == TimeBasis.ESTIMATED
            assert watch.of("kernel_line")[-1].time_basis == TimeBasis.OBSERVED
            (storm,) = watch.of("kernel_storm")
            assert isinstance(storm.body, Storm)
            assert storm.body.suppressed_count == 401
            assert storm.body.last_line == "NVRM: half a line"

    @pytest.mark.parametrize("first", [1, 150, 199, 200, 201, 320])
    async def test_a_restart_anywhere_repeats_nothing_and_misses_nothing(
        self, tmp_path: Path, spool: Spool, first: int
    ) -> None:
        records = [xid(seq, seq * 150_000) if seq % 10 else f"unreadable {seq}\n" for seq in range(1, 1000)]
        path = tmp_path / "kmsg"
        path.write_text("".join(records) + xid(1000, 300_000_000))
        async with collecting(path, spool) as watch:
            await watch.until(lambda watch: 1000 in seqs(watch))
            whole = [(fact.source, fact.identity) for fact in watch.facts]
        other = Spool.open(tmp_path / "other")
        halved = tmp_path / "halved"
        halved.write_text("".join(records[:first]))
        async with collecting(halved, other) as watch:
            await asyncio.sleep(0.15)
            parts = [(fact.source, fact.identity) for fact in watch.facts]
        write(halved, "".join(records[first:]) + xid(1000, 300_000_000))
        async with collecting(halved, other) as watch:
            await watch.until(lambda watch: 1000 in seqs(watch))
            parts += [(fact.source, fact.identity) for fact in watch.facts]
        other.close()
        assert parts == whole
        assert len(set(whole)) == len(whole)

    async def test_one_that_takes_its_place_is_read(self, tmp_path: Path, spool: Spool) -> None:
        """A log that is rotated goes on."""
        path, successor = tmp_path / "kmsg", tmp_path / "new"
        path.write_text(xid(1) + xid(2))
        async with collecting(path, spool) as watch:
            await watch.until(lambda watch: seqs(watch) == [1, 2])
            successor.write_text(xid(3))
            successor.rename(path)
            await watch.until(lambda watch: seqs(watch) == [1, 2, 3])

    async def test_one_that_is_taken_away_is_a_failure(self, tmp_path: Path, spool: Spool) -> None:
        path = tmp_path / "kmsg"
        path.write_text(xid(1))
        collecting_it = asyncio.create_task(KmsgCollector(path, boot_id=BOOT_ID, spool=spool).collect(print))
        await asyncio.sleep(0.1)
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r"no kernel log: .* does not exist"):
            await asyncio.wait_for(collecting_it, 5)

    async def test_one_that_became_shorter_is_read_anew(self, tmp_path: Path, spool: Spool) -> None:
        path = tmp_path / "kmsg"
        path.write_text(xid(1) + xid(2))
        async with collecting(path, spool) as watch:
            await watch.until(lambda watch: seqs(watch) == [1, 2])
            path.write_text(xid(3))
            await watch.until(lambda watch: seqs(watch) == [1, 2, 3])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is neither a device, a FIFO nor a file"),
        (lambda path: path.symlink_to("/dev/null"), "is a device without records"),
    ],
    ids=["nothing", "directory", "other device"],
)
async def test_without_a_kernel_log_the_collector_fails_and_says_the_way_out(
    tmp_path: Path, spool: Spool, make: Callable[[Path], None], says: str
) -> None:
    make(tmp_path / "kmsg")
    with pytest.raises(OSError, match=f"no kernel log: .*/kmsg {says}: mount the host's .*GCM_SENTINEL_KMSG_PATH"):
        await KmsgCollector(tmp_path / "kmsg", boot_id=BOOT_ID, spool=spool).collect(print)


async def test_a_kernel_log_that_may_not_be_read_is_a_failure_with_its_way_out(tmp_path: Path, spool: Spool) -> None:
    path = tmp_path / "kmsg"
    path.write_text("")
    path.chmod(0)
    try:
        if os.geteuid() == 0:
            os.seteuid(65534)
        with pytest.raises(PermissionError, match=r"may not be read: run the agent as root or with CAP_SYSLOG"):
            await KmsgCollector(path, boot_id=BOOT_ID, spool=spool).collect(print)
    finally:
        os.seteuid(os.getuid())


async def test_every_fact_can_be_encoded(fifo: Path, spool: Spool) -> None:
    recorder = Recorder(node="n", boot_id=BOOT_ID, simulated=False, append_event=print, append_sample=print)
    async with collecting(fifo, spool) as watch:
        write(fifo, b"\xff\n" + rb"99999,999999999999999999,999999999999999999,-;NVRM: \xff\x00 pid=9999999" + b"\n")
        write(fifo, record(1, "NVRM: again") * 3 + record(2, "NVRM: later", usec=600_000_000))
        await watch.until(lambda watch: 2 in seqs(watch))
        assert watch.of("kernel_storm")
        for fact in watch.facts:
            assert recorder.encode(fact)
