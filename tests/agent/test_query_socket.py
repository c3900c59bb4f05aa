"""The node's own query service, asked as operators ask it: plain grpcurl on a root-only socket, without proto files."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from node_agent.evidence import Fact, Gpu, Inventory, KernelRecord, Snapshot
from node_agent.query_socket import Questions, SocketInUse, serve_queries
from protos.v1 import sentinel_pb2 as pb
from protos.v1.sentinel_pb2_grpc import NodeControlServiceStub, SentinelServiceStub
from tests.agent.conftest import Node

GRPCURL = shutil.which("grpcurl", path=str(Path(sys.executable).parent))
GPU_0 = Gpu(uuid="GPU-aaaa", pci="0000:3b:00.0")
GPU_1 = Gpu(uuid="GPU-bbbb", pci="0000:86:00.0")


class Driver:
    """Stands where the NVML collector stands."""

    yielded_until: float | None = None

    async def yield_driver(self, seconds: float) -> None:
        self.yielded_until = 1_700_000_000.0 + seconds

    async def resume(self) -> None:
        self.yielded_until = None


@pytest.fixture
def questions(node: Node) -> Questions:
    return Questions(
        events=node.spool.events,
        describe_node=lambda: pb.Node(name="node-1", connected=False, agent_version="1.2.3"),
        latest_snapshot=lambda: node.recorder.snapshot_message(Snapshot(2.0, Inventory(driver_version="570.1"))),
        collect_now=node.collect_now,
        snapshot_message=node.recorder.snapshot_message,
        driver=Driver(),
    )


@pytest.fixture
async def path(tmp_path: Path, questions: Questions) -> AsyncIterator[Path]:
    socket_path = tmp_path / "agent.sock"
    async with serve_queries(socket_path, questions):
        yield socket_path


@pytest.fixture
async def sentinel(path: Path) -> AsyncIterator[SentinelServiceStub]:
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        yield SentinelServiceStub(channel)


async def grpcurl(path: Path, *arguments: str, data: dict[str, Any] | None = None) -> str:
    if GRPCURL is None:
        pytest.skip("grpcurl is not packaged for this architecture")
    options = ["-plaintext", "-unix", *(["-d", json.dumps(data)] if data is not None else []), str(path)]
    process = await asyncio.create_subprocess_exec(
        GRPCURL, *options, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 20)
    return output.decode()


def at_second(node: Node, second: int, kind: str = "numbered", gpu: Gpu | None = None, line: str = "") -> None:
    body = KernelRecord(line=line, seq=second, facility=0, level=4, monotonic_usec=0) if line else None
    node.recorder.report(Fact(source="test", kind=kind, occurred_at=float(second), gpu=gpu, body=body))


async def test_only_the_owner_may_open_the_socket(path: Path) -> None:
    mode = path.stat().st_mode  # noqa: ASYNC240
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


async def test_the_socket_goes_with_the_agent(tmp_path: Path, questions: Questions) -> None:
    async with serve_queries(tmp_path / "agent.sock", questions):
        pass
    assert not (tmp_path / "agent.sock").exists()


async def test_a_dead_agents_socket_is_replaced(tmp_path: Path, questions: Questions) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "agent.sock"))
    async with serve_queries(tmp_path / "agent.sock", questions):
        assert "node-1" in await grpcurl(tmp_path / "agent.sock", "gcm_sentinel.v1.SentinelService/ListNodes")


async def test_a_living_agents_socket_is_left_alone(path: Path, questions: Questions) -> None:
    with pytest.raises(SocketInUse, match="another agent"):
        async with serve_queries(path, questions):
            pass
    assert "node-1" in await grpcurl(path, "gcm_sentinel.v1.SentinelService/ListNodes")


async def test_grpcurl_finds_its_way_without_proto_files(path: Path) -> None:
    assert set((await grpcurl(path, "list")).split()) == {
        "gcm_sentinel.v1.NodeControlService",
        "gcm_sentinel.v1.SentinelService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert "rpc ListEvidence" in await grpcurl(path, "describe", "gcm_sentinel.v1.SentinelService")
    assert "SERVING" in await grpcurl(path, "grpc.health.v1.Health/Check")


async def test_grpcurl_lists_evidence(path: Path, node: Node) -> None:
    at_second(node, 100, "kernel_line", line="NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.")
    answer = json.loads(
        await grpcurl(path, "gcm_sentinel.v1.SentinelService/ListEvidence", data={"kinds": ["kernel_line"]})
    )
    (stored,) = answer["evidence"]
    assert stored["id"] == f"node-1/test/{node.recorder.agent_epoch}/1"
    assert "Xid" in stored["evidence"]["kernel_record"]["line"]


async def test_pages_hold_everything_once_and_in_order(sentinel: SentinelServiceStub, node: Node) -> None:
    node.report(250)
    details: list[str] = []
    token = ""
    while True:
        page = await sentinel.ListEvidence(pb.ListEvidenceRequest(page_size=60, page_token=token))
        details += [stored.evidence.detail for stored in page.evidence]
        token = page.next_page_token
        if not token:
            break
        node.report(1)  # what arrives meanwhile comes at the end
    assert [int(detail) for detail in details] == list(range(1, len(details) + 1))
    assert len(details) == 254


async def test_the_default_page_is_a_hundred(sentinel: SentinelServiceStub, node: Node) -> None:
    node.report(150)
    assert len((await sentinel.ListEvidence(pb.ListEvidenceRequest())).evidence) == 100


async def test_a_page_fits_a_clients_message(sentinel: SentinelServiceStub, node: Node) -> None:
    node.report(700, "x" * 8000)
    first = await sentinel.ListEvidence(pb.ListEvidenceRequest(page_size=1000))
    assert 0 < len(first.evidence) < 700
    assert first.next_page_token


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (pb.ListEvidenceRequest(kinds=["xid"]), [1, 2]),
        (pb.ListEvidenceRequest(kinds=["xid", "kernel_line"]), [1, 2, 3]),
        (pb.ListEvidenceRequest(gpu="GPU-aaaa"), [1]),
        (pb.ListEvidenceRequest(gpu="gpu-BBBB"), [2]),
        (pb.ListEvidenceRequest(gpu="0000:3b:00.0"), [1, 3]),
        (pb.ListEvidenceRequest(gpu="00000000:3B:00.0"), [1, 3]),
        (pb.ListEvidenceRequest(gpu="3b:00"), [1, 3]),
        (pb.ListEvidenceRequest(node="node-1", gpu="0000:17:00.0"), []),
    ],
    ids=lambda value: str(value).replace("\n", " ") if isinstance(value, pb.ListEvidenceRequest) else "",
)
async def test_filters(
    sentinel: SentinelServiceStub, node: Node, request_: pb.ListEvidenceRequest, expected: list[int]
) -> None:
    at_second(node, 1, "xid", GPU_0)
    at_second(node, 2, "xid", GPU_1)
    at_second(node, 3, "kernel_line", line="NVRM: Xid (PCI:0000:3b:00): 79")
    at_second(node, 4, "agent_started")
    page = await sentinel.ListEvidence(request_)
    assert [stored.evidence.occurred_at.seconds for stored in page.evidence] == expected


async def test_since_is_within_and_until_is_not(sentinel: SentinelServiceStub, node: Node) -> None:
    for second in range(1, 6):
        at_second(node, second)
    request = pb.ListEvidenceRequest()
    request.since.seconds, request.until.seconds = 2, 4
    page = await sentinel.ListEvidence(request)
    assert [stored.evidence.occurred_at.seconds for stored in page.evidence] == [2, 3]


def time_range(since: int, until: int) -> pb.ListEvidenceRequest:
    request = pb.ListEvidenceRequest()
    request.since.seconds, request.until.seconds = since, until
    return request


@pytest.mark.parametrize(
    ("request_", "code", "says"),
    [
        (pb.ListEvidenceRequest(page_size=1001), grpc.StatusCode.INVALID_ARGUMENT, "page_size must be at most 1000"),
        (pb.ListEvidenceRequest(page_token="junk"), grpc.StatusCode.INVALID_ARGUMENT, "page_token"),
        (pb.ListEvidenceRequest(page_token="other:0"), grpc.StatusCode.INVALID_ARGUMENT, "page_token"),
        (pb.ListEvidenceRequest(gpu="the first one"), grpc.StatusCode.INVALID_ARGUMENT, "gpu must be"),
        (time_range(5, 5), grpc.StatusCode.INVALID_ARGUMENT, "until must be later"),
        (pb.ListEvidenceRequest(node="node-2"), grpc.StatusCode.NOT_FOUND, "ask the aggregator about 'node-2'"),
    ],
    ids=["page size", "no token", "another spool's token", "gpu", "time range", "node"],
)
async def test_a_bad_request_says_what_is_wrong(
    sentinel: SentinelServiceStub, request_: pb.ListEvidenceRequest, code: grpc.StatusCode, says: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await sentinel.ListEvidence(request_)
    assert caught.value.code() is code
    assert says in (caught.value.details() or "")


async def test_watching_shows_what_comes_from_now_on(sentinel: SentinelServiceStub, node: Node) -> None:
    node.report(5)
    call = sentinel.WatchEvidence(pb.WatchEvidenceRequest(kinds=["numbered"]))
    await call.initial_metadata()
    at_second(node, 9, "agent_started")
    node.report(3)
    seen = []
    async with asyncio.timeout(5):
        async for response in call:
            seen.append(response.evidence.evidence.detail.strip())
            if len(seen) == 3:
                break
    call.cancel()
    assert seen == ["6", "7", "8"]


async def test_watching_one_gpu_shows_what_is_about_it(sentinel: SentinelServiceStub, node: Node) -> None:
    call = sentinel.WatchEvidence(pb.WatchEvidenceRequest(gpu="0000:3b:00.0"))
    await call.initial_metadata()
    at_second(node, 1, gpu=GPU_1)
    at_second(node, 2, gpu=GPU_0)
    seen = await asyncio.wait_for(call.read(), 5)
    call.cancel()
    assert seen.evidence.evidence.occurred_at.seconds == 2


async def test_watching_no_gpu_by_any_name_is_refused(sentinel: SentinelServiceStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="gpu must be"):
        await sentinel.WatchEvidence(pb.WatchEvidenceRequest(gpu="the first one")).read()


async def test_one_node_with_its_snapshot(sentinel: SentinelServiceStub) -> None:
    response = await sentinel.GetNode(pb.GetNodeRequest(node="node-1"))
    assert (response.node.agent_version, response.snapshot.inventory.driver_version) == ("1.2.3", "570.1")


async def test_collect_now_reads_afresh_or_says_why_not(sentinel: SentinelServiceStub, node: Node) -> None:
    response = await sentinel.CollectNow(pb.CollectNowRequest())
    assert response.snapshot.inventory.driver_version == "570.1"
    node.snapshot_error = RuntimeError("the driver hangs")
    with pytest.raises(grpc.aio.AioRpcError, match="the driver hangs"):
        await sentinel.CollectNow(pb.CollectNowRequest(node="node-1"))


@pytest.mark.parametrize("method", ["ListIncidents", "GetIncident", "ListAssessments", "GetAssessment", "Investigate"])
async def test_what_a_node_cannot_know_is_sent_to_the_aggregator(path: Path, method: str) -> None:
    answer = await grpcurl(path, f"gcm_sentinel.v1.SentinelService/{method}")
    assert "Unimplemented" in answer
    assert "ask the aggregator" in answer


async def test_the_driver_is_let_go_and_taken_up_again(path: Path) -> None:
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        control = NodeControlServiceStub(channel)
        yielded = await control.Yield(pb.YieldRequest(seconds=600))
        resumed = await control.Yield(pb.YieldRequest(seconds=0))
        with pytest.raises(grpc.aio.AioRpcError, match="86400"):
            await control.Yield(pb.YieldRequest(seconds=86_401))
    assert (yielded.yielded, yielded.resumes_at.seconds) == (True, 1_700_000_600)
    assert (resumed.yielded, resumed.HasField("resumes_at")) == (False, False)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
async def test_another_user_cannot_ask(questions: Questions) -> None:
    code = "import os,socket,sys; os.setuid(65534); socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "agent.sock"
        path.parent.chmod(0o755)  # the socket's own mode must be enough
        async with serve_queries(path, questions):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, str(path), stderr=asyncio.subprocess.PIPE
            )
            _, stderr = await process.communicate()
    assert b"PermissionError" in stderr
