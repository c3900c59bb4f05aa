"""The agent's end of the child that calls NVML: start it, ask it with a deadline, end it.

Only the child may hang. The one escape is SIGKILL, and that does not end a process in uninterruptible sleep: whoever holds such
a child must wait for it and start no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from node_agent.nvml.codes import DriverError

Message = Mapping[str, Any]
COMMAND: Final = (sys.executable, "-X", "faulthandler", "-m", "node_agent.nvml.child")
_WHERE_SECONDS: Final = 0.5  # the child's main thread never calls the driver: it answers at once, or not at all
_REAP_SECONDS: Final = 2.0


class ChildHung(Exception):
    """A request was not answered by its deadline; the text says what was being called."""


class ChildCrashed(Exception):
    """The child ended unasked; the text says how."""


class NvmlChild(asyncio.SubprocessProtocol):
    """One child process. Requests go one at a time; events come when they come, to `on_message`."""

    def __init__(self, on_message: Callable[[Message], None]) -> None:
        self._on_message = on_message
        self._transport: asyncio.SubprocessTransport | None = None
        self._partial = bytearray()
        self._last_id = 0
        self._reply: asyncio.Future[Message] | None = None
        self._where: asyncio.Future[Message] | None = None
        self.killed = False
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(
        cls,
        on_message: Callable[[Message], None],
        arguments: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> NvmlChild:
        """Start a child by exec. It inherits stderr, for its tracebacks."""
        loop = asyncio.get_running_loop()
        _, child = await loop.subprocess_exec(lambda: cls(on_message), *COMMAND, *arguments, env=environ, stderr=None)
        return child

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._transport is not None
        return self._transport.get_pid()

    async def ask(self, do: str, deadline_seconds: float) -> Message:
        """The reply to one request. Raises ChildHung, ChildCrashed, DriverError."""
        self._last_id += 1
        self._reply = asyncio.get_running_loop().create_future()
        if self.exited.done():
            raise ChildCrashed(_how_it_ended(self.exited.result()))
        try:
            self._write({"id": self._last_id, "do": do})
            async with asyncio.timeout(deadline_seconds):
                reply = await self._reply
        except TimeoutError:
            raise ChildHung(f"no answer to {do} in {deadline_seconds:g} s: {await self._what_is_called()}") from None
        finally:
            self._reply = None
        if "refused" in reply:
            raise DriverError(*reply["refused"])
        return reply

    async def close(self, deadline_seconds: float) -> None:
        """Shut NVML down, end the child, reap it. Raises ChildHung, ChildCrashed."""
        with contextlib.suppress(DriverError):  # it refuses even to shut down: ending the process lets go of everything
            await self.ask("close", deadline_seconds)
        self._stdin().close()
        try:
            async with asyncio.timeout(deadline_seconds):
                await asyncio.shield(self.exited)
        except TimeoutError:
            raise ChildHung(
                f"the child did not end in {deadline_seconds:g} s: {await self._what_is_called()}"
            ) from None

    async def kill(self) -> bool:
        """SIGKILL, once. True when the child is reaped; False leaves a child that only the kernel can end."""
        assert self._transport is not None
        if not self.exited.done() and not self.killed:
            self._transport.kill()
        self.killed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REAP_SECONDS):
                await asyncio.shield(self.exited)
        return self.exited.done()

    # --- asyncio's side
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Called by the event loop."""
        self._partial += data
        while (end := self._partial.find(b"\n")) >= 0:
            line = bytes(self._partial[:end])
            del self._partial[: end + 1]
            self._receive(json.loads(line))

    def process_exited(self) -> None:
        """Called by the event loop."""
        assert self._transport is not None
        returncode = self._transport.get_returncode()
        assert returncode is not None
        self.exited.set_result(returncode)
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ChildCrashed(_how_it_ended(returncode)))
        self._transport.close()

    def _receive(self, message: Message) -> None:
        if "where" in message:
            _resolve(self._where, message["where"])
        elif "id" not in message:
            self._on_message(message)
        elif message["id"] == self._last_id:
            _resolve(self._reply, message)

    def _write(self, request: Message) -> None:
        self._stdin().write(json.dumps(request).encode() + b"\n")

    def _stdin(self) -> asyncio.WriteTransport:
        assert self._transport is not None
        pipe = self._transport.get_pipe_transport(0)
        assert isinstance(pipe, asyncio.WriteTransport)
        return pipe

    async def _what_is_called(self) -> str:
        self._where = asyncio.get_running_loop().create_future()
        try:
            self._write({"do": "where"})
            async with asyncio.timeout(_WHERE_SECONDS):
                where = await self._where
        except TimeoutError:
            return f"the whole process {self.pid} is stuck{_kernel_view(self.pid, self.pid)}"
        about = f" for {where['about']}" if where["about"] else ""
        stuck = _kernel_view(self.pid, where["thread"])
        return f"{where['function'] or 'nothing'}{about} has been running for {where['seconds']:.1f} s{stuck}"


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: with its id, its name until the next boot. None: no such process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None


def _resolve(future: asyncio.Future[Message] | None, message: Message) -> None:
    if future is not None and not future.done():
        future.set_result(message)


def _how_it_ended(returncode: int) -> str:
    if returncode >= 0:
        return f"the process that calls NVML ended with status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"the process that calls NVML was killed by {name}"


def _kernel_view(pid: int, thread: int) -> str:
    """Where the thread is in the kernel, as far as the kernel says (our own child's files never block)."""
    task = Path(f"/proc/{pid}/task/{thread}")
    try:
        state = (task / "stat").read_text().rpartition(")")[2].split()[0]
        wchan = (task / "wchan").read_text().strip("0 \n")
    except OSError:
        return ""
    return f" (state {state}{', in ' + wchan if wchan else ''})"
