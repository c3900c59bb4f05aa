"""Scenarios as data: what happens on which node when, and the verdict it must get. One TOML file each under scenarios/."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens: a kernel line, a change of the simulated driver, or both at once."""

    node: str
    after_seconds: float = 0.0  # after the step before
    kernel: tuple[str, ...] = ()  # "{gpuN}" stands for GPU N's address as the driver prints it
    driver: Mapping[str, Any] = field(default_factory=dict)  # top-level keys of the simulated driver's file
    gpus: tuple[int, ...] = ()  # which GPUs `values`, `lost` and `xid` are about
    values: Mapping[str, Any] = field(default_factory=dict)
    lost: bool | None = None
    xid: int | None = None  # delivered as an NVML event


@dataclass(frozen=True, slots=True)
class Expectation:
    """What one incident must look like in the end."""

    node: str
    severity: str
    action: str
    fault_class: str
    gpu: int | None = None  # None: about the node, or several GPUs
    state: str = "open"
    cites: tuple[str, ...] = ()  # signals that must be among the cited evidence


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fault's life and its expected end."""

    name: str
    title: str
    nodes: tuple[str, ...]
    steps: tuple[Step, ...]
    expect: tuple[Expectation, ...]
    alerts: int  # open incidents of severity warning or worse that no planned state holds


def load_scenarios(names: Iterable[str] = ()) -> tuple[Scenario, ...]:
    """All packaged scenarios in their order, or those named. Raises KeyError with an unknown name."""
    folder = resources.files("aggregator.demo") / "scenarios"
    found = [
        _scenario(file.name.removesuffix(".toml").partition("_")[2], tomllib.loads(file.read_text(encoding="utf-8")))
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".toml")
    ]
    by_name = {scenario.name: scenario for scenario in found}
    return tuple(by_name[name] for name in names) if names else tuple(found)


def _scenario(name: str, data: dict[str, Any]) -> Scenario:
    nodes = tuple(data["nodes"])
    return Scenario(
        name=name,
        title=data["title"],
        nodes=nodes,
        steps=tuple(step for entry in data["steps"] for step in _steps(entry, nodes)),
        expect=tuple(Expectation(**{**entry, "cites": tuple(entry.get("cites", ()))}) for entry in data["expect"]),
        alerts=data["alerts"],
    )


def _steps(entry: dict[str, Any], nodes: tuple[str, ...]) -> Iterable[Step]:
    """One step per node it names; without a node it happens on all of them."""
    targets = (entry.pop("node"),) if "node" in entry else nodes
    fields = {**entry, "kernel": tuple(entry.get("kernel", ())), "gpus": tuple(entry.get("gpus", ()))}
    for index, node in enumerate(targets):
        yield Step(**{**fields, "node": node, "after_seconds": fields.get("after_seconds", 0.0) if index == 0 else 0.0})
