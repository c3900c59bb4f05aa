"""Any structured event, printed in any supported format, reads back as the same event."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.rules import read_log
from tests.reader.events import DRESSES, FORMATS, HOST, Event, events, micros


def _read_back(text: str) -> list[tuple[str, str | None, str | None]]:
    kinds = ("xid", "sxid")
    return [(signal.name, signal.pci, signal.mig) for signal in read_log(text.split("\n")) if signal.kind in kinds]


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=20)
@given(event=events, at_us=micros, dress=st.sampled_from(sorted(DRESSES)))
def test_an_event_survives_every_format(name: str, event: Event, at_us: int, dress: str) -> None:
    """Kind, code, address and MIG instance come back, and the time as exactly as the format prints it."""
    form = FORMATS[name]
    text = DRESSES[dress](form.render(event.message, at_us))
    assert _read_back(text) == [(event.name, event.pci, event.mig)]
    if form.precision_us:
        assert read_log(text.split("\n"))[0].at_us == at_us // form.precision_us * form.precision_us


@settings(max_examples=60)
@given(st.lists(st.tuples(events, st.sampled_from(sorted(FORMATS)), micros), min_size=2, max_size=8))
def test_formats_may_be_mixed_in_one_input(lines: list[tuple[Event, str, int]]) -> None:
    """What one line is printed in says nothing about the next."""
    text = "\n".join(FORMATS[name].render(event.message, at_us) for event, name, at_us in lines)
    wanted = {(event.name, event.pci, event.mig) for event, _, _ in lines}
    assert set(_read_back(text)) == wanted


def test_the_host_of_a_syslog_line_is_the_signal_s_node() -> None:
    """Logs of several nodes stay apart."""
    lines = [
        "Jul  9 10:42:47 node-a kernel: NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.",
        "Jul  9 10:42:48 node-b kernel: NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.",
    ]
    assert [signal.node for signal in read_log(lines)] == ["node-a", "node-b"]


def test_one_host_in_a_paste_is_the_host_of_every_line() -> None:
    """A line whose prefix was cut away belongs to the only node there is."""
    lines = [
        f"Jul  9 10:42:47 {HOST} kernel: NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.",
        "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
    ]
    assert [signal.node for signal in read_log(lines)] == [HOST, HOST]


@pytest.mark.parametrize(
    ("stamp", "now", "year"),
    [
        ("Dec 31 23:00:00", "2026-01-02", 2025),
        ("Jan  1 01:00:00", "2026-01-02", 2026),
        ("Jan  2 20:00:00", "2026-01-02", 2026),
        ("Feb 29 20:00:00", "2026-01-02", 2024),
    ],
)
def test_a_time_without_a_year_is_the_last_one_that_is_not_to_come(stamp: str, now: str, year: int) -> None:
    """RFC 3164 names no year; a log is not from the future."""
    from datetime import UTC, datetime

    now_us = int(datetime.fromisoformat(now).replace(tzinfo=UTC).timestamp()) * 1_000_000
    (signal,) = read_log([f"{stamp} n kernel: NVRM: Xid (PCI:0000:01:00): 8, x"], now_us=now_us)
    assert signal.at_us is not None
    assert datetime.fromtimestamp(signal.at_us / 1e6, UTC).year == year


@pytest.mark.parametrize(
    ("stamp", "utc"), [("+02:00", "08:42:47"), ("-0400", "14:42:47"), ("Z", "10:42:47"), ("", "10:42:47")]
)
def test_zones_are_honoured_and_utc_is_assumed(stamp: str, utc: str) -> None:
    """Times of different zones in one input compare."""
    from datetime import UTC, datetime

    (signal,) = read_log([f"2025-07-09T10:42:47{stamp} n kernel: NVRM: Xid (PCI:0000:01:00): 8, x"])
    assert signal.at_us is not None
    assert datetime.fromtimestamp(signal.at_us / 1e6, UTC).strftime("%H:%M:%S") == utc


def test_kernel_time_orders_a_log_that_has_no_other() -> None:
    """dmesg's seconds since boot stand in for a clock, as far as the whole log has none."""
    first, second = read_log(["[ 10.5] NVRM: Xid (PCI:0000:01:00): 8, x", "[ 12.5] NVRM: Xid (PCI:0000:01:00): 9, x"])
    assert (first.at_us, second.at_us) == (10_500_000, 12_500_000)
    assert first.attributes["uptime_seconds"] == 10.5


def test_kernel_time_and_clock_time_are_not_compared() -> None:
    """In a mixed log the lines with kernel time alone keep their place and have no time."""
    first, second = read_log(
        ["[ 10.5] NVRM: Xid (PCI:0000:01:00): 8, x", "2025-07-09T10:42:47Z n kernel: NVRM: Xid (PCI:0000:01:00): 9, x"]
    )
    assert first.at_us is None
    assert second.at_us == 1_752_057_767_000_000
    assert (first.order, second.order) == (1, 2)


@pytest.mark.parametrize(
    "prefix",
    [
        "Feb 31 25:61:61 node kernel: ",
        "Feb 31 10:00:00 kernel: ",
        "Foo 31 10:00:00 node kernel: [ 1.0] ",
        "Sun 2025-02-31 00:00:00 UTC node kernel: ",
        "[Sun Feb 31 10:00:00 2025] ",
        "2025-13-45T99:99:99Z node kernel: ",
        "0000-00-00 00:00:00 node kernel: ",
        "9999-12-31T23:59:59Z node kernel: ",
        "<4>1 2025-13-45T99:99:99Z node kernel - - - ",
        "9999999999.000000 node kernel: ",
        "févr. 12 10:00:00 node kernel: ",
        "11月 23 10:00:00 node kernel: ",
    ],
)
def test_an_impossible_date_hides_no_event(prefix: str) -> None:
    """A broken clock, another language: the event is read, without a time."""
    (signal,) = read_log([f"{prefix}NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."])
    assert (signal.name, signal.at_us if "[ 1.0]" not in prefix else None) == ("xid 79", None)


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({"_TRANSPORT": "kernel"}, ["xid"]),
        ({"_TRANSPORT": "stdout", "SYSLOG_IDENTIFIER": "kernel"}, ["userspace_kernel_line"]),
        ({"_TRANSPORT": "journal", "SYSLOG_IDENTIFIER": "app"}, []),
        ({}, []),
    ],
)
def test_only_its_transport_makes_a_journal_record_the_kernel_s(fields: dict[str, str], kinds: list[str]) -> None:
    """Alone, and spread over lines after a record that was the kernel's: nothing of that one sticks."""
    record = {"__REALTIME_TIMESTAMP": "1763911458000000", **fields, "MESSAGE": MESSAGE}
    before = {"__REALTIME_TIMESTAMP": "1763911457000000", "_TRANSPORT": "kernel", "PRIORITY": "6"}
    spread = "\n".join(json.dumps(item, indent=4).replace('": ', '" : ') for item in (before, record))
    for text in (json.dumps(record), spread):
        assert [signal.kind for signal in read_log(text.split("\n"))] == kinds


def test_records_of_one_line_have_ids_of_their_own() -> None:
    """Citations must name one signal each; `raw` is the record, not the whole line."""
    records = [{"pri": 4, "time": n, "msg": MESSAGE.replace("01", f"{n:02}")} for n in (1, 2)]
    first, second = read_log([json.dumps({"dmesg": records})])
    assert (first.id, second.id, first.line, second.line) == ("L1", "L1#2", 1, 1)
    assert json.loads(second.raw) == records[1]
    cut = json.dumps({"dmesg": records})[:-20]
    assert [signal.id for signal in read_log([cut])] == ["L1"]


MESSAGE = "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."


@pytest.mark.parametrize(
    "text",
    [
        f'{{"_TRANSPORT": "kernel", "MESSAGE": "{MESSAGE}", "__REALTIME_TIMESTAMP": "99999999999999999999999"}}',
        f'{{"_TRANSPORT": "kernel", "MESSAGE": "{MESSAGE}", "__REALTIME_TIMESTAMP": "-5"}}',
        f'{{"pri": 4, "time": Infinity, "msg": "{MESSAGE}"}}',
        f'{{"pri": 4, "time": NaN, "msg": "{MESSAGE}"}}',
        f'{{"pri": 4, "time": 1e300, "msg": "{MESSAGE}"}}',
        f"4,1,99999999999999999999,-;{MESSAGE}",
        f"9999999999.000000 node kernel: {MESSAGE}",
    ],
)
def test_an_impossible_number_is_no_time(text: str) -> None:
    """Numbers in a log have no bounds; the event is read without them."""
    (signal,) = read_log([text])
    assert (signal.name, signal.at_us) == ("xid 79", None)
