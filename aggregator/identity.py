"""Who is calling, and what they may do: agents write as their own node, people read.

Two ways exist today: trust in whoever reaches a loopback address, and a file of tokens.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

BEARER = "bearer "


class Unauthenticated(Exception):
    """The caller has not said who it is, or not credibly."""


class Forbidden(Exception):
    """The caller is known, and may not do this."""


class IdentityUnusable(Exception):
    """The source of identities cannot be used; the text says why."""


class Authenticator(Protocol):
    """Decides from the `authorization` a caller sent, None when it sent none."""

    def admit_agent(self, authorization: str | None, node: str) -> None:
        """Return when the caller may write as `node`. Raises Unauthenticated or Forbidden."""
        ...

    def admit_reader(self, authorization: str | None) -> str:
        """Return the reader's name when the caller may read. Raises Unauthenticated or Forbidden."""
        ...


class LocalTrust:
    """Believes every caller: for addresses that only this machine reaches."""

    def admit_agent(self, authorization: str | None, node: str) -> None:
        """Everyone may write as the node they name."""

    def admit_reader(self, authorization: str | None) -> str:
        return "local"


@dataclass(frozen=True, slots=True)
class _Holder:
    node: str | None = None
    reader: str | None = None


class TokensFile:
    """Tokens from a JSON file that is read again when it changes: {"tokens": [{"token": "…", "node": "gpu-1"}, {"token": "…",
    "reader": "alice"}]}. Only digests of the tokens are kept in memory.
    """

    def __init__(self, path: Path) -> None:
        """Raises IdentityUnusable when the file cannot be read now; later it keeps what it last read."""
        self._path = path
        self._version = self._file_version()
        self._holders = self._load()

    def admit_agent(self, authorization: str | None, node: str) -> None:
        holder = self._holder(authorization)
        if holder.node is None:
            raise Forbidden("this token is a reader's; an agent needs a token bound to its node")
        if holder.node != node:
            raise Forbidden(f"this token is bound to another node than {node!r}")

    def admit_reader(self, authorization: str | None) -> str:
        holder = self._holder(authorization)
        if holder.reader is None:
            raise Forbidden("this token is a node's; reading needs a reader's token")
        return holder.reader

    def _holder(self, authorization: str | None) -> _Holder:
        if authorization is None or not authorization.lower().startswith(BEARER):
            raise Unauthenticated("no token: send 'authorization: Bearer TOKEN'")
        self._reload_when_changed()
        digest = _digest(authorization[len(BEARER) :].strip())
        found = _Holder()
        for known, holder in self._holders:
            if hmac.compare_digest(known, digest):
                found = holder
        if found == _Holder():
            raise Unauthenticated("unknown token")
        return found

    def _reload_when_changed(self) -> None:
        try:
            version = self._file_version()
            if version != self._version:
                self._holders = self._load()
                self._version = version
        except IdentityUnusable:
            return  # half written or gone for a moment: those who were known stay known until it can be read

    def _file_version(self) -> tuple[int, int, int]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise IdentityUnusable(f"{self._path}: {error.strerror}") from error
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _load(self) -> list[tuple[bytes, _Holder]]:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            entries = document["tokens"]
            return [_entry(entry) for entry in entries]
        except OSError as error:
            raise IdentityUnusable(f"{self._path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise IdentityUnusable(
                f'{self._path}: expected {{"tokens": [{{"token": "…", "node": "…"}} or {{"token": "…", "reader": "…"}}]}}'
            ) from error


def _entry(entry: dict[str, str]) -> tuple[bytes, _Holder]:
    token, node, reader = entry["token"], entry.get("node"), entry.get("reader")
    if len(token) < 16:
        raise ValueError("a token has at least 16 characters")
    if (node is None) == (reader is None):
        raise ValueError("a token is either a node's or a reader's")
    return _digest(token), _Holder(node, reader)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
