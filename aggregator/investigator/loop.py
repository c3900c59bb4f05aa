"""The loop: the model asks, tools answer, until it concludes or something runs out. It always ends in an Investigation.

The conversation only grows. A turn with calls is answered; a turn without is taken for the final answer and checked. When rounds,
tokens, dollars, time or patience run out, the model is told that the next turn is its last. One repair turn follows an answer that
cannot be used, or calls after the last turn. Then what was accepted stands as partial, and otherwise the rules do.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from aggregator.investigator import prompts
from aggregator.investigator.answer import SCHEMA, NoAnswer, read_answer
from aggregator.investigator.budget import Budget, Ledger
from aggregator.investigator.bundle import Bundle
from aggregator.investigator.endings import Ended, Ending
from aggregator.investigator.framing import Gate
from aggregator.investigator.grounding import Checked, check
from aggregator.investigator.guard import Guard
from aggregator.investigator.items import Item, Shown
from aggregator.investigator.llm import (
    Backend,
    BackendFailed,
    Capabilities,
    Entry,
    FailureKind,
    Request,
    ResultsEntry,
    Stop,
    ToolCall,
    ToolResult,
    Turn,
    UserEntry,
)
from aggregator.investigator.rendering import dumps
from aggregator.investigator.sources import Registry, Scope
from aggregator.investigator.toolbox import Answered, Toolbox
from aggregator.investigator.transcript import Record, Transcript
from aggregator.model import ClaimRole, Investigation, Spent, StopReason, Trust

MAX_STRIKES = 2
MAX_PAUSES = 3
GRACE_SECONDS = 5.0  # beyond a deadline, before whoever should have kept it is cut off

log = structlog.get_logger(__name__)

Report = Callable[[str, str, Spent], None]  # what is being done, the tools that are asked, what was used so far
Count = Callable[[str, str], None]  # a call's tool and outcome, in bounded words, for metrics


@dataclass(frozen=True, slots=True)
class Task:
    """What is investigated, with what, within which bounds."""

    investigation_id: str
    basis: str
    bundle: Bundle
    scope: Scope
    registry: Registry
    system: str  # see prompts.system_text
    budget: Budget = field(default_factory=Budget)
    gate: Gate = field(default_factory=Gate)


def _ignore(*_: object) -> None:
    """For whoever does not listen."""


async def investigate(
    task: Task,
    backend: Backend,
    capabilities: Capabilities,
    *,
    record: Record = _ignore,
    report: Report = _ignore,
    count: Count = _ignore,
    clock: Callable[[], float] = time.monotonic,
) -> Investigation:
    """Run one investigation to its end. Never raises, unless it is cancelled; takes `wall_seconds` and a few more at most."""
    started_us = time.time_ns() // 1000
    ledger = Ledger(task.budget, capabilities, clock)
    run = _Run(task, backend, capabilities, ledger, record, report, count)
    reason = ""
    try:
        async with asyncio.timeout(task.budget.wall_seconds + 2 * GRACE_SECONDS):
            await run.go()
    except Ended as ended:
        reason = str(ended)
    except BackendFailed as failed:
        reason = f"{failed.kind.value}: {failed}"
    except TimeoutError:
        reason = f"{Ending.WALL_CLOCK}: {task.budget.wall_seconds:g} s are over"
    except Exception as error:
        log.exception("investigation_broke", investigation=task.investigation_id)
        reason = f"{Ending.INTERNAL}: {type(error).__name__}"
    ended_us = started_us + int(ledger.elapsed_seconds * 1e6)
    return run.outcome(task.gate.leaving(reason), started_us, ended_us)


class _Run:
    """One investigation under way."""

    def __init__(
        self,
        task: Task,
        backend: Backend,
        capabilities: Capabilities,
        ledger: Ledger,
        record: Record,
        report: Report,
        count: Count,
    ) -> None:
        self._task, self._backend, self._capabilities = task, backend, capabilities
        self._ledger, self._report, self._count = ledger, report, count
        self._shown = Shown(task.bundle.items)
        self._toolbox: Toolbox | None = None
        self._guard = Guard()
        self._transcript = Transcript(record, task.gate, lambda: time.time_ns() // 1000)
        self._entries: list[Entry] = []
        self._best: Checked | None = None
        self._model = capabilities.model
        self._cut_short = ""  # why the final turn was forced
        self._last = False  # the model was told that this is its last turn
        self._repaired = False  # and that this is its last chance
        self._pauses = 0

    # --- from the beginning to the end

    async def go(self) -> None:
        """Run until there is an answer with a root cause that holds. Raises Ended or BackendFailed where there is none."""
        task = self._task
        toolbox = Toolbox(task.registry, task.scope, task.gate, self._shown, task.budget.shown_characters)
        self._toolbox = toolbox
        self._ledger.grew(
            task.system + dumps([[spec.name, spec.description, spec.parameters] for spec in toolbox.specs])
        )
        missing = await toolbox.look_around()
        self._open(missing)
        while not await self._take(await self._turn(toolbox), toolbox):
            pass

    def outcome(self, reason: str, started_us: int, ended_us: int) -> Investigation:
        """What stands, given why it ended; an empty reason is a whole answer."""
        best = self._best
        stop = StopReason.COMPLETED
        if reason:
            stop = StopReason.PARTIAL if best is not None and best.opinion.claims else StopReason.DEGRADED
            self._transcript.note(self._ledger.spent.rounds, f"Ended: {reason}")
        return Investigation(
            id=self._task.investigation_id,
            incident_id=self._task.scope.incident.id,
            basis=self._task.basis,
            stop=stop,
            reason=reason,
            model=self._task.gate.leaving(self._model),
            started_us=started_us,
            ended_us=ended_us,
            opinion=best.opinion if best is not None and stop is not StopReason.DEGRADED else None,
            dropped=best.dropped if best is not None else (),
            unchecked=self._unchecked(),
            spent=self._ledger.spent,
        )

    def _unchecked(self) -> tuple[str, ...]:
        tools = self._toolbox.unchecked if self._toolbox is not None else {}
        lines = (*self._task.bundle.unchecked, *(f"{name}: {tools[name]}" for name in sorted(tools)))
        return (*lines, f"the investigation was cut short: {self._cut_short}") if self._cut_short else lines

    # --- what we say

    def _open(self, missing: Mapping[str, str]) -> None:
        task = self._task
        lines = [*task.bundle.unchecked, *(f"{name}: {missing[name]}" for name in sorted(missing))]
        if lines:
            self._shown.add(
                Item("u1", "what cannot be checked now, and why", "\n".join(lines), Trust.CLUSTER, conclusion=True)
            )
        for item in self._shown:
            self._transcript.item(item)
        frames = (task.gate.frame(item) for item in self._shown)
        self._say("\n\n".join((task.bundle.heading, *frames, prompts.opening())))

    def _say(self, text: str, results: tuple[ToolResult, ...] = (), *, last_because: str = "") -> None:
        """Append a message of ours; where the turn after it must be the last, it says that too."""
        for said in (text, *(result.text for result in results)):
            self._ledger.grew(said)
        if not self._last:
            shortage = self._ledger.last_turn()
            last_because = last_because or (shortage.sentence if shortage else "")
            if last_because:
                self._last, self._cut_short = True, last_because
                self._note(f"Final turn: {last_because}")
                text = "\n\n".join(part for part in (text, prompts.final(last_because)) if part)
        self._entries.append(ResultsEntry(results, text) if results else UserEntry(text))

    def _note(self, text: str) -> None:
        self._transcript.note(self._ledger.spent.rounds, text)

    # --- one turn

    async def _turn(self, toolbox: Toolbox) -> Turn:
        """Ask the model. Raises Ended where nothing is left to ask with, BackendFailed where it cannot be asked."""
        shortage = self._ledger.no_room()
        if shortage is not None:
            raise Ended(shortage.word, shortage.sentence)
        deadline_seconds = self._ledger.deadline_seconds(final=self._last)
        request = Request(
            system=self._task.system,
            tools=toolbox.specs,
            entries=tuple(self._entries),
            answer_schema=SCHEMA,
            max_tokens=self._ledger.max_tokens,
            deadline_seconds=deadline_seconds,
        )
        self._report("asking the model", "", self._ledger.spent)
        try:
            async with asyncio.timeout(deadline_seconds + GRACE_SECONDS):
                turn = await self._backend.turn(request)
        except TimeoutError:
            raise BackendFailed(FailureKind.TIMEOUT, f"no whole turn within {deadline_seconds:.0f} s") from None
        self._ledger.took(turn.usage, len(json.dumps(turn.entry.raw)))
        self._entries.append(turn.entry)
        self._model = turn.model
        self._transcript.said(self._ledger.spent.rounds, turn.text)
        return turn

    async def _take(self, turn: Turn, toolbox: Toolbox) -> bool:
        """Act on a turn; True where it was the answer. Raises Ended where there will be none."""
        if turn.stop is Stop.REFUSAL:
            raise Ended(Ending.REFUSAL, "the model refused")
        if turn.stop is Stop.CONTEXT_OVERFLOW:
            raise BackendFailed(FailureKind.CONTEXT_OVERFLOW, "the conversation outgrew the model's context")
        if turn.calls:
            await self._answer_calls(turn, toolbox)
            return False
        if turn.stop is Stop.MAX_TOKENS:
            self._once_more(Ending.MAX_TOKENS, "it was cut off before its end; be brief")
            return False
        if turn.stop is Stop.PAUSE:
            self._go_on()
            return False
        return self._conclude(turn.text)

    def _go_on(self) -> None:
        self._pauses += 1
        if self._pauses > MAX_PAUSES:
            raise Ended(Ending.PAUSED, f"the model paused {self._pauses} times")
        self._say("Go on.")

    # --- calls

    async def _answer_calls(self, turn: Turn, toolbox: Toolbox) -> None:
        """Every call gets an answer: the tool's, or why it was not asked."""
        if self._last:
            self._refuse(turn.calls, "no tool is asked any more")
            return
        if turn.stop is Stop.MAX_TOKENS:
            self._refuse(turn.calls, "the turn was cut off at its longest: no call was made")
            return
        known = {spec.name for spec in toolbox.specs} & {call.name for call in turn.calls}
        self._report("asking tools", ", ".join(sorted(known)), self._ledger.spent)
        answered = await toolbox.answer(turn.calls, self._ledger.tool_seconds())
        self._ledger.asked_tools(len(answered))
        for answer in answered:
            self._transcript.asked(self._ledger.spent.rounds, answer)
            outcome = answer.error or ("repeated" if answer.repeated else "answered")
            self._count(answer.call.name if answer.call.name in known else "unknown", outcome)
        circle = self._guard.note(answered)
        last = f"it went round in circles: {circle}" if self._guard.strikes >= MAX_STRIKES else ""
        if self._ledger.spent.rounds >= self._task.budget.rounds:
            last = last or f"all {self._task.budget.rounds} rounds are used"
        if circle:
            self._note(f"Circling: {circle}")
        results = tuple(_result(answer) for answer in answered)
        self._say(prompts.nudge(circle) if circle and not last else "", results, last_because=last)

    def _refuse(self, calls: Sequence[ToolCall], why: str) -> None:
        """Calls of a turn that was the last, or cut off: this spends the repair."""
        results = tuple(
            ToolResult(call.id, self._task.gate.frame_error(call.name, why), is_error=True) for call in calls
        )
        self._once_more(Ending.TOOLS_AT_END if self._last else Ending.MAX_TOKENS, why, results)

    # --- the answer

    def _conclude(self, text: str) -> bool:
        """Check what is to be the final answer; True where its root cause holds."""
        try:
            answer = read_answer(text, (item.text for item in self._shown))
        except NoAnswer as problem:
            self._once_more(Ending.NO_ANSWER, str(problem))
            return False
        checked = check(answer, self._shown, self._task.gate)
        self._transcript.answered(self._ledger.spent.rounds, checked)
        if self._best is None or checked.has_cause or len(checked.opinion.claims) >= len(self._best.opinion.claims):
            self._best = checked
        if not checked.has_cause:
            self._once_more(Ending.UNGROUNDED, _complaint(checked))
        return checked.has_cause

    def _once_more(self, word: Ending, why: str, results: tuple[ToolResult, ...] = ()) -> None:
        """The one repair turn. Raises Ended where it was spent."""
        why = self._task.gate.leaving(why)
        if self._repaired:
            raise Ended(word, why)
        self._repaired = self._last = True
        self._note(f"Repair: {why}")
        self._say(prompts.repair(why), results)


def _result(answer: Answered) -> ToolResult:
    return ToolResult(answer.call.id, answer.text, is_error=bool(answer.error))


def _complaint(checked: Checked) -> str:
    """What was wrong with the claims that were dropped."""
    causes = [claim for claim in checked.dropped if claim.role is ClaimRole.ROOT_CAUSE]
    if not causes:
        return "no claim has the role root_cause."
    reasons = [f"the claim “{claim.text[:80]}” was dropped, {claim.dropped_because}." for claim in checked.dropped[:8]]
    return "no root cause holds: " + " ".join(reasons)
