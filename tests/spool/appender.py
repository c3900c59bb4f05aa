"""Appends numbered records as fast as it can until it is killed: `python -m tests.spool.appender DIRECTORY FIRST`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from node_agent.spool import Spool
from tests.spool.opening import SMALL, encode, payload


def main(directory: Path, first: int) -> None:
    """Each record is followed by its number as a cursor. Says when it has begun."""
    spool = Spool.open(directory, **SMALL | {"events_max_bytes": 1 << 26})
    spool.tell_losses_through(encode)
    spool.events.resume_at(0)
    print("open", flush=True)
    number = first
    while True:
        spool.append_event(payload(number, 50 + number % 200))
        spool.put_cursor("number", str(number).encode())
        number += 1
        if number % 50 == 0:
            time.sleep(0.001)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
