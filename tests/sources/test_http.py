"""How servers are asked: credentials from files over TLS against a real Prometheus, and servers that are hostile or ill."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from aggregator.investigator.sources import Scope, Unavailable
from aggregator.investigator.sources.confined import ConfinedPrometheus
from aggregator.investigator.sources.http import Credentials, Endpoint, TooLarge
from aggregator.investigator.sources.prometheus import Prometheus
from tests.collectors.exporter_double import send
from tests.sources.servers import answering, free_port, program

HASH = "$2b$04$vz/rCecL60t9.Fk5HIFBoeA7wdIGWmm6BbxxNi11bnDkbo7XX9IUK"
PASSWORD = "correct horse"


def certificates(directory: Path) -> None:
    """A certificate for 127.0.0.1 that signs itself, and serves as the client's too."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A Prometheus behind mutual TLS and a password."""
    directory: Path = tmp_path_factory.mktemp("guarded")
    certificates(directory)
    (directory / "basic").write_text(f"reader:{PASSWORD}\n")
    (directory / "web.yml").write_text(
        "tls_server_config: {cert_file: cert.pem, key_file: key.pem, client_auth_type: RequireAndVerifyClientCert, "
        f'client_ca_file: cert.pem}}\nbasic_auth_users: {{reader: "{HASH}"}}\n'
    )
    (directory / "prometheus.yml").write_text("global: {}\n")
    port = free_port()
    command = [
        program("prometheus"),
        "--config.file=prometheus.yml",
        "--web.config.file=web.yml",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen(command, cwd=directory, stdout=log, stderr=log) as server,
    ):
        try:
            _wait(directory, port)
            yield f"https://127.0.0.1:{port}", directory
        finally:
            server.terminate()


def _wait(directory: Path, port: int) -> None:
    """Until it takes connections: what it answers is the tests' matter."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError((directory / "log").read_text())


def credentials(directory: Path, **more: Path | None) -> Credentials:
    files: dict[str, Path | None] = {
        "basic_file": directory / "basic",
        "ca_file": directory / "cert.pem",
        "certificate_file": directory / "cert.pem",
        "key_file": directory / "key.pem",
    }
    return Credentials(**{**files, **more})


async def test_mutual_tls_and_a_password_from_files(guarded: tuple[str, Path], scope: Scope) -> None:
    """With all of them the query is answered."""
    url, directory = guarded
    source = Prometheus(ConfinedPrometheus(Endpoint(url, credentials(directory))))
    assert await source.unavailable() == ""
    answer = await source.tools[0].ask(scope, {"query": "up"})
    assert answer.value["result"] == []


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("ca_file", "CERTIFICATE_VERIFY_FAILED"),
        ("certificate_file", "certificate"),
        ("basic_file", "refuses us (401): check its credentials"),
    ],
)
async def test_without_one_of_them_it_is_unavailable(guarded: tuple[str, Path], missing: str, said: str) -> None:
    """The reason says which; no password is in it."""
    url, directory = guarded
    files = credentials(directory, **{missing: None})
    reason = await ConfinedPrometheus(Endpoint(url, files)).unavailable()
    assert said.lower() in reason.lower()
    assert PASSWORD not in reason


async def test_a_token_is_read_for_each_question(tmp_path: Path) -> None:
    """A token that was renewed is used at once; one that cannot be read is said, without its content."""
    seen: list[str | None] = []

    def note(request: BaseHTTPRequestHandler) -> None:
        seen.append(request.headers["Authorization"])
        send(request, 200, b"{}")

    token = tmp_path / "token"
    with answering(note) as url:
        endpoint = Endpoint(url, Credentials(token_file=token))
        for text in ("one\n", "two"):
            token.write_text(text)
            await endpoint.get("")
        token.write_text("a\nsecret in two lines")
        with pytest.raises(Unavailable, match=f"^{token} holds no credentials$"):
            await endpoint.get("")
    assert seen == ["Bearer one", "Bearer two"]


@pytest.mark.parametrize("name", ["ca_file", "certificate_file"])
async def test_a_tls_file_that_is_none_is_said(tmp_path: Path, name: str) -> None:
    """It cannot be used: one line, no exception of another kind."""
    file = tmp_path / "x.pem"
    file.write_text("no certificate")
    with pytest.raises(Unavailable, match=r"the TLS files for https://127\.0\.0\.1:9 cannot be used"):
        await Endpoint("https://127.0.0.1:9", Credentials(**{name: file})).get("/")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>", "no Prometheus result"),
        (b"[" * 100_000, "no Prometheus result"),
        (b'{"status":"success","data":{"result":7}}', "no Prometheus result"),
        (b'{"status":"success"}', "no Prometheus result"),
        (b"null", "no Prometheus result"),
        (b'{"status":"success","data":{"resultType":"vector","result":[{}]}}', "no Prometheus result"),
    ],
)
async def test_what_is_no_prometheus_is_unavailable(scope: Scope, body: bytes, said: str) -> None:
    """Whatever it answers, there is one line and no other exception."""
    with answering(lambda request: send(request, 200, body)) as url:
        source = Prometheus(ConfinedPrometheus(Endpoint(url)))
        with pytest.raises(Unavailable, match=said):
            await source.tools[0].ask(scope, {"query": "up"})


async def test_a_body_is_read_up_to_its_bound() -> None:
    """One byte more is too much."""
    with answering(lambda request: send(request, 200, b"x" * 1000)) as url:
        assert len((await Endpoint(url, max_bytes=1000).get("")).body) == 1000
        with pytest.raises(TooLarge):
            await Endpoint(url, max_bytes=999).get("")
