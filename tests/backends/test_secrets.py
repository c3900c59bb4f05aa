"""A key goes to its endpoint and nowhere else: not into errors, logs, representations or frames of a traceback."""

from __future__ import annotations

import logging
import traceback

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from aggregator.investigator.llm import BackendFailed, FailureKind
from aggregator.investigator.llm.backends import backend_of
from tests.backends.conftest import MODELS, open_session
from tests.doubles.llm import KEY, Broken, Status, Step, forever, say

PROMPT_WORD = "marker-of-the-prompt"
QUOTED = f"no such thing: {KEY}\r\n\x1b[31mred\x07 {KEY[:8]}… https://evil.example/{KEY}"


def shown_by(error: BaseException) -> str:
    """All that any renderer could show of it: chain, notes, and the locals of our frames."""
    parts = [repr(error), str(error), repr(error.args)]
    frames = traceback.TracebackException.from_exception(error, capture_locals=True).stack
    parts += [str(frame.locals) for frame in frames if "/aggregator/" in frame.filename]
    assert error.__cause__ is None
    assert error.__context__ is None
    return "\n".join(parts)


@pytest.mark.parametrize(
    "step",
    [
        Status(400, message=QUOTED),
        Status(401, message=QUOTED),
        Status(500, message=QUOTED),
        Broken(say("x " * 40), "error", kind=KEY),
        Broken(say("x " * 40), "cut"),
    ],
    ids=["400", "401", "500", "amid", "cut"],
)
async def test_a_failure_tells_nothing_of_the_key(api: str, step: Step, caplog: pytest.LogCaptureFixture) -> None:
    """Even where the endpoint quotes it, and somebody logs everything."""
    caplog.set_level(logging.DEBUG)
    async with open_session(api, forever(step)) as session:
        with capture_logs() as logs, pytest.raises(BackendFailed) as failed:
            await session.turn(system=PROMPT_WORD)
    shown = shown_by(failed.value)
    assert KEY not in shown
    assert str(failed.value).isprintable()
    assert KEY not in str(logs)
    assert KEY not in caplog.text
    assert PROMPT_WORD not in caplog.text + str(logs) + str(failed.value)


async def test_a_wrong_key_is_told_in_our_own_words(api: str) -> None:
    """Endpoints quote the key, or its beginning and end."""
    async with open_session(api, say("x"), key="sk-wrong-1234567890") as session:
        for ask in (session.backend.probe, session.turn):
            with pytest.raises(BackendFailed) as failed:
                await ask()
            assert failed.value.kind is FailureKind.AUTHENTICATION
            assert str(failed.value) == "the endpoint refused the key (401)"


async def test_a_backend_shows_no_key(api: str) -> None:
    """Neither itself nor what it is made of."""
    backend = backend_of(api, model=MODELS[api], key=SecretStr(KEY), base_url="http://127.0.0.1:9")
    seen: set[int] = set()

    def walk(value: object, depth: int) -> None:
        assert KEY not in repr(value)
        if depth and id(value) not in seen and hasattr(value, "__dict__"):
            seen.add(id(value))
            for inner in vars(value).values():
                walk(inner, depth - 1)

    walk(backend, 4)
    await backend.close()


async def test_a_redirect_takes_the_prompt_nowhere(api: str) -> None:
    """Both SDKs would post it again to the other origin."""
    from tests.doubles.llm import Redirect, ScriptedLlm

    with ScriptedLlm(say("gotcha"), key=None) as other:
        async with open_session(api, forever(Redirect(f"{other.url}/v1/messages"))) as session:
            with pytest.raises(BackendFailed) as failed:
                await session.turn()
        assert other.requests == []
    assert failed.value.kind is FailureKind.UNREACHABLE
