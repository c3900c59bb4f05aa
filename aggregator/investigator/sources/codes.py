"""`explain_code`: what the rules' catalog holds of a code or kind of signal."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aggregator.investigator.sources import Answer, Scope, Tool
from aggregator.investigator.sources.asking import Refused, parameters, refusing
from aggregator.model import Trust
from aggregator.rules.catalog import CODED, Catalog
from aggregator.rules.kinds import KINDS

_CODE = re.compile(r"(sxid|xid)[ _:#-]*([0-9]{1,9})", re.IGNORECASE)
_LEFT_OUT = frozenset(("weight", "site", "yields"))

_ABOUT = """\
Returns what is known of an XID, an SXid or a kind of signal: meaning, severity, class, what to do and what not to do, \
what to do when it comes back, which GPUs and drivers it applies to, where sources disagree, and the sources. Take \
codes from here, not from memory."""
_WHAT = {
    "type": "string",
    "minLength": 1,
    "maxLength": 64,
    "description": '"xid 79", "sxid 20034", or a kind: "row_remap_pending"',
}


@dataclass(frozen=True)
class Codes:
    """The catalog."""

    catalog: Catalog
    name: str = "codes"

    @property
    def tools(self) -> Sequence[Tool]:
        return (Tool("explain_code", _ABOUT, parameters({"code": _WHAT}, "code"), refusing(self.explain)),)

    async def unavailable(self) -> str:
        return ""

    async def explain(self, scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        """The tool."""
        kind, code = _read(arguments["code"])
        entry = self.catalog.entry(kind, code)
        shown = asdict(entry or self.catalog.unknown(kind, code))
        value = {name: item for name, item in shown.items() if name not in _LEFT_OUT and item not in ("", (), None)}
        return Answer({"known": entry is not None, **value, "rules_version": self.catalog.version}, Trust.CLUSTER)


def _read(text: str) -> tuple[str, int | None]:
    if found := _CODE.fullmatch(text.strip()):
        return found[1].lower(), int(found[2])
    kind = text.strip().lower()
    if kind in KINDS and kind not in CODED:
        return kind, None
    near = ", ".join(difflib.get_close_matches(kind, KINDS, n=5)) or "none is near"
    raise Refused(f'no code or kind {text[:64]!r}: write "xid 79", "sxid 20034" or a kind of signal ({near})')
