"""A consistent copy of the database while an aggregator uses it. Restoring one loses nothing: agents send again what is newer."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from aggregator.store.opening import StoreUnusable

PAGES_A_STEP = 2000  # copied before the writer gets its turn


def backup(database: Path, target: Path) -> int:
    """Copy to a file that does not exist yet; return its size in bytes. Raises StoreUnusable."""
    if not database.is_file():
        raise StoreUnusable(f"{database} does not exist; set GCM_SENTINEL_STATE_DIR as the aggregator has it")
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb"):
            pass
    except OSError as error:
        raise StoreUnusable(f"{target}: {error.strerror}") from error
    try:
        source = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
        with closing(source), closing(sqlite3.connect(partial)) as copy:
            source.backup(copy, pages=PAGES_A_STEP, sleep=0.001)
        partial.replace(target)
    except (sqlite3.Error, OSError) as error:
        partial.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        raise StoreUnusable(f"{database} was not copied to {target}: {error}") from error
    return target.stat().st_size
