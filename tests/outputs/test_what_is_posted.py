"""Who is told what: filters, planned states, fleets and replays decide, and whoever heard the beginning hears the end."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import pytest

from aggregator.model import Incident, Severity
from aggregator.store import deliveries
from aggregator.store.deliveries import Audience, Outcome, Route
from tests.outputs.conftest import Desk, fault, judged, resolved

PAGER = Route("pager", severities=frozenset({Severity.CRITICAL}))
CHAT = Route("chat")
RECORDS = Route("records", supersedes=False)
NODE = Route("node", Audience.NOTED)
SHOWN = Route("shown", Audience.SHOWN)


async def posted(desk: Desk, target: str) -> list[tuple[str, str]]:
    return [(row.incident_id, row.change) for row in await desk.rows("waiting") if row.target == target]


async def take(desk: Desk, target: str) -> None:
    """The target takes everything that is due."""
    now_us = time.time_ns() // 1000
    claimed = await desk.store.write(partial(deliveries.claim, target=target, now_us=now_us, limit=100))
    outcomes = [Outcome(message.id, "sent") for message in claimed]
    await desk.store.write(partial(deliveries.settle, outcomes=outcomes))


async def test_each_target_gets_a_row_of_its_own_and_switched_off_ones_get_none(desk: Desk) -> None:
    desk.routes = [PAGER, CHAT]
    await desk.tell(fault(), judged(fault()))
    assert await posted(desk, "pager") == await posted(desk, "chat") == [("inc-1", "opened")]
    assert {row.target for row in await desk.rows()} == {"pager", "chat"}


async def test_the_same_verdict_is_told_once(desk: Desk) -> None:
    """Facts go on arriving and change nothing that a reader would notice."""
    desk.routes = [CHAT]
    await desk.tell(fault(), judged(fault()))
    await take(desk, "chat")
    await desk.tell(fault(), None)
    assert await posted(desk, "chat") == []


async def test_what_is_not_judged_yet_is_not_told(desk: Desk) -> None:
    desk.routes = [CHAT]
    await desk.tell(fault(), None)
    assert await posted(desk, "chat") == []


async def test_a_newer_verdict_replaces_one_that_waits(desk: Desk) -> None:
    """The chat hears of the incident for the first time with the second verdict; who keeps records gets both."""
    desk.routes = [CHAT, RECORDS]
    await desk.tell(fault(), judged(fault()))
    await desk.tell(fault(), judged(fault(), 2))
    assert await posted(desk, "chat") == [("inc-1", "opened")]
    assert await posted(desk, "records") == [("inc-1", "opened"), ("inc-1", "revised")]


@pytest.mark.parametrize(("first", "then"), [("critical", "warning"), ("critical", "ok")])
async def test_who_was_told_of_a_critical_incident_hears_that_it_became_less(desk: Desk, first: str, then: str) -> None:
    desk.routes = [PAGER]
    await desk.tell(fault(), judged(fault(), 1, Severity(first)))
    await take(desk, "pager")
    await desk.tell(fault(), judged(fault(), 2, Severity(then)))
    assert await posted(desk, "pager") == [("inc-1", "revised")]
    await take(desk, "pager")
    await desk.tell(resolved(fault()), judged(fault(), 3, Severity(then)))
    assert await posted(desk, "pager") == [("inc-1", "resolved")]


async def test_a_severity_that_a_target_does_not_want_stays_away_to_the_end(desk: Desk) -> None:
    desk.routes = [PAGER]
    await desk.tell(fault(), judged(fault(), 1, Severity.WARNING))
    await desk.tell(resolved(fault()), judged(fault(), 2, Severity.WARNING))
    assert await desk.rows() == []


async def test_an_incident_that_gets_worse_opens_for_whoever_heard_nothing(desk: Desk) -> None:
    desk.routes = [PAGER]
    await desk.tell(fault(), judged(fault(), 1, Severity.WARNING))
    await desk.tell(fault(), judged(fault(), 2, Severity.CRITICAL))
    assert await posted(desk, "pager") == [("inc-1", "opened")]


async def test_an_incident_that_comes_back_opens_again(desk: Desk) -> None:
    desk.routes = [CHAT]
    for revision, incident in enumerate((fault(), resolved(fault()), fault()), 1):
        await desk.tell(incident, judged(incident, revision))
        assert await posted(desk, "chat") == [("inc-1", "resolved" if revision == 2 else "opened")]
        await take(desk, "chat")


async def test_replayed_incidents_are_shown_and_announced_to_nobody(desk: Desk) -> None:
    desk.routes = [CHAT, NODE, SHOWN]
    quiet = fault(quiet=True)
    await desk.tell(quiet, judged(quiet))
    assert [row.target for row in await desk.rows()] == ["shown"]


async def test_a_planned_state_holds_pages_alone(desk: Desk) -> None:
    until_us = time.time_ns() // 1000 + 60_000_000
    held = fault(held_until_us=until_us, held_because="driver upgrade")
    desk.routes = [CHAT, NODE, SHOWN]
    await desk.tell(held, judged(held))
    due = {row.target: row.next_attempt_us for row in await desk.rows()}
    assert due["chat"] == until_us
    assert due["node"] < until_us
    assert due["shown"] < until_us


@pytest.mark.parametrize("route", [CHAT, RECORDS])
async def test_nobody_is_told_the_end_of_what_was_held(desk: Desk, route: Route) -> None:
    """A GPU reset that went as planned."""
    held = fault(held_until_us=time.time_ns() // 1000 + 60_000_000, held_because="GPU reset")
    desk.routes = [route]
    await desk.tell(held, judged(held))
    await desk.tell(held, judged(held, 2))
    await desk.tell(resolved(held), judged(held, 3))
    assert await desk.rows() == []


async def test_a_hold_that_is_lifted_pages(desk: Desk) -> None:
    held = fault(held_until_us=time.time_ns() // 1000 + 60_000_000, held_because="boot")
    desk.routes = [CHAT]
    await desk.tell(held, judged(held))
    await desk.tell(fault(), judged(fault(), 2))
    (row,) = await desk.rows()
    assert row.next_attempt_us <= time.time_ns() // 1000


async def test_a_fleet_incident_is_one_page(desk: Desk) -> None:
    """Its members keep their own record on their nodes; the fleet incident is no node's record."""
    desk.routes = [CHAT, NODE, SHOWN]
    fleet = replace(fault(9), subject=replace(fault(9).subject, kind="fleet"))
    await desk.tell(fleet, judged(fleet))
    for number in (1, 2):
        member = fault(number, fleet_id=fleet.id)
        await desk.tell(member, judged(member))
    assert await posted(desk, "chat") == [("inc-9", "opened")]
    assert await posted(desk, "node") == await posted(desk, "shown") == [("inc-1", "opened"), ("inc-2", "opened")]


async def test_a_member_that_had_paged_before_is_closed_where_it_paged(desk: Desk) -> None:
    desk.routes = [CHAT]
    await desk.tell(fault(), judged(fault()))
    await take(desk, "chat")
    member: Incident = fault(fleet_id="inc-9")
    await desk.tell(member, judged(member, 2))
    assert await posted(desk, "chat") == []
    await desk.tell(resolved(member), judged(member, 3))
    assert await posted(desk, "chat") == [("inc-1", "resolved")]


async def test_what_may_have_arrived_counts_as_told(desk: Desk) -> None:
    """An attempt was made and its end is not known: the next verdict is a revision, and the end is told."""
    desk.routes = [CHAT]
    await desk.tell(fault(), judged(fault()))
    await desk.store.write(partial(deliveries.claim, target="chat", now_us=time.time_ns() // 1000, limit=9))
    await desk.tell(fault(), judged(fault(), 2))
    assert await posted(desk, "chat") == [("inc-1", "revised")]
    await desk.tell(resolved(fault()), judged(fault(), 3))
    assert await posted(desk, "chat") == [("inc-1", "resolved")]


async def test_a_target_that_is_switched_off_leaves_no_rows(desk: Desk) -> None:
    """Switched on again, it hears the end of what it had heard the beginning of."""
    desk.routes = [CHAT]
    await desk.tell(fault(1), judged(fault(1)))
    await take(desk, "chat")
    await desk.tell(fault(2), judged(fault(2)))
    assert await desk.store.write(partial(deliveries.drop_others, targets=["pager"])) == 1
    assert await desk.rows() == []
    await desk.tell(resolved(fault(1)), judged(fault(1), 2))
    assert await posted(desk, "chat") == [("inc-1", "resolved")]


async def test_one_row_an_incident_is_kept_of_what_was_told(desk: Desk) -> None:
    desk.routes = [CHAT]
    for revision in range(1, 6):
        await desk.tell(fault(), judged(fault(), revision))
        await take(desk, "chat")
    assert len(await desk.rows("waiting", "sent", "superseded", "dead")) == 1


async def test_a_later_change_waits_behind_an_earlier_one_that_failed(desk: Desk) -> None:
    """Of one incident; another's is due."""
    desk.routes = [RECORDS]
    now_us = time.time_ns() // 1000
    claim = partial(deliveries.claim, target="records", now_us=now_us + 1_000_000, limit=100)
    await desk.tell(fault(1), judged(fault(1)))
    (first,) = await desk.store.write(claim)
    failed = Outcome(first.id, "waiting", "HTTP 500", now_us + 60_000_000)
    await desk.store.write(partial(deliveries.settle, outcomes=[failed]))
    await desk.tell(fault(1), judged(fault(1), 2))
    await desk.tell(fault(2), judged(fault(2)))
    assert [message.incident.id for message in await desk.store.write(claim)] == ["inc-2"]
