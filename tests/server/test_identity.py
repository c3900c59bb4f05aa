"""Who may write and who may read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from aggregator.identity import Forbidden, IdentityUnusable, LocalTrust, TokensFile, Unauthenticated
from protos.v1 import sentinel_pb2
from tests.server.aggregator import agent, asking, eventually, lines, running

NODE_TOKEN = "node-token-0123456789"
READER_TOKEN = "reader-token-0123456789"
TOKENS = [{"token": NODE_TOKEN, "node": "gpu-1"}, {"token": READER_TOKEN, "reader": "alice"}]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps({"tokens": TOKENS}))
    return path


def test_loopback_is_believed() -> None:
    LocalTrust().admit_agent(None, "any")
    assert LocalTrust().admit_reader(None) == "local"


def test_a_token_admits_its_holder(tokens: Path) -> None:
    identity = TokensFile(tokens)
    identity.admit_agent(f"Bearer {NODE_TOKEN}", "gpu-1")
    identity.admit_agent(f"bearer {NODE_TOKEN}", "gpu-1")
    assert identity.admit_reader(f"Bearer {READER_TOKEN}") == "alice"


REFUSED: list[tuple[Callable[[TokensFile], object], type[Exception]]] = [
    (lambda identity: identity.admit_agent(None, "gpu-1"), Unauthenticated),
    (lambda identity: identity.admit_agent(NODE_TOKEN, "gpu-1"), Unauthenticated),
    (lambda identity: identity.admit_agent("Bearer wrong", "gpu-1"), Unauthenticated),
    (lambda identity: identity.admit_agent("Bearer ", "gpu-1"), Unauthenticated),
    (lambda identity: identity.admit_agent(f"Bearer {NODE_TOKEN}", "gpu-2"), Forbidden),
    (lambda identity: identity.admit_agent(f"Bearer {READER_TOKEN}", "gpu-1"), Forbidden),
    (lambda identity: identity.admit_reader(f"Bearer {NODE_TOKEN}"), Forbidden),
    (lambda identity: identity.admit_reader(None), Unauthenticated),
]


@pytest.mark.parametrize(("attempt", "error"), REFUSED)
def test_others_are_refused(attempt: Callable[[TokensFile], object], error: type[Exception], tokens: Path) -> None:
    with pytest.raises(error) as refused:
        attempt(TokensFile(tokens))
    assert NODE_TOKEN not in str(refused.value)


def test_a_changed_file_is_read_again(tokens: Path) -> None:
    identity = TokensFile(tokens)
    tokens.with_suffix(".new").write_text(json.dumps({"tokens": [{"token": "x" * 20, "reader": "bob"}]}))
    tokens.with_suffix(".new").replace(tokens)
    assert identity.admit_reader(f"Bearer {'x' * 20}") == "bob"
    with pytest.raises(Unauthenticated):
        identity.admit_reader(f"Bearer {READER_TOKEN}")


@pytest.mark.parametrize("damage", [lambda path: path.write_text("{"), os.remove])
def test_a_file_that_is_damaged_later_locks_nobody_out(damage: Callable[[Path], object], tokens: Path) -> None:
    identity = TokensFile(tokens)
    damage(tokens)
    assert identity.admit_reader(f"Bearer {READER_TOKEN}") == "alice"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"tokens": 7}',
        '{"tokens": [7]}',
        '{"tokens": [{"token": "short", "node": "n"}]}',
        '{"tokens": [{"token": "0123456789abcdef"}]}',
        '{"tokens": [{"token": "0123456789abcdef", "node": "n", "reader": "r"}]}',
    ],
)
def test_a_file_that_is_wrong_at_the_start_is_refused_with_its_form(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(text)
    with pytest.raises(IdentityUnusable, match=r'tokens\.json: expected \{"tokens"'):
        TokensFile(path)


def test_tokens_are_not_kept_in_the_clear(tokens: Path) -> None:
    assert NODE_TOKEN not in repr(vars(TokensFile(tokens)))


async def test_streams_and_questions_need_their_tokens(tokens: Path, tmp_path: Path) -> None:
    async with running(tmp_path, authenticator=TokensFile(tokens)) as aggregator:
        async with agent(aggregator, NODE_TOKEN) as stream:
            await stream.greet("gpu-1")
            assert await stream.deliver(lines(1, 1)) == 1
        for token, node, code in (
            (None, "gpu-1", grpc.StatusCode.UNAUTHENTICATED),
            (NODE_TOKEN, "gpu-2", grpc.StatusCode.PERMISSION_DENIED),
            (READER_TOKEN, "gpu-1", grpc.StatusCode.PERMISSION_DENIED),
        ):
            async with agent(aggregator, token) as stream:
                await stream.say(hello={"node": node, "installation_id": "i"})
                assert (await stream.status())[0] is code
        async with asking(aggregator) as stub:
            for token, expected in (
                (None, grpc.StatusCode.UNAUTHENTICATED),
                (NODE_TOKEN, grpc.StatusCode.PERMISSION_DENIED),
            ):
                metadata = (("authorization", f"Bearer {token}"),) if token else None
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.ListNodes(sentinel_pb2.ListNodesRequest(), metadata=metadata)
                assert refused.value.code() is expected
                watch = stub.WatchEvidence(sentinel_pb2.WatchEvidenceRequest(), metadata=metadata)
                assert await watch.code() is expected
            reader = (("authorization", f"Bearer {READER_TOKEN}"),)

            async def shown() -> bool:
                nodes = (await stub.ListNodes(sentinel_pb2.ListNodesRequest(), metadata=reader)).nodes
                return [(node.name, node.observed) for node in nodes] == [("gpu-1", "rejected")]

            await eventually(shown)
