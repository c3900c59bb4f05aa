"""SIGKILL at any moment: what was written before is there, in order, and the cursor is never ahead of it."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from tests.spool.opening import SMALL, gaps, numbers, open_spool, read_all

MANY = SMALL | {"events_max_bytes": 1 << 26}


def test_a_killed_writer_leaves_a_readable_beginning_each_time(tmp_path: Path) -> None:
    spool_id = ""
    expected: list[int] = []
    for run in range(5):
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.spool.appender", tmp_path, str(len(expected))], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        time.sleep(random.uniform(0.1, 0.4))
        child.kill()
        child.wait()
        child.stdout.close()
        with open_spool(tmp_path, **MANY) as spool:
            assert not spool.closed_before
            records = read_all(spool.events, max_bytes=1 << 20, max_records=5000)
            left = numbers(records)
            assert left == list(range(len(left))), "a beginning of what was appended, nothing twice"
            assert left[: len(expected)] == expected, "what was there stays there"
            assert len(left) > len(expected)
            cursor = spool.get_cursor("number")
            assert cursor is None or int(cursor) <= left[-1], "a cursor never runs ahead of its records"
            unknown = [gap for _, gap in gaps(records) if not gap.HasField("lost_count")]
            assert len(unknown) == run + 1, "each such end is told: what was not written yet cannot be counted"
            assert sum(gap.lost_count for _, gap in gaps(records)) == 0
            assert spool_id in ("", spool.events.spool_id), "the offsets go on"
            spool_id, expected = spool.events.spool_id, left
