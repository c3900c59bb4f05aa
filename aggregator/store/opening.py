"""Opening a database: its pragmas, its one owner, its schema; and what to say when it cannot be used."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, select
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import QueuePool

from aggregator.store.migrations import migrate, unknown_revision
from aggregator.store.schema import insert, meta

READERS = 4  # connections, and threads, that queries share
BUSY_TIMEOUT_MS = 5000  # another process writes only for a moment: a backup's checkpoint, a person's sqlite3 shell


class StoreUnusable(Exception):
    """The database cannot be used; the text says which one, why, and the way out."""


class Lock:
    """Keeps a second aggregator away from a database: two writers would each believe themselves alone."""

    def __init__(self, database: Path) -> None:
        path = database.with_name(database.name + ".lock")
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnusable(f"{path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise StoreUnusable(f"{database} is in use by another aggregator; stop that one first") from error

    def release(self) -> None:
        """Let another aggregator in."""
        os.close(self._descriptor)


def open_writer(database: Path) -> Engine:
    """The engine of the one connection that writes, its schema up to date. Raises StoreUnusable."""
    engine = _engine(database, 1, _prepare_writer, "BEGIN IMMEDIATE")
    try:
        with engine.begin() as connection:
            _refuse_newer(database, connection)
            migrate(connection)
            new_id = insert(meta).values(key="store_id", value=str(uuid.uuid4()))
            connection.execute(new_id.on_conflict_do_nothing())
    except StoreUnusable:
        engine.dispose()
        raise
    except DatabaseError as error:
        engine.dispose()
        raise StoreUnusable(_reason(database, error)) from error
    return engine


def open_readers(database: Path) -> Engine:
    """The engine of the connections that only read."""
    return _engine(database, READERS, _prepare_reader, "BEGIN")


def read_meta(connection: Connection, key: str) -> str | None:
    """One value the store keeps about itself."""
    value: str | None = connection.scalar(select(meta.c.value).where(meta.c.key == key))
    return value


def _refuse_newer(database: Path, connection: Connection) -> None:
    if newer := unknown_revision(connection):
        raise StoreUnusable(
            f"{database} was written by a newer gcm-sentinel (schema {newer}); install that version, or restore a backup, or "
            "point DATABASE_URL elsewhere: agents send again what their spools still hold"
        )


def _reason(database: Path, error: DatabaseError) -> str:
    said = str(error.orig)
    if isinstance(error, OperationalError):
        return f"{database} cannot be opened: {said}"
    return (
        f"{database} is no usable database ({said}); restore a backup, or move it and its -wal file away: a new one is made and "
        "agents send again what their spools still hold"
    )


def _engine(database: Path, connections: int, prepare: Callable[[Any], None], begin: str) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(database)),
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        connect_args={"check_same_thread": False, "isolation_level": None, "timeout": BUSY_TIMEOUT_MS / 1000},
    )

    @event.listens_for(engine, "connect")
    def _connected(dbapi_connection: Any, _record: object) -> None:
        prepare(dbapi_connection)

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        # sqlite3 would begin on its own only before a change: savepoints and consistent reads need it said.
        connection.exec_driver_sql(begin)

    return engine


def _prepare_writer(connection: Any) -> None:
    # auto_vacuum can be chosen only while the file is empty, and choosing WAL already writes to it.
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _prepare_reader(connection: Any) -> None:
    connection.execute("PRAGMA query_only=ON")
