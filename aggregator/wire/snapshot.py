"""A node's snapshot as plain values: what a person or a model reads of it, every value under the name its agent gave it."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from aggregator.wire.decode import Malformed, read_value
from protos.v1 import evidence_pb2 as pb


def snapshot_values(payload: bytes) -> dict[str, Any]:
    """A serialized NodeSnapshot as JSON has it. "unsupported" and "error: …" stand for what has no value. Raises Malformed."""
    message = pb.NodeSnapshot()
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise Malformed(f"not a NodeSnapshot message: {error}") from error
    inventory = message.inventory
    return {
        "node": message.node,
        "taken_at": message.taken_at.ToJsonString(),
        "boot_id": message.boot_id,
        "simulated": message.simulated,
        "collectors": dict(sorted(message.collectors.items())),
        "inventory": {
            "driver_version": inventory.driver_version,
            "nvml_version": inventory.nvml_version,
            "kernel_version": inventory.kernel_version,
            "gpus_that_answer": len(inventory.gpus),
            "gpus_on_the_bus": list(inventory.pci_gpus),
            "expected_gpus": inventory.expected_gpus if inventory.HasField("expected_gpus") else None,
        },
        "values": _values(message.values),
        "gpus": [
            {
                "uuid": state.gpu.uuid,
                "pci": state.gpu.pci,
                "serial": state.gpu.serial,
                "model": state.gpu.model,
                "lost": state.lost,
                "values": _values(state.values),
            }
            for state in message.gpus
        ],
    }


def _values(values: Any) -> dict[str, Any]:
    return {name: read_value(value) for name, value in sorted(values.items())}
