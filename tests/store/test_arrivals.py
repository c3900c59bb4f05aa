"""Every record is stored once, in order, beside the position that says so; a bad one costs only itself."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from aggregator.pipeline import read_record
from aggregator.store import Store, StoreClosed, queries
from aggregator.store.arrivals import Body, Delivery, Receipt, Record, Stored, committed_offsets
from aggregator.store.queries import EvidenceFilter, StoredRow
from protos.v1 import evidence_pb2
from tests.bench.load import kernel_line
from tests.store.conftest import BOOT, NODE, lines


async def deliver(store: Store, *deliveries: Delivery) -> list[Receipt]:
    return list(await asyncio.gather(*[await store.append(delivery) for delivery in deliveries]))


async def stored(store: Store, wanted: EvidenceFilter | None = None) -> list[StoredRow]:
    return await store.read(partial(queries.list_evidence, wanted=wanted or EvidenceFilter(), after_id=0, limit=10_000))


async def position(store: Store, spool_id: str = "spool-a") -> int | None:
    found = await store.read(partial(committed_offsets, node=NODE, spool_ids=[spool_id]))
    return found.get(spool_id)


async def test_a_receipt_means_committed(store: Store, database: Path) -> None:
    """What a receipt speaks of is in the file for anybody who opens it."""
    await deliver(store, lines(1, 3))
    with closing(sqlite3.connect(database)) as outside:
        assert outside.execute("SELECT count(*) FROM evidence").fetchone() == (3,)
        assert outside.execute("SELECT offset FROM positions").fetchone() == (3,)


async def test_the_same_fact_twice_is_stored_once(store: Store) -> None:
    """Resent, overlapping and doubled in one batch: one row each, and the first bytes stay."""
    await deliver(store, lines(1, 5))
    await deliver(store, lines(3, 5, text="other words"), lines(1, 2))
    doubled = lines(8, 1).records + lines(8, 1).records
    await deliver(store, Delivery(NODE, "spool-a", doubled))
    rows = await stored(store)
    assert [evidence_pb2.Evidence.FromString(row.payload).seq for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert b"other words" not in rows[2].payload


async def test_only_what_is_new_is_counted(store: Store) -> None:
    seen: list[Stored] = []
    store.on_stored = seen.append
    await deliver(store, lines(1, 5))
    await deliver(store, lines(4, 3))
    assert [[row.columns["seq"] for row in batch.evidence] for batch in seen] == [[1, 2, 3, 4, 5], [6]]


async def test_positions_never_move_back(store: Store) -> None:
    await deliver(store, lines(1, 10))
    await deliver(store, lines(4, 2))
    assert await position(store) == 10


async def test_positions_belong_to_a_node(store: Store) -> None:
    """Another node's log of the same name is another log."""
    await deliver(store, lines(1, 10), lines(1, 4, node="gpu-2"))
    assert await store.read(partial(committed_offsets, node="gpu-2", spool_ids=["spool-a", "none"])) == {"spool-a": 4}


async def test_a_poison_record_is_found_and_set_aside(store: Store) -> None:
    """A number that no column holds: its batch and the group around it are stored, it is quarantined, all is confirmed."""
    batch = list(lines(1, 100).records)
    batch[57] = Record(58, kernel_line(NODE, BOOT, 2**64 - 1, "nvidia: poison"))
    receipts = await deliver(store, Delivery(NODE, "spool-a", tuple(batch)), lines(1, 5, node="gpu-2"))
    assert receipts == [Receipt(100, quarantined=1), Receipt(5)]
    assert len(await stored(store)) == 99 + 5
    (quarantined,) = await store.read(queries.list_quarantine)
    assert (quarantined["node"], quarantined["end_offset"]) == (NODE, 58)
    assert "the database refuses it" in quarantined["reason"]
    assert b"poison" in quarantined["payload"]
    assert await position(store) == 100


MALFORMED = {
    "no protobuf": b"\xff\xff\xff",
    "empty": b"",
    "node is empty": evidence_pb2.Evidence(source="kmsg", epoch="e", seq=1, kind="k").SerializeToString(),
    "epoch is empty": evidence_pb2.Evidence(node=NODE, source="kmsg", seq=1, kind="k").SerializeToString(),
    "source holds a slash": evidence_pb2.Evidence(node=NODE, source="a/b", epoch="e", kind="k").SerializeToString(),
    "kind is empty": evidence_pb2.Evidence(node=NODE, source="kmsg", epoch="e", seq=1).SerializeToString(),
    "kind is 300": evidence_pb2.Evidence(node=NODE, source="s", epoch="e", kind="k" * 300).SerializeToString(),
    "is no time": evidence_pb2.Evidence(
        node=NODE, source="s", epoch="e", kind="k", occurred_at={"seconds": 2**62}
    ).SerializeToString(),
    "nanoseconds": evidence_pb2.Evidence(
        node=NODE, source="s", epoch="e", kind="k", occurred_at={"seconds": 2, "nanos": -5}
    ).SerializeToString(),
    "collected at no time": evidence_pb2.Evidence(
        node=NODE, source="s", epoch="e", kind="k", occurred_at={"seconds": 2}, collected_at={"nanos": 2**31 - 1}
    ).SerializeToString(),
}


@pytest.mark.parametrize("payload", MALFORMED.values(), ids=MALFORMED)
async def test_what_cannot_be_read_is_quarantined_and_confirmed(payload: bytes, store: Store) -> None:
    receipts = await deliver(store, Delivery(NODE, "spool-a", (Record(1, payload), lines(2, 1).records[0])))
    assert receipts == [Receipt(2, quarantined=1)]
    assert len(await stored(store)) == 1
    (quarantined,) = await store.read(queries.list_quarantine)
    assert quarantined["payload"] == payload


async def test_a_kind_of_record_from_the_future_is_kept(store: Store) -> None:
    await deliver(store, Delivery(NODE, "spool-a", (Record(1, b"\x92\x03\x02hi", Body.UNKNOWN),)))
    (quarantined,) = await store.read(queries.list_quarantine)
    assert quarantined["payload"] == b"\x92\x03\x02hi"


async def test_fields_of_a_newer_agent_survive(store: Store) -> None:
    """An unknown field travels through: the message's bytes are what is stored."""
    newer = kernel_line(NODE, BOOT, 1, "nvidia: new") + b"\xfa\x3e\x05later"
    await deliver(store, Delivery(NODE, "spool-a", (Record(1, newer),)))
    (row,) = await stored(store)
    assert row.payload == newer


async def test_a_record_of_another_node_is_not_believed(store: Store) -> None:
    foreign = kernel_line("gpu-2", BOOT, 1, "NVRM: forged")
    receipts = await deliver(store, Delivery(NODE, "spool-a", (Record(1, foreign),)))
    assert receipts == [Receipt(1, quarantined=1, foreign=True)]
    assert await stored(store) == []


async def test_a_snapshot_never_replaces_a_later_one(store: Store) -> None:
    def snapshot(seconds: int) -> bytes:
        return evidence_pb2.NodeSnapshot(node=NODE, taken_at={"seconds": seconds}).SerializeToString()

    for order in ((5, 9), (7,)):
        records = tuple(Record(n + 1, snapshot(seconds), Body.SNAPSHOT) for n, seconds in enumerate(order))
        await deliver(store, Delivery(NODE, "samples", records))
    assert await store.read(partial(queries.get_snapshots, names=[NODE])) == {NODE: snapshot(9)}


async def test_columns_name_the_gpu_that_only_the_line_names(store: Store) -> None:
    """A kernel line's GPU is read from its words, so that a question by GPU finds it."""
    xid = "NVRM: Xid (PCI:0000:3a:00): 79, pid=1, GPU has fallen off the bus."
    await deliver(store, Delivery(NODE, "s", (Record(1, kernel_line(NODE, BOOT, 1, xid)), lines(2, 1).records[0])))
    (row,) = await stored(store, EvidenceFilter(pcis=("0000:3a:00.0",)))
    assert "xid 79" in row.signals


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (EvidenceFilter(), [1, 2, 3, 4, 5]),
        (EvidenceFilter(node="gpu-2"), [5]),
        (EvidenceFilter(node="none"), []),
        (EvidenceFilter(since_us=2_000_000), [2, 3, 4, 5]),
        (EvidenceFilter(until_us=2_000_000), [1]),
        (EvidenceFilter(since_us=2_000_000, until_us=4_000_000), [2, 3]),
        (EvidenceFilter(since_us=99_000_000), []),
        (EvidenceFilter(kinds=("xid", "gap")), [3]),
        (EvidenceFilter(gpu_uuids=("GPU-x",)), [4]),
        (EvidenceFilter(gpu_uuids=("GPU-x",), pcis=("0000:01:00.0",)), [2, 4]),
    ],
)
async def test_evidence_is_found_by_node_time_kind_and_gpu(
    wanted: EvidenceFilter, numbers: list[int], store: Store
) -> None:
    facts = [
        evidence_pb2.Evidence(kind="a"),
        evidence_pb2.Evidence(kind="a", gpu={"pci": "00000000:01:00.0"}),
        evidence_pb2.Evidence(kind="xid"),
        evidence_pb2.Evidence(kind="a", gpu={"uuid": "GPU-x"}),
        evidence_pb2.Evidence(kind="a", node="gpu-2"),
    ]
    for number, fact in enumerate(facts, 1):
        fact.node = fact.node or NODE
        fact.source, fact.epoch, fact.seq = "test", "e", number
        fact.occurred_at.FromSeconds(number)
        await deliver(store, Delivery(fact.node, "s", (Record(number, fact.SerializeToString()),)))
    found = await stored(store, wanted)
    assert [evidence_pb2.Evidence.FromString(row.payload).seq for row in found] == numbers


async def test_what_waits_when_the_store_closes_is_committed(database: Path, reopen: Callable[[], Store]) -> None:
    store = Store(database, read_record)
    futures = [await store.append(lines(first, 50)) for first in range(1, 1000, 50)]
    await store.close()
    assert all(future.done() for future in futures)
    again = reopen()
    assert len(await stored(again)) == 1000
    assert await position(again) == 1000
    await again.close()


async def test_a_closed_store_takes_nothing(database: Path) -> None:
    store = Store(database, read_record)
    await store.close()
    with pytest.raises(StoreClosed):
        await (await store.append(lines(1, 1)))


async def test_a_change_that_fails_undoes_itself_alone(store: Store) -> None:
    """It is raised to whoever asked for it; what shared its transaction is stored."""

    def bad(connection: Connection) -> None:
        connection.execute(text("DELETE FROM evidence"))
        raise LookupError("mine")

    await deliver(store, lines(1, 3))
    delivery = await store.append(lines(4, 3))
    with pytest.raises(LookupError, match="mine"):
        await store.write(bad)
    await delivery
    assert len(await stored(store)) == 6


async def test_a_change_with_a_mistake_in_it_does_not_wait_for_the_disk(store: Store) -> None:
    with pytest.raises(OperationalError, match="no such table"):
        await store.write(lambda connection: connection.execute(text("SELECT * FROM nowhere")).all())
    assert store.refusal is None


async def test_a_waiting_queue_is_bounded(store: Store) -> None:
    """Deliveries beyond the room wait before they are queued, and are served in their order."""
    big = [Delivery(NODE, "s", (Record(n, b"\xff" * 2_000_000),)) for n in range(1, 65)]
    order: list[int] = []

    async def send(delivery: Delivery) -> None:
        receipt = await (await store.append(delivery))
        order.append(receipt.offset)

    await asyncio.gather(*(send(delivery) for delivery in big))
    assert order == list(range(1, 65))
