"""The rule engine: reads what lines mean, judges sets of signals. Pure: no I/O beyond its own packaged data."""

from aggregator.rules.reader import read

__all__ = ["read"]
