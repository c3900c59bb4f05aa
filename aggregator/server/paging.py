"""Pages: sizes that are bounded, and tokens that stay valid while rows are added.

A token holds the last row's key and a digest of the question it belongs to; it is checked, and means nothing to a caller.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json

from google.protobuf.message import Message

from aggregator.server.refusal import invalid

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
MAX_TOKEN = 1000  # characters; what is nested deeper than this allows would exhaust the parser

Key = list[int | str]


def page_size(asked: int) -> int:
    """The number of rows to return. Raises Refusal."""
    if asked > MAX_PAGE_SIZE:
        raise invalid(f"page_size {asked} is more than {MAX_PAGE_SIZE}")
    return asked or DEFAULT_PAGE_SIZE


def make_token(request: Message, key: Key) -> str:
    """The token for the page behind the row with this key."""
    return base64.urlsafe_b64encode(json.dumps([_digest(request), *key]).encode()).decode()


def read_token(request: Message, token: str, shape: tuple[type, ...]) -> Key | None:
    """The key in a page token; None for the first page. Raises Refusal."""
    if not token:
        return None
    if len(token) > MAX_TOKEN:
        raise invalid("page_token is none that this server gave")
    try:
        digest, *parts = json.loads(base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, TypeError) as error:
        raise invalid("page_token is none that this server gave") from error
    key: Key = parts
    if tuple(type(part) for part in key) != shape or any(isinstance(p, int) and not 0 <= p < 2**63 for p in key):
        raise invalid("page_token is none that this server gave")
    if digest != _digest(request):
        raise invalid("page_token belongs to another request: only page_size may differ between pages")
    return key


def _digest(request: Message) -> str:
    question = type(request)()
    question.CopyFrom(request)
    question.ClearField("page_token")
    question.ClearField("page_size")
    return hashlib.sha256(question.SerializeToString(deterministic=True)).hexdigest()[:16]
