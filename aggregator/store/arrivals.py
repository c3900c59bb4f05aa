"""What arrives from agents, and the statements that make it durable in one transaction.

A batch that the database refuses because of what is in it is split until the poison record is alone; that one goes to
quarantine, and everything around it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from sqlalchemy import Connection, func, select, tuple_
from sqlalchemy.exc import DataError, IntegrityError

from aggregator.store.schema import evidence, insert, positions, quarantine, snapshots
from aggregator.wire import NodeState

# The database says "not this value". Any other error says "not now" or "not this file", and condemns no record.
POISON = (IntegrityError, DataError, OverflowError, ValueError, TypeError)
MALFORMED, FOREIGN_NODE, UNKNOWN_BODY, UNSTORABLE = "malformed", "foreign_node", "unknown_body", "unstorable"
MAX_QUARANTINED_BYTES = 65_536  # of a record kept in quarantine: enough to see what it was


class Body(Enum):
    """What a record says it holds."""

    EVIDENCE = "evidence"
    SNAPSHOT = "snapshot"
    UNKNOWN = "unknown"  # a newer agent's


@dataclass(frozen=True, slots=True)
class Record:
    """One spool record as it came; of an unknown body, the whole record."""

    end_offset: int
    payload: bytes
    body: Body = Body.EVIDENCE
    replayed: bool = False  # an earlier store acknowledged it


@dataclass(frozen=True, slots=True)
class Delivery:
    """Records of one spool log of one node, in order. An empty spool_id holds what the aggregator itself declares."""

    node: str  # whose stream brought it
    spool_id: str
    records: tuple[Record, ...]

    @property
    def offset(self) -> int:
        """What is stored of the log once this is."""
        return self.records[-1].end_offset

    @property
    def size(self) -> int:
        """Bytes held in memory until it is stored."""
        return sum(len(record.payload) for record in self.records) + 100 * len(self.records)


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    """A readable record: the columns of one evidence row, and what is counted once it is stored for the first time."""

    record: Record
    columns: Mapping[str, object]
    delay_seconds: float | None = None  # from when it happened, where that is known
    lost_count: int = 0  # records that it reports as lost

    def text(self, column: str) -> str:
        """A column that always holds text."""
        return str(self.columns[column])


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A readable snapshot."""

    state: NodeState
    payload: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that is not stored as what it claims to be."""

    record: Record
    word: str  # one of the four above: what is counted
    reason: str  # for a person


Reading = EvidenceRow | SnapshotRow | Refused
ReadRecord = Callable[[str, Record, int], Reading]  # (node whose stream it is, record, now in µs): never raises


@dataclass(slots=True)
class Stored:
    """What one transaction made durable."""

    evidence: list[EvidenceRow] = field(default_factory=list)  # new ones alone
    quarantined: list[Refused] = field(default_factory=list)
    snapshots: list[NodeState] = field(default_factory=list)
    last_id: int = 0  # of the newest evidence row; 0 when there is no new one
    seconds: float = 0.0  # that the transaction took


@dataclass(frozen=True, slots=True)
class Receipt:
    """A delivery is durable up to `offset`."""

    offset: int
    quarantined: int = 0
    foreign: bool = False


def store_deliveries(
    connection: Connection, deliveries: Sequence[Delivery], read: ReadRecord, now_us: int
) -> tuple[list[Receipt], Stored]:
    """Store all of it: evidence, snapshots, quarantined records and the positions they move."""
    stored = Stored()
    readings = [[read(delivery.node, record, now_us) for record in delivery.records] for delivery in deliveries]
    rows = [reading for batch in readings for reading in batch if isinstance(reading, EvidenceRow)]
    poison = {id(refused.record): refused for refused in _insert_evidence(connection, rows, stored)}
    receipts = []
    for delivery, batch in zip(deliveries, readings, strict=True):
        refused = [reading for reading in batch if isinstance(reading, Refused)]
        refused += [poison[id(record)] for record in delivery.records if id(record) in poison]
        _quarantine(connection, delivery, refused, now_us)
        stored.quarantined += refused
        foreign = any(reading.word == FOREIGN_NODE for reading in refused)
        receipts.append(Receipt(delivery.offset, len(refused), foreign))
    snapshot_rows = [reading for batch in readings for reading in batch if isinstance(reading, SnapshotRow)]
    _keep_latest_snapshots(connection, snapshot_rows)
    stored.snapshots += [row.state for row in snapshot_rows]
    _advance_positions(connection, deliveries, now_us)
    return receipts, stored


def _insert_evidence(connection: Connection, rows: list[EvidenceRow], stored: Stored) -> list[Refused]:
    """Insert what is new, note it in `stored`, and return what the database refuses for its contents."""
    if not rows:
        return []
    last_before = connection.scalar(select(func.max(evidence.c.id))) or 0
    new_count, refused = _insert_or_split(connection, rows)
    poison = {id(reading.record) for reading in refused}
    stored.last_id = connection.scalar(select(func.max(evidence.c.id))) or 0
    accepted = [row for row in rows if id(row.record) not in poison]
    if new_count < len(accepted):  # some are known already: a resend after a lost ack
        accepted = _only_new(connection, accepted, last_before)
    stored.evidence += accepted
    return refused


def _insert_or_split(connection: Connection, rows: Sequence[EvidenceRow]) -> tuple[int, list[Refused]]:
    """Return how many rows are new, and which the database refuses."""
    try:
        with connection.begin_nested():
            new = insert(evidence).on_conflict_do_nothing(index_elements=["node", "source", "epoch", "seq"])
            return connection.execute(new, [dict(row.columns) for row in rows]).rowcount, []
    except POISON as error:
        if len(rows) == 1:
            return 0, [Refused(rows[0].record, UNSTORABLE, f"the database refuses it: {_first_line(error)}")]
    half = len(rows) // 2
    first_count, first = _insert_or_split(connection, rows[:half])
    second_count, second = _insert_or_split(connection, rows[half:])
    return first_count + second_count, first + second


def _only_new(connection: Connection, rows: Sequence[EvidenceRow], last_before: int) -> list[EvidenceRow]:
    key = (evidence.c.node, evidence.c.source, evidence.c.epoch, evidence.c.seq)
    new = {tuple(row) for row in connection.execute(select(*key).where(evidence.c.id > last_before))}
    accepted = []
    for row in rows:
        identity = tuple(row.columns[column.name] for column in key)
        if identity in new:
            new.discard(identity)  # the same fact twice in one batch is one
            accepted.append(row)
    return accepted


def _quarantine(connection: Connection, delivery: Delivery, refused: Sequence[Refused], now_us: int) -> None:
    if not refused:
        return
    rows = [
        {
            "node": delivery.node,
            "spool_id": delivery.spool_id,
            "end_offset": reading.record.end_offset,
            "stored_us": now_us,
            "reason": reading.reason,
            "payload": reading.record.payload[:MAX_QUARANTINED_BYTES],
        }
        for reading in refused
    ]
    connection.execute(insert(quarantine).on_conflict_do_nothing(), rows)


def _keep_latest_snapshots(connection: Connection, rows: Sequence[SnapshotRow]) -> None:
    latest: dict[str, SnapshotRow] = {}
    for row in rows:
        known = latest.setdefault(row.state.node, row)
        if row.state.taken_us >= known.state.taken_us:
            latest[row.state.node] = row
    for node, row in latest.items():
        values = {"taken_us": row.state.taken_us, "payload": row.payload}
        new = insert(snapshots).values(node=node, **values)
        connection.execute(
            new.on_conflict_do_update(
                index_elements=["node"], set_=values, where=snapshots.c.taken_us <= new.excluded.taken_us
            )
        )


def _advance_positions(connection: Connection, deliveries: Sequence[Delivery], now_us: int) -> None:
    """Positions never move back, and are durable together with the records they speak of."""
    furthest: dict[tuple[str, str], int] = {}
    for delivery in deliveries:
        log = (delivery.node, delivery.spool_id)
        if delivery.spool_id:
            furthest[log] = max(furthest.get(log, 0), delivery.offset)
    if not furthest:
        return
    new = insert(positions)
    advance = new.on_conflict_do_update(
        index_elements=["node", "spool_id"],
        set_={"offset": new.excluded.offset, "updated_us": new.excluded.updated_us},
        where=positions.c.offset < new.excluded.offset,
    )
    rows = [
        {"node": node, "spool_id": spool_id, "offset": offset, "updated_us": now_us}
        for (node, spool_id), offset in furthest.items()
    ]
    connection.execute(advance, rows)


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return (str(cause).splitlines() or [type(cause).__name__])[0][:200]


def committed_offsets(connection: Connection, node: str, spool_ids: Sequence[str]) -> dict[str, int]:
    """What is stored of each named log of a node; logs that were never seen are absent."""
    wanted = [(node, spool_id) for spool_id in spool_ids]
    found = select(positions.c.spool_id, positions.c.offset).where(
        tuple_(positions.c.node, positions.c.spool_id).in_(wanted)
    )
    return dict(connection.execute(found).all())
