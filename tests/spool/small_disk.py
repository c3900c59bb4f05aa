"""A spool on a small disk of its own, filled up and made read-only: run inside `unshare -rm`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.spool.opening import eventually, gaps, numbers, open_spool, payload, read_all

SMALL = {"events_max_bytes": 64 * 1024, "samples_max_bytes": 64 * 1024}


def mount(*options: str) -> None:
    """Mount, or mount anew."""
    subprocess.run(["mount", *options], check=True)


def main(disk: Path) -> None:
    """Says what went well."""
    mount("-t", "tmpfs", "-o", "size=300k", "none", str(disk))
    directory = disk / "spool"
    with open_spool(directory, **SMALL | {"events_max_bytes": 4 << 20}) as spool:
        (disk / "filler").write_bytes(bytes(150_000))
        for number in range(1500):
            spool.append_event(payload(number))
        eventually(lambda: "No space left on device" in spool.problem)
        assert numbers(read_all(spool.events)) == list(range(1500))
        (disk / "filler").unlink()
        eventually(lambda: spool.problem == "")
        print("full: ok")
    mount("-o", "remount,ro", str(disk))
    with open_spool(directory) as spool:
        assert spool.closed_before
        assert "Read-only file system" in spool.problem
        spool.append_event(payload(1500))
        assert numbers(read_all(spool.events)) == list(range(1501))
        assert gaps(read_all(spool.events)) == []
        mount("-o", "remount,rw", str(disk))
        eventually(lambda: spool.problem == "")
    with open_spool(directory) as spool:
        assert numbers(read_all(spool.events)) == list(range(1501))
        print("read-only: ok")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
