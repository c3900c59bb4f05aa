"""Which names mean the same GPU: UUID, PCI address, board serial, minor, index, as far as a text gives them away.

A paste names a GPU by its address in one line and by its UUID in another; what is learned anywhere holds everywhere, per node.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from aggregator.model import Signal
from aggregator.rules.grammar.reading import Reading

_ALIASES = ("serial", "minor", "index", "instance")
_MAX_NAMES = 100_000  # a log of a whole fleet has fewer; a hostile one no more


class Names:
    """Learns names from readings and completes signals with them."""

    def __init__(self) -> None:
        self._uuid_by_pci: dict[tuple[str, str], str] = {}
        self._pci_by_alias: dict[tuple[str, str, object], str] = {}
        self._gpus: set[tuple[str, str]] = set()
        self._last_pci: str | None = None

    def learn(self, node: str, reading: Reading) -> None:
        """Take the names that a reading holds. A serial without an address belongs to the GPU that was named last."""
        pci = reading.pci
        if reading.kind == "gpu_identity":
            pci = pci or self._last_pci
            self._last_pci = pci
        if pci is not None and len(self._gpus) < _MAX_NAMES and _is_gpu(reading):
            self._gpus.add((node, pci))
        if pci is None or len(self._pci_by_alias) + len(self._uuid_by_pci) > _MAX_NAMES:
            return
        if reading.gpu_uuid is not None:
            self._uuid_by_pci.setdefault((node, pci), reading.gpu_uuid)
            self._pci_by_alias.setdefault((node, "uuid", reading.gpu_uuid), pci)
        for alias in _ALIASES:
            value = reading.attributes.get(alias)
            if value is not None and value != "":
                self._pci_by_alias.setdefault((node, alias, value), pci)

    def resolved(self, signals: Iterable[Signal]) -> tuple[Signal, ...]:
        """Signals with the address and UUID of their GPU, where the text gave them anywhere."""
        told = (self._told_apart(signal) for signal in signals)
        return tuple(self._resolve(signal) for signal in told if signal is not None)

    def _told_apart(self, signal: Signal) -> Signal | None:
        """A link's speed matters where it is a GPU's: the line does not say, another one may. None where none does."""
        if signal.kind != "pcie_gpu_degraded" or signal.attributes.get("device") != "unknown":
            return signal
        if (signal.node, signal.pci or "") not in self._gpus:
            return None
        return replace(signal, attributes={**signal.attributes, "device": "gpu"})

    def _resolve(self, signal: Signal) -> Signal:
        pci = signal.pci or self._behind_port(signal) or self._address(signal)
        uuid = signal.gpu_uuid
        if uuid is None and pci is not None:
            uuid = self._uuid_by_pci.get((signal.node, pci))
        if pci == signal.pci and uuid == signal.gpu_uuid:
            return signal
        return replace(signal, pci=pci, gpu_uuid=uuid)

    def _behind_port(self, signal: Signal) -> str | None:
        """A port that reports an error on behalf of a GPU's address reports the GPU's error."""
        source = signal.attributes.get("source")
        return str(source) if source and (signal.node, str(source)) in self._gpus else None

    def _address(self, signal: Signal) -> str | None:
        if signal.gpu_uuid is not None:
            return self._pci_by_alias.get((signal.node, "uuid", signal.gpu_uuid))
        for alias in _ALIASES:
            value = signal.attributes.get(alias)
            if value is not None:
                pci = self._pci_by_alias.get((signal.node, alias, value))
                if pci is not None:
                    return pci
        return None


def _is_gpu(reading: Reading) -> bool:
    return reading.kind.startswith(("xid", "gpu_")) or reading.attributes.get("device") == "gpu"
