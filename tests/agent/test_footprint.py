"""The agent stays small: what it must not import, it cannot."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import importlib, pkgutil, sys
FORBIDDEN = {forbidden!r}
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise AssertionError(f"something under node_agent imports {{name}}")
sys.meta_path.insert(0, Wall())
import node_agent
names = [m.name for m in pkgutil.walk_packages(node_agent.__path__, "node_agent.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
FORBIDDEN = ("kubernetes", "pydantic", "pydantic_settings", "sqlalchemy", "alembic", "structlog", "anthropic", "openai")


def run_behind_wall(code: str, forbidden: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    program = code.format(forbidden=forbidden)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


def test_nothing_under_node_agent_imports_what_the_aggregator_needs() -> None:
    result = run_behind_wall(CODE, FORBIDDEN)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 20


def test_the_wall_would_notice() -> None:
    result = run_behind_wall(CODE, ("prometheus_client",))
    assert "something under node_agent imports prometheus_client" in result.stderr
