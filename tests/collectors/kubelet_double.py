"""The kubelet's PodResources service on a real unix socket, with messages compiled by protoc."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

Devices = dict[tuple[str, str, str], dict[str, list[str]]]  # (namespace, pod, container) → resource → device ids


class Kubelet:
    """Answers List from `devices`, or fails with `failure`, once `ready`."""

    def __init__(self, socket: Path, scratch: Path) -> None:
        self.socket = socket
        self.devices: Devices = {}
        self.failure: grpc.StatusCode | None = None
        self.ready = asyncio.Event()
        self.ready.set()
        self.calls = 0
        self._classes = _compile(scratch)

    def _answer(self) -> Any:
        response = self._classes["v1.ListPodResourcesResponse"]()
        response.pod_resources.add(name="coredns", namespace="kube-system", cpu_ids=[0]).containers.add(name="coredns")
        for (namespace, pod, container), resources in self.devices.items():
            entry = response.pod_resources.add(name=pod, namespace=namespace).containers.add(
                name=container, cpu_ids=[1, 2]
            )
            entry.memory.add(memory_type="memory", size=1 << 30)
            for resource, ids in resources.items():
                entry.devices.add(resource_name=resource, device_ids=ids).topology.nodes.add(ID=1)
        return response

    async def _list(self, _: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        self.calls += 1
        await self.ready.wait()
        if self.failure is not None:
            await context.abort(self.failure, "not now")
        return self._answer()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        self.socket.unlink(missing_ok=True)
        server = grpc.aio.server()
        listing = grpc.unary_unary_rpc_method_handler(
            self._list, response_serializer=lambda message: message.SerializeToString()
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("v1.PodResourcesLister", {"List": listing}),)
        )
        server.add_insecure_port(f"unix:{self.socket}")
        await server.start()
        try:
            yield
        finally:
            await server.stop(0)


def _compile(scratch: Path) -> dict[str, type[Any]]:
    source, compiled = Path(__file__).with_name("podresources.proto"), scratch / "podresources.bin"
    assert protoc.main(["protoc", f"-I{source.parent}", f"--descriptor_set_out={compiled}", str(source)]) == 0
    files = descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes())
    return dict(message_factory.GetMessages(files.file, descriptor_pool.DescriptorPool()))
