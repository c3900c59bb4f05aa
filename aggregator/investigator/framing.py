"""The other half of the choke point: text that came from outside cannot leave its frame, move a cursor or become a link.

`Gate.admit` is what everything passes on its way in: items, tools' answers, errors, and what the model wrote before it is kept.
`Gate.leaving` is for the model's words on their way to people: it takes out links as well, since a quote is shown beside them.
A frame's marks cannot stand in admitted text, so no text closes its frame, whether or not it guesses the nonce.
"""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

import re2

from aggregator.investigator.items import Item
from aggregator.investigator.redaction import Redactor

LINK_REMOVED = "[link removed]"
LONGEST_TITLE = 200

_COLOUR = re.compile(r"(?:\x1b|\\u001b|\\x1b|\\033)\[[0-9;:]*m")
_BREAK = re.compile(r"\r\n?|[\v\f\x85\u2028\u2029]")
_PLAIN = re.compile(r"[\n\t\x20-\x7e]*")
_INVISIBLE = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
_SELECTORS = ((0xFE00, 0xFE0F), (0xE0100, 0xE01EF), (0x180B, 0x180F))  # variation selectors: marks that print nothing
_BLANKS = frozenset((0x115F, 0x1160, 0x3164, 0xFFA0, 0x2800))  # letters that print nothing
_FRAMES = (("<<<", "‹‹‹"), (">>>", "›››"))
# Marks of turns, and what makes a link of a text: replaced by what looks alike and means nothing. In re2: linear, and fast.
_FORGERIES: tuple[tuple[str, str], ...] = (
    (r"<(\|)", r"‹\1"),  # <|im_start|>
    (r"(\|)>", r"\1›"),
    (
        r"(?i)<(/?\s*(?:antml:|system|assistant|user|human|tool|function|invoke|thinking|instruction|result|item))",
        r"‹\1",
    ),
    (r"(?i)\[(/?INST\])", r"(\1"),
    (r"(?i)<(</?SYS>)", r"‹\1"),
    (r"(?im)^([ \t]*)(human|assistant|system|user|developer|tool)([ \t]*:)", r"\1(\2)\3"),
    (r"(?i)([a-z0-9+.-])://", r"\1[:]//"),
    (r"(?i)\b(mailto|javascript):", r"\1[:]"),
    (r"(?i)\b(data):(\w+/)", r"\1[:]\2"),
    (r"(?i)\b(www)\.", r"\1[.]"),
)
_LINK = re.compile(
    r"[a-z][a-z0-9+.-]{0,30}\[:\]//[^\s)\]>\"']*|\b(?:mailto|javascript|data)\[:\]\S*|\bwww\[\.\][^\s)\]>\"']+",
    re.IGNORECASE,
)
_IMAGE = re.compile(r"!\[[^\]\n]{0,200}\]\([^)\n]{0,2000}\)")
_HOST = re.compile(
    r"\b(?:[a-z0-9-]{1,63}\.){1,8}(?:com|net|org|io|ai|dev|app|co|info|biz|xyz|top|site|online|me|ru|cn|link|click|tk|gg|ly|cc|us|eu|de|uk)\b"
    r"(?:/[^\s)\]>\"']*)?",
    re.IGNORECASE,
)
_NAMESPACES = ("nvidia.com/", "amd.com/", "k8s.io/", "kubernetes.io/", "mellanox.com/", "cilium.io/", "openshift.io/")


def _nonce() -> str:
    return secrets.token_hex(4)


@dataclass(frozen=True, slots=True)
class Gate:
    """What every text passes, both ways."""

    redactor: Redactor = field(default_factory=Redactor)
    nonce: Callable[[], str] = _nonce

    def admit(self, text: str) -> str:
        """Text without secrets, without characters that act, without forged frames or turns, its links dead."""
        return _without_forgery(self.redactor.text(printable(text)))

    def frame(self, item: Item) -> str:
        """An admitted item between marks that name it."""
        return self._framed(item.id, f"{item.trust.value} | {item.title}", item.text)

    def frame_error(self, title: str, text: str) -> str:
        """What went wrong with a call, framed like an answer: it may hold anybody's words. It has no id, so nothing can cite it."""
        return self._framed("error", self.admit(title)[:LONGEST_TITLE], self.admit(text))

    def leaving(self, text: str, known: str = "") -> str:
        """A model's words for people: admitted, on one line, without links; host names stay where `known` (what it was shown of
        hardware and cluster) holds them."""
        line = " ".join(_IMAGE.sub(LINK_REMOVED, self.admit(text)).split())
        line = _LINK.sub(LINK_REMOVED, line)
        return _HOST.sub(lambda match: _host(match.group(), known), line)

    def _framed(self, name: str, title: str, text: str) -> str:
        nonce = self.nonce()
        return f"<<<{name} {nonce} | {title}>>>\n{text}\n<<<end {name} {nonce}>>>"


def printable(text: str) -> str:
    """Text of which every character shows as itself: colours are dropped, what else a terminal or a reader would act on and not
    see stands as an escape, odd spaces are spaces. Line breaks and tabs stay."""
    text = _BREAK.sub("\n", _COLOUR.sub("", text))
    return text if _PLAIN.fullmatch(text) else text.translate(_VISIBLE)


class _Visible(dict[int, str]):
    """How each character is shown; made as characters turn up."""

    def __missing__(self, code: int) -> str:
        shown = chr(code) if chr(code) in "\n\t" else _shown(code)
        if len(self) < 100_000:
            self[code] = shown
        return shown


_VISIBLE = _Visible()


def _shown(code: int) -> str:
    category = unicodedata.category(chr(code))
    if category == "Zs":
        return " "
    hidden = category in _INVISIBLE or code in _BLANKS or any(first <= code <= last for first, last in _SELECTORS)
    if not hidden:
        return chr(code)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _without_forgery(text: str) -> str:
    """Text that neither closes a frame, nor begins a turn, nor links anywhere."""
    for mark, look_alike in _FRAMES:
        text = text.replace(mark, look_alike)
    raw = text.encode()
    for pattern, instead in _FORGERY_PATTERNS:
        raw = pattern.sub(instead, raw)
    return raw.decode()


_FORGERY_PATTERNS = tuple((re2.compile(pattern.encode()), instead.encode()) for pattern, instead in _FORGERIES)


def _host(name: str, known: str) -> str:
    if name in known or name.lower().startswith(_NAMESPACES) or any(space in name.lower() for space in _NAMESPACES):
        return name
    return LINK_REMOVED if "/" in name else name.replace(".", "[.]")
