"""What a GPU generation and a driver version change about an entry of the catalog, as sentences."""

from __future__ import annotations

import re

from aggregator.rules.catalog import Entry

OLD = "before Ampere"
_NAMES = {  # as people write them → as the vendor's table has its columns
    **dict.fromkeys(("kepler", "maxwell", "pascal", "volta", "turing", "k80", "p40", "p100", "v100", "t4"), (OLD,)),
    **dict.fromkeys(("ampere", "a2", "a10", "a16", "a30", "a40", "a100", "a800", "a6000"), ("A100",)),
    **dict.fromkeys(("ada", "l4", "l20", "l40", "l40s", "rtx"), ()),
    **dict.fromkeys(("hopper", "h100", "h800", "h200", "h20"), ("H100",)),
    **dict.fromkeys(("grace-hopper", "gh200"), ("H100", "GH200")),
    **dict.fromkeys(("blackwell", "b100", "b200", "b300"), ("B100",)),
    **dict.fromkeys(("grace-blackwell", "gb200", "gb300"), ("GB200",)),
}
_WORD = re.compile(r"[a-z0-9]+")
_BRANCH = re.compile(r"[rR]?(\d{3})(?:\.\d{1,4}){0,3}$")


class Unknown(ValueError):
    """A generation or driver version that cannot be read; the message says what can."""


def columns_of(model: str) -> tuple[str, ...]:
    """The columns of the vendor's table for a generation or a product's name; none for what it does not list. Raises Unknown."""
    name = model.strip().lower()
    if name in _NAMES:
        return _NAMES[name]
    known = [_NAMES[word] for word in _WORD.findall(name) if word in _NAMES]
    if not known:
        raise Unknown(f"{model}: not known; known are {', '.join(_NAMES)}")
    return max(known, key=len)  # RTX A6000: a word that says nothing may stand beside the one that does


def branch_of(driver: str) -> int:
    """The driver's branch: 550 of 550.54.15. Raises Unknown."""
    branch = _BRANCH.match(driver.strip())
    if branch is None:
        raise Unknown(f"{driver}: not a version such as 550.54.15 or R550")
    return int(branch[1])


def on_generation(entry: Entry, model: str) -> list[str]:
    """What a GPU generation changes about an entry. Raises Unknown."""
    columns = columns_of(model)
    if not entry.applies_to or any(column in entry.applies_to for column in columns):
        return []
    if not columns:
        return [f"{model}: the vendor's table has no column for it."]
    return [
        f"{model}: the vendor does not list it there; when it is seen all the same, its own words count more than this."
    ]


def on_driver(entry: Entry, driver: str) -> list[str]:
    """What a driver version changes about an entry. Raises Unknown."""
    branch = branch_of(driver)
    said = []
    if _before(branch, entry.min_driver):
        said.append(f"{driver}: drivers before {entry.min_driver} do not report it.")
    if _before(branch, entry.xid154_since):
        said.append(f"{driver}: prints no XID 154 with it; that 154 is absent means nothing.")
    elif entry.xid154_since:
        said.append(f"{driver}: an XID 154 follows with the driver's own decision, which outranks this advice.")
    return said


def _before(branch: int, since: str) -> bool:
    return bool(since) and branch < int(since.removeprefix("R"))
