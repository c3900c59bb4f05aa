"""A kubelet's door for logs: the API server asks it over TLS for a container's log, as it asks a real one."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


class Kubelet:
    """Logs by (namespace, pod, container, previous); what it was asked for."""

    def __init__(self) -> None:
        self.logs: dict[tuple[str, str, str, bool], str] = {}
        self.asked: list[tuple[str, dict[str, list[str]]]] = []
        self.port = 0


@contextmanager
def served(kubelet: Kubelet, directory: Path) -> Iterator[None]:
    """The kubelet on loopback."""
    certificate, key = directory / "kubelet.crt", directory / "kubelet.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=kubelet"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = parse_qs(parts.query)
            kubelet.asked.append((parts.path, query))
            _, _, namespace, pod, container = parts.path.split("/")
            text = kubelet.logs.get((namespace, pod, container, query.get("previous") == ["true"]))
            body = (text if text is not None else "no such container").encode()
            lines = body.split(b"\n")[-int(query.get("tailLines", ["1000000"])[0]) :]
            body = b"\n".join(lines)[: int(query.get("limitBytes", ["1000000000"])[0])]
            self.send_response(200 if text is not None else 404)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        kubelet.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
