"""Twin worlds as data: what triggers, what tools answer, and the one fact that tells the twins apart.

A pair is one TOML file under worlds/ (docs/eval.md describes it). Its trigger is the same in every variant, so what rules say of it
is too; only the answer to the deciding question differs between `a` and `b`, and in `down` it cannot be asked.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from aggregator.model import Action, FaultClass, Phase, Resolution, Trust, Verdict

BASELINE = "baseline.toml"  # what every tool says of a healthy node, where a pair says nothing else


class Variant(StrEnum):
    """Which of the three."""

    A = "a"
    B = "b"
    DOWN = "down"


class WorldError(Exception):
    """A file that is no pair of worlds; one line that names it and the field."""


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fact(_Table):
    """One fact that the node's agent reported: a kernel line verbatim, or a typed one."""

    seconds: float = 0.0  # after the first
    line: str = ""
    kind: str = ""
    gpu: int | None = None  # index in the node's inventory
    phase: Phase = Phase.POINT
    detail: str = ""
    values: Mapping[str, str | int | float | bool] = {}


class Call(_Table):
    """Calls of a tool whose arguments match; `where` empty matches every one."""

    tool: str
    where: Mapping[str, str] = {}  # argument → RE, searched in its JSON; an argument that was not given is ""
    trust: Trust = Trust.CLUSTER  # of the answer

    def fits(self, tool: str, arguments: Mapping[str, Any]) -> bool:
        """Whether this call is one of them."""
        return tool == self.tool and all(
            re.search(pattern, json.dumps(arguments.get(name, ""), ensure_ascii=False)) is not None
            for name, pattern in self.where.items()
        )

    @property
    def title(self) -> str:
        """For an item that shows the answer without anybody having asked."""
        return f"{self.tool} {json.dumps(dict(self.where), ensure_ascii=False)}" if self.where else self.tool


class Recording(Call):
    """What a tool answers to such calls."""

    answer: Annotated[Any, BeforeValidator(_json)] = None


class Question(Call):
    """The call that tells the twins apart."""

    ask: Mapping[str, Any]  # arguments of one such call, as a model might write them
    down: str  # why it cannot be asked in the third variant


class Twin(_Table):
    """One of the two: what the deciding question answers, and what follows. Lists hold what is right, any of them."""

    answer: Annotated[Any, BeforeValidator(_json)]
    says: tuple[str, ...] = Field(min_length=1)  # passages of the answer as shown, one of which must be cited
    cause: str  # in one sentence, for people
    fault_class: tuple[FaultClass, ...] = Field(min_length=1)
    first: tuple[Resolution, ...] = Field(min_length=1)  # first step
    action: tuple[Action, ...] = tuple(Action)
    forbidden: tuple[Resolution, ...] = ()  # must stand nowhere in the verdict: it would do harm here

    def fits(self, verdict: Verdict) -> bool:
        """Whether a verdict is right here."""
        return (
            verdict.fault_class in self.fault_class
            and verdict.resolutions[0] in self.first
            and verdict.action in self.action
        )


class Board(_Table):
    """The node's inventory: eight of one model, unless said otherwise."""

    model: str = "NVIDIA H100 80GB HBM3"
    driver: str = "570.124.06"
    count: int = 8


class Pair(_Table):
    """Two worlds that look the same, and a third in which nobody can tell."""

    name: str
    title: str
    node: str
    peers: tuple[str, ...] = ()  # nodes that may be asked about, too
    board: Board = Board()
    trigger: tuple[Fact, ...] = Field(min_length=1)
    question: Question
    a: Twin
    b: Twin
    answers: tuple[Recording, ...] = ()  # the same in every variant
    digest: str = ""  # of the file: results of another text are other results

    def twin(self, variant: Variant) -> Twin | None:
        """None where nobody can tell."""
        return {Variant.A: self.a, Variant.B: self.b}.get(variant)

    def recordings(self, variant: Variant) -> tuple[Recording, ...]:
        """What tools answer, the deciding one first. Where it is down, it is not among them."""
        twin, question = self.twin(variant), self.question
        deciding = (
            (Recording(tool=question.tool, where=question.where, trust=question.trust, answer=twin.answer),)
            if twin is not None
            else ()
        )
        return (*deciding, *self.answers)


def packaged() -> Traversable:
    """Where the pairs of this package are."""
    return resources.files("aggregator.eval") / "worlds"


def load_pairs(wanted: Iterable[str] = ()) -> tuple[Pair, ...]:
    """The packaged pairs by name; those of a folder where one is named. All packaged ones where nothing is. Raises WorldError."""
    names = tuple(wanted)
    own = {pair.name: pair for pair in _in_folder(packaged())}
    chosen: dict[str, Pair] = {} if names else dict(own)
    for name in names:
        if name in own:
            chosen[name] = own[name]
        elif Path(name).is_dir():
            chosen.update((pair.name, pair) for pair in _in_folder(Path(name)))
        else:
            raise WorldError(f"{name}: neither a folder nor one of {', '.join(own)}")
    if not chosen:
        raise WorldError(f"{', '.join(names)}: no pair of worlds is there")
    return tuple(chosen.values())


def baseline(node: str) -> tuple[Recording, ...]:
    """What tools answer where a pair says nothing."""
    text = Template((packaged() / BASELINE).read_text(encoding="utf-8")).substitute(node=node)
    return tuple(Recording.model_validate(entry) for entry in tomllib.loads(text)["answers"])


def _in_folder(folder: Traversable) -> list[Pair]:
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return [_read(file) for file in files if file.name != BASELINE]


def _read(file: Traversable) -> Pair:
    try:
        data = file.read_bytes()
        fields = {"name": file.name.removesuffix(".toml"), "digest": sha256(data).hexdigest()[:12]}
        return Pair.model_validate({**tomllib.loads(data.decode()), **fields})
    except ValidationError as error:
        first = error.errors()[0]
        raise WorldError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (OSError, ValueError) as error:
        raise WorldError(f"{file}: {error}") from error
