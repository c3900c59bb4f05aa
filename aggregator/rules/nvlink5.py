"""What an NVLink5 error (XID 144 to 150) means: NVIDIA's decode table, kept as data in `data/nvlink5.csv`.

A row matches on the printed unit, on some bits of intrInfo and on the exact errorStatus. Drivers before R575 place the bits
differently (v1) than later ones (v2); where the driver is not known both are tried. Fields of the file: xid; unit and event as
the driver names them; v1 and v2 as `mask:value` of intrInfo in hex; status in hex, empty for any; severity; the immediate and
the investigatory action bucket; origin of the error (HW, SW, FW); what happens on this GPU and on its peers.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from aggregator.model import Scalar

FIRST_V2_DRIVER = 575


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    names: frozenset[str]
    layouts: tuple[tuple[str, int, int], ...]  # (v1 or v2, mask, value) of intrInfo
    status: int | None
    severity: str
    immediate: str
    investigatory: str
    origin: str
    local: str
    remote: str
    title: str

    def layouts_matching(self, intr_info: int, status: int) -> frozenset[str]:
        """The driver layouts under which this row describes the error."""
        if self.status is not None and self.status != status:
            return frozenset()
        return frozenset(name for name, mask, value in self.layouts if intr_info & mask == value)


def decode(xid: int, unit: str, intr_info: int, status: int, driver_major: int | None = None) -> dict[str, Scalar]:
    """What the table says about an error, as attributes of its signal (`kinds.py`: subcode, immediate, decode …).

    Rows that disagree are joined by `|` and marked ambiguous; an error that the table does not hold has `decode` none.
    """
    wanted = None if driver_major is None else "v1" if driver_major < FIRST_V2_DRIVER else "v2"
    rows = _rows().get(xid, ())
    matches = _matching(_named(rows, unit), intr_info, status, wanted)
    attributes: dict[str, Scalar] = {"link_down_reason": intr_info >> 20 & 0x3F} if xid == 149 else {}
    if not matches:
        return attributes | {"decode": "none"}
    layouts = sorted(frozenset.union(*matches.values()))
    first = next(iter(matches))
    agree = all((row.immediate, row.title) == (first.immediate, first.title) for row in matches)
    return attributes | {
        "decode": ",".join(layouts) if agree else "ambiguous",
        "subcode": _joined(row.title for row in matches),
        "immediate": _joined(row.immediate for row in matches),
        "investigatory": _joined(row.investigatory for row in matches),
        "decoded_severity": _joined(row.severity for row in matches),
        "hw_sw": _joined(row.origin for row in matches),
        "local": _joined(row.local for row in matches),
        "remote": _joined(row.remote for row in matches),
    }


def _named(rows: Sequence[Row], unit: str) -> Sequence[Row]:
    """The rows of a printed unit, those that name it most exactly; all rows where none does."""
    printed = frozenset(unit.upper().split("/"))
    best = max((len(row.names & printed) for row in rows), default=0)
    return [row for row in rows if len(row.names & printed) == best]


def _matching(rows: Iterable[Row], intr_info: int, status: int, wanted: str | None) -> dict[Row, frozenset[str]]:
    found: dict[Row, frozenset[str]] = {}
    for row in rows:
        layouts = row.layouts_matching(intr_info, status)
        if layouts and (wanted is None or wanted in layouts):
            found[row] = layouts
    return found


def _joined(values: Iterable[str]) -> str:
    return "|".join(dict.fromkeys(value for value in values if value))


@cache
def _rows() -> Mapping[int, tuple[Row, ...]]:
    table: dict[int, list[Row]] = {}
    text = resources.files("aggregator.rules").joinpath("data/nvlink5.csv").read_text(encoding="utf-8")
    for record in csv.DictReader(text.splitlines()):
        table.setdefault(int(record["xid"]), []).append(_row(record))
    return {xid: tuple(rows) for xid, rows in table.items()}


def _row(record: Mapping[str, str]) -> Row:
    names = [name for name in (record["unit"], record["event"]) if name]
    layouts = tuple((name, int(record[name][:8], 16), int(record[name][9:], 16)) for name in ("v1", "v2"))
    return Row(
        names=frozenset(name.upper() for name in names),
        layouts=layouts,
        status=int(record["status"], 16) if record["status"] else None,
        severity=record["severity"],
        immediate=record["immediate"],
        investigatory=record["investigatory"],
        origin=record["origin"],
        local=record["local"],
        remote=record["remote"],
        title="/".join(names),
    )
