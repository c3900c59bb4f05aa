"""How fast text is read: `python -m tests.bench.reading`. Lines per second of processor time, on one core, in blocks as diagnose reads."""

from __future__ import annotations

import time
from collections.abc import Callable

from aggregator.rules import LogReader

LINES = 50_000
KINDS: dict[str, tuple[Callable[[int], str], str]] = {
    "uninteresting kernel lines": (
        lambda n: f"[{n}.{n % 1_000_000:06d}] usb 1-{n % 9}: new high-speed USB device number {n} using xhci_hcd",
        "200,000",
    ),
    "uninteresting program lines": (
        lambda n: (
            f"Jul  9 10:42:47 node kubelet[1234]: I0709 10:42:47.1  1234 reconciler.go:{n}] MountVolume started for volume"
        ),
        "200,000",
    ),
    "XID lines": (
        lambda n: (
            f"[{n}.0] NVRM: Xid (PCI:0000:{n % 8:02x}:00): 31, pid={n}, name=python, Ch {n:08x}, intr 00000000. MMU Fault"
        ),
        "20,000",
    ),
    "driver lines in syslog": (
        lambda n: (
            f"Jul  9 10:42:47 node kernel: [{n}.0] NVRM: GPU 0000:{n % 8:02x}:00.0: RmInitAdapter failed! (0x62:0x40:{n})"
        ),
        "20,000",
    ),
}


def main() -> None:
    """Print one figure for each kind of line."""
    for name, (line, target) in KINDS.items():
        blocks = ["".join(f"{line(n)}\n" for n in range(start, start + 5_000)) for start in range(0, LINES, 5_000)]
        reader = LogReader(now_us=time.time_ns() // 1000)
        started = time.process_time()
        for block in blocks:
            reader.feed(block)
        reader.finish()
        speed = LINES / (time.process_time() - started)
        print(f"  {name:<32} {speed:>10,.0f} lines/s   target: {target}")


if __name__ == "__main__":
    main()
