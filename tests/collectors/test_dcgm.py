"""dcgm: each fact, each recovery, and every way in which DCGM goes blind while looking healthy."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.collectors import CollectorAbsent
from node_agent.collectors.dcgm import STALE_SCRAPES, DcgmCollector
from node_agent.evidence import Gpu, GpuEvent, Observation, Phase, Unreadable
from node_agent.exporter import ScrapeFailed, is_blank, parse
from tests.collectors.exporter_double import UUIDS, Answer, Exporter, send, served
from tests.collectors.watching import Facts, never_blocked, until, watching

GPU = Gpu(uuid=UUIDS[0], pci="0000:3b:00.0", minor=0, model="NVIDIA H100 80GB HBM3")
INT32_BLANK, INT64_BLANK, FP64_BLANK = str(0x7FFFFFF0), str(0x7FFFFFFFFFFFFFF0), "140737488355328.000000"
BLANKS = [INT32_BLANK, "2147483634", INT64_BLANK, "9223372036854775794", FP64_BLANK, "140737488355330", "NaN", "+Inf"]


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    double = Exporter()
    with served(double):
        yield double


def collector_of(exporter: Exporter, deadline_seconds: float = 5.0) -> DcgmCollector:
    return DcgmCollector(exporter.url, interval_seconds=0.01, deadline_seconds=deadline_seconds)


async def scrapes(exporter: Exporter, number: int) -> None:
    """Wait until that many more scrapes were answered and judged."""
    goal = exporter.scrapes + number + 1
    await until(lambda: exporter.scrapes >= goal, "scrapes")


async def test_a_healthy_exporter_gives_no_evidence_and_its_values_are_state(exporter: Exporter) -> None:
    collector = collector_of(exporter)
    async with watching(collector) as facts:
        await scrapes(exporter, 3 * STALE_SCRAPES)
        assert facts.all == []
    assert set(collector.gpu_values) == set(UUIDS)
    assert collector.gpu_values[UUIDS[0]]["dcgm_temperature_celsius"] == 41


async def test_only_a_change_of_the_last_xid_counts(exporter: Exporter) -> None:
    exporter.values[0, "XID_ERRORS"] = "31"  # latched before the agent started
    async with watching(collector_of(exporter)) as facts:
        await scrapes(exporter, 3)
        assert facts.all == []
        exporter.values[0, "XID_ERRORS"] = "79"
        fact = await facts.first("xid")
        await scrapes(exporter, 3)
        exporter.values[0, "XID_ERRORS"] = "0"  # the GPU was reset
        await scrapes(exporter, 3)
        exporter.values[0, "XID_ERRORS"] = "79"
        await facts.first("xid", count=2)
        assert len(facts.all) == 2
    assert (fact.source, fact.gpu, fact.body) == ("dcgm", GPU, GpuEvent(8, 79))


async def test_one_xid_shown_for_every_mig_instance_and_pod_is_one_xid(exporter: Exporter) -> None:
    async with watching(collector_of(exporter)) as facts:
        await scrapes(exporter, 2)
        series = (
            f'DCGM_FI_DEV_XID_ERRORS{{gpu="0",UUID="{UUIDS[0]}",GPU_I_PROFILE="1g.10gb",GPU_I_ID="%s",pod="p%s"}} 79\n'
        )
        exporter.extra = "".join(series % (instance, instance) for instance in range(3))
        await facts.first("xid")
        await scrapes(exporter, 3)
        assert len(facts.all) == 1


@pytest.mark.parametrize("blank", BLANKS)
async def test_a_blank_is_not_zero_so_the_same_latched_xid_is_not_told_again(blank: str, exporter: Exporter) -> None:
    exporter.values[0, "XID_ERRORS"] = "79"
    exporter.values[0, "ROW_REMAP_PENDING"] = "1"
    async with watching(collector_of(exporter)) as facts:
        await facts.first("row_remap_pending", Phase.BEGAN)
        exporter.values = {(0, "XID_ERRORS"): blank, (0, "ROW_REMAP_PENDING"): blank}
        began = await facts.first("dcgm_unobservable", Phase.BEGAN)
        exporter.values = {(0, "XID_ERRORS"): "79", (0, "ROW_REMAP_PENDING"): "1"}
        await facts.first("dcgm_unobservable", Phase.ENDED)
        await scrapes(exporter, 3)
        assert [fact.kind for fact in facts.all] == ["row_remap_pending", "dcgm_unobservable", "dcgm_unobservable"]
    assert began.gpu == GPU
    assert "row_remap_pending, xid_last" in began.detail


@pytest.mark.parametrize("name", ["row_remap_pending", "row_remap_failure"])
async def test_row_remapping_states_begin_and_end(name: str, exporter: Exporter) -> None:
    async with watching(collector_of(exporter)) as facts:
        exporter.values[0, name.upper()] = "1"
        began = await facts.first(name, Phase.BEGAN)
        exporter.values[0, name.upper()] = "0"
        await facts.first(name, Phase.ENDED)
        await scrapes(exporter, 3)
        assert len(facts.all) == 2
    assert (began.gpu, began.body) == (GPU, Observation(name, after=True))


@pytest.mark.parametrize("way", ["left out", "all blank", "field left out", "still"])
async def test_a_gpu_of_which_dcgm_says_nothing_is_unobservable_until_it_does_again(
    way: str, exporter: Exporter
) -> None:
    async with watching(collector_of(exporter)) as facts:
        await scrapes(exporter, 2)
        if way == "left out":
            exporter.gone = {0}
        elif way == "all blank":
            fields = (
                "XID_ERRORS",
                "ROW_REMAP_PENDING",
                "ROW_REMAP_FAILURE",
                "GPU_TEMP",
                "POWER_USAGE",
                "TOTAL_ENERGY_CONSUMPTION",
            )
            exporter.values = {(0, field): INT64_BLANK for field in fields}
        elif way == "field left out":
            exporter.values[0, "XID_ERRORS"] = None
        else:
            exporter.values[0, "TOTAL_ENERGY_CONSUMPTION"] = "777"
        began = await facts.first("dcgm_unobservable", Phase.BEGAN)
        exporter.gone, exporter.values = set(), {}
        ended = await facts.first("dcgm_unobservable", Phase.ENDED)
        await scrapes(exporter, 3)
        assert len(facts.all) == 2
    assert began.gpu == ended.gpu == GPU
    words = {"left out": "missing", "all blank": "all values are blank", "field left out": "xid_last", "still": "stale"}
    assert words[way] in began.detail
    assert isinstance(began.body, Observation)
    assert isinstance(began.body.after, Unreadable)


async def test_a_gpu_that_was_blank_from_the_start_is_unobservable(exporter: Exporter) -> None:
    fields = (
        "XID_ERRORS",
        "ROW_REMAP_PENDING",
        "ROW_REMAP_FAILURE",
        "GPU_TEMP",
        "POWER_USAGE",
        "TOTAL_ENERGY_CONSUMPTION",
    )
    exporter.values = {(0, field): INT64_BLANK for field in fields}
    async with watching(collector_of(exporter)) as facts:
        assert (await facts.first("dcgm_unobservable", Phase.BEGAN)).gpu == GPU
        await scrapes(exporter, 3)
        assert len(facts.all) == 1


async def test_a_value_that_a_gpu_never_had_is_unsupported_and_not_missed(exporter: Exporter) -> None:
    exporter.values[0, "ROW_REMAP_PENDING"] = INT64_BLANK
    exporter.values[0, "ROW_REMAP_FAILURE"] = None
    async with watching(collector_of(exporter)) as facts:
        await scrapes(exporter, 5)
        assert facts.all == []


def unavailable(request: BaseHTTPRequestHandler) -> None:
    send(request, 503, b"not ready")


def redirected(request: BaseHTTPRequestHandler) -> None:
    send(request, 302, b"", Location="http://127.0.0.1:1/metrics")


def empty(request: BaseHTTPRequestHandler) -> None:
    send(request, 200, b"")


def no_gpu(request: BaseHTTPRequestHandler) -> None:
    send(request, 200, b"# HELP x y\nnode_load1 0.5\n\xff\xfe not a metric\n")


def garbage(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"\x00\x01 this is no HTTP\r\n\r\n")


def cut_short(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "100000")
    request.end_headers()
    request.wfile.write(b"DCGM_FI_DEV_GPU_TEMP{")


def cut_in_a_number(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)  # without a length: the end of the connection is the end of the body
    request.end_headers()
    request.wfile.write(b'DCGM_FI_DEV_XID_ERRORS{UUID="GPU-1"} 7')


def dripping(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(100):
        request.wfile.write(b"#\n")
        time.sleep(0.05)


def endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(b"x" * (1 << 20))


def too_many_gpus(request: BaseHTTPRequestHandler) -> None:
    send(request, 200, "".join(f'DCGM_FI_DEV_GPU_TEMP{{UUID="GPU-{n}"}} 1\n' for n in range(300)).encode())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (unavailable, "HTTP 503"),
        (redirected, "HTTP 302"),
        (empty, "names no GPU"),
        (no_gpu, "names no GPU"),
        (garbage, "does not answer"),
        (cut_short, "cut short"),
        (cut_in_a_number, "cut short"),
        (endless, "larger than"),
        (too_many_gpus, "300 GPUs"),
    ],
)
async def test_an_exporter_that_fails_is_unobservable_and_no_gpu_of_it_changes(
    answer: Answer, reason: str, exporter: Exporter
) -> None:
    async with watching(collector_of(exporter)) as facts, never_blocked():
        await scrapes(exporter, 2)
        exporter.answer = answer
        began = await facts.first("dcgm_unobservable", Phase.BEGAN)
        exporter.answer = None
        ended = await facts.first("dcgm_unobservable", Phase.ENDED)
        await scrapes(exporter, 2)
        assert len(facts.all) == 2
    assert began.gpu is ended.gpu is None
    assert reason in began.detail


async def test_an_exporter_that_hangs_is_unobservable_and_costs_one_thread(exporter: Exporter) -> None:
    let_go = threading.Event()
    before = threading.active_count()

    def hang(_: BaseHTTPRequestHandler) -> None:
        let_go.wait(20)

    exporter.answer = hang
    async with watching(collector_of(exporter, deadline_seconds=0.1)) as facts, never_blocked():
        began = await facts.first("dcgm_unobservable", Phase.BEGAN)
        await facts.stay(1)
        assert threading.active_count() <= before + 2  # the reader, and the server's own
        exporter.answer = None
        let_go.set()
        await facts.first("dcgm_unobservable", Phase.ENDED)
    assert "has not returned" in began.detail


async def test_an_exporter_that_sends_too_slowly_is_unobservable_and_leaves_no_thread(exporter: Exporter) -> None:
    before = threading.active_count()
    exporter.answer = dripping
    async with watching(collector_of(exporter, deadline_seconds=0.3)) as facts, never_blocked():
        await facts.first("dcgm_unobservable", Phase.BEGAN)
        exporter.answer = None
        await facts.first("dcgm_unobservable", Phase.ENDED)
    await until(lambda: threading.active_count() <= before, "threads to end")


async def test_an_exporter_that_is_not_there_is_unobservable_until_it_comes() -> None:
    exporter = Exporter()
    with served(exporter):
        pass  # the port is free again
    port = int(exporter.url.rsplit(":", 1)[1].partition("/")[0])
    async with watching(collector_of(exporter)) as facts:
        assert "refused" in (await facts.first("dcgm_unobservable", Phase.BEGAN)).detail
        with served(exporter, port):
            await facts.first("dcgm_unobservable", Phase.ENDED)


async def test_without_a_url_the_collector_is_absent() -> None:
    with pytest.raises(CollectorAbsent, match="DCGM_EXPORTER_URL"):
        await DcgmCollector(None).collect(Facts().report)


def test_a_line_that_cannot_be_parsed_costs_that_line_alone() -> None:
    temperatures = (
        f'DCGM_FI_DEV_GPU_TEMP{{UUID="{uuid}"}} {value}' for uuid, value in zip(UUIDS, (41, "forty"), strict=True)
    )
    lines = "\n".join((*temperatures, "DCGM_FI_DEV_XID_ERRORS{"))
    found = parse(lines)
    assert {key: series.highest("temperature_celsius") for key, series in found.items()} == {UUIDS[0]: 41}


@given(
    st.lists(
        st.sampled_from(
            [
                "DCGM_FI_DEV_GPU_TEMP",
                "DCGM_FI_DEV_XID_ERRORS",
                "{",
                "}",
                '"',
                ",",
                "=",
                "UUID",
                " ",
                "1",
                "NaN",
                "\n",
                "#",
            ]
        )
        | st.text(max_size=3),
        max_size=40,
    )
)
def test_no_text_breaks_the_parser(words: list[str]) -> None:
    with contextlib.suppress(ScrapeFailed):
        parse("DCGM_FI_DEV_XID_ERRORS{" + "".join(words))


@pytest.mark.parametrize(
    ("value", "blank"), [(float(text), True) for text in BLANKS] + [(0.0, False), (79.0, False), (1e12, False)]
)
def test_blanks_are_dcgms_own_numbers(value: float, blank: bool) -> None:
    assert is_blank(value) is blank


def test_what_only_an_exporter_or_a_kubelet_needs_is_not_imported_without_one() -> None:
    """Every megabyte is paid once per node."""
    code = "\n".join(f"import node_agent.collectors.{name}" for name in ("sysfs", "dcgm", "workloads"))
    code += "\nimport sys; print(*{'grpc', 'http.client', 'prometheus_client'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
