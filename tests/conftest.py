"""Rules for the whole suite."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

pytest_plugins = ["tests.cluster.fixtures"]

settings.register_profile("ci", deadline=None, print_blob=True)
settings.load_profile("ci")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly what was not tested."""
    skipped = terminalreporter.stats.get("skipped", [])
    for report in skipped:
        terminalreporter.write_line(f"NOT TESTED: {report.nodeid}: {report.longrepr[-1]}", red=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a missing component is a failure, never a skip."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
