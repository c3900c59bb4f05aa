"""Wire messages ↔ the model: the one place where bytes of the protocol become nouns and nouns become answers."""

from __future__ import annotations

from aggregator.wire.answers import read_incident
from aggregator.wire.decode import MAX_TIME_US, Malformed, NodeState, decode, decode_snapshot, gpu_names
from aggregator.wire.encode import assessment_message, declare, incident_message, stamp
from aggregator.wire.snapshot import snapshot_values

__all__ = [
    "MAX_TIME_US",
    "Malformed",
    "NodeState",
    "assessment_message",
    "declare",
    "decode",
    "decode_snapshot",
    "gpu_names",
    "incident_message",
    "read_incident",
    "snapshot_values",
    "stamp",
]
