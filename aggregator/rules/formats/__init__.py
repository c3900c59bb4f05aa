"""Takes a message out of its log's dress: prefix, time, host, container wrapping, quotes, colours.

Formats are told apart line by line, so any mixture may stand in one input. Layers (`prefixes`, `json_records`) are peeled from the
outside in until none is left: a pasted quote around a container runtime's prefix around a journal line is one line like any other.
"""

from __future__ import annotations

import re
from dataclasses import replace

from aggregator.rules.formats.dress import Dress
from aggregator.rules.formats.json_records import RECORD_WORDS, JsonRecords
from aggregator.rules.formats.prefixes import DRIVERS, peel
from aggregator.rules.grammar.reading import Line, Origin

__all__ = ["MAX_LINE", "RECORD_WORDS", "JsonRecords", "clean", "parse", "parse_clean", "repeated_last", "uncoloured"]

MAX_LINE = 65_536  # characters: what follows is no message of a kernel or driver
_MAX_LAYERS = 6

_ANSI = re.compile(r"\x1b\[[0-?]{0,32}[ -/]{0,4}[@-~]|\x1b[()][A-Z0-9]|\x1b\][^\x07\x1b\n]{0,256}(?:\x07|\x1b\\)")
_CARET_ANSI = re.compile(r"\^\[\[[0-9;]{0,16}[A-Za-z]|\\u001b\[[0-9;]{0,16}m|\\x1b\[[0-9;]{0,16}m")
_QUOTE = re.compile(r"(?:\s{0,8}>(?= |>|\[|\t|$)){1,8} ?")
_BULLET = re.compile(r"\s{0,8}(?:[-*•]|\d{1,3}[.)]) (?=\[|NVRM:|kernel:|nvidia|[A-Z][a-z]{2} [ \d]\d |\d{4}-\d\d-)")
_TICKS = re.compile(r"`{1,3}([^`]+)`{1,3}$")
_REPEATED = re.compile(r"message repeated (\d{1,9}) times?: \[ ?(.*?)\]?$", re.S)
_LAST_REPEATED = re.compile(r"(?:[\w.-]{1,255} )?last message repeated (\d{1,9}) times?$")


def uncoloured(text: str) -> str:
    """A text, one line or many, without terminal colours, raw or spelled out: they may stand inside a word."""
    if "\x1b" in text or "^[[" in text or "\\u001b" in text or "\\x1b" in text:
        return _CARET_ANSI.sub("", _ANSI.sub("", text))
    return text


def clean(text: str) -> str:
    """An uncoloured line without carriage returns, quote marks, bullets and Markdown ticks; blanks in front are kept."""
    text = text.rstrip("\r\n \t\0").lstrip("\ufeff")
    if not text.isascii():
        text = text.replace("\xa0", " ")
    head = text.lstrip()[:1]
    if head == ">" and (quote := _QUOTE.match(text)):
        text = text[quote.end() :]
        head = text.lstrip()[:1]
    if head == "`" and (ticks := _TICKS.match(text.strip())):
        text = ticks[1]
    if (head in "-*•" or head.isdigit()) and (bullet := _BULLET.match(text)):
        text = text[bullet.end() :]
    return text


def parse(raw: str, *, now_us: int | None = None) -> Line:
    """The message of a raw line. `now_us` gives times without a year theirs: the last that is not to come."""
    return parse_clean(clean(uncoloured(raw)), now_us=now_us)


def parse_clean(text: str, *, now_us: int | None = None) -> Line:
    """As `parse`, of a line that went through `clean`."""
    dress = Dress(text.lstrip())
    indent = len(text) - len(dress.text)
    for _ in range(_MAX_LAYERS):
        if dress.text.startswith(DRIVERS) or not peel(dress, now_us):
            break
        indent = len(dress.text) - len(dress.text.lstrip())
        dress.text = dress.text.lstrip()
    repeated = _repeated(dress) if dress.text.startswith("message repeated ") else None
    return repeated or dress.line(indent)


def _repeated(dress: Dress) -> Line | None:
    """Syslog's "message repeated 3 times: [ … ]", with the message it holds."""
    repeated = _REPEATED.match(dress.text)
    if repeated is None:
        return None
    inner, outer = parse_clean(repeated[2].strip()), dress.line(0)
    return replace(
        inner,
        at_us=outer.at_us or inner.at_us,
        host=outer.host or inner.host,
        origin=inner.origin if outer.origin is Origin.UNKNOWN else outer.origin,
        repeated=int(repeated[1]),
    )


def repeated_last(text: str) -> int:
    """How often syslog says the last line came again; 0 when it says no such thing."""
    found = _LAST_REPEATED.match(text) if "last message repeated" in text else None
    return int(found[1]) if found else 0
