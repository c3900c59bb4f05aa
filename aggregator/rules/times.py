"""Times as logs print them, to microseconds since the epoch. A time without a zone is UTC: nothing in a paste says otherwise."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?\s?(Z|UTC|GMT|[A-Z]{3,5}|([+-])(\d\d):?(\d\d))?$"
)
# Sun Feb 23 16:24:18 2025; Feb 27 2025 15:10:02; Jul 09 10:42:47; Oct  4 01:02:03.123456
_NAMED = re.compile(
    r"(?:[A-Z][a-z]{2} )?([A-Z][a-z]{2}) {1,2}(\d{1,2}) (?:(\d{4}) )?(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?(?: (\d{4}))?$"
)
_CLOCKS_DIFFER_US = 86_400_000_000  # and zones: a day ahead is no time to come
_EPOCH = re.compile(r"(\d{10})(?:\.(\d{1,9}))?$")


@lru_cache(maxsize=1024)  # a burst of lines has few different times
def parse(text: str, *, now_us: int | None = None) -> int | None:
    """Microseconds since the epoch, UTC; None for what is no time.

    A time that names no year gets the last one that has the day and does not put it after `now_us`; without `now_us`, the first
    from 1970.
    """
    text = text.strip()
    iso = _ISO.match(text)
    if iso:
        return _iso(iso)
    named = _NAMED.match(text)
    if named:
        return _named(named, now_us)
    epoch = _EPOCH.match(text)
    return int(epoch[1]) * 1_000_000 + _micros(epoch[2]) if epoch else None


def _iso(found: re.Match[str]) -> int | None:
    at = _epoch_us(*(int(part) for part in found.groups()[:6]), micros=_micros(found[7]))
    if at is None or found[9] is None:
        return at
    offset = timedelta(hours=int(found[10]), minutes=int(found[11])) // timedelta(microseconds=1)
    return at - offset if found[9] == "+" else at + offset


def _named(found: re.Match[str], now_us: int | None) -> int | None:
    name = found[1].lower()
    if name not in _MONTHS:
        return None
    month = _MONTHS.index(name) + 1
    written = found[3] or found[8]
    clock = (int(found[4]), int(found[5]), int(found[6]))
    if written:
        return _epoch_us(int(written), month, int(found[2]), *clock, micros=_micros(found[7]))
    years = range(1970, 1973) if now_us is None else _years_until(now_us)  # three years hold a 29 February
    days = (_epoch_us(year, month, int(found[2]), *clock, micros=_micros(found[7])) for year in years)
    return next((at for at in days if at is not None and (now_us is None or at <= now_us + _CLOCKS_DIFFER_US)), None)


def _years_until(now_us: int) -> range:
    """This year and those before it, far enough for two leap years that 1900 or 2100 lies between."""
    year = datetime.fromtimestamp(now_us // 1_000_000, UTC).year
    return range(year, year - 9, -1)


def _micros(fraction: str | None) -> int:
    return int(fraction[:6].ljust(6, "0")) if fraction else 0


def _epoch_us(year: int, month: int, day: int, hour: int, minute: int, second: int, *, micros: int) -> int | None:
    try:
        at = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=UTC)
    except ValueError:
        return None
    return int(at.timestamp()) * 1_000_000 + micros
