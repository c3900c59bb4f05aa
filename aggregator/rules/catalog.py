"""What is known about every code and kind of signal: data that a person can read and extend, checked when it is loaded.

`data/patterns.toml` holds what many entries share (`like`) and the sources they cite; `xid.toml`, `sxid.toml` and
`kinds_advice.toml` hold the entries. A site's overlay has the same layout and is read last: it adds entries, or replaces single
fields of entries and patterns. The digest says exactly which data a verdict came from.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from aggregator.model import FaultClass, Severity
from aggregator.rules.entry import READERS, Entry, text, texts
from aggregator.rules.kinds import KINDS

__all__ = ["CODED", "Catalog", "CatalogError", "Entry", "load"]

FILES = ("patterns.toml", "xid.toml", "sxid.toml", "kinds_advice.toml")
OVERLAY = "overlay"
CODED = ("xid", "sxid")  # kinds whose entries are numbered
_TABLES = ("like", *CODED, "kind")
_NEEDED = frozenset(item.name for item in fields(Entry) if item.default is MISSING) - {"kind", "code"}
_T = TypeVar("_T")


class CatalogError(ValueError):
    """Data that cannot be used; the message names file, entry and field."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """All entries, and what they came from."""

    entries: Mapping[tuple[str, int | None], Entry]
    version: str  # of the packaged data; with an overlay "+" and its version
    digest: str  # sha256 of all data, overlay included
    _unknown: Mapping[str, Entry] = field(repr=False)

    def entry(self, kind: str, code: int | None = None) -> Entry | None:
        """The entry of a code or kind; None when there is none."""
        return self.entries.get((kind, code))

    def unknown(self, kind: str, code: int | None = None) -> Entry:
        """What to say of a code or kind that no table holds: nothing is guessed, nothing is dropped."""
        pattern = self._unknown.get(kind, self._unknown["kind"])
        called = kind if code is None else f"{kind} {code}"
        return replace(pattern, kind=kind, code=code, meaning=f"{called}: {pattern.meaning}")


def load(overlay: bytes | None = None) -> Catalog:
    """The packaged catalog, or the same under a site's overlay (TOML). Raises CatalogError."""
    if overlay is None:
        return _packaged()
    return _build((*_packaged_files(), (OVERLAY, overlay)))


@cache
def _packaged() -> Catalog:
    return _build(_packaged_files())


@cache
def _packaged_files() -> tuple[tuple[str, bytes], ...]:
    data = resources.files("aggregator.rules") / "data"
    return tuple((name, (data / name).read_bytes()) for name in FILES)


def _build(files: Iterable[tuple[str, bytes]]) -> Catalog:
    draft, digest = _Draft(), hashlib.sha256()
    for name, data in files:
        draft.add(name, data)
        digest.update(f"{name} {len(data)}\n".encode() + data)
    entries = [draft.entry(section, name) for section in _TABLES[1:] for name in draft.tables[section]]
    unknown = {kind: draft.unknown(kind) for kind in (*CODED, "kind")}
    by_code = {(entry.kind, entry.code): entry for entry in entries}
    return Catalog(by_code, "+".join(draft.versions), digest.hexdigest(), unknown)


@dataclass(frozen=True, slots=True)
class _Written:
    """A field's value as written, and by which file."""

    value: object
    file: str


_Fields = Mapping[str, _Written]


class _Draft:
    """The files laid over each other, field by field; nothing but their shape is checked until an entry is made."""

    def __init__(self) -> None:
        self.versions: list[str] = []
        self.sources: dict[str, _Written] = {}
        self.tables: dict[str, dict[str, dict[str, _Written]]] = {name: {} for name in _TABLES}

    def add(self, file: str, data: bytes) -> None:
        """Lay one more file over what is there. Raises CatalogError."""
        try:
            document = tomllib.loads(data.decode())
        except ValueError as error:  # neither UTF-8 nor TOML
            raise CatalogError(f"{file}: not TOML: {error}") from error
        version = document.pop("version", OVERLAY if file == OVERLAY else None)
        if version is not None:
            self.versions.append(_checked(file, "version", version, text))
        self.sources |= _written(file, "sources", document.pop("sources", {}))
        for section, entries in document.items():
            if section not in self.tables:
                raise CatalogError(f"{file}: [{section}]: no such table; there are sources, {', '.join(_TABLES)}")
            for name, item in _written(file, section, entries).items():
                self.tables[section].setdefault(name, {}).update(_written(file, f"{section}.{name}", item.value))

    def entry(self, section: str, name: str) -> Entry:
        """The finished entry of a table. Raises CatalogError."""
        where, written = f"{section}.{name}", self.tables[section][name]
        file = _last(written)
        if section not in CODED:
            if name not in KINDS:
                raise CatalogError(f"{file}: [{where}]: no signal kind {name!r}")
            return self._finished(where, name, None, self._inherited(where, written))
        if not (name.isascii() and name.isdecimal()):
            raise CatalogError(f"{file}: [{where}]: a code is a number, not {name!r}")
        return self._finished(where, section, int(name), self._inherited(where, written))

    def unknown(self, kind: str) -> Entry:
        """What holds for codes of a kind that have no entry."""
        name = f"unknown_{kind}"
        return self._finished(f"like.{name}", kind, None, self.tables["like"][name])

    def _inherited(self, where: str, written: _Fields) -> _Fields:
        """The fields with those of the pattern that the entry is like."""
        own = dict(written)
        like = own.pop("like", None)
        if like is None:
            return own
        pattern = self.tables["like"].get(_checked(like.file, f"[{where}] like", like.value, text))
        if pattern is None:
            raise CatalogError(f"{like.file}: [{where}] like: no pattern {like.value!r}")
        return pattern | own

    def _finished(self, where: str, kind: str, code: int | None, written: _Fields) -> Entry:
        """An entry from checked fields; its advice must not contradict itself."""
        values: dict[str, Any] = {}
        if kind in KINDS and kind not in CODED:
            values |= {"name": kind.replace("_", " "), "meaning": KINDS[kind].meaning}
        for name, item in written.items():
            if name not in READERS:
                raise CatalogError(
                    f"{item.file}: [{where}] {name}: no such field; there are like, {', '.join(READERS)}"
                )
            values[name] = _checked(item.file, f"[{where}] {name}", item.value, READERS[name])
        missing = sorted(_NEEDED - values.keys())
        if missing:
            raise CatalogError(f"{_last(written)}: [{where}] {missing[0]}: missing")
        site = tuple(name for name, item in written.items() if item.file == OVERLAY and name != "sources")
        entry = Entry(kind=kind, code=code, site=site, **values | {"sources": self._cited(where, written)})
        _check_advice(where, entry, written)
        return entry

    def _cited(self, where: str, written: _Fields) -> tuple[str, ...]:
        item = written["sources"]
        unknown = [name for name in texts(item.value) if name not in self.sources]
        if unknown:
            raise CatalogError(f"{item.file}: [{where}] sources: {unknown[0]!r} is not in [sources]")
        sources = [(name, self.sources[name]) for name in texts(item.value)]
        cited = tuple(_checked(source.file, f"[sources] {name}", source.value, text) for name, source in sources)
        return (*cited, "site overlay") if any(other.file == OVERLAY for other in written.values()) else cited


def _written(file: str, where: str, table: object) -> dict[str, _Written]:
    if not isinstance(table, dict):
        raise CatalogError(f"{file}: [{where}]: must be a table")
    return {name: _Written(value, file) for name, value in table.items()}


def _last(written: _Fields) -> str:
    """The file to blame for what an entry lacks: the overlay when it had a hand in it."""
    return max((item.file for item in written.values()), key=lambda file: file == OVERLAY, default=OVERLAY)


def _check_advice(where: str, entry: Entry, written: _Fields) -> None:
    both = sorted(set(entry.do_not) & set(entry.resolutions))
    if both:
        raise CatalogError(f"{_last(written)}: [{where}] resolutions: {both[0]} is in do_not too")
    if entry.fault_class is FaultClass.UNKNOWN and entry.severity is Severity.OK:
        raise CatalogError(f"{_last(written)}: [{where}] severity: what is not known is not ok")


def _checked(file: str, where: str, value: object, reader: Callable[[object], _T]) -> _T:
    try:
        return reader(value)
    except ValueError as error:
        raise CatalogError(f"{file}: {where}: {error}") from error
