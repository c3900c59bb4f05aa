"""What is known about every code and kind of signal: data that a person can read and extend, checked when it is loaded.

`data/patterns.toml` holds what many entries share (`like`) and the sources they cite; `xid.toml`, `sxid.toml` and
`kinds_advice.toml` hold the entries. A site's overlay has the same layout and is read last: it adds entries, or replaces single
fields of entries and patterns. The digest says exactly which data a verdict came from.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from aggregator.model import Action, FaultClass, Resolution, Severity
from aggregator.rules.catalog_fields import READERS, text, texts
from aggregator.rules.kinds import KINDS

FILES = ("patterns.toml", "xid.toml", "sxid.toml", "kinds_advice.toml")
OVERLAY = "overlay"
_TABLES: tuple[str, ...] = ("like", "xid", "sxid", "kind")
CODED = ("xid", "sxid")  # kinds whose entries are numbered


class CatalogError(ValueError):
    """Data that cannot be used; the message names file, entry and field."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one code or kind means when it is read alone. How signals combine is the engine's business."""

    kind: str  # xid, sxid, or another signal kind
    code: int | None
    name: str  # mnemonic or short name
    meaning: str  # one sentence
    severity: Severity
    fault_class: FaultClass
    action: Action  # node level
    resolutions: tuple[Resolution, ...]  # the immediate advice, best first
    weight: int  # 0..100: how strongly it is the cause within a burst; the highest wins
    confidence: float  # prior that this reading alone is right
    sources: tuple[str, ...]
    do_not: tuple[Resolution, ...] = ()  # advice that would harm here
    recurrence: tuple[Resolution, ...] = ()  # what to do if it comes back after the immediate advice
    recurrence_advice: str = ""  # the same as one sentence
    yields: bool = False  # a consequence: another cause in the burst explains it
    applies_to: str = ""  # GPU generations, space separated; "" is all
    min_driver: str = ""  # first driver branch that reports it, as "R565"; "" is any
    xid154_since: str = ""  # from this branch on, XID 154 follows with the driver's own decision; "" is not known
    note: str = ""  # what depends on generation, driver or text; where sources disagree


@dataclass(frozen=True, slots=True)
class Catalog:
    """All entries, and what they came from."""

    entries: Mapping[tuple[str, int | None], Entry]
    version: str
    digest: str  # sha256 of all data, overlay included
    _unknown: Mapping[str, Entry] = field(repr=False)

    def entry(self, kind: str, code: int | None = None) -> Entry | None:
        """The entry of a code or kind; None when there is none."""
        return self.entries.get((kind, code))

    def unknown(self, kind: str, code: int | None = None) -> Entry:
        """What to say of a code or kind that no table holds: nothing is guessed, nothing is dropped."""
        pattern = self._unknown.get(kind, self._unknown["xid"])
        values = {item.name: getattr(pattern, item.name) for item in fields(Entry)}
        called = f"{kind} {code}" if code is not None else kind
        return Entry(**values | {"kind": kind, "code": code, "meaning": f"{called}: {pattern.meaning}"})


def load(overlay: bytes | None = None) -> Catalog:
    """The packaged catalog, or the same with a site's overlay. Raises CatalogError."""
    if overlay is None:
        return _packaged()
    return _build([*_packaged_files(), (OVERLAY, overlay)])


@cache
def _packaged() -> Catalog:
    return _build(_packaged_files())


@cache
def _packaged_files() -> tuple[tuple[str, bytes], ...]:
    data = resources.files("aggregator.rules") / "data"
    return tuple((name, (data / name).read_bytes()) for name in FILES)


@dataclass(frozen=True, slots=True)
class _Written:
    """A field's value and who wrote it."""

    value: object
    file: str


_Fields = dict[str, _Written]


@dataclass(slots=True)
class _Draft:
    """The files as merged so far, unchecked."""

    versions: list[str] = field(default_factory=list)
    sources: _Fields = field(default_factory=dict)
    tables: dict[str, dict[str, _Fields]] = field(default_factory=lambda: {name: {} for name in _TABLES})

    def add(self, file: str, data: bytes) -> None:
        """Lay one file over what is there, field by field."""
        try:
            document = tomllib.loads(data.decode("utf-8"))
        except ValueError as error:  # neither UTF-8 nor TOML
            raise CatalogError(f"{file}: not TOML: {error}") from error
        self._version(file, document.pop("version", None))
        for name, origin in _table(file, "sources", document.pop("sources", {})).items():
            self.sources[name] = _Written(origin, file)
        for section, entries in document.items():
            if section not in self.tables:
                raise CatalogError(
                    f"{file}: [{section}]: unknown table; there are version, sources, {', '.join(_TABLES)}"
                )
            for name, values in _table(file, section, entries).items():
                written = self.tables[section].setdefault(name, {})
                for key, value in _table(file, f"{section}.{name}", values).items():
                    written[key] = _Written(value, file)

    def _version(self, file: str, version: object) -> None:
        if version is None and file == OVERLAY:
            version = OVERLAY
        if version is not None:
            self.versions.append(_checked(file, "catalog", "version", version, text))


def _table(file: str, name: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise CatalogError(f"{file}: [{name}]: must be a table")
    return value


def _build(files: Iterable[tuple[str, bytes]]) -> Catalog:
    draft, digest = _Draft(), hashlib.sha256()
    for name, data in files:
        draft.add(name, data)
        digest.update(f"{name} {len(data)}\n".encode() + data)
    entries = {}
    for section in ("xid", "sxid", "kind"):
        for name, written in draft.tables[section].items():
            entry = _entry(draft, section, name, written)
            entries[entry.kind, entry.code] = entry
    unknown = {
        kind: _finish(draft, f"like.unknown_{kind}", kind, None, _pattern(draft, f"unknown_{kind}")) for kind in CODED
    }
    return Catalog(entries, "+".join(draft.versions), digest.hexdigest(), unknown)


def _pattern(draft: _Draft, name: str) -> _Fields:
    return draft.tables["like"].get(name, {})


def _entry(draft: _Draft, section: str, name: str, written: _Fields) -> Entry:
    where = f"{section}.{name}"
    file = next((item.file for item in written.values()), OVERLAY)
    kind, code = (section, _code(file, where, name)) if section in CODED else (name, None)
    if kind not in KINDS:
        raise CatalogError(f"{file}: [{where}]: unknown signal kind {kind!r}")
    like = written.get("like")
    if like is None:
        return _finish(draft, where, kind, code, written)
    pattern = draft.tables["like"].get(_checked(like.file, where, "like", like.value, text))
    if pattern is None:
        raise CatalogError(f"{like.file}: [{where}] like: no pattern {like.value!r}")
    own = {key: value for key, value in written.items() if key != "like"}
    return _finish(draft, where, kind, code, pattern | own)


def _code(file: str, where: str, name: str) -> int:
    if not (name.isascii() and name.isdigit()):
        raise CatalogError(f"{file}: [{where}]: a code is a number, not {name!r}")
    return int(name)


def _finish(draft: _Draft, where: str, kind: str, code: int | None, written: _Fields) -> Entry:
    """Check every field of an entry, resolve its sources, and see that its advice does not contradict itself."""
    values: dict[str, Any] = {}
    for key, item in written.items():
        if key not in READERS:
            raise CatalogError(f"{item.file}: [{where}] {key}: unknown field; there are like, {', '.join(READERS)}")
        values[key] = _checked(item.file, where, key, item.value, READERS[key])
    if kind not in CODED:
        values = {"name": kind.replace("_", " "), "meaning": KINDS[kind].meaning} | values
    last = next((item.file for item in written.values() if item.file == OVERLAY), FILES[0])
    for needed in fields(Entry):
        if needed.default is MISSING and needed.name not in {"kind", "code", *values}:
            raise CatalogError(f"{last}: [{where}] {needed.name}: missing")
    values["sources"] = _cited(draft, where, written)
    entry = Entry(kind=kind, code=code, **values)
    _consistent(where, entry, written)
    return entry


def _cited(draft: _Draft, where: str, written: _Fields) -> tuple[str, ...]:
    item = written["sources"]
    cited = []
    for name in texts(item.value):
        if name not in draft.sources:
            raise CatalogError(f"{item.file}: [{where}] sources: no source {name!r} in [sources]")
        source = draft.sources[name]
        cited.append(_checked(source.file, "sources", name, source.value, text))
    if item.file != OVERLAY and any(other.file == OVERLAY for other in written.values()):
        cited.append("site overlay")
    return tuple(cited)


def _consistent(where: str, entry: Entry, written: _Fields) -> None:
    both = set(entry.do_not) & set(entry.resolutions)
    if both:
        raise CatalogError(f"{written['do_not'].file}: [{where}] do_not: also advised: {', '.join(sorted(both))}")
    if entry.fault_class is FaultClass.UNKNOWN and entry.severity is Severity.OK:
        raise CatalogError(f"{written['severity'].file}: [{where}] severity: what is not known is not ok")


_T = TypeVar("_T")


def _checked(file: str, where: str, name: str, value: object, reader: Callable[[object], _T]) -> _T:
    try:
        return reader(value)
    except ValueError as error:
        raise CatalogError(f"{file}: [{where}] {name}: {error}") from error
