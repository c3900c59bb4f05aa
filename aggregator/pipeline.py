"""The whole flow on one page. Read this first.

    agent ═ stream ═▶ server ─▶ receive ─▶ read_record ─▶ store ─▶ ack
                                                            │ committed
       metrics, log, … ◀─ publish ◀─ judge ◀─ correlate ◀───┤
                                       ▲ join               │ worth it
                                       └──── investigator ◀─┘

An ack leaves only after `receive`'s future is done: the records are committed. The other half starts from the store alone: it
reads evidence behind its cursor, and commits what it concluded, the moved cursor and the outbox in one transaction. So a crash at
any point loses nothing and repeats nothing: what was committed is published, what was not is concluded again. The investigator
(`aggregator.investigator`) notes in the same transaction what it wants to look into, and puts down what it found; the next step
joins that with the rules' verdict, and publishes a revision.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import structlog
from sqlalchemy import Connection

from aggregator import assessor, correlator, rules, wire
from aggregator.model import Assessment, Evidence, Gpu, Investigation, Signal
from aggregator.outputs import Output
from aggregator.outputs.metrics import Metrics
from aggregator.rules.context import EMPTY
from aggregator.store import Store, beside, deliveries, investigations, queries, verdicts
from aggregator.store.arrivals import (
    FOREIGN_NODE,
    MALFORMED,
    UNKNOWN_BODY,
    Body,
    Delivery,
    EvidenceRow,
    Reading,
    Receipt,
    Record,
    Refused,
    SnapshotRow,
    Stored,
)
from aggregator.store.deliveries import Route
from aggregator.store.queries import StoredRow
from aggregator.store.verdicts import Judgement, Publication
from aggregator.wire import NodeState

SLICE_ROWS = 500  # evidence rows that are correlated in one step and committed together
PUBLISH_ROWS = 200
JOIN_ROWS = 100  # outcomes of investigations that are joined in one step
SAVE_CURSOR_ROWS = 10_000  # evidence without a signal moves the cursor in memory; this often it is saved too
PRESENT_US = (
    2 * 86_400 * 1_000_000
)  # incidents heard of this recently go back into the correlator's hand after a restart
CONTEXT_US = 3_600 * 1_000_000  # context this recent is read again after a restart: a later fault may need it
MAX_CONTEXT_ROWS = 20_000
MAX_SHOWN = 100_000  # open incidents whose series are there again after a restart
RETRY_US = 60 * 1_000_000  # pause before time is tried again where the correlator fails on it

Judged = Callable[[Connection, Sequence[Judgement], int], None]  # runs in the transaction that commits the judgements

log = structlog.get_logger(__name__)


def read_record(node: str, record: Record, now_us: int) -> Reading:
    """decode: one spool record as the rows it becomes. What cannot be read, or claims another node, is refused; the rest is kept
    whether or not anything in it is understood. Runs on the writer's thread."""
    try:
        if record.body is Body.SNAPSHOT:
            state = wire.decode_snapshot(record.payload)
            return SnapshotRow(state, record.payload) if state.node == node else _foreign(record, state.node)
        if record.body is Body.UNKNOWN:
            return Refused(record, UNKNOWN_BODY, "a kind of record that this version does not know")
        evidence = wire.decode(record.payload, replayed=record.replayed, stored_us=now_us)
    except wire.Malformed as error:
        return Refused(record, MALFORMED, str(error))
    if evidence.key.node != node:
        return _foreign(record, evidence.key.node)
    return _evidence_row(record, evidence, signals_in(evidence))


def signals_in(evidence: Evidence) -> tuple[Signal, ...]:
    """What rules read in a fact. A rule that fails on one fact costs that fact its meaning, and blocks nothing."""
    try:
        return rules.read(evidence)
    except Exception:
        log.exception("evidence_not_understood", evidence=evidence.id)
        return ()


def _foreign(record: Record, claimed: str) -> Refused:
    return Refused(record, FOREIGN_NODE, f"it claims another node: {claimed!r}")


def _evidence_row(record: Record, evidence: Evidence, signals: Sequence[Signal]) -> EvidenceRow:
    gpu, first = evidence.gpu, next(iter(signals), None)
    lost = evidence.values.get("lost_count")
    delay = None if evidence.replayed or evidence.time_estimated else (evidence.stored_us - evidence.occurred_us) / 1e6
    columns = {
        "node": evidence.key.node,
        "source": evidence.key.source,
        "epoch": evidence.key.epoch,
        "seq": evidence.key.seq,
        "kind": evidence.kind,
        "occurred_us": evidence.occurred_us,
        "stored_us": evidence.stored_us,
        "gpu_uuid": (gpu and gpu.uuid) or (first and first.gpu_uuid),
        "pci": (gpu and gpu.pci) or (first and first.pci),
        "signals": "\n".join(signal.name for signal in signals),
        "replayed": evidence.replayed,
        "payload": record.payload,
    }
    return EvidenceRow(record, columns, delay, lost if isinstance(lost, int) else 0)


@dataclass(frozen=True, slots=True)
class _Concluded:
    """What one step gives, not yet committed."""

    state: correlator.State
    next_wake_us: int | None
    judgements: tuple[Judgement, ...]
    joined: tuple[str, ...]  # investigations whose outcome is in the judgements
    cursor: int  # id of the last evidence row it has seen
    more: bool  # rows wait behind the cursor


class Pipeline:
    """Both halves of the flow, around one store."""

    def __init__(
        self,
        store: Store,
        outputs: Sequence[Output],
        metrics: Metrics,
        windows: correlator.Windows,
        context: rules.Context = EMPTY,
        routes: Sequence[Route] = (),
    ) -> None:
        self.places: Callable[[str], tuple[str, ...]] = lambda _: ()  # where a node stands; asked on a reader's thread
        self.store = store
        self.on_posted: Callable[[], None] = lambda: None  # something may wait to be delivered
        self._routes = routes
        self._context = context  # what holds for every judgement here: the catalog
        self._rules = correlator.rules_of(context.catalog, lambda node: self.places(node))
        self.on_snapshots: Callable[[Iterable[NodeState]], None] = lambda _: None
        self.on_judged: Judged = lambda *_: None
        self.on_saved: Callable[[], None] = lambda: None  # what on_judged wrote can be read
        self.last_stored_id = 0
        self._inventories: dict[str, tuple[Gpu, ...]] = {}  # nodes whose GPU names the correlator has yet to learn
        self._outputs = outputs
        self._metrics = metrics
        self._windows = windows
        self._loop = asyncio.get_running_loop()
        self._committed = asyncio.Event()
        self._outcome_waits = False
        self._state = correlator.State()
        self._cursor = self._saved_cursor = 0
        store.on_stored = self._stored
        store.on_refusal = lambda reason: metrics.store_unwritable(reason is not None)

    # --- receive → decode → store → ack

    async def receive(self, delivery: Delivery) -> asyncio.Future[Receipt]:
        """Wait for room, and queue a delivery. Once the future is done it is durable, and may be acknowledged."""
        return await self.store.append(delivery)

    # --- store → correlate → judge → publish

    async def run(self) -> None:
        """Correlate and publish whatever is committed, until cancelled."""
        await self._restore()
        while True:
            concluded = await self.store.read(self._correlate_and_judge)
            await self._commit(concluded)
            await self._publish()
            if not concluded.more:
                await self._wait(partial(self._work_beyond, concluded.cursor), concluded.next_wake_us)

    def _correlate_and_judge(self, connection: Connection) -> _Concluded:
        """One bounded step, on a reader's thread."""
        now_us = _now_us()
        self._outcome_waits = False
        state = self._state
        if self._inventories:
            state = correlator.identify(state, self._take_inventories())
        rows, cursor = queries.unread_signals(connection, self._cursor, SLICE_ROWS)
        step = self._step(state, [signal for row in rows for signal in _signals_of(row)], now_us)
        outcomes = investigations.unjoined(connection, JOIN_ROWS)
        changes = (*step.changes, *_looked_into(connection, outcomes, step.changes))
        ids = [change.incident.id for change in changes]
        present = verdicts.latest_assessments(connection, ids)
        found = investigations.latest(connection, ids)
        contexts = beside.contexts(connection, [change.incident for change in changes], self._context)
        judgements = []
        for change in changes:
            incident_id = change.incident.id
            began = time.perf_counter()
            context = contexts[incident_id]
            assessment = _assess(change, present.get(incident_id), now_us, context, found.get(incident_id))
            self._metrics.assessed(time.perf_counter() - began)
            if assessment is not None:
                present[incident_id] = assessment
            judgements.append(Judgement(change.incident, assessment, change.kind))
        self._metrics.correlator_lag((now_us - rows[0].stored_us) / 1e6 if rows else 0.0)
        return _Concluded(
            step.state,
            step.next_wake_us,
            tuple(judgements),
            tuple(outcome.id for outcome in outcomes),
            cursor,
            len(rows) == SLICE_ROWS,
        )

    def _take_inventories(self) -> Iterator[tuple[str, tuple[Gpu, ...]]]:
        """Those that have come; more may come meanwhile, on the loop's thread."""
        while self._inventories:
            yield self._inventories.popitem()

    def _step(self, state: correlator.State, signals: Sequence[Signal], now_us: int) -> correlator.Step:
        """correlator.step; where it fails, in halves, until the signal that it fails on is alone and left out."""
        try:
            return correlator.step(state, signals, now_us, self._windows, self._rules)
        except Exception:
            if len(signals) <= 1:
                log.exception("not_correlated", signals=[signal.id for signal in signals])
                return correlator.Step(state, (), now_us + RETRY_US)
        first = self._step(state, signals[: len(signals) // 2], now_us)
        second = self._step(first.state, signals[len(signals) // 2 :], now_us)
        return correlator.Step(second.state, first.changes + second.changes, second.next_wake_us)

    async def _commit(self, concluded: _Concluded) -> None:
        """Make the step durable, and only then go on from it."""
        if concluded.judgements or concluded.joined or concluded.cursor - self._saved_cursor > SAVE_CURSOR_ROWS:
            await self.store.write(partial(self._save, concluded=concluded))
            self.on_saved()
            self._saved_cursor = concluded.cursor
        self._state, self._cursor = concluded.state, concluded.cursor
        self._metrics.queue_depth(max(0, self.last_stored_id - self._cursor))

    def _save(self, connection: Connection, concluded: _Concluded) -> None:
        now_us = _now_us()
        verdicts.save_step(connection, cursor=concluded.cursor, judgements=concluded.judgements, now_us=now_us)
        investigations.joined(connection, concluded.joined)
        self.on_judged(connection, concluded.judgements, now_us)

    async def _publish(self) -> None:
        """Hand every committed change to every output, in order, and post what other targets want of it; then forget it. An output
        that fails fails alone."""
        while waiting := await self.store.read(partial(verdicts.take_outbox, limit=PUBLISH_ROWS)):
            for publication in waiting:
                for output in self._outputs:
                    publish(output, publication)
            await self.store.write(
                partial(deliveries.hand_over, routes=self._routes, publications=waiting, now_us=_now_us())
            )
            self.on_posted()

    async def _restore(self) -> None:
        """Take up where the last run stopped."""
        self._state, self._cursor = await self.store.read(partial(_restored, rule_book=self._rules))
        self._saved_cursor = self._cursor
        for incident, assessment in await self.store.read(partial(queries.list_incidents, limit=MAX_SHOWN)):
            self._metrics.show(incident, assessment)

    # --- waking up

    def join_outcomes(self) -> None:
        """Investigations have put down what they found: join it."""
        self._outcome_waits = True
        self._committed.set()

    def _work_beyond(self, cursor: int) -> bool:
        return self._outcome_waits or self.last_stored_id > cursor

    async def stored_beyond(self, last_id: int) -> None:
        """Return once evidence with a higher id is committed."""
        await self._wait(lambda: self.last_stored_id > last_id, None)

    async def _wait(self, happened: Callable[[], bool], until_us: int | None) -> None:
        """Return once it has happened, or the time has come."""
        while not happened():
            self._committed.clear()
            timeout = None if until_us is None else max(0.0, (until_us - _now_us()) / 1e6)
            try:
                async with asyncio.timeout(timeout):
                    await self._committed.wait()
            except TimeoutError:
                return

    def _stored(self, stored: Stored) -> None:
        """Called on the writer's thread."""
        self._metrics.store_committed(stored.seconds)
        for row in stored.evidence:
            self._metrics.evidence_stored(row.text("kind"), row.text("source"), row.delay_seconds, row.lost_count)
        for refused in stored.quarantined:
            self._metrics.quarantined(refused.word)
            log.warning("record_quarantined", word=refused.word, reason=refused.reason)
        self._loop.call_soon_threadsafe(self._note_stored, stored)

    def _note_stored(self, stored: Stored) -> None:
        self.last_stored_id = max(self.last_stored_id, stored.last_id)
        self._committed.set()
        self._inventories.update((node.node, node.gpus) for node in stored.snapshots if node.gpus)
        self.on_snapshots(stored.snapshots)


def _signals_of(row: StoredRow) -> tuple[Signal, ...]:
    try:
        return signals_in(wire.decode(row.payload, replayed=row.replayed, stored_us=row.stored_us))
    except wire.Malformed:
        log.exception("stored_evidence_unreadable", id=row.id)
        return ()


def _restored(connection: Connection, rule_book: correlator.RuleBook) -> tuple[correlator.State, int]:
    """The correlator's state behind what is stored, and its cursor. Runs on a reader's thread."""
    now_us = _now_us()
    cursor, incidents = verdicts.restore(connection, now_us - PRESENT_US)
    rows = queries.recent_signals(connection, now_us - CONTEXT_US, cursor, MAX_CONTEXT_ROWS)
    recent = [signal for row in rows for signal in _signals_of(row) if not rule_book.is_fault(signal)]
    state = correlator.restore(incidents, recent, rule_book)
    nodes = (wire.decode_snapshot(payload) for payload in queries.all_snapshots(connection))
    return correlator.identify(state, ((node.node, node.gpus) for node in nodes)), cursor


def _looked_into(
    connection: Connection, outcomes: Iterable[Investigation], changes: Sequence[correlator.Change]
) -> Iterator[correlator.Change]:
    """The incidents with a new outcome that the step itself does not change."""
    changed = {change.incident.id for change in changes}
    for incident_id in dict.fromkeys(outcome.incident_id for outcome in outcomes):
        stored = None if incident_id in changed else queries.get_incident(connection, incident_id)
        if stored is not None:
            yield correlator.Change(stored[0], "revised")


def _assess(
    change: correlator.Change,
    present: Assessment | None,
    now_us: int,
    context: rules.Context,
    found: Investigation | None,
) -> Assessment | None:
    """judge: None where the verdict stays as it was. A rule that fails on one incident fails for that one alone."""
    try:
        return assessor.assess(change.incident, present, now_us, context=context, investigation=found)
    except Exception:
        log.exception("not_assessed", incident=change.incident.id)
        return None


def publish(output: Output, publication: Publication) -> None:
    """publish: to one output, whose failure is its own."""
    try:
        output.publish(publication.incident, publication.assessment, publication.change)
    except Exception:
        log.exception("not_published", output=output.name, incident=publication.incident.id)


def _now_us() -> int:
    return time.time_ns() // 1000
