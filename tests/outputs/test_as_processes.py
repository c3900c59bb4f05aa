"""Webhooks of a real aggregator process: killed between sending and hearing the answer, refused, asked about, and kept secret."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from aggregator.demo.processes import AggregatorProcess
from protos.v1 import sentinel_pb2, sentinel_pb2_grpc
from tests.outputs.receiver import HANG, Receiver, Reply
from tests.server.aggregator import xid
from tests.server.test_serve import deliver, get, serve

SECRET = "T000-hush"
Start = Callable[..., AggregatorProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts an aggregator with these webhooks, its state always the same."""
    started: list[AggregatorProcess] = []

    def begin(webhooks: str, **variables: str) -> AggregatorProcess:
        file = tmp_path / "webhooks.toml"
        file.write_text(webhooks)
        process = AggregatorProcess(tmp_path / "state", WEBHOOKS_FILE=str(file), LOG_LEVEL="DEBUG", **variables)
        process.start()
        started.append(process)
        process.wait_ready()
        return process

    yield begin
    for process in started:
        process.stop()


def hook(receiver: Receiver, name: str = "chat", more: str = "") -> str:
    return f'[[webhook]]\nname = "{name}"\nurl = "{receiver.url}/{SECRET}"\n{more}\n'


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def undelivered(process: AggregatorProcess, *states: str) -> list[sentinel_pb2.DeliveryStatus]:
    with grpc.insecure_channel(process.address) as channel:
        stub = sentinel_pb2_grpc.SentinelServiceStub(channel)
        request = sentinel_pb2.ListDeliveriesRequest(states=states, page_size=1)
        found: list[sentinel_pb2.DeliveryStatus] = []
        while True:
            page = stub.ListDeliveries(request, timeout=5)
            found += page.deliveries
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


def test_a_kill_before_the_answer_costs_at_most_a_repetition(start: Start, receiver: Receiver) -> None:
    """The receiver has the message and has not answered; the next process sends it again, under the same id, and nothing else."""
    receiver.replies.append(Reply(HANG))
    first = start(hook(receiver))
    deliver(first.address, [xid(1)])
    until(lambda: receiver.requests)
    assert first.process is not None
    first.process.kill()
    second = start(hook(receiver))
    until(lambda: len(receiver.requests) == 2)
    until(lambda: not undelivered(second))
    time.sleep(0.5)
    assert len(receiver.requests) == 2
    assert len({request.headers["Idempotency-Key"] for request in receiver.requests}) == 1
    assert receiver.requests[0].body == receiver.requests[1].body


def test_what_waits_and_what_was_given_up_is_shown_without_its_address(start: Start, receiver: Receiver) -> None:
    refusing = Receiver()
    try:
        refusing.otherwise = Reply(400, "invalid_payload")
        receiver.otherwise = Reply(503, "busy", (("Retry-After", "600"),))
        process = start(hook(receiver, "busy") + hook(refusing, "strict"))
        deliver(process.address, [xid(1)])
        until(lambda: {row.state for row in undelivered(process)} == {"waiting", "dead"})
        rows = {row.target: row for row in undelivered(process)}
        assert rows["strict"].last_error == "HTTP 400 invalid_payload"
        assert rows["busy"].last_error == "HTTP 503 busy"
        assert rows["busy"].next_attempt_at.seconds - time.time() > 500
        assert [row.target for row in undelivered(process, "dead")] == ["strict"]
        metrics = get(process.metrics_address, "/metrics")[1]
        assert 'sentinel_deliveries_dead{cluster="default",target="strict"} 1.0' in metrics
        assert 'sentinel_deliveries_waiting{cluster="default",target="busy"} 1.0' in metrics
        process.stop()
        log = (process.directory / "serve.log").read_text()
        assert '"target_failing"' in log
        assert SECRET not in log + metrics + repr(rows)
    finally:
        refusing.close()


def test_each_output_switches_off_alone(start: Start, receiver: Receiver) -> None:
    process = start(hook(receiver, "chat") + hook(receiver, "other"), OUTPUTS_OFF="log,chat")
    deliver(process.address, [xid(1)])
    until(lambda: receiver.requests)
    until(lambda: not undelivered(process))
    assert len(receiver.requests) == 1
    process.stop()
    assert '"event": "assessment"' not in (process.directory / "serve.log").read_text()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OUTPUTS_OFF": "chat"}, "GCM_SENTINEL_OUTPUTS_OFF: 'chat' is none of"),
        ({"WEBHOOK_URL": f"http://{SECRET}:0/"}, "GCM_SENTINEL_WEBHOOK_URL: expected a URL"),
        ({"PAGES_URL": "sentinel"}, "GCM_SENTINEL_PAGES_URL: expected a URL"),
        (
            {"WEBHOOKS_FILE": "pyproject.toml"},
            "GCM_SENTINEL_WEBHOOKS_FILE: pyproject.toml: expected [[webhook]] tables",
        ),
    ],
)
def test_what_is_wrong_stops_the_start_and_is_named(tmp_path: Path, variables: dict[str, str], said: str) -> None:
    ended: subprocess.CompletedProcess[str] = serve(tmp_path, **variables)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert SECRET not in ended.stderr
