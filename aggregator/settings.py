"""Every variable of the aggregator: names, defaults and bounds, read once from the environment at start.

A value that can be seen to be wrong here stops the start, with one line that names the variable. Secrets are never in such a line,
nor in a log. `Client` is what the commands that ask a running aggregator read.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import BeforeValidator, Field, FilePath, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "GCM_SENTINEL_"
SQLITE = "sqlite:///"
WATCHED_CONDITIONS = (  # the families of aggregator/rules/node_conditions.py
    *("Gcm*Problem", "NPD*"),  # the thirteen names that GCM sets are among them
    *("SysLogs*", "Gpu*Watch", "GpuDcgm*"),
    "AcceleratedHardwareReady",
    "Ready",
)
LOCAL_NAMES = ("localhost", "ip6-localhost")
LLM_HOSTS = {"anthropic": "https://api.anthropic.com", "openai": "https://api.openai.com"}

# The agent's own: an environment made for both is no mistake. A test holds them against its settings.
AGENT_VARIABLES = frozenset(
    (
        "DCGM_EXPORTER_URL", "EXPECTED_GPUS", "KMSG_PATH", "NODE_NAME", "NVML", "POD_RESOURCES_SOCKET", "PROC_ROOT", "SYSFS_ROOT"
    )
)  # fmt: skip
# What a kubelet puts into every container beside a Service whose name begins as ours do.
SERVICE_LINK = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_\w+)")


class SettingsError(Exception):
    """Variables that stop the start; one line for each."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where something listens."""

    host: str  # an IPv6 one without brackets
    port: int  # 0 lets the system choose

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can reach it."""
        return _is_loopback(self.host)

    @classmethod
    def parse(cls, text: object) -> Address:
        """Raises ValueError."""
        if isinstance(text, Address):
            return text
        found = (
            re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", text) if isinstance(text, str) else None
        )
        if not found or int(found[2]) > 65535:
            raise ValueError("expected host:port, for example 127.0.0.1:50051 or [::1]:50051")
        return cls(found[1].strip("[]"), int(found[2]))


def _is_loopback(host: str) -> bool:
    if host in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_local(host: str) -> bool:
    """True for this machine, a private network or a cluster's own names: an endpoint there may want no key."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".svc", ".local", ".internal", ".localhost"))


def _items(value: Any) -> Any:
    """A list written as CSV or as JSON."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"not a JSON list: {error}") from error
    return [item.strip() for item in value.split(",") if item.strip()]


def _url(value: object) -> object:
    if isinstance(value, str) and value:
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError:  # its words quote what may be a password
            raise ValueError(
                "not a URL: expected one like http://host:9090, a password in it percent-encoded"
            ) from None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError("expected a URL like http://host:9090")
    return value


def _secret_url(value: object) -> object:
    try:
        return _url(value)
    except ValueError:
        raise ValueError("expected a URL like https://host/path") from None


def _log_level(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


Items = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_items)]
Url = Annotated[str, BeforeValidator(_url)]
SecretUrl = Annotated[SecretStr, BeforeValidator(_secret_url)]
Listen = Annotated[Address, NoDecode, BeforeValidator(Address.parse)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_log_level)]


class _Environment(BaseSettings):
    """Read from GCM_SENTINEL_*; a variable that is set to nothing counts as unset."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True, arbitrary_types_allowed=True
    )

    @classmethod
    def from_environment(cls) -> Self:
        """Raises SettingsError with one line for each wrong variable."""
        try:
            return cls()
        except ValidationError as error:
            raise SettingsError("\n".join(_line(cls, problem) for problem in error.errors())) from None


class Settings(_Environment):
    """What `gcm-sentinel serve` was told."""

    state_dir: Path = Path("/var/lib/gcm-sentinel")
    database_url: str = ""  # sqlite:///PATH; empty means sentinel.db in state_dir
    grpc_address: Listen = Address("127.0.0.1", 50051)
    metrics_address: Listen = Address("127.0.0.1", 9464)
    http_address: Listen = Address("127.0.0.1", 8080)
    cluster_name: str = Field("default", pattern=r"^[A-Za-z0-9._-]{1,63}$")
    kubernetes: Literal["auto", "on", "off"] = "auto"
    lease: str = Field("", pattern=r"^([a-z0-9-]{1,63}/[a-z0-9.-]{1,253})?$")  # namespace/name
    retention_days: int = Field(30, ge=1, le=3650)
    retention_bytes: int = Field(10 * 2**30, ge=16 * 2**20)  # of the database; the oldest go first
    agent_silent_seconds: int = Field(60, ge=2, le=86_400)  # without a stream, before silence is evidence

    llm_api: Literal["none", "anthropic", "openai"] = "none"
    api_key: SecretStr = SecretStr("")
    model: str = Field("", max_length=200)
    llm_base_url: Url = ""
    prometheus_url: Url = ""
    alertmanager_url: Url = ""
    sources_file: FilePath | None = None  # what an investigation may ask beyond these, and how: docs/sources.md
    action_mode: Literal["recommend", "annotate", "execute"] = "recommend"
    cooldown_seconds: int = Field(3600, ge=0, le=7 * 86_400)
    node_allowlist: Items = ()
    max_actions_per_hour: int = Field(3, ge=0, le=1000)
    max_unavailable_percent: int = Field(10, ge=1, le=100)  # of the nodes with GPUs, whoever made them so
    action_min_confidence: float = Field(0.8, ge=0.5, le=1.0)
    evidence_fresh_seconds: int = Field(900, ge=10, le=86_400)  # a fact that is older proves nothing of now
    kill_switch: str = Field("gcm-sentinel/gcm-sentinel-stop", pattern=r"^[a-z0-9-]{1,63}/[a-z0-9.-]{1,253}$")
    dry_run: bool = False
    uncordon_on_recovery: bool = False
    taint_effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"
    drain_seconds: int = Field(1800, ge=10, le=86_400)
    drain_unmanaged: bool = False
    drain_empty_dir: bool = False
    watch_conditions: Items = WATCHED_CONDITIONS
    place_labels: Items = ()  # PLACE=KEY: labels that say where a node stands
    max_tool_rounds: int = Field(12, ge=1, le=100)
    max_tool_output: int = Field(8000, ge=0, le=1_000_000)  # characters; 0 is the built-in bound
    system_prompt_path: FilePath | None = None
    models_file: FilePath | None = None  # capabilities and prices that replace or extend the packaged table
    investigate: Literal["auto", "all", "manual"] = "auto"
    investigations_at_once: int = Field(2, ge=1, le=32)
    investigation_tokens: int = Field(400_000, ge=20_000, le=100_000_000)  # read and written, over all rounds of one
    investigation_usd: float = Field(1.0, gt=0, le=1000)  # of one
    investigation_seconds: int = Field(300, ge=10, le=7200)  # of one
    hourly_tokens: int = Field(4_000_000, ge=0)  # of all that start within an hour; 0 is without a bound
    hourly_usd: float = Field(10.0, ge=0)
    rules_overlay: FilePath | None = None
    webhook_url: SecretUrl = SecretStr("")
    webhooks_file: FilePath | None = None
    pages_url: Url = ""  # where people reach the pages: messages link to them
    outputs_off: Items = ()  # log, metrics, webhooks, node_events, annotations, or a webhook's name

    tokens_file: FilePath | None = None
    tls_cert_file: FilePath | None = None
    tls_key_file: FilePath | None = None
    insecure: bool = False  # plaintext and unauthenticated callers beyond loopback are accepted
    log_level: LogLevel = "INFO"

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return Path(self.database_url.removeprefix(SQLITE)) if self.database_url else self.state_dir / "sentinel.db"

    @field_validator("place_labels")
    @classmethod
    def _check_labels(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        for label in labels:
            if not re.fullmatch(r"[A-Za-z][A-Za-z ]{0,31}=[A-Za-z0-9._/-]{1,317}", label):
                raise ValueError(f"{label[:100]!r} is not like rack=example.com/rack")
        return labels

    @property
    def places(self) -> dict[str, tuple[str, ...]]:
        """What people call a place → label keys that the site names it by."""
        pairs = [label.partition("=") for label in self.place_labels]
        return {name: tuple(key for what, _, key in pairs if what == name) for name, _, _ in pairs}

    @field_validator("watch_conditions")
    @classmethod
    def _check_globs(cls, globs: tuple[str, ...]) -> tuple[str, ...]:
        for glob in globs:
            if not re.fullmatch(r"[A-Za-z0-9._/*?!\[\]-]{1,200}", glob) or glob.count("[") != glob.count("]"):
                raise ValueError(
                    f"{glob[:100]!r} is no name or glob of conditions, like GcmXidErrorsProblem or Gcm*Problem"
                )
        return globs

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, url: str) -> str:
        if url and (not url.startswith(SQLITE) or url == SQLITE):
            raise ValueError("this version stores in SQLite alone: sqlite:///relative/path or sqlite:////absolute/path")
        return url

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        problems = [*self._transport_problems(), *self._llm_problems()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _transport_problems(self) -> Iterator[str]:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            missing = "TLS_KEY_FILE" if self.tls_key_file is None else "TLS_CERT_FILE"
            yield f"{missing}: is needed as well, a certificate and its key go together"
        if self.insecure:
            return
        for name, address in (("GRPC_ADDRESS", self.grpc_address), ("HTTP_ADDRESS", self.http_address)):
            if address.is_loopback:
                continue
            if self.tls_cert_file is None:
                yield (
                    f"{name}: {address} is reachable from other machines: set {PREFIX}TLS_CERT_FILE and {PREFIX}TLS_KEY_FILE, "
                    f"or {PREFIX}INSECURE=true to serve plaintext"
                )
            if self.tokens_file is None:
                yield (
                    f"{name}: {address} is reachable from other machines: set {PREFIX}TOKENS_FILE so that callers are known, "
                    f"or {PREFIX}INSECURE=true to believe everyone"
                )

    def _llm_problems(self) -> Iterator[str]:
        if self.llm_api == "none" or self.api_key.get_secret_value():
            return
        endpoint = self.llm_base_url or LLM_HOSTS[self.llm_api]
        if not _is_local(urlsplit(endpoint).hostname or ""):
            yield f"API_KEY: is needed for LLM_API={self.llm_api} at {without_credentials(endpoint)}"


class Client(_Environment):
    """What commands that ask a running aggregator were told."""

    aggregator_address: Listen = Address("localhost", 50051)
    token_file: FilePath | None = None
    tls_ca_file: FilePath | None = None
    insecure: bool = False  # a token may travel in plaintext beyond loopback

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        exposed = self.token_file and not self.tls_ca_file and not self.aggregator_address.is_loopback
        if exposed and not self.insecure:
            raise ValueError(
                f"TLS_CA_FILE: is needed, the token would travel to {self.aggregator_address} in plaintext "
                f"({PREFIX}INSECURE=true allows that)"
            )
        return self


def misspelt(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables with our prefix that are nobody's, and for each the known one most like it; empty where none is."""
    known = {name.upper() for name in (*Settings.model_fields, *Client.model_fields)} | AGENT_VARIABLES
    said = {name.removeprefix(PREFIX): name for name in sorted(environ) if name.startswith(PREFIX)}
    unknown = [name for name in said if name not in known and not SERVICE_LINK.fullmatch(name)]
    return {said[name]: "".join(PREFIX + near for near in get_close_matches(name, known, n=1)) for name in unknown}


def without_credentials(url: str) -> str:
    """A URL that may be shown: no user, password, query or fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _line(settings: type[_Environment], problem: ErrorDetails) -> str:
    """One wrong variable in one line; what the environment holds is shown unless it is a secret."""
    said = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:  # several variables that do not go together: the text names them
        return "\n".join(PREFIX + line for line in said.splitlines())
    name = str(problem["loc"][0])
    annotation = str(settings.model_fields[name].annotation)
    shown = re.sub(r"//.*@", "//", str(problem["input"]), flags=re.DOTALL)[:100]
    given = "" if "Secret" in annotation else f" (it is {shown!r})"
    return f"{PREFIX}{name.upper()}: {said[:1].lower()}{said[1:]}{given}"
