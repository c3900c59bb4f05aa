"""Reads a whole log: lines in, signals out, whatever formats it mixes.

Holds what needs more than one line: records and tables put together, names of GPUs (UUID, address, serial, minor) learned
anywhere in the text and used everywhere, repeated lines counted. Memory is bounded however long the log is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from aggregator.model import Scalar, Signal
from aggregator.rules import formats, records
from aggregator.rules.boots import Boots
from aggregator.rules.gathered import Gathered
from aggregator.rules.grammar.nvidia_smi import Tables
from aggregator.rules.grammar.reading import Grammar, Line, Reading
from aggregator.rules.names import Names
from aggregator.rules.ports import attributed
from aggregator.rules.reader import readings_of, trust_of
from aggregator.rules.words import grammars_for, stems_in


class LogReader:
    """Reads one input line by line: feed it everything, then `finish`, then ask for `signals`.

    `name` goes in front of line numbers in signal ids, for a reading of several files. `now_us` is for times
    that name no year: microseconds since the epoch.
    """

    def __init__(self, *, name: str = "", now_us: int | None = None) -> None:
        self.lines_read = 0
        self.lines_matched = 0
        self.driver_version: str | None = None
        self.gpu_model: str | None = None
        self._name = name
        self._now_us = now_us
        self._open: _Open | None = None
        self._json = formats.JsonRecords()
        self._tables = Tables()
        self._names = Names()
        self._gathered = Gathered()
        self._boots = Boots()
        self._last_number = self._on_line = 0  # the line of the last signal, and its how manieth that was

    def feed(self, text: str) -> None:
        """Take the next line, or many whole lines at once: what a block does not hold need not be looked for in its lines."""
        text = formats.uncoloured(text)
        lowered = text.lower()
        stems = stems_in(lowered)
        lines = text.split("\n")
        if not lines[-1]:
            lines.pop()
        if not stems and not self._busy():
            self.lines_read += len(lines)
            return
        for raw, low in zip(lines, lowered.split("\n"), strict=False):
            self.lines_read += 1
            for stem in stems:
                if stem in low:
                    grammars = grammars_for(low, stems)
                    break
            else:
                grammars = None
            if grammars is not None or self._busy():
                self._take(raw, grammars or ())

    def finish(self) -> None:
        """The input has ended."""
        self._close()

    def signals(self) -> tuple[Signal, ...]:
        """What was read so far, in order, with every name that the text gave."""
        return tuple(attributed(self._names.resolved(self._gathered.signals())))

    @property
    def signals_dropped(self) -> int:
        """Signals beyond what is kept apart and beyond what could be counted in one of the same kind and GPU."""
        return self._gathered.dropped

    def _busy(self) -> bool:
        """True inside something that spans lines: then every line counts."""
        return self._open is not None or self._tables.inside or self._json.inside

    def _take(self, raw: str, grammars: Sequence[Grammar]) -> None:
        clean = formats.clean(raw)
        if '"' not in clean and not self._json.inside:
            self._take_record(clean[: formats.MAX_LINE], raw[: formats.MAX_LINE], grammars)
            return
        for record in self._json.records(clean):
            if record is clean:
                self._take_record(record[: formats.MAX_LINE], raw[: formats.MAX_LINE], grammars)
            else:
                self._take_record(record[: formats.MAX_LINE], record[: formats.MAX_LINE], ())

    def _take_record(self, record: str, raw: str, grammars: Sequence[Grammar]) -> None:
        line = formats.parse_clean(record, now_us=self._now_us)
        grammars = grammars or grammars_for(line.text.lower()) or ()
        if self._open is not None:
            whole = records.joined(self._open.line.text, line)
            if whole is not None:
                self._open = replace(
                    self._open, line=replace(self._open.line, text=whole), raw=f"{self._open.raw}\n{raw}"
                )
                return
            self._close()
        if grammars and records.unfinished(line.text):
            self._open = _Open(line, self.lines_read, raw)
            return
        self._read(line, grammars, self.lines_read, raw)

    def _close(self) -> None:
        if self._open is not None:
            pending, self._open = self._open, None
            self._read(pending.line, grammars_for(pending.line.text.lower()) or (), pending.number, pending.raw)

    def _read(self, line: Line, grammars: Sequence[Grammar], number: int, raw: str) -> None:
        repeated = formats.repeated_last(line.text)
        if repeated:
            self._gathered.repeat_last(repeated)
            return
        readings = self._tables.read(line)
        if readings is None:
            readings = readings_of(line, grammars)
        boot_id, since_us = self._boots.place(line, [reading.kind for reading in readings])
        signals = list(self._signals(line, boot_id, readings, number, raw))
        self.lines_matched += bool(readings)
        self._gathered.add(signals, line.text, number, since_us)

    def _signals(
        self, line: Line, boot_id: str, readings: Iterable[Reading], number: int, raw: str
    ) -> Iterator[Signal]:
        identity = f"{self._name}:L{number}" if self._name else f"L{number}"
        for reading in readings:
            self._names.learn(line.host, reading)
            self._notice(reading)
            if reading.kind == "gpu_identity":
                continue
            self._on_line = self._on_line + 1 if number == self._last_number else 1
            self._last_number = number
            yield Signal(
                id=identity if self._on_line == 1 else f"{identity}#{self._on_line}",
                kind=reading.kind,
                code=reading.code,
                node=line.host,
                pci=reading.pci,
                gpu_uuid=reading.gpu_uuid,
                mig=reading.mig,
                at_us=line.at_us,
                order=number,
                line=number,
                raw=raw.strip(),
                source="log",
                boot_id=boot_id,
                trust=trust_of(reading.kind),
                attributes=_with_uptime(reading, line.uptime_us),
                count=reading.count,
            )

    def _notice(self, reading: Reading) -> None:
        """The driver's version and the GPU's model, which rules may depend on."""
        driver, model = reading.attributes.get("driver_version"), reading.attributes.get("model")
        self.driver_version = self.driver_version or (str(driver) if driver else None)
        self.gpu_model = self.gpu_model or (str(model) if model else None)


def _with_uptime(reading: Reading, uptime_us: int | None) -> Mapping[str, Scalar]:
    return reading.attributes if uptime_us is None else {**reading.attributes, "uptime_seconds": uptime_us / 1e6}


@dataclass(frozen=True, slots=True)
class _Open:
    """A message that may go on in the next line."""

    line: Line
    number: int
    raw: str


def read_log(lines: Iterable[str], *, now_us: int | None = None) -> tuple[Signal, ...]:
    """The signals of a log given line by line."""
    reader = LogReader(now_us=now_us)
    for line in lines:
        reader.feed(line)
    reader.finish()
    return reader.signals()
