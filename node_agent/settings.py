"""Every variable of the agent: names, defaults and bounds, read once from the environment at start.

Only the standard library: a settings framework would cost more memory than the settings are worth on every node.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, TypeVar, cast
from urllib.parse import urlsplit

PREFIX = "GCM_SENTINEL_"
MAX_EXPECTED_GPUS = 256
MAX_SOCKET_PATH_BYTES = 107  # sun_path less its terminating zero
SOCKET_NAME = "agent.sock"

NvmlMode = Literal["auto", "on", "off", "simulated"]
T = TypeVar("T")
_NODE_NAME = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?"
)  # what the aggregator takes; Kubernetes allows less

# The aggregator's own, and its commands': an environment made for both is no mistake. A test holds them against its settings.
AGGREGATOR_VARIABLES = frozenset(
    (
        "ACTION_MIN_CONFIDENCE", "ACTION_MODE", "AGENT_SILENT_SECONDS", "ALERTMANAGER_URL", "API_KEY",
        "CLUSTER_NAME", "COOLDOWN_SECONDS", "DATABASE_URL", "DRAIN_EMPTY_DIR", "DRAIN_SECONDS", "DRAIN_UNMANAGED",
        "DRY_RUN", "EVIDENCE_FRESH_SECONDS", "GRPC_ADDRESS", "HOURLY_TOKENS", "HOURLY_USD", "HTTP_ADDRESS",
        "INVESTIGATE", "INVESTIGATIONS_AT_ONCE", "INVESTIGATION_SECONDS", "INVESTIGATION_TOKENS",
        "INVESTIGATION_USD", "KILL_SWITCH", "KUBERNETES", "LEASE", "LLM_API", "LLM_BASE_URL", "MAX_ACTIONS_PER_HOUR",
        "MAX_TOOL_OUTPUT", "MAX_TOOL_ROUNDS", "MAX_UNAVAILABLE_PERCENT", "MODEL", "MODELS_FILE", "NODE_ALLOWLIST",
        "OUTPUTS_OFF", "PAGES_URL", "PLACE_LABELS", "PROMETHEUS_URL", "RETENTION_BYTES", "RETENTION_DAYS",
        "RULES_OVERLAY", "SOURCES_FILE", "SYSTEM_PROMPT_PATH", "TAINT_EFFECT", "TLS_CERT_FILE", "TLS_KEY_FILE",
        "TOKENS_FILE", "UNCORDON_ON_RECOVERY", "WATCH_CONDITIONS", "WEBHOOKS_FILE", "WEBHOOK_URL",
    )
)  # fmt: skip
# What a kubelet puts into every container beside a Service whose name begins as ours do.
_SERVICE_LINK = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_\w+)")


class SettingsError(Exception):
    """A variable that stops the start; the text names it and says what it must be."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{PREFIX}{name}: {problem}")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the agent was told. `insecure` allows plaintext to an aggregator beyond this machine."""

    node_name: str
    aggregator_address: str
    state_dir: Path
    kmsg_path: Path
    sysfs_root: Path
    proc_root: Path
    nvml: NvmlMode
    simulated_driver: Path | None
    expected_gpus: int | None
    dcgm_exporter_url: str | None
    pod_resources_socket: Path
    metrics_address: tuple[str, int]
    token_file: Path | None
    tls_ca_file: Path | None
    insecure: bool
    log_level: int

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Read `GCM_SENTINEL_*`; a variable that is set to nothing counts as unset. Raises SettingsError."""

        def read(name: str, default: str, parse: Callable[[str], T]) -> T:
            text = environ.get(PREFIX + name, "").strip() or default
            try:
                return parse(text)
            except ValueError as error:
                raise SettingsError(name, str(error)) from error

        nvml, simulated_driver = read("NVML", "auto", _nvml)
        settings = cls(
            node_name=read("NODE_NAME", socket.gethostname(), _node_name),
            aggregator_address=read("AGGREGATOR_ADDRESS", "localhost:50051", _dial_address),
            state_dir=read_state_dir(environ),
            kmsg_path=read("KMSG_PATH", "/dev/kmsg", Path),
            sysfs_root=read("SYSFS_ROOT", "/sys", _directory),
            proc_root=read("PROC_ROOT", "/proc", _directory),
            nvml=nvml,
            simulated_driver=simulated_driver,
            expected_gpus=read("EXPECTED_GPUS", "", _optional(_gpu_count)),
            dcgm_exporter_url=read("DCGM_EXPORTER_URL", "", _optional(_http_url)),
            pod_resources_socket=read("POD_RESOURCES_SOCKET", "/var/lib/kubelet/pod-resources/kubelet.sock", Path),
            metrics_address=read("METRICS_ADDRESS", "127.0.0.1:9465", _host_and_port),
            token_file=read("TOKEN_FILE", "", _optional(_readable_file)),
            tls_ca_file=read("TLS_CA_FILE", "", _optional(_readable_file)),
            insecure=read("INSECURE", "false", _truth),
            log_level=read("LOG_LEVEL", "INFO", _log_level),
        )
        settings._refuse_plaintext_beyond_this_machine()
        return settings

    @property
    def simulated(self) -> bool:
        """Whether the driver is a simulation: its evidence is never acted on."""
        return self.nvml == "simulated"

    @property
    def socket_path(self) -> Path:
        """The root-only unix socket."""
        return self.state_dir / SOCKET_NAME

    def _refuse_plaintext_beyond_this_machine(self) -> None:
        if self.tls_ca_file is None and not self.insecure and not _is_local(self.aggregator_address):
            raise SettingsError(
                "AGGREGATOR_ADDRESS",
                f"{self.aggregator_address} is not on this machine and {PREFIX}TLS_CA_FILE is not set: evidence and token would "
                f"travel in plaintext; set {PREFIX}TLS_CA_FILE, or {PREFIX}INSECURE=true if the network is trusted",
            )


def misspelt(environ: Mapping[str, str]) -> Iterator[str]:
    """A line for each variable with our prefix that is nobody's, with the known one most like it."""
    known = {field.name.upper() for field in fields(Settings)} | AGGREGATOR_VARIABLES
    for name in sorted(environ):
        said = name.removeprefix(PREFIX)
        if said == name or said in known or _SERVICE_LINK.fullmatch(said):
            continue
        from difflib import get_close_matches  # rarely needed, and memory on every node

        meant = "".join(f"; did you mean {PREFIX}{near}?" for near in get_close_matches(said, known, n=1))
        yield f"{name} is no variable of gcm-sentinel and is ignored{meant}"


def read_state_dir(environ: Mapping[str, str]) -> Path:
    """Where the spool and the socket are: all that `--yield` and `--resume` need to know. Raises SettingsError."""
    state_dir = Path(environ.get(f"{PREFIX}STATE_DIR", "").strip() or "/var/lib/gcm-sentinel").absolute()
    if len(os.fsencode(state_dir / SOCKET_NAME)) > MAX_SOCKET_PATH_BYTES:
        longest = MAX_SOCKET_PATH_BYTES - len(f"/{SOCKET_NAME}")
        raise SettingsError("STATE_DIR", f"the path is longer than {longest} bytes, too long for a unix socket in it")
    return state_dir


def _optional(parse: Callable[[str], T]) -> Callable[[str], T | None]:
    return lambda text: parse(text) if text else None


def _node_name(text: str) -> str:
    if not _NODE_NAME.fullmatch(text):
        raise ValueError(
            f"must be a node name: 1 to 253 letters, digits, dots, dashes and underscores, not {text[:300]!r}"
        )
    return text


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535 or (":" in host and not host.startswith("[")):
        raise ValueError(f"must be HOST:PORT or [IPV6]:PORT with a port up to 65535, not {text!r}")
    return host.strip("[]"), int(port)


def _dial_address(text: str) -> str:
    if text.startswith("unix:"):
        return text
    if _host_and_port(text)[1] == 0:
        raise ValueError("the port must not be 0")
    return text


def _is_local(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host, _ = _host_and_port(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _nvml(text: str) -> tuple[NvmlMode, Path | None]:
    mode, colon, file = text.partition(":")
    if mode == "simulated" and colon:
        return "simulated", _readable_file(file)
    if text in ("auto", "on", "off"):
        return cast("NvmlMode", text), None
    raise ValueError(f"must be auto, on, off or simulated:FILE, not {text!r}")


def _gpu_count(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_EXPECTED_GPUS:
        raise ValueError(f"must be a number of GPUs from 0 to {MAX_EXPECTED_GPUS}, not {text!r}")
    return int(text)


def _http_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"must be an http:// or https:// URL, not {text!r}")
    return text


def _directory(text: str) -> Path:
    if not Path(text).is_dir():
        raise ValueError(f"{text} is not a directory")
    return Path(text)


def _readable_file(text: str) -> Path:
    if not Path(text).is_file() or not os.access(text, os.R_OK):
        raise ValueError(f"{text or 'the empty path'} is not a readable file")
    return Path(text)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"must be true or false, not {text!r}")
    return text.lower() == "true"


def _log_level(text: str) -> int:
    levels = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARNING": logging.WARNING, "ERROR": logging.ERROR}
    if text.upper() not in levels:
        raise ValueError(f"must be DEBUG, INFO, WARNING or ERROR, not {text!r}")
    return levels[text.upper()]
