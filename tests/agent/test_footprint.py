"""The agent stays small: what it must not import, it cannot, and what costs memory without use is not loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

from node_agent.identity import AGENT_VERSION

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {forbidden!r}:
            raise AssertionError(f"something under node_agent imports {{name}}")
sys.meta_path.insert(0, Wall())
import node_agent
names = [module.name for module in pkgutil.walk_packages(node_agent.__path__, "node_agent.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
FORBIDDEN = ("kubernetes", "pydantic", "pydantic_settings", "sqlalchemy", "alembic", "structlog", "anthropic", "openai")
HEAVY = ("ssl", "_hashlib", "http.client", "http.server", "urllib.request", "email", "importlib.metadata", "pynvml")


def run(code: str) -> subprocess.CompletedProcess[str]:
    bare = {
        name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")
    }  # coverage imports too
    return subprocess.run(
        [sys.executable, "-c", code], env=bare, capture_output=True, text=True, timeout=60, check=False
    )


def test_nothing_under_node_agent_imports_what_the_aggregator_needs() -> None:
    result = run(IMPORT_EVERYTHING.format(forbidden=FORBIDDEN))
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 20


def test_the_wall_would_notice() -> None:
    assert "something under node_agent imports google" in run(IMPORT_EVERYTHING.format(forbidden=("google",))).stderr


def test_the_agent_process_does_not_load_what_it_does_not_use() -> None:
    result = run(f"import sys, node_agent.__main__; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert result.stdout == "[]\n", result.stderr


def test_tls_is_there_for_whoever_needs_it_later() -> None:
    result = run(
        "import node_agent.__main__, ssl, http.client; print(http.client.HTTPSConnection, ssl.create_default_context())"
    )
    assert result.returncode == 0, result.stderr


def test_the_version_is_the_distributions() -> None:
    assert version("gcm-sentinel") == AGENT_VERSION
