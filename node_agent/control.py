"""`--yield` and `--resume`: ask the agent that runs on this node, through its root-only socket, to let go of the driver."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import grpc

from protos.v1 import sentinel_pb2
from protos.v1.sentinel_pb2_grpc import NodeControlServiceStub

ANSWER_SECONDS = 30.0
DONE, REFUSED, UNREACHABLE = 0, 2, 3


def ask_to_yield(socket_path: Path, seconds: int) -> int:
    """Yield for so many seconds, or resume now for 0; say what came of it and return the exit code."""
    with grpc.insecure_channel(f"unix:{socket_path}") as channel:
        try:
            response = NodeControlServiceStub(channel).Yield(
                sentinel_pb2.YieldRequest(seconds=seconds), timeout=ANSWER_SECONDS
            )
        except grpc.RpcError as error:
            return _explain(error, socket_path)
    sys.stdout.write(f"{_state(response)}\n")
    return DONE


def _state(response: sentinel_pb2.YieldResponse) -> str:
    if not response.yielded:
        return "the agent holds the driver"
    if not response.HasField("resumes_at"):
        return "the agent holds no handle on the driver, and will not take one (GCM_SENTINEL_NVML=off)"
    return f"the agent holds no handle on the driver until {response.resumes_at.ToJsonString()}"


def _explain(error: grpc.RpcError, socket_path: Path) -> int:
    call = cast("grpc.Call", error)  # every error of a call is also the call
    refused = call.code() is grpc.StatusCode.INVALID_ARGUMENT
    hint = (
        "" if refused else f"; is an agent running with this GCM_SENTINEL_STATE_DIR, and are you root? ({socket_path})"
    )
    sys.stderr.write(f"gcm-sentinel agent: {call.details()}{hint}\n")
    return REFUSED if refused else UNREACHABLE
