"""A dcgm-exporter-shaped HTTP server: real sockets, an exposition that the test writes, and ways to fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

UUIDS = ("GPU-aaaaaaaa-0000-0000-0000-000000000000", "GPU-bbbbbbbb-0000-0000-0000-000000000000")
PREFIX = "DCGM_FI_DEV_"

Answer = Callable[[BaseHTTPRequestHandler], None]


class Exporter:
    """Two healthy GPUs whose energy grows with each scrape. `values` and `gone` change what is exposed, `answer` how."""

    def __init__(self) -> None:
        self.values: dict[
            tuple[int, str], str | None
        ] = {}  # (GPU, field) → value as exposed; None leaves the series out
        self.gone: set[int] = set()
        self.extra = ""
        self.still = False
        self.scrapes = 0
        self.answer: Answer | None = None
        self.url = ""
        self._energy = 1_000_000

    def exposition(self) -> str:
        if not self.still:
            self._energy += 4321
        lines = [
            "# HELP DCGM_FI_DEV_XID_ERRORS Value of the last XID error encountered.",
            "# TYPE DCGM_FI_DEV_XID_ERRORS gauge",
        ]
        fields = {
            "XID_ERRORS": "0",
            "ROW_REMAP_PENDING": "0",
            "ROW_REMAP_FAILURE": "0",
            "GPU_TEMP": "41",
            "POWER_USAGE": "71.5",
            "TOTAL_ENERGY_CONSUMPTION": str(self._energy),
            "SM_CLOCK": "1980",
        }
        for index, uuid in enumerate(UUIDS):
            labels = (
                f'gpu="{index}",UUID="{uuid}",pci_bus_id="00000000:{index + 0x3B:02X}:00.0",device="nvidia{index}",'
                'modelName="NVIDIA H100 80GB HBM3",Hostname="node{1}, a",DCGM_FI_DRIVER_VERSION="550.54.15"'
            )
            for field, healthy in fields.items():
                value = self.values.get((index, field), healthy)
                if value is not None and index not in self.gone:
                    lines.append(f"{PREFIX}{field}{{{labels}}} {value}")
        return "\n".join(lines) + "\n" + self.extra

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        self.scrapes += 1
        if self.answer is not None:
            self.answer(request)
            return
        send(request, 200, self.exposition().encode())


def send(request: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    request.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)


@contextmanager
def served(exporter: Exporter, port: int = 0) -> Iterator[None]:
    """The exporter on loopback, at `exporter.url`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/metrics"
            exporter.serve(self)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Clients of these tests hang up when they have had enough."""

    with Server(("127.0.0.1", port), Handler) as server:
        exporter.url = f"http://127.0.0.1:{server.server_port}/metrics"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
