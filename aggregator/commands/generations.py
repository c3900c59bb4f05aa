"""What a GPU generation and a driver version change about an entry of the catalog, as sentences."""

from __future__ import annotations

import re

from aggregator.rules.catalog import Entry

OLD = "before Ampere"
_NAMES = {  # as people write them → as the vendor's table has its columns
    **dict.fromkeys(("kepler", "maxwell", "pascal", "volta", "turing", "p100", "v100", "t4"), (OLD,)),
    **dict.fromkeys(("ampere", "a100", "a800", "a30", "a40", "a10"), ("A100",)),
    **dict.fromkeys(("hopper", "h100", "h800", "h200", "h20"), ("H100",)),
    **dict.fromkeys(("grace-hopper", "gh200"), ("H100", "GH200")),
    **dict.fromkeys(("blackwell", "b100", "b200", "b300"), ("B100",)),
    **dict.fromkeys(("grace-blackwell", "gb200", "gb300"), ("GB200",)),
}
_BRANCH = re.compile(r"[rR]?(\d{3})(?:\.\d{1,4}){0,3}$")


class Unknown(ValueError):
    """A generation or driver version that cannot be read; the message says what can."""


def conditions(entry: Entry, generation: str | None, driver: str | None) -> list[str]:
    """What holds for this entry on this GPU and driver; nothing for what is not given. Raises Unknown."""
    said = [] if generation is None else [_on_generation(entry, generation)]
    return said if driver is None else said + _on_driver(entry, driver)


def _on_generation(entry: Entry, generation: str) -> str:
    columns = _NAMES.get(generation.strip().lower())
    if columns is None:
        raise Unknown(f"--generation {generation}: not known; known are {', '.join(_NAMES)}")
    if not entry.applies_to or any(column in entry.applies_to for column in columns):
        return f"{generation}: it applies there."
    return f"{generation}: the vendor does not list it there; when it is seen all the same, its own words count more than this."


def _on_driver(entry: Entry, driver: str) -> list[str]:
    branch = _BRANCH.match(driver.strip())
    if branch is None:
        raise Unknown(f"--driver {driver}: not a version such as 550.54.15 or R550")
    said = []
    if _before(branch[1], entry.min_driver):
        said.append(f"{driver}: drivers before {entry.min_driver} do not report it.")
    if _before(branch[1], entry.xid154_since):
        said.append(f"{driver}: prints no XID 154 with it; that 154 is absent means nothing.")
    elif entry.xid154_since:
        said.append(f"{driver}: an XID 154 follows with the driver's own decision, which outranks this advice.")
    return said or [f"{driver}: nothing about this entry depends on the driver, as far as is known."]


def _before(branch: str, since: str) -> bool:
    return bool(since) and int(branch) < int(since.removeprefix("R"))
