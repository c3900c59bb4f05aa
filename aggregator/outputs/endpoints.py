"""Which webhooks there are: WEBHOOK_URL for one, WEBHOOKS_FILE for several, each with its filter, rate and secrets.

The file is TOML, one `[[webhook]]` table a target. Addresses and keys are secrets: they are read from files where those are named,
at each use so that a rotated one is taken up, and no error says them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, FilePath, SecretStr, ValidationError, model_validator

from aggregator.model import Severity
from aggregator.outputs.pagerduty import EVENTS_URL

MAX_ENDPOINTS = 50
MAX_SECRET_BYTES = 4096
RESERVED = ("node_events", "annotations")  # targets that are no webhooks

Kind = Literal["slack", "pagerduty", "json"]


class EndpointsUnusable(Exception):
    """The configuration cannot be used; the text holds no secret."""


class Endpoint(BaseModel):
    """One webhook."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,39}$")]
    kind: Kind = "slack"
    url: SecretStr | None = None
    url_file: FilePath | None = None
    key_file: FilePath | None = None  # PagerDuty's routing key
    severities: frozenset[Severity] = frozenset(Severity)
    per_minute: Annotated[int, Field(ge=1, le=6000)] = 60

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.name in RESERVED:
            raise ValueError(f"the name {self.name!r} is taken by an output")
        if self.url is not None and self.url_file is not None:
            raise ValueError("url and url_file: give one of them")
        if (self.kind == "pagerduty") != (self.key_file is not None):
            raise ValueError("key_file belongs to kind pagerduty, which needs it")
        if self.kind != "pagerduty" and self.url is None and self.url_file is None:
            raise ValueError("url or url_file is needed")
        check_address(self.address())
        self.key()
        return self

    def address(self) -> str:
        """Where to send. Raises ValueError where the file cannot be read."""
        if self.url_file is not None:
            return _read_secret(self.url_file)
        return self.url.get_secret_value() if self.url is not None else EVENTS_URL

    def key(self) -> str:
        """The key; empty where none is needed. Raises ValueError where the file cannot be read."""
        return _read_secret(self.key_file) if self.key_file is not None else ""


def check_address(address: str) -> None:
    """Raises ValueError."""
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not address.isprintable() or " " in address:
        raise ValueError("its address is no URL like https://host/path")


def _read_secret(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SECRET_BYTES + 1).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    if not text or len(text) > MAX_SECRET_BYTES:
        raise ValueError(f"{path} is empty or too long")
    return text


def read_endpoints(webhook_url: str, webhooks_file: Path | None) -> list[Endpoint]:
    """Every webhook that is configured. Raises EndpointsUnusable."""
    endpoints = [Endpoint(name="webhook", url=SecretStr(webhook_url))] if webhook_url else []
    if webhooks_file is not None:
        endpoints += _parse(webhooks_file)
    names = [endpoint.name for endpoint in endpoints]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise EndpointsUnusable(f"two webhooks are named {twice[0]!r}")
    if len(endpoints) > MAX_ENDPOINTS:
        raise EndpointsUnusable(f"more than {MAX_ENDPOINTS} webhooks")
    return endpoints


def _parse(path: Path) -> Iterator[Endpoint]:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise EndpointsUnusable(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):  # its words may quote a secret
        raise EndpointsUnusable(f"{path}: not TOML") from None
    tables = document.pop("webhook", [])
    if document or not isinstance(tables, list):
        raise EndpointsUnusable(f"{path}: expected [[webhook]] tables and nothing else")
    for number, table in enumerate(tables, 1):
        try:
            yield Endpoint.model_validate(table)
        except ValidationError as error:
            raise EndpointsUnusable(f"{path}: webhook {number}: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    problem = error.errors(include_input=False, include_url=False)[0]
    said = problem["msg"].removeprefix("Value error, ")
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {said}" if where else said
