"""The tables. Statements elsewhere use these objects alone, so that they stay portable; `migrations` creates them.

Times are microseconds since the epoch. What a row was made from stays beside the indexed columns: the message's bytes for
evidence and snapshots, the whole noun as JSON for incidents and assessments.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)
from sqlalchemy.dialects import sqlite

metadata = MetaData()

# `on_conflict_do_nothing` and `on_conflict_do_update` read the same in PostgreSQL's dialect: this line is where it would be chosen.
insert = sqlite.insert

_Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows only in a column that it calls INTEGER

evidence = Table(
    "evidence",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),  # order of storing; never used twice
    Column("node", String, nullable=False),
    Column("source", String, nullable=False),
    Column("epoch", String, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("kind", String, nullable=False),
    Column("occurred_us", BigInteger, nullable=False),
    Column("stored_us", BigInteger, nullable=False),
    Column("gpu_uuid", String),
    Column("pci", String),
    Column(
        "signals", String, nullable=False
    ),  # names of the signals read from it, one a line; empty when it holds none
    Column("replayed", Boolean(create_constraint=False), nullable=False),  # an earlier store acknowledged it
    Column("payload", LargeBinary, nullable=False),
    Index("evidence_identity", "node", "source", "epoch", "seq", unique=True),
    Index("evidence_node", "node", "id"),
    Index("evidence_kind", "kind", "id"),
    Index("evidence_occurred", "occurred_us", "id"),
    sqlite_autoincrement=True,
)

nodes = Table(
    "nodes",
    metadata,
    Column("name", String, primary_key=True),
    Column("installation_id", String, nullable=False),
    Column("agent_version", String, nullable=False),
    Column("boot_id", String, nullable=False),
    Column("simulated", Boolean(create_constraint=False), nullable=False),
    Column("first_seen_us", BigInteger, nullable=False),
    Column("last_seen_us", BigInteger, nullable=False),
    Column("clock_offset_us", BigInteger, nullable=False, default=0),
    Column("clock_error_us", BigInteger, nullable=False, default=0),
)

positions = Table(  # how far each spool log is stored
    "positions",
    metadata,
    Column("node", String, primary_key=True),
    Column("spool_id", String, primary_key=True),
    Column("offset", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
)

snapshots = Table(  # the latest of each node
    "snapshots",
    metadata,
    Column("node", String, primary_key=True),
    Column("taken_us", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)

standing = Table(  # states of nodes that the aggregator declared and that have not ended
    "standing",
    metadata,
    Column("node", String, primary_key=True),
    Column("kind", String, primary_key=True),
    Column("epoch", String, nullable=False),
)

quarantine = Table(  # records that could not be stored as what they claim to be
    "quarantine",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("node", String, nullable=False),  # the node whose stream brought it
    Column("spool_id", String, nullable=False),
    Column("end_offset", BigInteger, nullable=False),
    Column("stored_us", BigInteger, nullable=False),
    Column("reason", String, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("quarantine_record", "node", "spool_id", "end_offset", unique=True),
    sqlite_autoincrement=True,
)

incidents = Table(
    "incidents",
    metadata,
    Column("id", String, primary_key=True),
    Column("node", String, nullable=False),
    Column("state", String, nullable=False),
    Column("severity", String, nullable=False, default=""),  # of the present assessment
    Column("opened_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("incidents_opened", "opened_us", "id"),
    Index("incidents_state", "state", "updated_us"),
)

incident_nodes = Table(
    "incident_nodes",
    metadata,
    Column("node", String, primary_key=True),
    Column("incident_id", String, primary_key=True),
    Index("incident_nodes_incident", "incident_id"),
)

assessments = Table(
    "assessments",
    metadata,
    Column("id", String, primary_key=True),
    Column("incident_id", String, nullable=False),
    Column("node", String, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("assessments_incident", "incident_id", "revision"),
    Index("assessments_created", "created_us", "id"),
    Index("assessments_node", "node", "created_us"),
)

citations = Table(  # which evidence an assessment stands on: it is kept as long as the assessment
    "citations",
    metadata,
    Column("node", String, primary_key=True),
    Column("source", String, primary_key=True),
    Column("epoch", String, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("assessment_id", String, primary_key=True),
    Index("citations_assessment", "assessment_id"),
)

outbox = Table(  # changes that are committed and not yet published
    "outbox",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("incident_id", String, nullable=False),
    Column("assessment_id", String),
    Column("change", String, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

investigations = Table(  # one row an investigation: it waits, runs, and stays as the record of what it found and cost
    "investigations",
    metadata,
    Column("id", String, primary_key=True),
    Column("incident_id", String, nullable=False),
    Column("node", String, nullable=False),
    Column("namespace", String, nullable=False),  # whose work was hit; empty where nobody's, or nobody known
    Column("state", String, nullable=False),  # queued, running, completed, partial, degraded, dropped
    Column("priority", Integer, nullable=False),  # the lowest goes first
    Column("basis", String, nullable=False),  # what it is asked about: see model.Investigation
    Column("asked_by", String, nullable=False),  # auto, or a person's name
    Column("wanted_us", BigInteger, nullable=False),
    Column("due_us", BigInteger, nullable=False),
    Column("rest_until_us", BigInteger, nullable=False),  # a cooldown, or the pause before it is tried again
    Column("started_us", BigInteger),
    Column("ended_us", BigInteger),
    Column("attempts", Integer, nullable=False),
    Column("tokens", BigInteger, nullable=False),  # read and written so far, kept up to date while it runs
    Column("cost_usd", Float, nullable=False),
    Column("joined", Boolean(create_constraint=False), nullable=False),  # an assessment says what it found
    Column("body", LargeBinary),  # the whole noun, once it has ended
    Index("investigations_due", "state", "priority", "due_us"),
    Index("investigations_incident", "incident_id", "ended_us"),
    Index("investigations_started", "started_us"),
)

transcripts = Table(  # what an investigation did, redacted
    "transcripts",
    metadata,
    Column("investigation_id", String, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    Column("round", Integer, nullable=False),
    Column("kind", String, nullable=False),  # item, model, call, result, note, answer
    Column("entry_id", String, nullable=False),
    Column("title", String, nullable=False),
    Column("trust", String, nullable=False),
    Column("text", String, nullable=False),
    Column("total_bytes", BigInteger, nullable=False),
)

deliveries = Table(  # what each target is to be told, is told last, or could not be told
    "deliveries",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("target", String, nullable=False),
    Column("incident_id", String, nullable=False),
    Column("assessment_id", String, nullable=False),
    Column("change", String, nullable=False),  # as this target sees it: opened, revised, resolved
    Column("severity", String, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_us", BigInteger, nullable=False),
    Column("state", String, nullable=False),  # waiting, sent, superseded, dead
    Column("last_error", String, nullable=False),
    Column("idempotency_id", String, nullable=False),
    Index("deliveries_due", "target", "state", "next_attempt_us"),
    Index("deliveries_incident", "incident_id", "target", "id"),
    sqlite_autoincrement=True,
)

audit = Table(  # every decision about an action, allowed or denied
    "audit",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("at_us", BigInteger, nullable=False),
    Column("node", String, nullable=False),
    Column("incident_id", String, nullable=False),
    Column("assessment_id", String, nullable=False),
    Column("action", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("reasons", String, nullable=False),  # JSON list
    Column("inputs", String, nullable=False),  # JSON object: what the decision saw
    Column("actor", String, nullable=False),
    Index("audit_node", "node", "id"),
    Index("audit_incident", "incident_id", "id"),
    sqlite_autoincrement=True,
)

actions = Table(  # what was begun on nodes: written before it is done, so that a crash neither forgets nor repeats it
    "actions",
    metadata,
    Column("incident_id", String, primary_key=True),
    Column("kind", String, primary_key=True),
    Column("node", String, nullable=False),
    Column("node_uid", String, nullable=False),
    Column("state", String, nullable=False),  # doing, done, failed, released
    Column("started_us", BigInteger, nullable=False),
    Column("deadline_us", BigInteger, nullable=False),
    Column("evicted", String, nullable=False),  # JSON list of pods
    Index("actions_started", "started_us"),
)

meta = Table("meta", metadata, Column("key", String, primary_key=True), Column("value", String, nullable=False))
