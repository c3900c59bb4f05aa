"""Logs whose records are JSON: journald, `dmesg --json`, container runtimes, cloud logging.

What a record's own fields say about its writer counts for more than its text: in the journal only `_TRANSPORT=kernel` is the
kernel, whatever a process calls itself.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from aggregator.rules import times
from aggregator.rules.formats.dress import FACILITIES, LEVELS, OTHER_FACILITY, Dress
from aggregator.rules.grammar.reading import Origin

# Words of lines that begin records spread over lines, and of journald's list of numbers for text that is not UTF-8. The journal
# prints fields in any order, so each of those that matter may come first.
RECORD_WORDS = (
    *('"pri":', '"message":[', '"message": [', '"__realtime_timestamp" :', '"__realtime_timestamp": '),
    *('"_transport" :', '"_transport": '),
)
_LIST = re.compile(r'\s{0,40}(?:\{\s{0,20}"dmesg"\s{0,20}:\s{0,20})?\[\s{0,20}\{\s{0,20}"')
_FIELD = re.compile(r'\s{0,40}"([A-Za-z_]{1,64})"\s?:\s{0,20}(.{1,8192}?),?\s{0,20}$')
_DMESG_FIELDS = ("pri", "fac", "time", "caller", "msg")
_JOURNAL_FIELD = re.compile(r"[A-Z_][A-Z0-9_]{1,63}$")
_BRACES = re.compile(r"[\s{}\[\],]{0,80}$")
_MESSAGE_KEYS = ("log", "message", "msg", "textPayload", "line", "MSG", "text")
_TIME_KEYS = ("time", "timestamp", "@timestamp", "ts")


def json_record(dress: Dress, now_us: int | None) -> bool:
    """A layer: takes the message out of a record that stands on one line."""
    record = _loaded(dress.text)
    if record is None:
        return False
    nested = record.get("jsonPayload")
    return _message(dress, nested if isinstance(nested, dict) else record, now_us)


def _loaded(text: str) -> dict[str, Any] | None:
    try:
        record = json.loads(text.strip().rstrip(","))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _message(dress: Dress, record: dict[str, Any], now_us: int | None) -> bool:
    if "MESSAGE" in record:
        _journal(dress, record)
        return True
    if "msg" in record and "pri" in record:
        _dmesg(dress, record, now_us)
        return True
    text = next((record[key] for key in _MESSAGE_KEYS if isinstance(record.get(key), str)), None)
    if text is None:
        return False
    dress.text = text.rstrip("\n")
    stamp = next((record[key] for key in _TIME_KEYS if record.get(key)), None)
    dress.at_us = times.parse(str(stamp), now_us=now_us) if stamp is not None else dress.at_us
    return True


def _journal(dress: Dress, record: dict[str, Any]) -> None:
    message = record["MESSAGE"]
    if isinstance(message, list):
        message = bytes(byte for byte in message if isinstance(byte, int) and 0 <= byte < 256).decode(
            "utf-8", "replace"
        )
    dress.text = str(message)
    dress.host = str(record.get("_HOSTNAME", ""))
    dress.boot_id = str(record.get("_BOOT_ID", ""))
    dress.level = _number(record.get("PRIORITY"))
    dress.at_us = _number(record.get("_SOURCE_REALTIME_TIMESTAMP")) or _number(record.get("__REALTIME_TIMESTAMP"))
    dress.origin = Origin.PROGRAM
    dress.program = str(record.get("SYSLOG_IDENTIFIER") or record.get("_COMM") or "journal")
    if dress.program == "kernel":  # anyone may call himself so: the transport says who he is
        dress.origin = Origin.USERSPACE
    if record.get("_TRANSPORT") == "kernel":
        dress.from_kernel_log(_number(record.get("SYSLOG_FACILITY")) or 0, dress.level)


def _dmesg(dress: Dress, record: dict[str, Any], now_us: int | None) -> None:
    """One record of `dmesg --json`, plain or decoded (-x)."""
    facility, priority = record.get("fac"), record.get("pri")
    if isinstance(priority, int):
        dress.from_kernel_log(priority >> 3, priority & 7)
    else:
        dress.from_kernel_log(
            FACILITIES.get(str(facility), OTHER_FACILITY) if facility is not None else 0, LEVELS.get(str(priority))
        )
    stamp = record.get("time")
    if isinstance(stamp, int | float) and math.isfinite(stamp):
        dress.uptime_us = round(stamp * 1e6)
    elif isinstance(stamp, str):
        dress.at_us = times.parse(stamp, now_us=now_us)
    dress.text = str(record["msg"])


def _number(value: object) -> int | None:
    try:
        return int(str(value))
    except ValueError:
        return None


class JsonRecords:
    """Gives every record a line of its own: of `dmesg --json` and `journalctl -o json-pretty`, spread over lines or many on one."""

    def __init__(self) -> None:
        self.inside = False
        self._fields: dict[str, str] = {}

    def records(self, raw: str) -> list[str]:
        """The records that are whole with this line: none inside one, several of a list; any other line as it came."""
        if _LIST.match(raw):
            return _listed(raw) or [raw]
        found = _FIELD.match(raw) if '"' in raw else None
        if found is not None and (found[1] in _DMESG_FIELDS or _JOURNAL_FIELD.match(found[1])):
            self.inside = True
            self._fields[found[1]] = found[2]
            return [self._whole()] if found[1] == "msg" else []
        whole = []
        if self.inside and raw.lstrip().startswith("}"):  # what was not whole by now says nothing of the next record
            whole = [self._whole()] if "MESSAGE" in self._fields else []
            self._fields.clear()
        self.inside = self.inside and _BRACES.match(raw) is not None
        return whole if self.inside else [*whole, raw]

    def _whole(self) -> str:
        whole = ", ".join(f'"{name}": {value}' for name, value in self._fields.items())
        self._fields.clear()
        return "{" + whole + "}"


def _listed(raw: str) -> list[str]:
    """The records of a list on one line; of one that was cut, those that are whole."""
    decoder, found = json.JSONDecoder(), []
    at = raw.find("{", raw.find("["))
    while at >= 0:
        try:
            _, end = decoder.raw_decode(raw, at)
        except (ValueError, RecursionError):
            break
        found.append(raw[at:end])
        at = raw.find("{", end)
    return found
