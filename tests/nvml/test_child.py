"""The child process alone: it ends with its agent, owns its pipe, and asks the driver no more than it must."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.nvml.double import Action, NvmlDouble, environment


class Child:
    """A child under a test's control."""

    def __init__(self, environ: dict[str, str], *arguments: str) -> None:
        command = [sys.executable, "-m", "node_agent.nvml.child", *arguments]
        self.process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._asked = 0

    def send(self, do: str) -> None:
        """Ask and do not wait."""
        self._asked += 1
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"id": self._asked, "do": do}).encode() + b"\n")
        self.process.stdin.flush()

    def line(self) -> Any:
        """The next message."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, do: str) -> Any:
        """Ask and wait."""
        self.send(do)
        return self.line()

    def leave(self) -> int:
        """Close its stdin, as a dying agent does, and wait for its end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if not self.process.stdin.closed:
            self.process.stdin.close()
        try:
            return self.process.wait(5)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    """Starts children and ends them."""
    children: list[Child] = []

    def make(double: NvmlDouble, *arguments: str) -> Child:
        children.append(Child(environment(double), *arguments))
        return children[-1]

    yield make
    for child in children:
        child.leave()


def test_it_leaves_and_shuts_nvml_down_when_its_agent_dies(start: Callable[..., Child], double: NvmlDouble) -> None:
    child = start(double)
    child.ask("open")
    assert double.clients == 1
    assert child.leave() == 0
    assert (double.clients, double.holders()) == (0, [])


def test_it_leaves_when_its_agent_dies_during_a_hang(start: Callable[..., Child], double: NvmlDouble) -> None:
    child = start(double)
    child.ask("open")
    double.rule("nvmlDeviceGetPowerUsage", Action.HANG)
    child.send("counters")
    assert child.leave() == 0


def test_it_says_what_is_being_called_while_that_hangs(start: Callable[..., Child], double: NvmlDouble) -> None:
    child = start(double)
    child.ask("open")
    double.rule("nvmlDeviceGetFieldValues", Action.HANG, gpu=1)
    child.send("critical")
    where = child.ask("where")["where"]
    assert (where["function"], where["about"]) == ("nvmlDeviceGetFieldValues", double.gpu(1).uuid)


def test_it_ignores_the_terminals_interrupt(start: Callable[..., Child], double: NvmlDouble) -> None:
    """Ctrl-C reaches the whole process group; the agent decides when the child ends."""
    child = start(double)
    child.ask("open")
    child.process.send_signal(signal.SIGINT)
    assert child.ask("critical")["count"] == 2


def test_what_the_library_prints_does_not_reach_the_agent(
    start: Callable[..., Child], double: NvmlDouble, tmp_path: Path
) -> None:
    """A driver library that writes to stdout must not break the protocol."""
    child = start(double)
    child.ask("open")
    assert Path(f"/proc/{child.process.pid}/fd/1").readlink() == Path(f"/proc/{child.process.pid}/fd/2").readlink()


def test_a_gpu_that_is_lost_is_asked_no_further(start: Callable[..., Child], double: NvmlDouble) -> None:
    child = start(double)
    child.ask("open")
    child.ask("snapshot")
    double.gpu(0).lose()
    double.gpu(1).lose()
    double.forget_calls()
    reply = child.ask("critical")
    while "id" not in reply:  # the event set failed too
        reply = child.line()
    assert double.calls("nvmlDeviceGetCurrentClocksEventReasons") == 2
    assert double.calls("nvmlDeviceGetTemperatureV") == double.calls("nvmlDeviceGetFieldValues") == 0


BUDGETS = {  # calls per GPU, beside one count of GPUs: (first snapshot, critical, counters)
    "h100": (38, 4, 17),
    "a100_mig": (46, 3, 26),
    "rtx4090": (32, 2, 8),
}


@pytest.mark.parametrize("profile", BUDGETS)
def test_a_round_stays_within_its_budget_of_calls(
    start: Callable[..., Child], make_double: Callable[..., NvmlDouble], profile: str
) -> None:
    """What a GPU does not offer is not asked again before the next snapshot."""
    double = make_double(profile, gpus=8)
    child = start(double)
    child.ask("open")
    events = (
        "nvmlEventSetWait_v2",
        "nvmlEventSetCreate",
        "nvmlDeviceRegisterEvents",
        "nvmlDeviceGetSupportedEventTypes",
    )
    for group, budget in zip(("snapshot", "critical", "counters"), BUDGETS[profile], strict=True):
        double.forget_calls()
        child.ask(group)
        assert double.calls() - sum(map(double.calls, events)) <= budget * 8 + 1


def test_the_child_imports_nothing_of_the_agents_side(double: NvmlDouble) -> None:
    """It must fit 15 MB: no protobuf, no grpc, no asyncio, no dataclasses."""
    code = (
        "import sys, node_agent.nvml.child, node_agent.nvml.driver, node_agent.nvml.simulated; "
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(eval(loaded)) & {"google", "grpc", "asyncio", "protos", "dataclasses", "inspect", "logging"} == set()
