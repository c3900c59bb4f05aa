"""`make run`: an aggregator, this machine's own agent, and beside it a simulated node that lives through a fault, until Ctrl-C."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from aggregator import wire
from aggregator.demo.interrupt import Interrupt
from aggregator.demo.play import list_incidents, perform, wait_for_inventory
from aggregator.demo.processes import AgentProcess, AggregatorProcess, SimulatedNode, free_port, temporary_directory
from aggregator.demo.scenario import load_scenarios
from aggregator.render import render_text
from protos.v1 import sentinel_pb2_grpc

DEFAULT_PORTS = (50051, 9464, 8080)  # gRPC, metrics, pages
DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORTS[0]}"  # what commands ask when nothing is set
SCENARIO = "gpu_fallen_off_bus"
VERDICT_TIMEOUT_SECONDS = 30.0


def run_live(interrupt: Interrupt) -> int:
    """Show the whole chain at work; return when the user has seen enough. Exit code 1 when no verdict came."""
    try:
        return _show_until(interrupt)
    except KeyboardInterrupt:
        return 0


def _show_until(interrupt: Interrupt) -> int:
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(temporary_directory()))
        aggregator = AggregatorProcess(directory / "aggregator", ports=[_port(port) for port in DEFAULT_PORTS])
        stack.callback(aggregator.stop)
        _say("Starting the aggregator on an embedded database ...")
        aggregator.start()
        aggregator.wait_ready(sleep=interrupt.sleep)
        host = AgentProcess(directory / "this-machine", aggregator.address, node=socket.gethostname())
        _say(f"Starting this machine's agent ({_kernel_log_access()}; {_driver_access()}) ...")
        stack.callback(host.stop)
        host.start()
        (scenario,) = load_scenarios([SCENARIO])
        node = SimulatedNode(scenario.nodes[0], directory / "simulated", aggregator.address)
        _say(f"Starting the agent of {node.name}, an eight-GPU node made of files ...")
        stack.callback(node.agent.stop)
        node.agent.start()
        stub = sentinel_pb2_grpc.SentinelServiceStub(stack.enter_context(grpc.insecure_channel(aggregator.address)))
        wait_for_inventory(stub, [node], interrupt.sleep)
        _say(f"\n{node.name}: {scenario.title[:1].lower()}{scenario.title[1:]}.\n")
        began = time.monotonic()
        for step in scenario.steps:
            interrupt.sleep(step.after_seconds)
            perform(step, node)
        shown = _show_verdict(stub, node.name, began, interrupt, directory)
        _say(_what_next(aggregator, host))
        interrupt.wait()
        _say("\nStopping ...")
    return 0 if shown else 1


def _show_verdict(
    stub: sentinel_pb2_grpc.SentinelServiceStub, node: str, began: float, interrupt: Interrupt, logs: Path
) -> bool:
    """Print the simulated node's incident once it is judged and has stopped changing."""
    first_at: float | None = None
    deadline = began + VERDICT_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        interrupt.sleep(0.1)
        judged = [found for found in list_incidents(stub) if found.node == node and found.HasField("assessment")]
        if judged:
            first_at = first_at or time.monotonic()
            if time.monotonic() - first_at > 3:  # NVML and the bus confirm what the kernel log said first
                for found in judged:
                    incident, assessment = wire.read_incident(found)
                    colour, width = sys.stdout.isatty(), shutil.get_terminal_size((100, 24)).columns
                    _say(render_text(incident, assessment, width=min(width, 120), colour=colour))
                _say(f"First verdict {first_at - began:.1f} s after the first signal.")
                return True
    _say(f"No verdict came in {VERDICT_TIMEOUT_SECONDS:.0f} s; until Ctrl-C, what the processes logged is in {logs}.")
    return False


def _what_next(aggregator: AggregatorProcess, host: AgentProcess) -> str:
    asked = "" if aggregator.address == DEFAULT_ADDRESS else f"GCM_SENTINEL_AGGREGATOR_ADDRESS={aggregator.address} "
    beside = Path(sys.executable).with_name("grpcurl")
    grpcurl, whence = (".venv/bin/grpcurl", "") if beside.exists() else ("grpcurl", " (yours, or `make setup-dev`)")
    return f"""
What to try next
  evidence of this machine   {asked}.venv/bin/gcm-sentinel evidence {host.node}
  the verdict over gRPC{whence}
      {grpcurl} -plaintext {aggregator.address} gcm_sentinel.v1.SentinelService/ListIncidents
  metrics                    http://{aggregator.metrics_address}/metrics
  the page                   http://{aggregator.http_address}/
  your own log               dmesg | .venv/bin/gcm-sentinel diagnose
Ctrl-C stops everything.
"""


def _kernel_log_access() -> str:
    try:
        with Path("/dev/kmsg").open("rb", buffering=0):
            return "reads the kernel log"
    except OSError as error:
        return f"cannot read the kernel log, /dev/kmsg: {error.strerror}"


def _driver_access() -> str:
    return "reads the NVIDIA driver" if Path("/proc/driver/nvidia/version").exists() else "no NVIDIA driver here"


def _port(wanted: int, choose: Callable[[], int] = free_port) -> int:
    """The wanted port, or a free one when something else has it."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            found = choose()
            _say(f"Port {wanted} is taken; using {found}.")
            return found
    return wanted


def _say(text: str) -> None:
    print(text, flush=True)
