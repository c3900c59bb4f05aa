"""Every question, by gRPC and by a plain grpcurl without proto files; bad ones are refused with the field's name."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.v1 import agent_pb2, sentinel_pb2
from tests.server.aggregator import Aggregator, agent, asking, eventually, lines, snapshot, stored, xid

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
async def faulty(aggregator: Aggregator) -> AsyncIterator[Aggregator]:
    """Two nodes with ten lines each, and one fault on gpu-1 that has been judged."""
    async with agent(aggregator) as one, agent(aggregator) as two:
        await one.greet("gpu-1", simulated=True)
        await two.greet("gpu-2", "installation-b")
        await one.deliver(
            [agent_pb2.SpoolRecord(end_offset=1, snapshot=snapshot(gpus=3).SerializeToString())], "samples"
        )
        await one.deliver([*lines(1, 9), xid(10, bus="11")])
        await two.deliver(lines(1, 10, node="gpu-2"))
        async with asking(aggregator) as stub:

            async def judged() -> bool:
                return bool((await stub.ListAssessments(sentinel_pb2.ListAssessmentsRequest())).assessments)

            await eventually(judged)
        yield aggregator


async def refusal(aggregator: Aggregator, method: str, request: Any) -> tuple[grpc.StatusCode, str]:
    async with asking(aggregator) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await getattr(stub, method)(request)
    return failed.value.code(), failed.value.details() or ""


async def test_pages_join_without_gap_or_repeat_while_rows_are_added(faulty: Aggregator) -> None:
    ids: list[str] = []
    token = ""
    async with asking(faulty) as stub, agent(faulty) as stream:
        await stream.greet("gpu-3", "installation-c")
        for number in range(1, 12):
            request = sentinel_pb2.ListEvidenceRequest(node="gpu-1", page_size=3, page_token=token)
            page = await stub.ListEvidence(request)
            ids += [entry.id for entry in page.evidence]
            await stream.deliver(lines(number, 1, node="gpu-3"))
            token = page.next_page_token
            if not token:
                break
    assert ids == [f"gpu-1/kmsg/boot-a/{number}" for number in range(1, 11)]


@pytest.mark.parametrize(
    ("request_", "method", "field"),
    [
        (sentinel_pb2.ListNodesRequest(page_size=1), "ListNodes", "nodes"),
        (sentinel_pb2.ListEvidenceRequest(page_size=1), "ListEvidence", "evidence"),
        (sentinel_pb2.ListAssessmentsRequest(page_size=1), "ListAssessments", "assessments"),
        (sentinel_pb2.ListIncidentsRequest(page_size=1, include_resolved=True), "ListIncidents", "incidents"),
    ],
)
async def test_the_last_page_has_no_token(request_: Any, method: str, field: str, faulty: Aggregator) -> None:
    count, pages = 0, 0
    async with asking(faulty) as stub:
        while True:
            page = await getattr(stub, method)(request_)
            count, pages = count + len(getattr(page, field)), pages + 1
            if not page.next_page_token:
                break
            request_.page_token = page.next_page_token
        request_.page_size = 1000
        request_.page_token = ""
        whole = await getattr(stub, method)(request_)
    assert pages == count == len(getattr(whole, field)) > 0


async def test_a_token_belongs_to_its_question(faulty: Aggregator) -> None:
    async with asking(faulty) as stub:
        first = await stub.ListEvidence(sentinel_pb2.ListEvidenceRequest(node="gpu-1", page_size=3))
    request = sentinel_pb2.ListEvidenceRequest(node="gpu-2", page_token=first.next_page_token)
    assert await refusal(faulty, "ListEvidence", request) == (
        INVALID,
        "page_token belongs to another request: only page_size may differ between pages",
    )


BAD_TOKENS = [
    "x",
    "ü",
    base64.urlsafe_b64encode(b"{}").decode(),
    base64.urlsafe_b64encode(b'["d", "7"]').decode(),
    base64.urlsafe_b64encode(b'["d", -1]').decode(),
    base64.urlsafe_b64encode(b'["d", true]').decode(),
    base64.urlsafe_b64encode(b'["d", 99999999999999999999999]').decode(),
    base64.urlsafe_b64encode(b'["d"]').decode(),
    base64.urlsafe_b64encode(b"[" * 5000).decode(),
]


@pytest.mark.parametrize("token", BAD_TOKENS)
async def test_a_bad_token_is_refused(token: str, aggregator: Aggregator) -> None:
    code, text = await refusal(aggregator, "ListEvidence", sentinel_pb2.ListEvidenceRequest(page_token=token))
    assert (code, text) == (INVALID, "page_token is none that this server gave")


BAD_REQUESTS = [
    ("ListNodes", sentinel_pb2.ListNodesRequest(page_size=1001), "page_size 1001"),
    ("ListEvidence", sentinel_pb2.ListEvidenceRequest(page_size=2**32 - 1), "page_size"),
    ("ListIncidents", sentinel_pb2.ListIncidentsRequest(page_size=1001), "page_size"),
    ("ListAssessments", sentinel_pb2.ListAssessmentsRequest(page_size=1001), "page_size"),
    ("ListEvidence", sentinel_pb2.ListEvidenceRequest(since={"seconds": -1}), "since is no time"),
    ("ListEvidence", sentinel_pb2.ListEvidenceRequest(until={"seconds": 2**60}), "until is no time"),
    ("ListEvidence", sentinel_pb2.ListEvidenceRequest(since={"nanos": -1}), "since is no time"),
    (
        "ListEvidence",
        sentinel_pb2.ListEvidenceRequest(since={"seconds": 9}, until={"seconds": 9}),
        "until is not after",
    ),
    ("ListEvidence", sentinel_pb2.ListEvidenceRequest(kinds=["k"] * 101), "kinds holds more than 100"),
    (
        "ListIncidents",
        sentinel_pb2.ListIncidentsRequest(severities=["ü" * 1_000_000]),
        "severities: 'üü",
    ),
    ("ListIncidents", sentinel_pb2.ListIncidentsRequest(severities=["bad"]), "severities: 'bad' is none of critical"),
    ("GetNode", sentinel_pb2.GetNodeRequest(), "node is empty"),
    ("CollectNow", sentinel_pb2.CollectNowRequest(), "node is empty"),
    ("GetIncident", sentinel_pb2.GetIncidentRequest(), "id is empty"),
    ("GetAssessment", sentinel_pb2.GetAssessmentRequest(), "id is empty"),
]


@pytest.mark.parametrize(("method", "request_", "text"), BAD_REQUESTS)
async def test_a_bad_request_is_refused_with_the_field(
    method: str, request_: Any, text: str, aggregator: Aggregator
) -> None:
    code, details = await refusal(aggregator, method, request_)
    assert code is INVALID
    assert details.startswith(text)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("GetNode", sentinel_pb2.GetNodeRequest(node="none")),
        ("GetIncident", sentinel_pb2.GetIncidentRequest(id="none")),
        ("GetAssessment", sentinel_pb2.GetAssessmentRequest(id="none")),
    ],
)
async def test_what_is_not_there_is_not_found(method: str, request_: Any, aggregator: Aggregator) -> None:
    assert (await refusal(aggregator, method, request_))[0] is grpc.StatusCode.NOT_FOUND


async def test_a_node_whose_agent_is_away_cannot_be_asked(aggregator: Aggregator) -> None:
    code, text = await refusal(aggregator, "CollectNow", sentinel_pb2.CollectNowRequest(node="gpu-9"))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "gpu-9" in text


async def test_without_a_model_an_investigation_ends_with_the_rules_verdict(faulty: Aggregator) -> None:
    async with asking(faulty) as stub:
        steps = [step async for step in stub.Investigate(sentinel_pb2.InvestigateRequest(node="gpu-1"))]
    assert (steps[-1].assessment.origin, steps[-1].assessment.severity) == ("rules", "critical")
    assert "no model is configured" in steps[-1].progress


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (sentinel_pb2.InvestigateRequest(), grpc.StatusCode.INVALID_ARGUMENT, "node is empty"),
        (sentinel_pb2.InvestigateRequest(node="n" * 300), grpc.StatusCode.INVALID_ARGUMENT, "node is longer than"),
        (sentinel_pb2.InvestigateRequest(node="nobody"), grpc.StatusCode.NOT_FOUND, "no such incident"),
        (sentinel_pb2.InvestigateRequest(incident_id="inc-0"), grpc.StatusCode.NOT_FOUND, "no such incident"),
    ],
)
async def test_what_cannot_be_investigated_is_refused_with_the_field(
    request_: sentinel_pb2.InvestigateRequest, code: grpc.StatusCode, words: str, aggregator: Aggregator
) -> None:
    async with asking(aggregator) as stub:
        with pytest.raises(grpc.aio.AioRpcError, match=words) as failed:
            [_ async for _ in stub.Investigate(request_)]
    assert failed.value.code() is code


@pytest.mark.parametrize("gpu", ["GPU-1", "0000:11:00.0", "00000000:11:00.0", "11:00.0"])
async def test_a_gpu_is_found_by_any_of_its_names(gpu: str, faulty: Aggregator) -> None:
    """The kernel line names a PCI address; the snapshot knows whose it is."""
    (entry,) = await stored(faulty, node="gpu-1", gpu=gpu)
    assert entry.evidence.seq == 10
    assert "xid 79" in entry.signals


async def test_a_node_is_shown_with_its_snapshot(faulty: Aggregator) -> None:
    async with asking(faulty) as stub:
        answer = await stub.GetNode(sentinel_pb2.GetNodeRequest(node="gpu-1"))
    node = answer.node
    assert answer.snapshot == snapshot(gpus=3)
    assert (node.connected, node.simulated, node.open_incidents, node.boot_id) == (True, True, 1, "boot-a")


async def test_an_incident_is_shown_with_its_verdict_and_timeline(faulty: Aggregator) -> None:
    async with asking(faulty) as stub:
        (listed,) = (await stub.ListIncidents(sentinel_pb2.ListIncidentsRequest(node="gpu-1"))).incidents
        assert list((await stub.ListIncidents(sentinel_pb2.ListIncidentsRequest(severities=["info"]))).incidents) == []
        assert list((await stub.ListIncidents(sentinel_pb2.ListIncidentsRequest(node="gpu-2"))).incidents) == []
        whole = (await stub.GetIncident(sentinel_pb2.GetIncidentRequest(id=listed.id))).incident
        judged = await stub.GetAssessment(sentinel_pb2.GetAssessmentRequest(id=listed.assessment.id))
    assert len(listed.timeline) == 0
    assert (listed.node, listed.gpu.pci, listed.gpu.uuid) == ("gpu-1", "0000:11:00.0", "GPU-1")
    assert judged.assessment == listed.assessment
    assert listed.assessment.citations
    cause = next(entry for entry in whole.timeline if entry.role == "cause")
    assert cause.evidence_id == "gpu-1/kmsg/boot-a/10"
    assert "fallen off the bus" in cause.text


async def test_a_watcher_sees_what_is_stored_from_now_on(faulty: Aggregator) -> None:
    async with asking(faulty) as stub, agent(faulty) as stream:
        await stream.greet("gpu-3", "installation-c")
        watch = stub.WatchEvidence(sentinel_pb2.WatchEvidenceRequest(node="gpu-3", kinds=["kernel_line"]))
        reading = asyncio.ensure_future(watch.read())
        await asyncio.sleep(0.3)
        await stream.deliver(lines(1, 500, node="gpu-3"))
        seen = [await asyncio.wait_for(reading, 5)]
        while len(seen) < 500:
            seen.append(await asyncio.wait_for(watch.read(), 5))
        watch.cancel()
    assert [message.evidence.evidence.seq for message in seen] == list(range(1, 501))
    assert not any(message.skipped for message in seen)


@pytest.mark.parametrize("gpu", ["11:00.0", "GPU-1"])
async def test_a_watcher_of_one_gpu_sees_what_is_about_it_alone(gpu: str, faulty: Aggregator) -> None:
    """Also by its UUID, which kernel lines do not know."""
    async with asking(faulty) as stub, agent(faulty) as stream:
        await stream.greet("gpu-1")
        watch = stub.WatchEvidence(sentinel_pb2.WatchEvidenceRequest(node="gpu-1", gpu=gpu))
        reading = asyncio.ensure_future(watch.read())
        await asyncio.sleep(0.3)
        await stream.deliver([xid(11, bus="12"), *lines(12, 3), xid(15, bus="11")])
        seen = await asyncio.wait_for(reading, 5)
        watch.cancel()
    assert seen.evidence.evidence.seq == 15


GRPCURL = shutil.which("grpcurl", path=str(Path(sys.executable).parent)) or shutil.which("grpcurl")


async def grpcurl(*arguments: str) -> str:
    assert GRPCURL is not None
    process = await asyncio.create_subprocess_exec(
        GRPCURL, "-plaintext", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return output.decode()


@pytest.mark.skipif(GRPCURL is None, reason="grpcurl is not installed")
async def test_grpcurl_needs_no_proto_files(faulty: Aggregator) -> None:
    services = (await grpcurl(faulty.address, "list")).split()
    assert {"gcm_sentinel.v1.AgentService", "gcm_sentinel.v1.SentinelService", "grpc.health.v1.Health"} <= set(services)
    assert json.loads(await grpcurl(faulty.address, "grpc.health.v1.Health/Check")) == {"status": "SERVING"}


@pytest.mark.skipif(GRPCURL is None, reason="grpcurl is not installed")
@pytest.mark.parametrize(
    ("method", "request_", "expected"),
    [
        ("ListNodes", {"page_size": 1}, '"name": "gpu-1"'),
        ("GetNode", {"node": "gpu-1"}, '"taken_at"'),
        ("ListEvidence", {"node": "gpu-1", "kinds": ["kernel_line"], "gpu": "11:00.0"}, '"xid 79"'),
        ("ListIncidents", {}, '"state": "open"'),
        ("ListAssessments", {"node": "gpu-1"}, '"citations"'),
        ("GetIncident", {"id": "none"}, "NotFound"),
        ("GetAssessment", {"id": "none"}, "NotFound"),
        ("CollectNow", {"node": "none"}, "Unavailable"),
        ("Investigate", {"node": "gpu-1"}, "no model is configured"),
        ("ListEvidence", {"page_token": "bad"}, "InvalidArgument"),
    ],
)
async def test_every_question_works_with_grpcurl(
    method: str, request_: dict[str, Any], expected: str, faulty: Aggregator
) -> None:
    service = f"gcm_sentinel.v1.SentinelService/{method}"
    assert expected in await grpcurl("-d", json.dumps(request_), faulty.address, service)


@pytest.mark.parametrize(
    "method",
    [
        "/gcm_sentinel.v1.SentinelService/ListNodes",
        "/gcm_sentinel.v1.SentinelService/WatchEvidence",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    ],
)
async def test_bytes_that_are_no_message_are_an_invalid_argument(
    method: str, aggregator: Aggregator, capfd: pytest.CaptureFixture[str]
) -> None:
    async with grpc.aio.insecure_channel(aggregator.address) as channel:
        watching = method.endswith(("WatchEvidence", "Watch"))
        ask: Any = channel.unary_stream(method) if watching else channel.unary_unary(method)
        call = ask(b"\xff")
        assert (await call.code(), await call.details()) == (
            INVALID,
            "the request is no protobuf message of this method",
        )
    assert aggregator.metric("sentinel_undecodable_requests_total", method=method) == 1
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said
    assert said.count("request_undecodable") == 1


async def test_health_can_be_watched(aggregator: Aggregator) -> None:
    async with grpc.aio.insecure_channel(aggregator.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
