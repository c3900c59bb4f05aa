"""Takes secrets out of text before anything stores, shows or sends it. Half of the choke point; `framing` is the other.

Patterns run on the whole text in linear time (re2), before it is cut, paged or filtered: what a page or a filter can reveal has
been redacted already. Known token formats go by their shape; other secrets by the name in front of them (`password=…`). Nothing
goes by looking random alone, so GPU UUIDs, PCI addresses, registers and digests stay. The mark tells the kind and nothing else.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import re2

MARK = "[redacted:{}]"
MIN_KNOWN = 6  # characters of a configured secret worth looking for
_QUOTES = b"\\\"'"
SMALLEST_CODED = 24  # characters of base64 worth decoding
LARGEST_CODED = 65_536

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
_OPTIONS.max_mem = 64 << 20

_NAME = (
    r"(?:pass(?:word|wd|phrase|code)|pwd|secret|token|credentials?|cookie|signature"
    r"|(?:api|access|secret|private|account|signing|encryption|ssh|auth|shared|license|sas)[_.-]?key"
    r"|apikey|secret[_.-]?access[_.-]?key|client[_.-]?secret|bearer|x-amz-credential)"
    r"(?:[_.-]?(?:value|text|data|hash|base64|b64))?"
)
_QUOTE = r"""(?:\\*["'])"""
_QUOTED = r"""(?:\\+"[^"\n]*?\\+"|"(?:[^"\\\n]|\\.)*"|\\+'[^'\n]*?\\+'|'(?:[^'\\\n]|\\.)*')"""
_BARE = r"""[^\s"'`,;&<>(){}\\]+"""

_AUTHORIZATION = r"(?:proxy-)?authorization" + _QUOTE + r"?\s*[:=]\s*" + _QUOTE + "?"

_START = r"(\b|\\[nrtbf])"  # of a word; in JSON's text, an escaped line break may stand before it

_END = r"-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
_KEY_FILES = (
    rf"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:{_END}|\z)",
    rf"(?:[A-Za-z0-9+/=]{{16,}}(?:\s|\\n)+)+{_END}",  # its beginning was cut off
)
# (kind, pattern): shapes that are secrets wherever they stand.
_SHAPES: tuple[tuple[str, str], ...] = (
    ("jwt", r"eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*){0,3}"),
    ("aws-key", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b"),
    ("github-token", r"(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})"),
    ("gitlab-token", r"gl(?:pat|ptt|dt|rt|cbt|ft|agent)-[A-Za-z0-9_-]{16,}"),
    ("slack-token", r"xox[abeoprs]-[A-Za-z0-9-]{8,}|xapp-[A-Za-z0-9-]{8,}"),
    ("webhook", r"(?i)hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/_-]+"),
    ("google-key", r"AIza[A-Za-z0-9_-]{30,}|ya29\.[A-Za-z0-9_-]{16,}"),
    ("api-key", r"(?:sk|pk|rk)[-_](?:[a-z]+[-_]){0,3}[A-Za-z0-9_-]{16,}"),
    ("api-key", r"(?:nvapi|hf|npm|pypi|dapi|shpat|lin_api|dop_v1|doo_v1|dor_v1)[-_][A-Za-z0-9_-]{16,}"),
    ("api-key", r"dapi[0-9a-f]{32}\b|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|AGE-SECRET-KEY-1[A-Z0-9]{20,}"),
    ("vault-token", r"hv[sbr]\.[A-Za-z0-9_-]{20,}"),
)

# (kind, pattern): group 1 stays, group 2 is the secret.
_NAMED: tuple[tuple[str, str], ...] = (
    ("credentials", r"""(?i)([a-z][a-z0-9+.-]*://)([^\s/"'<>?#\\]+|[^\s/"'<>?#\\:@]*:[^\s"'<>\\@]+)@"""),
    ("authorization", r"(?i)(" + _AUTHORIZATION + r"(?:bearer|basic|negotiate|token)\s+)(" + _BARE + ")"),
    ("authorization", r"(?i)(" + _AUTHORIZATION + r""")([^\r\n"'\\]{2,})"""),
    ("cookie", r"""(?i)((?:set-)?cookie\s*:\s*)([^\r\n"'\\]{2,})"""),
    ("bearer", r"""(?i)((?:bearer|basic)(?:\s+|%20))([A-Za-z0-9._~+/=-]{8,})"""),
    ("credentials", r"""((?:\s|\\n)(?:-u|--user|--proxy-user)[ =]["']?)([^\s"':]*:[^\s"']+)"""),
    (
        "secret",
        r"(?i)((?:^|[^a-z0-9]|[a-z0-9])(?:"
        + _NAME
        + r")"
        + _QUOTE
        + r"?\s*(?:=>|:=|[:=])\s*(?:[|>][+-]?\s*(?:\n|\\n)\s*)?)("
        + _QUOTED
        + "|"
        + _BARE
        + ")",
    ),
    ("secret", r"(?i)(--?[a-z0-9-]*(?:" + _NAME + r")\s+)(" + _QUOTED + "|" + _BARE + ")"),
)
_BLOCK = r"[A-Za-z0-9+/]{64}={0,2}"
_CODED = r"((?:\\[nrt])?)([A-Za-z0-9+/_-]{" + str(SMALLEST_CODED) + r",}={0,2})"
# What may stand behind a secret's name and is none: numbers that registers and addresses are written as, and empty words.
_HARMLESS = (
    r"""(?i)["'\\]*(?:0x[0-9a-f]{1,16}|true|false|null|none|nil|yes|no|\*+|<[a-z _-]*>|(?:GPU|MIG)-[0-9a-f-]{36}"""
    r"""|(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]|(?:(?:bearer|basic|negotiate|token)\s+)?\[redacted:[a-z-]+\]?.*)["'\\]*"""
)


def _mark(kind: str) -> bytes:
    return MARK.format(kind).encode()


def _compiled(pattern: str) -> Any:
    return re2.compile(pattern.encode(), _OPTIONS)


_SHAPE_PATTERNS = tuple((rb"\1" + _mark(kind), _compiled(_START + f"(?:{pattern})")) for kind, pattern in _SHAPES)
_KEY_FILE_PATTERNS = tuple(_compiled(pattern) for pattern in _KEY_FILES)
_NAMED_PATTERNS = tuple((kind, _compiled(pattern)) for kind, pattern in _NAMED)
_BLOCK_PATTERN, _CODED_PATTERN, _HARMLESS_PATTERN = _compiled(_BLOCK), _compiled(_CODED), _compiled(_HARMLESS)
_SECRET_NAME = _compiled(r"(?i).*(?:" + _NAME + r")")


class Redactor:
    """Redacts what looks like a secret, and the process's own secrets wherever they turn up."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        forms = {form for secret in known if len(secret) >= MIN_KNOWN for form in _forms(secret)}
        self._known = [form.encode() for form in sorted(forms, key=len, reverse=True)]

    def text(self, text: str) -> str:
        """The text without secrets. Doing it twice changes nothing more."""
        raw = text.encode("utf-8", "replace")
        for secret in self._known:
            raw = raw.replace(secret, _mark("own-secret"))
        return _without_coded(_without_secrets(raw)).decode("utf-8", "replace")

    def value(self, value: Any) -> Any:
        """A JSON value whose strings are redacted one by one, and whole where their name says what they are.

        Rendered first, a line break before a secret would read as the letter n.
        """
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            named = "name" in value and "value" in value and _is_secret_name(value["name"])
            return {
                key: _hidden(item) if _is_secret_name(key) or (named and key == "value") else self.value(item)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self.value(item) for item in value]
        return value


def _forms(secret: str) -> Iterable[str]:
    """How a secret of ours may be written."""
    yield secret
    yield base64.b64encode(secret.encode()).decode().rstrip("=")


def _without_secrets(raw: bytes) -> bytes:
    for pattern in _KEY_FILE_PATTERNS:
        raw = pattern.sub(_mark("private-key"), raw)
    for mark, pattern in _SHAPE_PATTERNS:
        raw = pattern.sub(mark, raw)
    for kind, pattern in _NAMED_PATTERNS:
        raw = pattern.sub(_behind_name(kind), raw)
    return raw


def _behind_name(kind: str) -> Callable[[Any], bytes]:
    mark = _mark(kind)

    def replaced(match: Any) -> bytes:
        whole: bytes = match.group(0)
        head, secret = len(match.group(1)), bytes(match.group(2))
        if _HARMLESS_PATTERN.fullmatch(secret) or (kind == "bearer" and not _is_token(secret)):
            return whole
        opening = len(secret) - len(secret.lstrip(_QUOTES))
        closing = len(secret.rstrip(_QUOTES)) if opening else len(secret)
        return whole[:head] + secret[:opening] + mark + secret[closing:] + whole[head + len(secret) :]

    return replaced


def _is_token(text: bytes) -> bool:
    """Not a word: "bearer certificate" and "basic diagnostics" are English."""
    return len(text) > 32 or not text.isalpha()


def _without_coded(raw: bytes) -> bytes:
    """Base64 that a key file's line is written in, or that holds a secret when decoded."""
    raw = _CODED_PATTERN.sub(_decoded_clean, raw)
    return bytes(
        _BLOCK_PATTERN.sub(lambda match: _mark("key-block") if _is_mixed(match.group(0)) else match.group(0), raw)
    )


def _decoded_clean(match: Any) -> bytes:
    whole: bytes = match.group(0)
    coded: bytes = match.group(2)
    if len(coded) > LARGEST_CODED or not _is_mixed(coded):
        return whole
    plain = coded.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    try:
        text = base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except binascii.Error:
        return whole
    return bytes(match.group(1)) + _mark("encoded-secret") if _without_secrets(text) != text else whole


def _is_mixed(text: bytes) -> bool:
    """Both cases and a digit: a digest in hexadecimal has one case, a word no digit."""
    return text != text.lower() and text != text.upper() and any(48 <= byte <= 57 for byte in text)


def _is_secret_name(name: object) -> bool:
    return isinstance(name, str) and bool(_SECRET_NAME.fullmatch(name.encode("utf-8", "replace")))


def _hidden(value: Any) -> Any:
    """A value whose name says that it is secret: gone as a whole, unless it is empty or a number or flag."""
    return value if value in ("", None) or isinstance(value, bool | int | float) else MARK.format("secret")
