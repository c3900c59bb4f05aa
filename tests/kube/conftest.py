"""A client of a test's API server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from aggregator.kube.access import find_access
from aggregator.kube.client import KubeClient
from tests.cluster.api_server import ADMIN, ApiServer

Connect = Callable[..., AbstractAsyncContextManager[KubeClient]]


@pytest.fixture
def connect(tmp_path: Path) -> Connect:
    """Makes clients: `async with connect(server, token=…, token_file=…) as client`."""

    @asynccontextmanager
    async def connected(
        server: ApiServer, token: str = ADMIN, *, token_file: Path | None = None
    ) -> AsyncIterator[KubeClient]:
        config = server.kubeconfig(tmp_path / "kubeconfig", token, token_file=token_file)
        client = KubeClient(find_access({"KUBECONFIG": str(config)}, wanted=True))
        try:
            yield client
        finally:
            await client.close()

    return connected
