"""The child process alone: it ends with its agent, owns its pipe, and asks the driver no more than it must."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.doubles.nvml.double import Action, NvmlDouble, environment
from tests.nvml.children import Child


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
    double.forget_calls()
    child.send("critical")
    while double.calls("nvmlDeviceGetFieldValues") < 2:
        time.sleep(0.01)
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
    bare = {
        name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")
    }  # coverage imports too
    loaded = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True).stdout
    assert set(eval(loaded)) & {"google", "grpc", "asyncio", "protos", "dataclasses", "inspect", "logging"} == set()
