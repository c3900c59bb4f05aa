"""A real HTTP server on loopback that answers as a test tells it to: takes, fails, asks to wait, hangs, goes away."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HANG = -1  # take the request and never answer


@dataclass(frozen=True)
class Reply:
    """One answer."""

    status: int = 200
    body: str = "ok"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Request:
    """What came in."""

    at: float
    path: str
    headers: Mapping[str, str]
    body: Any


class Receiver:
    """Answers with the scripted replies in turn, then with `otherwise`."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.replies: deque[Reply] = deque()
        self.otherwise = Reply()
        self._over = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.requests.append(Request(time.monotonic(), self.path, dict(self.headers), body))
                reply = receiver.replies.popleft() if receiver.replies else receiver.otherwise
                if reply.status == HANG:
                    receiver._over.wait()
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in reply.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body.encode())

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # whoever was killed mid-request is no news

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        """Stop listening; what hangs is let go."""
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
