"""What a restart of the agent must not forget: which GPUs the node has, what was told of them, how far their counters were.

One JSON file in STATE_DIR, replaced by rename. Without it a restart would tell counters anew, miss a rise that happened in
between, leave states open that ended, and never notice that a GPU is gone.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from node_agent.evidence import Gpu, Value
from node_agent.nvml.counters import Count
from node_agent.nvml.facts import Known
from node_agent.nvml.states import Problem

log = logging.getLogger(__name__)

_VERSION: Final = 1
_VALUES: Final = ("mig_enabled", "mig_layout")  # a change while the agent is down is a fact too
_TOLD_BEFORE: Final = "told before the agent's restart"


@dataclass(frozen=True, slots=True)
class Remembered:
    """The node as it was. `conditions` are the node's states that had begun, by kind; `stuck` is a child that SIGKILL did not end,
    as (process id, start in clock ticks)."""

    driver_version: str = ""
    nvml_version: str = ""
    conditions: frozenset[str] = frozenset()
    gpus: tuple[Known, ...] = ()
    stuck: tuple[int, int] | None = None


def dump(remembered: Remembered) -> str:
    """As the file's text."""
    content = {
        "version": _VERSION,
        "driver_version": remembered.driver_version,
        "nvml_version": remembered.nvml_version,
        "conditions": sorted(remembered.conditions),
        "stuck": remembered.stuck,
        "gpus": [_dump_gpu(known) for known in remembered.gpus],
    }
    return json.dumps(content, indent=1)


def load(path: Path, at: float) -> Remembered | None:
    """The file's content, with counters as of `at` (monotonic seconds); None when there is none that can be used."""
    try:
        return _parse(json.loads(path.read_text()), at)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be used (%s): GPUs and counters are taken as they are now", path, error)
        return None


def save(path: Path, text: str) -> None:
    """Replace the file at once and durably. Raises OSError."""
    temporary = path.with_name(f"{path.name}.new")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _parse(content: Mapping[str, Any], at: float) -> Remembered:
    if content["version"] != _VERSION:
        raise ValueError(f"version {content['version']}, not {_VERSION}")
    return Remembered(
        content["driver_version"],
        content["nvml_version"],
        frozenset(content["conditions"]),
        tuple(_load_gpu(entry, at) for entry in content["gpus"]),
        tuple(content["stuck"]) if content["stuck"] else None,
    )


def _dump_gpu(known: Known) -> Mapping[str, Any]:
    return {
        "gpu": asdict(known.gpu),
        "states": {kind: problem.field for kind, problem in known.told.items()},
        "counts": {name: [count.seen, count.told, count.covering] for name, count in known.counts.items()},
        "links": sorted(known.links),
        "values": {name: known.values[name] for name in _VALUES if isinstance(known.values.get(name), (bool, str))},
    }


def _load_gpu(entry: Mapping[str, Any], at: float) -> Known:
    values: dict[str, Value] = {name: entry["values"][name] for name in _VALUES if name in entry["values"]}
    return Known(
        Gpu(**entry["gpu"]),
        values=values,
        # The variant differs from any real one: what still holds is told anew, what does not is told as ended.
        told={kind: Problem(name, None, _TOLD_BEFORE, variant=_TOLD_BEFORE) for kind, name in entry["states"].items()},
        counts={name: Count(seen, told, at, covering) for name, (seen, told, covering) in entry["counts"].items()},
        links=frozenset(entry["links"]),
    )
