"""The frame holds: the top level is as agreed, locks name no index, the agent stays small, a missing extra is named."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP_LEVEL = {
    "node_agent", "aggregator", "protos", "charts", "tests", "pyproject.toml", "Dockerfile.agent", "Dockerfile.aggregator",
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "docs",
}  # fmt: skip


def tracked() -> list[str]:
    """Files git tracks."""
    return subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


def test_the_top_level_holds_what_was_agreed_and_nothing_else() -> None:
    """Beside the agreed names there are dotfiles only."""
    found = {path.split("/")[0] for path in tracked()}
    assert {name for name in found if not name.startswith(".")} <= TOP_LEVEL


@pytest.mark.parametrize("lock", sorted((ROOT / ".ci/locks").glob("*.txt")), ids=lambda lock: lock.name)
def test_locks_pin_every_package_by_version_and_hash_and_name_no_index(lock: Path) -> None:
    """Every requirement has a version and a hash; no address of an index or a file stands in a lock."""
    text = lock.read_text()
    assert not re.search(r"https?://|--index-url|--find-links|file:", text)
    requirements = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert requirements
    for requirement in requirements:
        assert re.match(r"[a-z0-9.-]+==\S+", requirement), requirement
        assert requirement.endswith("\\"), f"{requirement} has no hash"


def test_the_agents_lock_holds_none_of_the_aggregators_packages() -> None:
    """What would make every node pay is not in the agent's lock."""
    agent = (ROOT / ".ci/locks/agent.txt").read_text()
    for package in ("kubernetes", "pydantic", "sqlalchemy", "structlog", "anthropic", "openai", "alembic", "starlette"):
        assert f"{package}==" not in agent


def test_no_module_of_the_agent_can_import_what_belongs_to_the_aggregator() -> None:
    """Every module of the agent is imported in a process where those packages do not exist."""
    modules = [
        path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for path in tracked()
        if path.startswith("node_agent/") and path.endswith(".py") and not path.endswith("__main__.py")
    ]
    program = (
        "import sys, importlib\n"
        "for name in ('kubernetes', 'pydantic', 'sqlalchemy', 'anthropic', 'openai', 'structlog', 'aggregator'):\n"
        "    sys.modules[name] = None\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize(("command", "extra"), [("serve", "aggregator"), ("agent", "agent")])
def test_a_missing_extra_ends_with_exit_code_2_and_its_name(command: str, extra: str) -> None:
    """Without site-packages nothing but the checkout can be imported: the message says what to install."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from aggregator.cli import main; sys.exit(main([{command!r}]))"
    )
    ended = subprocess.run([sys.executable, "-S", "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    assert f"gcm-sentinel[{extra}]" in ended.stderr


@pytest.mark.parametrize("command", ["diagnose", "explain"])
def test_offline_commands_need_no_extra(command: str) -> None:
    """diagnose and explain run with the standard library alone."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
        f"from aggregator.cli import main; sys.exit(main([{command!r}, '--help']))"
    )
    subprocess.run([sys.executable, "-S", "-c", program], cwd=ROOT, capture_output=True, check=True)


def test_the_distribution_has_one_console_script_and_three_extras() -> None:
    """gcm-sentinel is the only command; agent, aggregator and dev are the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert list(project["scripts"]) == ["gcm-sentinel"]
    assert set(project["optional-dependencies"]) == {"agent", "aggregator", "dev"}


def agent_variables() -> set[str]:
    return set(re.findall(r'read\("([A-Z_]+)"', (ROOT / "node_agent/settings.py").read_text())) | {"STATE_DIR"}


def aggregator_variables(*readers: str) -> set[str]:
    from aggregator import settings

    return {name.upper() for reader in readers for name in getattr(settings, reader).model_fields}


@pytest.mark.parametrize("names", [agent_variables(), aggregator_variables("Settings")], ids=["agent", "aggregator"])
def test_the_settings_page_names_every_variable(names: set[str]) -> None:
    """docs/configuration.md and the code name the same variables."""
    page = (ROOT / "docs/configuration.md").read_text()
    assert len(names) > 10
    assert not [name for name in names if f"`{name}`" not in page]


def test_each_process_knows_the_other_ones_variables() -> None:
    """They cannot import each other; neither may take the other's variable for a misspelt one of its own."""
    from aggregator.settings import AGENT_VARIABLES
    from node_agent.settings import AGGREGATOR_VARIABLES

    agent, aggregator = agent_variables(), aggregator_variables("Settings", "Client")
    assert agent - aggregator == AGENT_VARIABLES
    assert aggregator - agent == AGGREGATOR_VARIABLES
