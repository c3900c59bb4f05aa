"""The admission policies of the two modes that write, and how a test puts them up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import yaml

from tests.cluster.api_server import ApiServer

API = "/apis/admissionregistration.k8s.io/v1"
COLLECTIONS = {
    "ValidatingAdmissionPolicy": f"{API}/validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": f"{API}/validatingadmissionpolicybindings",
}


@contextlib.contextmanager
def standing(server: ApiServer, mode: str, account: str, token: str, node: str) -> Iterator[None]:
    """The policy of a mode holds for an account in here. The token and a node serve to notice that it does."""
    text = (Path(__file__).parent / f"{mode}.yaml").read_text()
    documents = list(yaml.safe_load_all(text.replace("ACCOUNT", account)))
    for document in documents:
        server.apply(COLLECTIONS[document["kind"]], document)
    try:
        await_denied(server, token, node)
        yield
    finally:
        for document in documents:
            server.delete(f"{COLLECTIONS[document['kind']]}/{document['metadata']['name']}")


def await_denied(server: ApiServer, token: str, node: str) -> None:
    """Return once a label of ours would be denied: API servers learn of a policy a moment after it was made."""
    _await(server, token, node, allowed=False)


def await_allowed(server: ApiServer, token: str, node: str) -> None:
    """Return once a label of ours would be allowed: likewise of a role."""
    _await(server, token, node, allowed=True)


def _await(server: ApiServer, token: str, node: str, *, allowed: bool, seconds: float = 20.0) -> None:
    change = {"metadata": {"labels": {"example.com/x": "x"}}}
    deadline = time.monotonic() + seconds
    while True:
        try:
            server.patch(f"/api/v1/nodes/{node}?dryRun=All", change, token=token)
            is_allowed = True
        except httpx2.HTTPStatusError as error:
            if error.response.status_code not in (403, 422):
                raise
            is_allowed = False
        if is_allowed == allowed:
            return
        assert time.monotonic() < deadline, "roles or policies do not take effect"
        time.sleep(0.1)
