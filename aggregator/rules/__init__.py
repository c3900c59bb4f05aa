"""The rule engine: reads what lines mean, judges sets of signals. Pure: no I/O beyond its own packaged data."""

from aggregator.rules.catalog import Catalog, CatalogError, load
from aggregator.rules.context import Context
from aggregator.rules.engine import judge, rules_version
from aggregator.rules.log import LogReader, read_log
from aggregator.rules.reader import read
from aggregator.rules.relations import explains, is_fault, kin

VERSION = rules_version(load())

__all__ = [
    "VERSION",
    "Catalog",
    "CatalogError",
    "Context",
    "LogReader",
    "explains",
    "is_fault",
    "judge",
    "kin",
    "load",
    "read",
    "read_log",
    "rules_version",
]
