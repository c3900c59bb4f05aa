"""Keeps out of the process what its dependencies import and the agent never uses: 8 MB on each node.

asyncio loads OpenSSL for streams of its own and hashlib for its versions of built-in hashes (gRPC brings its own TLS);
prometheus_client loads HTTP servers and clients and mail parsers, for serving and pushing. Nothing is patched: the first two are
imported as on a Python without OpenSSL, which they are made for, and of prometheus_client the parts are imported without its front
door. Whoever needs ssl later imports it as always.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

FRONT_DOOR = "prometheus_client"


def import_lean() -> None:
    """Import or prepare these modules in that way. Does nothing to what is imported already."""
    _import_without("asyncio", "ssl")
    _import_without("hashlib", "_hashlib")
    spec = importlib.util.find_spec(FRONT_DOOR)
    if FRONT_DOOR not in sys.modules and spec is not None:
        package = types.ModuleType(FRONT_DOOR)
        package.__spec__ = spec
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules[FRONT_DOOR] = package


def _import_without(name: str, unwanted: str) -> None:
    if name not in sys.modules and unwanted not in sys.modules:
        sys.modules[unwanted] = None  # type: ignore[assignment]  # the import system reads this as "not installed"
        importlib.import_module(name)
        del sys.modules[unwanted]
