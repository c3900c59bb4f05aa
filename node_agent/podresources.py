"""The kubelet's PodResources API v1, as far as it is needed: which container holds which device.

The few messages are declared here field by field instead of in a .proto file: nothing has to be generated, and fields that are not
named are skipped. Numbers and types are those of k8s.io/kubelet/pkg/apis/podresources/v1/api.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

LIST_METHOD = "/v1.PodResourcesLister/List"
MAX_RESPONSE_BYTES = 16 << 20  # what the kubelet itself allows

_MESSAGES: Mapping[str, tuple[tuple[str, int, str], ...]] = {  # name, number, type of a repeated or single field
    "ListPodResourcesRequest": (),
    "ListPodResourcesResponse": (("pod_resources", 1, "repeated PodResources"),),
    "PodResources": (
        ("name", 1, "string"),
        ("namespace", 2, "string"),
        ("containers", 3, "repeated ContainerResources"),
    ),
    "ContainerResources": (("name", 1, "string"), ("devices", 2, "repeated ContainerDevices")),
    "ContainerDevices": (("resource_name", 1, "string"), ("device_ids", 2, "repeated string")),
}


@dataclass(frozen=True, slots=True, order=True)
class Assignment:
    """One device in one container. `device_id` is as the device plugin names it: a GPU's or MIG device's UUID."""

    device_id: str
    resource: str
    namespace: str
    pod: str
    container: str


async def list_assignments(socket: Path, deadline_seconds: float) -> frozenset[Assignment]:
    """NVIDIA devices in use, as the kubelet sees them. Raises grpc.aio.AioRpcError."""
    options = [("grpc.max_receive_message_length", MAX_RESPONSE_BYTES)]
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=options) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[Any, Any] = channel.unary_unary(
            LIST_METHOD,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=_CLASSES["v1.ListPodResourcesResponse"].FromString,
        )
        return frozenset(_assignments(await call(_CLASSES["v1.ListPodResourcesRequest"](), timeout=deadline_seconds)))


def _assignments(response: Any) -> Iterator[Assignment]:
    for pod in response.pod_resources:
        for container in pod.containers:
            for devices in container.devices:
                if devices.resource_name.startswith("nvidia.com/"):
                    for device_id in devices.device_ids:
                        yield Assignment(device_id, devices.resource_name, pod.namespace, pod.name, container.name)


def _message_classes() -> dict[str, type[Any]]:
    file = FileDescriptorProto(name="podresources.proto", package="v1", syntax="proto3")
    for message, fields in _MESSAGES.items():
        declared = file.message_type.add(name=message)
        for name, number, kind in fields:
            repeated, _, type_name = kind.rpartition(" ")
            field = declared.field.add(name=name, number=number)
            field.label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
            if type_name == "string":
                field.type = FieldDescriptorProto.TYPE_STRING
            else:
                field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".v1.{type_name}"
    pool = DescriptorPool()  # its own: `v1` is a name that anyone may take in the default one
    pool.Add(file)
    return {f"v1.{name}": GetMessageClass(pool.FindMessageTypeByName(f"v1.{name}")) for name in _MESSAGES}


_CLASSES = _message_classes()
