"""`python -m node_agent`: reads the settings, puts the parts together, runs them until SIGTERM or SIGINT.

Exit codes: 0 done; 2 a variable or option is wrong, and named; 3 (`--yield`, `--resume`) no agent answers.
"""

# ruff: noqa: E402  # imports come after what must precede them

from __future__ import annotations

from node_agent.lean import import_lean

import_lean()

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before grpc is imported; the uplink says in its own words what fails

from node_agent.agent import Agent
from node_agent.collectors.dcgm import DcgmCollector
from node_agent.collectors.kmsg import KmsgCollector
from node_agent.collectors.nvml import NvmlCollector
from node_agent.collectors.previous_boot import PreviousBootCollector
from node_agent.collectors.sysfs import SysfsCollector
from node_agent.collectors.workloads import WorkloadsCollector
from node_agent.control import ask_to_yield
from node_agent.dial import Endpoint
from node_agent.evidence import Recorder
from node_agent.identity import AGENT_VERSION, Identity, read_boot_id, read_kernel_version
from node_agent.logs import log_to_stderr
from node_agent.probes import Probes
from node_agent.query_socket import LONGEST_YIELD_SECONDS, SocketInUse
from node_agent.settings import SOCKET_NAME, Settings, SettingsError, misspelt, read_state_dir
from node_agent.signals import stop_on_signals
from node_agent.sources import Sources
from node_agent.spool import Spool, SpoolInUse

log = logging.getLogger("node_agent")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent, or talk to the one that runs; returns the exit code."""
    options = _options(arguments)
    try:
        if options.resume or options.yield_seconds is not None:
            return ask_to_yield(read_state_dir(os.environ) / SOCKET_NAME, options.yield_seconds or 0)
        settings = Settings.from_environment(os.environ)
        log_to_stderr(settings.log_level)
        for line in misspelt(os.environ):
            log.warning(line)
        asyncio.run(_run(settings))
    except SettingsError as error:
        sys.stderr.write(f"gcm-sentinel agent: {error}\n")
        return 2
    return 0


async def _run(settings: Settings) -> None:
    boot_id = _boot_id(settings.proc_root)
    spool = _open_spool(settings.state_dir)
    identity = Identity(
        node=settings.node_name,
        boot_id=boot_id,
        installation_id=spool.installation_id,
        simulated=settings.simulated,
        agent_version=AGENT_VERSION,
    )
    recorder = Recorder(
        node=identity.node,
        boot_id=boot_id,
        simulated=settings.simulated,
        append_event=spool.append_event,
        append_sample=spool.append_sample,
    )
    endpoint = Endpoint(settings.aggregator_address, settings.token_file, settings.tls_ca_file)
    agent = Agent(identity, spool, recorder, endpoint, read_kernel_version(settings.proc_root))
    spool.tell_losses_through(agent.encode_loss)
    probes = _serve_probes(settings.metrics_address, agent)
    try:
        await agent.run(_sources(settings, agent, spool, boot_id), _socket_path(settings), stop_on_signals())
    except (SocketInUse, OSError) as error:
        raise SettingsError("STATE_DIR", str(error)) from error
    finally:
        probes.close()
        spool.close()


def _sources(settings: Settings, agent: Agent, spool: Spool, boot_id: str) -> Sources:
    gpus = _gpus(settings, agent)
    workloads = WorkloadsCollector(settings.pod_resources_socket, settings.proc_root)
    return Sources(
        gpus=gpus,
        sysfs=SysfsCollector(
            settings.sysfs_root,
            settings.proc_root,
            gpus.nvml_gpus if gpus else lambda: None,
            workloads_of_pid=workloads.workloads_of_pid,
        ),
        dcgm=DcgmCollector(settings.dcgm_exporter_url),
        workloads=workloads,
        kernel=(
            KmsgCollector(
                settings.kmsg_path, boot_id=boot_id, spool=spool, workloads_of_pid=workloads.workloads_of_pid
            ),
            PreviousBootCollector(settings.sysfs_root, boot_id=boot_id, spool=spool),
        ),
    )


def _gpus(settings: Settings, agent: Agent) -> NvmlCollector | None:
    if settings.nvml == "off":
        return None
    return NvmlCollector(
        state_dir=settings.state_dir,
        report_snapshot=agent.report_snapshot,
        sysfs_root=settings.sysfs_root,
        kernel_version=read_kernel_version(settings.proc_root),
        expected_gpus=settings.expected_gpus,
        simulated=settings.simulated_driver,
        required=settings.nvml == "on",
    )


def _boot_id(proc_root: Path) -> str:
    try:
        return read_boot_id(proc_root)
    except (OSError, ValueError) as error:
        raise SettingsError("PROC_ROOT", f"boot_id cannot be read: {error}") from error


def _open_spool(state_dir: Path) -> Spool:
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(state_dir, os.W_OK | os.X_OK) and not _is_read_only_disk(state_dir):
            raise SettingsError("STATE_DIR", f"{state_dir} cannot be written")
        return Spool.open(state_dir)
    except (OSError, SpoolInUse) as error:
        raise SettingsError("STATE_DIR", f"cannot be used: {error}") from error


def _socket_path(settings: Settings) -> Path | None:
    """Where to answer on this node; None on a read-only disk, which is no reason not to observe."""
    if not _is_read_only_disk(settings.state_dir):
        return settings.socket_path
    log.warning("%s is on a read-only disk: records are kept in memory, and no socket is served", settings.state_dir)
    return None


def _is_read_only_disk(directory: Path) -> bool:
    return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)


def _serve_probes(address: tuple[str, int], agent: Agent) -> Probes:
    try:
        probes = Probes(address, agent.vitals)
    except OSError as error:
        raise SettingsError(
            "METRICS_ADDRESS", f"cannot listen on {address[0]}:{address[1]}: {error.strerror}"
        ) from error
    log.info("metrics and probes on port %d", probes.port)
    return probes


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gcm-sentinel agent", description="The node agent of gcm-sentinel.")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--yield",
        dest="yield_seconds",
        metavar="SECONDS",
        nargs="?",
        const=600,
        type=_seconds,
        help="let go of the driver (600)",
    )
    group.add_argument("--resume", action="store_true", help="take the driver up again")
    return parser.parse_args(arguments)


def _seconds(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= LONGEST_YIELD_SECONDS:
        raise argparse.ArgumentTypeError(f"must be a number of seconds from 1 to {LONGEST_YIELD_SECONDS}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
