"""pytest plugin: `api_server` is shared by a worker's tests and empty of nodes for each, `own_api_server` may be brought to harm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.api_server import ApiServer
from tests.cluster.components import NotBuilt

SERVERS = ("api_server", "own_api_server")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need an API server share one worker, hence one server. Their time limit is their own: a fixture may wait for a
    build that takes minutes."""
    for item in items:
        if any(server in getattr(item, "fixturenames", ()) for server in SERVERS):
            item.add_marker(pytest.mark.xdist_group("api_server"))
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(120, func_only=True))


@pytest.fixture(scope="session")
def _shared_api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    yield from _running(tmp_path_factory.mktemp("api-server"))


@pytest.fixture
def api_server(_shared_api_server: ApiServer) -> ApiServer:
    """A real API server without nodes, pods, leases or events. Leave it running, and as it is."""
    _shared_api_server.clear()
    _shared_api_server.mark_audit()
    return _shared_api_server


@pytest.fixture
def own_api_server(tmp_path: Path) -> Iterator[ApiServer]:
    """A real API server of this test's own (four seconds): to restart, to pause, to compact."""
    yield from _running(tmp_path / "api-server")


def _running(directory: Path) -> Iterator[ApiServer]:
    try:
        server = ApiServer(directory)
    except NotBuilt as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no API server to test against: {error}")
    try:
        server.start()
        yield server
    finally:
        server.stop()
