"""The uplink against a real gRPC server: whatever happens to the stream, every fact arrives, in order, as soon as it can."""

from __future__ import annotations

import asyncio
import logging
import statistics
import subprocess
import time
from pathlib import Path

import grpc
import pytest

from node_agent.dial import Endpoint
from node_agent.evidence import Inventory, Snapshot
from node_agent.uplink import Pace
from tests.agent.conftest import Node, delivering
from tests.agent.scripted_aggregator import ScriptedAggregator


def at(aggregator: ScriptedAggregator, **files: Path) -> Endpoint:
    return Endpoint(f"127.0.0.1:{aggregator.port}", **files)


async def test_the_hello_says_who_calls_and_what_the_spool_holds(aggregator: ScriptedAggregator, node: Node) -> None:
    node.report(3)
    async with delivering(node, at(aggregator)):
        await aggregator.until(lambda: bool(aggregator.hellos))
    hello = aggregator.hellos[0]
    assert (hello.node, hello.boot_id, hello.installation_id) == ("node-1", "boot-1", "installation-1")
    assert (hello.agent_version, hello.simulated) == ("1.2.3", False)
    assert [(log.log, log.spool_id) for log in hello.logs] == [
        ("events", node.spool.events.spool_id),
        ("samples", node.spool.samples.spool_id),
    ]
    assert hello.logs[0].end_offset == node.spool.events.end_offset > 0


async def test_what_was_reported_arrives_in_order_and_is_acknowledged(
    aggregator: ScriptedAggregator, node: Node
) -> None:
    before = node.report(1000)
    async with delivering(node, at(aggregator)) as uplink:
        await aggregator.until(lambda: len(aggregator.arrivals) >= 1000)
        after = node.report(500)
        await uplink.drain()
    assert aggregator.payloads() == before + after
    assert len(aggregator.arrivals) == 1500
    assert node.spool.events.acked_offset == node.spool.events.end_offset


async def test_a_fact_leaves_at_once_on_an_idle_system(
    aggregator: ScriptedAggregator, node: Node, record_property: pytest.RecordProperty
) -> None:
    """No polling: from report to arrival takes milliseconds. The bound is far above, to hold on a busy machine."""
    latencies = []
    async with delivering(node, at(aggregator)):
        for number in range(1, 51):
            await asyncio.sleep(0.01)
            reported_at = time.monotonic()
            node.report()
            await aggregator.until(lambda number=number: len(aggregator.arrivals) >= number)
            latencies.append(aggregator.arrivals[-1][3] - reported_at)
    print(f"report to server: median {statistics.median(latencies) * 1e3:.2f} ms, worst {max(latencies) * 1e3:.2f} ms")
    assert statistics.median(latencies) < 0.25


async def test_events_go_before_samples(aggregator: ScriptedAggregator, node: Node) -> None:
    for number in range(50):
        node.recorder.report_snapshot(Snapshot(taken_at=float(number), inventory=Inventory()))
    node.report(1000)
    async with delivering(node, at(aggregator)) as uplink:
        await aggregator.until(lambda: bool(aggregator.arrivals))
        await uplink.drain()
    assert [log for log, *_ in aggregator.arrivals] == ["events"] * 1000 + ["samples"] * 50


async def test_it_resumes_where_the_servers_store_ends(aggregator: ScriptedAggregator, node: Node) -> None:
    """Also where that is an older offset than was acknowledged: a store restored from a backup."""
    payloads = node.report(20)
    tenth = node.spool.events.read(0, max_bytes=1 << 20, max_records=10)[-1].end_offset
    async with delivering(node, at(aggregator)) as uplink:
        await aggregator.until(lambda: len(aggregator.arrivals) == 20)
        await uplink.drain()
        await aggregator.stop()
        aggregator.forget()
        aggregator.committed[node.spool.events.spool_id] = tenth
        await aggregator.start()
        await aggregator.until(lambda: bool(aggregator.arrivals))
        await uplink.drain()
    assert aggregator.payloads() == payloads[10:]


async def test_a_new_store_gets_everything_again(aggregator: ScriptedAggregator, node: Node) -> None:
    payloads = node.report(100)
    async with delivering(node, at(aggregator)) as uplink:
        await aggregator.until(lambda: len(aggregator.arrivals) >= 100)
        await uplink.drain()
        await aggregator.stop()
        aggregator.forget()
        await aggregator.start()
        await aggregator.until(lambda: len(aggregator.arrivals) >= 100)
    assert aggregator.payloads() == payloads
    assert aggregator.hellos[-1].logs[0].acked_offset == node.spool.events.end_offset  # the server can tell replays


async def test_a_spool_that_lost_its_tail_goes_on_under_a_new_id(aggregator: ScriptedAggregator, node: Node) -> None:
    payloads = node.report(5)
    first_id = node.spool.events.spool_id
    aggregator.committed[first_id] = node.spool.events.end_offset + 1000
    async with delivering(node, at(aggregator)):
        await aggregator.until(lambda: len(aggregator.arrivals) >= 5)
    assert aggregator.payloads() == payloads
    assert node.spool.events.spool_id != first_id
    assert aggregator.hellos[-1].logs[0].spool_id == node.spool.events.spool_id


async def test_a_server_killed_in_mid_batch_loses_nothing(aggregator: ScriptedAggregator, node: Node) -> None:
    payloads = node.report(3000, "x" * 200)
    async with delivering(node, at(aggregator)) as uplink:
        for limit in (150, 1700):
            aggregator.script.break_after_records = limit
            await aggregator.until(lambda: aggregator.script.break_after_records is None)
        await aggregator.until(lambda: len(aggregator.payloads()) >= 3000)
        await aggregator.stop()
        payloads += node.report(100)
        await aggregator.start()
        await aggregator.until(lambda: len(aggregator.payloads()) >= 3100)
        await uplink.drain()
    assert aggregator.payloads() == payloads


async def test_no_hello_in_time_means_redial(
    aggregator: ScriptedAggregator, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    aggregator.script.silent = True
    payloads = node.report(3)
    async with delivering(node, at(aggregator), Pace(hello=0.1, longest_redial=0.05)):
        await aggregator.until(lambda: len(aggregator.dialled_at) >= 3)
        aggregator.script.silent = False
        await aggregator.until(lambda: len(aggregator.arrivals) >= 3)
    assert aggregator.payloads() == payloads
    assert [r.message for r in caplog.records if "no hello from the aggregator within" in r.message]


async def test_redials_are_spread_out(aggregator: ScriptedAggregator, node: Node) -> None:
    """Full jitter: delays differ, and none is longer than the bound."""
    aggregator.script.refuse = (grpc.StatusCode.UNAVAILABLE, "not now")
    async with delivering(node, at(aggregator), Pace(longest_redial=0.1)):
        await aggregator.until(lambda: len(aggregator.dialled_at) >= 12)
    delays = [later - sooner for sooner, later in zip(aggregator.dialled_at, aggregator.dialled_at[1:], strict=False)]
    assert statistics.pstdev(delays) > 0.005
    assert min(delays) < 0.09


async def test_streams_are_renewed_without_losing_anything(aggregator: ScriptedAggregator, node: Node) -> None:
    payloads: list[bytes] = []
    async with delivering(node, at(aggregator), Pace(renew=0.2)) as uplink:
        while len(aggregator.hellos) < 4:
            payloads += node.report(20)
            await asyncio.sleep(0.02)
        await aggregator.until(lambda: len(aggregator.payloads()) >= len(payloads))
        await uplink.drain()
    assert aggregator.payloads() == payloads
    assert len(aggregator.arrivals) == len(payloads)  # half-closed in good order: nothing had to be sent twice
    assert len(aggregator.ended) >= 3


async def test_a_server_that_never_finishes_is_left_after_a_renewal(aggregator: ScriptedAggregator, node: Node) -> None:
    """Covered by the half-close bound: a hanging server delays the next stream by seconds, not for ever."""
    async with delivering(node, at(aggregator), Pace(renew=0.1)):
        await aggregator.until(lambda: bool(aggregator.hellos))
        node.report()
        aggregator.script.reading.clear()
        await aggregator.until(lambda: len(aggregator.hellos) >= 2, seconds=15)


async def test_a_slow_server_never_blocks_reporting(aggregator: ScriptedAggregator, node: Node) -> None:
    async with delivering(node, at(aggregator)) as uplink:
        await aggregator.until(lambda: bool(aggregator.hellos))
        aggregator.script.reading.clear()
        began = time.monotonic()
        payloads = []
        for _ in range(20):
            payloads += node.report(1000, "x" * 200)
            await asyncio.sleep(0)
        took = time.monotonic() - began
        assert len(aggregator.arrivals) < 20_000
        aggregator.script.reading.set()
        await aggregator.until(lambda: len(aggregator.arrivals) >= 20_000, seconds=60)
        await uplink.drain()
    assert aggregator.payloads() == payloads
    assert took < 10


async def test_unacknowledged_bytes_are_bounded(aggregator: ScriptedAggregator, node: Node) -> None:
    """A server that stores but does not acknowledge gets one window, then nothing until it does."""
    aggregator.script.ack = False
    node.report(10_000, "x" * 400)
    async with delivering(node, at(aggregator)):
        await aggregator.until(lambda: bool(aggregator.arrivals))
        await asyncio.sleep(0.5)
    arrived_bytes = sum(len(payload) for _, _, payload, _ in aggregator.arrivals)
    assert 500_000 < arrived_bytes < 1_600_000 < node.spool.events.end_offset


async def test_batches_fit_the_servers_limit(aggregator: ScriptedAggregator, node: Node) -> None:
    """The scripted server asserts the size of every message."""
    aggregator.script.max_message_bytes = 4096
    payloads = node.report(200, "x" * 300)
    async with delivering(node, at(aggregator)) as uplink:
        await aggregator.until(lambda: bool(aggregator.arrivals))
        await uplink.drain()
    assert aggregator.payloads() == payloads


async def test_a_record_the_server_cannot_take_blocks_nothing_and_is_reported(
    aggregator: ScriptedAggregator, node: Node
) -> None:
    aggregator.script.max_message_bytes = 4096
    before = node.report(3)
    node.report(1, "x" * 5000)
    after = node.report(3)
    async with delivering(node, at(aggregator)) as uplink:
        await aggregator.until(lambda: len(aggregator.arrivals) >= 7)
        await uplink.drain()
    assert aggregator.payloads()[:6] == before + after
    (gap,) = aggregator.evidence("evidence_gap")
    assert (gap.source, gap.gap.where, gap.gap.lost_count) == ("gap", "uplink", 1)


async def test_a_loss_at_the_end_of_a_log_does_not_keep_the_agent_busy(
    aggregator: ScriptedAggregator, node: Node
) -> None:
    """The spool refuses a record above 1 MiB: its samples then end behind something that cannot be read."""
    node.spool.append_sample(b"x" * (1 << 20) + b"x")
    async with delivering(node, at(aggregator)):
        await aggregator.until(lambda: len(aggregator.offsets) >= 5)
        before = time.process_time()
        await asyncio.sleep(0.5)
        assert time.process_time() - before < 0.2


async def test_the_clock_offset_is_measured_and_sent(aggregator: ScriptedAggregator, node: Node) -> None:
    aggregator.script.clock_ahead_seconds = 12.5
    async with delivering(node, at(aggregator)) as uplink:
        await aggregator.until(lambda: len(aggregator.offsets) >= 3)
        assert uplink.offset is not None
    offset = aggregator.offsets[-1]
    assert abs(offset.offset_usec - 12_500_000) <= offset.error_usec + 1000
    assert 0 < offset.error_usec < 1_000_000


async def test_collect_now_is_answered_with_a_fresh_reading(aggregator: ScriptedAggregator, node: Node) -> None:
    async with delivering(node, at(aggregator)):
        await aggregator.until(lambda: bool(aggregator.hellos))
        await aggregator.collect("r1", deadline_ms=2000)
        reply = await asyncio.wait_for(aggregator.collect_replies.get(), 5)
    assert (reply.request_id, reply.error) == ("r1", "")
    assert (reply.snapshot.node, reply.snapshot.inventory.driver_version) == ("node-1", "570.1")


@pytest.mark.parametrize(
    ("seconds", "error", "says"),
    [(5.0, None, "no reading within 0.1 s"), (0.0, RuntimeError("the driver hangs"), "RuntimeError: the driver hangs")],
    ids=["too slow", "failed"],
)
async def test_collect_now_says_why_there_is_no_reading(
    aggregator: ScriptedAggregator, node: Node, seconds: float, error: Exception | None, says: str
) -> None:
    node.snapshot_seconds, node.snapshot_error = seconds, error
    async with delivering(node, at(aggregator)):
        await aggregator.until(lambda: bool(aggregator.hellos))
        await aggregator.collect("r1", deadline_ms=100)
        reply = await asyncio.wait_for(aggregator.collect_replies.get(), 5)
    assert (reply.error, reply.HasField("snapshot")) == (says, False)


async def test_a_slow_reading_does_not_block_the_stream(aggregator: ScriptedAggregator, node: Node) -> None:
    node.snapshot_seconds = 5.0
    async with delivering(node, at(aggregator)):
        await aggregator.until(lambda: bool(aggregator.hellos))
        for number in range(6):
            await aggregator.collect(f"r{number}", deadline_ms=10_000)
        node.report()
        await aggregator.until(lambda: len(aggregator.arrivals) == 1, seconds=2)
        busy = [await asyncio.wait_for(aggregator.collect_replies.get(), 2) for _ in range(2)]
    assert all("busy" in reply.error for reply in busy)


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "GCM_SENTINEL_TOKEN_FILE"),
        (grpc.StatusCode.PERMISSION_DENIED, "GCM_SENTINEL_NODE_NAME"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "limits"),
        (grpc.StatusCode.UNAVAILABLE, "GCM_SENTINEL_AGGREGATOR_ADDRESS"),
    ],
)
async def test_a_refusal_is_one_line_that_says_what_to_check_and_is_retried(
    aggregator: ScriptedAggregator,
    node: Node,
    caplog: pytest.LogCaptureFixture,
    code: grpc.StatusCode,
    hint: str,
) -> None:
    aggregator.script.refuse = (code, "the server's own words")
    payloads = node.report(1)
    async with delivering(node, at(aggregator)):
        await aggregator.until(lambda: len(aggregator.dialled_at) >= 4)
        aggregator.script.refuse = None
        await aggregator.until(lambda: bool(aggregator.arrivals))
    assert aggregator.payloads() == payloads
    lines = {r.message for r in caplog.records if r.levelno == logging.WARNING}
    (line,) = [line for line in lines if "refused before it began" not in line]
    assert all(part in line for part in (str(aggregator.port), code.name, "the server's own words", hint))


async def warned(caplog: pytest.LogCaptureFixture) -> str:
    """The first warning; not counting a refusal that came too early for gRPC to tell its status."""
    async with asyncio.timeout(10):
        while True:
            for record in caplog.records:
                if record.levelno == logging.WARNING and "refused before it began" not in record.message:
                    return record.message
            await asyncio.sleep(0.01)


async def test_nobody_listening_names_the_address(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    async with delivering(node, Endpoint("127.0.0.1:1")):
        assert "GCM_SENTINEL_AGGREGATOR_ADDRESS" in await warned(caplog)


async def test_a_service_of_another_kind_names_the_address(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with delivering(node, Endpoint(f"127.0.0.1:{port}")):
        line = await warned(caplog)
    await server.stop(None)
    assert "another service answers there: check GCM_SENTINEL_AGGREGATOR_ADDRESS" in line


async def test_a_web_server_names_the_address(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with delivering(node, Endpoint(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")):
        line = await warned(caplog)
    server.close()
    await asyncio.sleep(0.05)  # the last connection's end
    assert "GCM_SENTINEL_AGGREGATOR_ADDRESS" in line


async def test_the_token_is_read_at_each_dial(aggregator: ScriptedAggregator, node: Node, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    aggregator.script.refuse = (grpc.StatusCode.UNAUTHENTICATED, "expired")
    async with delivering(node, at(aggregator, token_file=token)):
        await aggregator.until(lambda: bool(aggregator.metadata))
        token.write_text("second\n")
        aggregator.script.refuse = None
        await aggregator.until(lambda: bool(aggregator.hellos))
    assert aggregator.metadata[0]["authorization"] == "Bearer first"
    assert aggregator.metadata[-1]["authorization"] == "Bearer second"


@pytest.mark.parametrize("content", [None, "", "two\nlines"])
async def test_an_unusable_token_file_is_named_and_read_again(
    aggregator: ScriptedAggregator, node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_text(content)
    async with delivering(node, at(aggregator, token_file=token)):
        assert "GCM_SENTINEL_TOKEN_FILE" in await warned(caplog)
        token.write_text("good")
        await aggregator.until(lambda: bool(aggregator.hellos))


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost and its key."""
    key, crt = tmp_path / "server.key", tmp_path / "server.crt"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    command += [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        str(key),
        "-out",
        str(crt),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return key, crt


async def test_tls_delivers_and_its_failures_name_the_ca_file(
    certificate: tuple[Path, Path], node: Node, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    key, crt = certificate
    server = ScriptedAggregator(grpc.ssl_server_credentials([(key.read_bytes(), crt.read_bytes())]))
    await server.start()
    try:
        payloads = node.report(2)
        stranger = Path(grpc.__file__).parent / "_cython/_credentials/roots.pem"
        ca_file = tmp_path / "ca.pem"
        ca_file.write_bytes(stranger.read_bytes())
        async with delivering(node, Endpoint(f"localhost:{server.port}", tls_ca_file=ca_file)):
            assert "GCM_SENTINEL_TLS_CA_FILE" in await warned(caplog)
            ca_file.write_bytes(crt.read_bytes())
            await server.until(lambda: len(server.arrivals) >= 2)
        assert server.payloads() == payloads
        caplog.clear()
        async with delivering(node, Endpoint(f"127.0.0.1:{server.port}", tls_ca_file=crt)):
            assert "GCM_SENTINEL_TLS_CA_FILE" in await warned(caplog)  # the certificate is for another name
        caplog.clear()
        async with delivering(node, Endpoint(f"127.0.0.1:{server.port}")):
            assert "GCM_SENTINEL_TLS_CA_FILE" in await warned(caplog)  # plaintext to a TLS port
    finally:
        await server.stop()


async def test_an_unreachable_aggregator_does_not_fill_the_log(
    aggregator: ScriptedAggregator, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    aggregator.script.refuse = (grpc.StatusCode.UNAVAILABLE, "not now")
    async with delivering(node, at(aggregator), Pace(longest_redial=0.01, repeat_log=0.5)) as uplink:
        await aggregator.until(lambda: len(aggregator.dialled_at) >= 20)
        assert uplink.dials >= 20
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert 1 <= len(warnings) <= 3
