"""The scripted endpoint: one loopback server for three wire formats, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any, Self

from tests.doubles.llm import chat, messages, responses
from tests.doubles.llm.http import Answer, HttpRequest, read_request
from tests.doubles.llm.memory import Memory, Refusal
from tests.doubles.llm.script import (
    Asked,
    Broken,
    Huge,
    Redirect,
    Reply,
    Script,
    ScriptExhausted,
    Status,
    Step,
    call,
    say,
    script_of,
)

KEY = "sk-scripted-7f3a9b2c4d5e6f708192a3b4"
MODELS = ("claude-sonnet-5-5", "claude-sonnet-4-6", "gpt-5.5", "local-model")
READY = "ready"  # the tool with which a backend tries what an endpoint takes
READY_IN_WORDS = f'"name":"{READY}"'
ROUTES: Mapping[str, ModuleType] = {"/v1/messages": messages, "/v1/responses": responses, "/v1/chat/completions": chat}


@dataclass
class Recorded:
    """One request, as it came and as it was answered."""

    method: str
    path: str
    headers: Mapping[str, str]
    raw: bytes
    status: int = 0
    message: str = ""  # of a refusal
    probe: bool = False

    @property
    def body(self) -> dict[str, Any]:
        """Parsed; a request for a model has none."""
        return dict(json.loads(self.raw)) if self.raw else {}


@dataclass
class ScriptedLlm:
    """See the package's docstring. A context manager, for tests with or without an event loop."""

    given: Script | Sequence[Step] | Step
    key: str | None = KEY  # None: keyless, as a local endpoint is
    models: Sequence[str] = MODELS
    context_tokens: int = 1_000_000
    output_tokens: int = 128_000
    max_bytes: int = 32 * 2**20
    without: Collection[str] = ()  # of a compatible endpoint: models, tools, calls, schema, schema_with_tools
    on_models: Status | Redirect | None = None  # a fault in place of what is known of models
    on_trial: Status | None = None  # and of what an endpoint takes
    requests: list[Recorded] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # the script ended too early or raised
    port: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        self._script = script_of(self.given)
        self._memory = Memory()
        self._open: set[asyncio.Task[None]] = set()

    @property
    def turns(self) -> list[Recorded]:
        """The requests that asked for a turn and were not refused, probes left out."""
        return [one for one in self.requests if one.path in ROUTES and not one.message and not one.probe]

    @property
    def refused(self) -> list[Recorded]:
        """The requests that a real endpoint would have refused."""
        return [one for one in self.requests if one.message]

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(started),), name="scripted-llm")
        self._thread.start()
        started.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if kind is None and self.problems:
            raise AssertionError("; ".join(self.problems))

    def stop(self) -> None:
        """Go away: from now on nobody listens at the URL."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join()

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, limit=2**20)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        await self._stopped.wait()
        server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._answer(await read_request(reader), Answer(writer))
        finally:
            self._open.discard(task)
            writer.close()

    async def _answer(self, request: HttpRequest, answer: Answer) -> None:
        path = request.path.partition("?")[0]
        recorded = Recorded(request.method, path, request.headers, request.body)
        self.requests.append(recorded)
        wire = ROUTES.get(path) or (messages if "anthropic-version" in request.headers else chat)
        try:
            self._check_key(request.headers)
            if path in ROUTES:
                await self._turn(wire, recorded, answer)
            elif path.startswith("/v1/models") and "models" not in self.without:
                await self._models(wire, path.removeprefix("/v1/models").lstrip("/"), answer)
            else:
                await answer.whole(404, b"<html>Not Found</html>", {"content-type": "text/html"})
        except Refusal as refusal:
            recorded.status, recorded.message = refusal.status, refusal.message
            await answer.whole(refusal.status, wire.error(refusal.status, refusal.message, refusal.kind, refusal.param))

    def _check_key(self, headers: Mapping[str, str]) -> None:
        sent = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if self.key is not None and sent != self.key:
            raise Refusal(f"invalid x-api-key: {sent}", status=401)  # a real endpoint may well quote it

    def _check_model(self, model: str) -> None:
        if model not in self.models:
            raise Refusal(f"model: {model}", status=404, param="model")

    async def _models(self, wire: ModuleType, model: str, answer: Answer) -> None:
        if self.on_models is not None:
            await self._play(wire, self.on_models, None, answer)
            return
        if model:
            self._check_model(model)
        infos = [wire.model_info(one, self.context_tokens, self.output_tokens) for one in self.models]
        value = {"object": "list", "data": infos} if not model else infos[list(self.models).index(model)]
        await answer.whole(200, json.dumps(value).encode())

    async def _turn(self, wire: ModuleType, recorded: Recorded, answer: Answer) -> None:
        asked = self._check(wire, recorded)
        if set(asked.tools) == {READY} or READY_IN_WORDS in asked.system:
            recorded.probe = True
            await self._play(wire, self.on_trial or self._probed(asked), asked, answer)
            return
        try:
            step = self._script(asked)
        except ScriptExhausted as problem:
            self.problems.append(str(problem))
            raise Refusal(f"the script is at its end: {problem}") from problem
        except Exception as problem:
            self.problems.append(f"the script failed at request {asked.number}: {problem!r}")
            raise Refusal(f"the script failed: {problem!r}") from problem
        await self._play(wire, step, asked, answer)

    def _check(self, wire: ModuleType, recorded: Recorded) -> Asked:
        if len(recorded.raw) > self.max_bytes:
            raise Refusal("Request exceeds the maximum size", status=413)
        body = recorded.body
        if not body.get("stream"):
            raise Refusal("stream: the scripted server streams only")
        self._check_model(body["model"])
        wire.check(body, self._memory)
        limit = body.get("max_tokens") or body.get("max_output_tokens") or 0
        if limit > self.output_tokens:
            raise Refusal(
                f"max_tokens: {limit} > {self.output_tokens}, which is the maximum allowed number of output tokens"
            )
        tokens = len(recorded.raw) // 4
        if tokens > self.context_tokens:
            too_long = f"prompt is too long: {tokens} tokens > {self.context_tokens} maximum"
            raise Refusal(too_long, kind="" if wire is messages else "context_length_exceeded")
        self._check_features(body)
        asked: Asked = wire.read(len(self.turns) - 1, recorded.headers, body)
        return asked

    def _check_features(self, body: Mapping[str, Any]) -> None:
        for feature, parameter in (("tools", "tools"), ("schema", "response_format")):
            if feature in self.without and body.get(parameter):
                raise Refusal(f"this model does not support {parameter}", param=parameter)

    def _probed(self, asked: Asked) -> Reply:
        constrained = asked.schema is not None and "schema_with_tools" in self.without
        return say("Ready.") if constrained or "calls" in self.without else call(READY)

    async def _play(self, wire: ModuleType, step: Step, asked: Asked | None, answer: Answer) -> None:
        if isinstance(step, Status):
            body = step.body if step.body is not None else wire.error(step.code, step.message or "scripted", step.kind)
            headers = {**step.headers, **({"retry-after": step.retry_after} if step.retry_after else {})}
            await answer.whole(step.code, body, headers)
        elif isinstance(step, Redirect):
            await answer.whole(307, b"", {"location": step.to})
        elif isinstance(step, Huge):
            await _pour(step, answer)
        else:
            assert asked is not None
            await self._speak(wire, step, asked, answer)

    async def _speak(self, wire: ModuleType, step: Reply | Broken, asked: Asked, answer: Answer) -> None:
        reply = step.reply if isinstance(step, Broken) else step
        await asyncio.sleep(reply.delay_seconds)
        await answer.start()
        for number, event in enumerate(wire.stream(reply, asked, self._memory)):
            if isinstance(step, Broken) and number == step.after_events:
                await _break(wire, step, answer)
                return
            await asyncio.sleep(reply.chunk_seconds)
            await answer.chunk(event)
        await answer.end()


async def _break(wire: ModuleType, step: Broken, answer: Answer) -> None:
    if step.how == "cut":
        answer.cut()
        return
    if step.how == "silence":
        await asyncio.sleep(step.seconds)
    elif step.how == "error":
        await answer.chunk(wire.error_event(step.kind))
    elif step.how == "garbage":
        await answer.chunk(b"event: content_block_delta\ndata: {not json\n\n")
    else:
        assert step.how == "end", f"no way to break a stream: {step.how}"
    await answer.end()


async def _pour(step: Huge, answer: Answer) -> None:
    await answer.start(step.status)
    block = b"data: " + b"x" * 2**16 if step.status == 200 else b"x" * 2**16
    for _ in range(step.count // len(block)):
        await answer.chunk(block)
    await answer.end()
