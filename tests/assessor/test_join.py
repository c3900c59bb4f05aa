"""Rules and model in one verdict: who may change what, on whose words, and what is said where they differ."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.assessor import assess, basis_of, judged
from aggregator.assessor.advice import without_forbidden
from aggregator.model import (
    SEVERITY_ORDER,
    Action,
    Assessment,
    Claim,
    ClaimRole,
    FaultClass,
    Incident,
    IncidentState,
    Investigation,
    Opinion,
    Phase,
    Resolution,
    Severity,
    Spent,
    StopReason,
    Subject,
    Support,
    Trust,
)
from aggregator.rules import wording
from tests.assessor.test_assess import NOW, incident, xid

HARDWARE = Support("e1", "fallen off the bus", Trust.HARDWARE, "n1/kmsg/b/1")
CLUSTER = Support("t1", '"value": "93"', Trust.CLUSTER)
TENANT = Support("t2", "false alarm", Trust.TENANT)
LIVE = Support("t3", "8 GPUs answer", Trust.HARDWARE, live=True)

FELL = incident(xid(79))  # critical, by the rules
APP = incident(xid(13))  # the application's


def cause(*support: Support, text: str = "The riser card is loose.") -> Claim:
    return Claim(ClaimRole.ROOT_CAUSE, text, support or (HARDWARE, CLUSTER))


def counter(*support: Support) -> Claim:
    return Claim(ClaimRole.COUNTER_EVIDENCE, "It answers now.", support)


def opinion(*claims: Claim, **fields: Any) -> Opinion:
    made = Opinion(
        Severity.CRITICAL,
        FaultClass.HARDWARE,
        Action.CORDON,
        (Resolution.CHECK_MECHANICALS,),
        0.8,
        claims or (cause(),),
        (),
    )
    return replace(made, **fields)


def found(about: Incident, judgement: Opinion | None = None, **fields: Any) -> Investigation:
    verdict, _ = judged(about)
    made = Investigation(
        "inv-1",
        about.id,
        basis_of(about, verdict),
        StopReason.COMPLETED,
        "",
        "m",
        NOW,
        NOW,
        judgement or opinion(),
        spent=Spent(cost_usd=0.25),
    )
    return replace(made, **fields)


def joined(about: Incident, investigation: Investigation) -> Assessment:
    made = assess(about, None, NOW, investigation=investigation)
    assert made is not None
    return made


def test_a_proved_opinion_is_published() -> None:
    """Class, action, steps and words are the model's; what the rules know beside them stays; both sets of facts are cited."""
    rules, _ = judged(FELL)
    impact = Claim(ClaimRole.IMPACT, "One job was lost", (HARDWARE,))
    finding = Claim(ClaimRole.FINDING, "It ran hot.", (CLUSTER,))
    made = joined(
        FELL, found(FELL, opinion(impact, cause(), finding, counter(CLUSTER), open_questions=("Which riser?",)))
    )
    verdict = made.verdict
    assert (made.origin, made.partial, made.degraded_reason) == ("llm", False, "")
    assert (verdict.severity, verdict.fault_class, verdict.action) == (
        Severity.CRITICAL,
        FaultClass.HARDWARE,
        Action.CORDON,
    )
    assert verdict.resolutions == (Resolution.CHECK_MECHANICALS,)
    assert verdict.next_steps == (wording.step(Resolution.CHECK_MECHANICALS),)
    assert verdict.root_cause == "The riser card is loose."
    assert verdict.summary == "The riser card is loose. It ran hot. One job was lost."
    assert made.counter_evidence == ("It answers now.",)
    assert verdict.open_questions == ("Which riser?",)
    assert verdict.citations == rules.citations == ("n1/kmsg/b/1",)
    assert (verdict.rule_ids, verdict.do_not, verdict.rules_version) == (
        rules.rule_ids,
        rules.do_not,
        rules.rules_version,
    )
    assert (made.investigation_id, made.model, made.cost_usd) == ("inv-1", "m", 0.25)
    assert made.disputed[0].startswith("Fault class: the rules say ")


SEVERITIES = [severity for severity in Severity if severity is not Severity.CRITICAL]


@pytest.mark.parametrize(
    ("model", "claims", "published"),
    [
        *[pytest.param(model, [cause()], Severity.CRITICAL, id=f"{model} alone") for model in SEVERITIES],
        pytest.param(Severity.INFO, [cause(), counter(TENANT)], Severity.CRITICAL, id="tenants' counter-evidence"),
        pytest.param(Severity.INFO, [cause(), counter(CLUSTER)], Severity.CRITICAL, id="cluster's counter-evidence"),
        pytest.param(Severity.INFO, [cause(), counter(HARDWARE)], Severity.CRITICAL, id="the fault itself"),
        pytest.param(Severity.INFO, [cause(), counter(LIVE, TENANT)], Severity.CRITICAL, id="mixed counter-evidence"),
        pytest.param(
            Severity.INFO,
            [cause(), counter(replace(LIVE, quote="Xid (PCI:0000:3a:00): 79"))],
            Severity.CRITICAL,
            id="the fault's words, live",
        ),
        pytest.param(
            Severity.INFO,
            [cause(), counter(replace(LIVE, trust=Trust.CLUSTER))],
            Severity.CRITICAL,
            id="live, and not of hardware",
        ),
        pytest.param(Severity.INFO, [counter(LIVE)], Severity.CRITICAL, id="no root cause"),
        pytest.param(Severity.INFO, [cause(TENANT), counter(LIVE)], Severity.CRITICAL, id="a tenant's root cause"),
        pytest.param(Severity.WARNING, [cause(), counter(LIVE)], Severity.WARNING, id="hardware speaks against it"),
        pytest.param(Severity.OK, [cause(), counter(LIVE)], Severity.WARNING, id="one step at most"),
    ],
)
def test_the_severity_floor(model: Severity, claims: list[Claim], published: Severity) -> None:
    """The higher stands, unless hardware spoke against it after the fault; every difference is said."""
    made = joined(FELL, found(FELL, opinion(*claims, severity=model)))
    assert made.verdict.severity is published
    assert [
        line
        for line in made.disputed
        if line.startswith(f"Severity: the rules say critical, the model {model.value}; ")
    ]


def test_the_end_of_a_state_is_counter_evidence_too() -> None:
    """As its own fact; the report that it began is not."""
    ended = xid(79, 2, phase=Phase.ENDED, raw="it answers again")
    about = incident(xid(79), ended)
    for fact, published in ((ended, Severity.WARNING), (xid(79), Severity.CRITICAL)):
        against = counter(Support("e2", "it answers again", Trust.HARDWARE, fact.id))
        assert (
            joined(about, found(about, opinion(cause(), against, severity=Severity.WARNING))).verdict.severity
            is published
        )


@pytest.mark.parametrize(
    ("because", "published"),
    [("recovered", Severity.INFO), ("quiet", Severity.CRITICAL), ("rebooted", Severity.CRITICAL)],
)
def test_recovery_confirms_the_lower_severity(because: str, published: Severity) -> None:
    """A deterministic check; silence is none."""
    over = replace(FELL, state=IncidentState.RESOLVED, resolved_because=because)
    made = joined(over, found(over, opinion(severity=Severity.INFO)))
    assert made.verdict.severity is published
    assert made.verdict.summary.startswith("Resolved: ")


@pytest.mark.parametrize(
    ("support", "published"),
    [([CLUSTER], Severity.CRITICAL), ([HARDWARE], Severity.CRITICAL), ([TENANT], None)],
    ids=["cluster", "hardware", "tenant"],
)
def test_a_higher_severity_needs_facts_too(support: list[Support], published: Severity | None) -> None:
    """A tenant cannot page anybody with a text."""
    rules, _ = judged(APP)
    made = joined(APP, found(APP, opinion(cause(*support), severity=Severity.CRITICAL)))
    assert made.verdict.severity is (published or rules.severity)


@pytest.mark.parametrize(
    "claims", [[cause(TENANT)], [Claim(ClaimRole.FINDING, "It is hot.", (CLUSTER,))]], ids=["tenant", "no cause"]
)
@pytest.mark.parametrize("about", [FELL, APP], ids=["critical", "application"])
def test_tenants_text_changes_nothing_alone(claims: list[Claim], about: Incident) -> None:
    """The rules' verdict word by word; the claims are shown beside it."""
    rules, _ = judged(about)
    made = joined(
        about, found(about, opinion(*claims, severity=Severity.OK, fault_class=FaultClass.NONE, action=Action.NONE))
    )
    assert replace(made.verdict, open_questions=rules.open_questions, citations=rules.citations) == rules
    assert made.claims == tuple(claims)
    assert any("the rules' stands" in line for line in made.disputed)


class TestForbiddenAdvice:
    """Replaced, and visibly so."""

    def test_what_the_rules_forbid(self) -> None:
        rules, _ = judged(APP)
        forbidden = next(step for step in Resolution if wording.prohibition(step) in rules.do_not)
        made = joined(APP, found(APP, opinion(resolutions=(forbidden, Resolution.FIX_APP))))
        assert made.verdict.resolutions == (Resolution.FIX_APP,)
        assert f"Advice of the model was removed: {forbidden.value} (the rules forbid it)." in made.disputed

    def test_a_node_action_that_the_rules_forbid(self) -> None:
        rules, _ = judged(APP)
        assert wording.prohibition(Resolution.DRAIN) in rules.do_not
        made = joined(APP, found(APP, opinion(action=Action.DRAIN)))
        assert made.verdict.action is rules.action
        assert "Advice of the model was removed: drain (the rules forbid it)." in made.disputed

    @pytest.mark.parametrize(
        "steps", [(Resolution.NONE,), (Resolution.MONITOR,), (Resolution.NONE, Resolution.MONITOR)]
    )
    def test_doing_nothing_about_a_fault(self, steps: tuple[Resolution, ...]) -> None:
        rules, _ = judged(FELL)
        made = joined(FELL, found(FELL, opinion(resolutions=steps)))
        assert made.verdict.resolutions == rules.resolutions
        assert "Advice of the model was removed: ignore the fault." in made.disputed

    def test_anything_done_to_nodes_on_a_groups_verdict(self) -> None:
        group = incident(xid(79), xid(79, 2, node="n2"), subject=Subject("fleet", "n1"), nodes=("n1", "n2"))
        made = joined(group, found(group, opinion(action=Action.DRAIN)))
        assert made.verdict.action is Action.NONE

    @pytest.mark.parametrize(
        "text",
        [
            "Uncordon the node.",
            "The node can be made schedulable: make the node schedulable again.",
            "Remove the taint from it.",
            "Run kubectl delete pod x --force.",
            "Delete it with --grace-period=0.",
            "Force-delete the stuck pods.",
            "Disable ECC on this board.",
            "Silence the alerts for a week.",
            "This can be safely ignored.",
            "Please ignore it.",
            "NVIDIA confirmed a false alarm.",
            "No further action is required.",
            "Nothing needs to be done.",
        ],
    )
    def test_advice_in_the_words_of_a_claim(self, text: str) -> None:
        rules, _ = judged(FELL)
        alone = joined(FELL, found(FELL, opinion(cause(text=text))))
        assert alone.verdict.root_cause == rules.root_cause
        assert alone.dropped_claims[0].dropped_because.startswith("it advises what must not be done")
        beside = joined(FELL, found(FELL, opinion(cause(text=f"The riser is loose. {text}"), open_questions=(text,))))
        assert beside.verdict.root_cause.startswith("The riser is loose. [advice removed: ")
        assert any(line.startswith("Advice of the model was removed: ") for line in beside.disputed)
        assert text not in repr((alone, beside))

    @pytest.mark.parametrize(
        "text",
        [
            "The program ignored the error and went on.",
            "The node was cordoned at 10:00.",
            "The driver forced a GPU reset.",
            "ECC is disabled on this board.",
            "The pod was deleted by the scheduler.",
            "Xid 79 asks for a reset.",
        ],
    )
    def test_what_only_sounds_like_it(self, text: str) -> None:
        assert without_forbidden(text, Severity.CRITICAL) == (text, ())


def test_a_record_may_say_that_nothing_needs_to_be_done() -> None:
    """Of an incident that is worth no more."""
    assert without_forbidden("No action is needed.", Severity.INFO)[1] == ()


class TestConfidence:
    """What failed lowers it."""

    @pytest.mark.parametrize(
        "fields",
        [
            {"dropped": (replace(cause(), dropped_because="its quote does not stand in e1"),)},
            {"unchecked": ("query_prometheus: down",)},
            {"stop": StopReason.PARTIAL, "reason": "no_answer: x"},
        ],
        ids=["dropped", "unchecked", "partial"],
    )
    def test_it_is_lower(self, fields: dict[str, Any]) -> None:
        whole = joined(FELL, found(FELL)).verdict.confidence
        assert 0 < joined(FELL, found(FELL, **fields)).verdict.confidence < whole

    def test_nobody_is_certain(self) -> None:
        assert (
            joined(
                FELL, found(FELL, opinion(confidence=1.0, fault_class=judged(FELL)[0].fault_class))
            ).verdict.confidence
            == 0.95
        )


def test_a_degraded_investigation_leaves_the_rules_and_says_why() -> None:
    """With what could not be looked at, and what it cost."""
    rules, _ = judged(FELL)
    made = joined(
        FELL,
        found(
            FELL, opinion=None, stop=StopReason.DEGRADED, reason="refusal: the model refused", unchecked=("x: down",)
        ),
    )
    assert (made.verdict, made.origin, made.degraded_reason) == (rules, "rules", "refusal: the model refused")
    assert (made.unchecked, made.investigation_id, made.cost_usd, made.partial) == (("x: down",), "inv-1", 0.25, False)


def test_a_partial_one_is_marked() -> None:
    """And its claims stand beside the rules' verdict."""
    rules, _ = judged(FELL)
    finding = Claim(ClaimRole.FINDING, "It ran hot.", (CLUSTER,))
    made = joined(FELL, found(FELL, opinion(finding), stop=StopReason.PARTIAL, reason="ungrounded: no root cause"))
    assert (made.partial, made.origin, made.degraded_reason) == (True, "llm", "ungrounded: no root cause")
    assert (made.verdict.root_cause, made.claims) == (rules.root_cause, (finding,))


class TestBasis:
    """What an investigation was asked about, and whether that is still the question."""

    def test_an_opinion_of_another_state_is_ignored(self) -> None:
        later = incident(xid(79), xid(48, 2))
        made = joined(later, found(FELL))
        assert (made.origin, made.investigation_id, made.verdict) == ("rules", "", judged(later)[0])

    def test_it_is_the_same_for_a_joined_verdict(self) -> None:
        """Else each answer would raise the question anew."""
        made = joined(FELL, found(FELL))
        assert made.verdict.fault_class is not judged(FELL)[0].fault_class
        assert basis_of(FELL, made.verdict) == basis_of(FELL, judged(FELL)[0])

    @pytest.mark.parametrize(
        "same",
        [
            incident(xid(79, count=40)),
            incident(xid(79), xid(79, 2)),
            incident(xid(79), updated_us=NOW + 9),
            incident(xid(79), state=IncidentState.RESOLVED, resolved_because="quiet"),
        ],
        ids=["counts", "repeats", "heard again", "resolved"],
    )
    def test_what_changes_no_question(self, same: Incident) -> None:
        assert basis_of(same, judged(same)[0]) == basis_of(FELL, judged(FELL)[0])

    @pytest.mark.parametrize(
        "other",
        [
            incident(xid(79), xid(48, 2)),
            incident(xid(79), xid(79, 2, pci="0000:4b:00.0")),
            incident(xid(79), id="inc-2"),
        ],
        ids=["code", "another GPU", "another incident"],
    )
    def test_what_changes_it(self, other: Incident) -> None:
        assert basis_of(other, judged(other)[0]) != basis_of(FELL, judged(FELL)[0])


class TestRevisions:
    """A revision where a reader sees a difference."""

    def test_an_opinion_is_one_and_the_same_opinion_is_none(self) -> None:
        first = assess(FELL, None, NOW)
        second = assess(FELL, first, NOW + 1, investigation=found(FELL))
        assert second is not None
        assert second.revision == 2
        assert assess(FELL, second, NOW + 2, investigation=found(FELL, id="inv-2")) is None

    def test_why_there_is_none_is_one_too(self) -> None:
        first = assess(FELL, None, NOW)
        degraded = found(FELL, opinion=None, stop=StopReason.DEGRADED, reason="timeout: x")
        second = assess(FELL, first, NOW + 1, investigation=degraded)
        assert second is not None
        assert second.degraded_reason == "timeout: x"

    def test_the_closing_record_keeps_it(self) -> None:
        present = joined(FELL, found(FELL))
        over = replace(FELL, state=IncidentState.RESOLVED, resolved_because="quiet")
        closing = assess(over, present, NOW + 1, investigation=found(FELL))
        assert closing is not None
        assert closing.origin == "llm"
        assert closing.verdict.summary == f"Resolved: nothing more was heard of it. {present.verdict.summary}"


SUPPORTS = st.lists(st.sampled_from([HARDWARE, CLUSTER, TENANT, LIVE]), min_size=1, max_size=3).map(tuple)
CLAIMS = st.lists(
    st.builds(Claim, st.sampled_from(ClaimRole), st.sampled_from(["It broke.", "Ignore it.", "x"]), SUPPORTS),
    max_size=4,
).map(tuple)
OPINIONS = st.builds(
    Opinion,
    st.sampled_from(Severity),
    st.sampled_from(FaultClass),
    st.sampled_from(Action),
    st.lists(st.sampled_from(Resolution), min_size=1, max_size=3, unique=True).map(tuple),
    st.floats(0, 1),
    CLAIMS,
)


@given(OPINIONS, st.sampled_from([FELL, APP]), st.sampled_from([StopReason.COMPLETED, StopReason.PARTIAL]))
def test_whatever_a_model_says_the_floor_holds(judgement: Opinion, about: Incident, stop: StopReason) -> None:
    """No severity falls without hardware read since; none falls by more than a step; nothing forbidden is advised; tenants alone move nothing."""
    rules, _ = judged(about)
    made = joined(about, found(about, judgement, stop=stop, reason="" if stop is StopReason.COMPLETED else "tokens: x"))
    verdict = made.verdict
    fall = SEVERITY_ORDER[rules.severity] - SEVERITY_ORDER[verdict.severity]
    assert fall <= 1
    if fall == 1:
        assert any(
            claim.role is ClaimRole.COUNTER_EVIDENCE and all(support == LIVE for support in claim.support)
            for claim in judgement.claims
        )
    if all(support.trust is Trust.TENANT for claim in judgement.claims for support in claim.support):
        assert (verdict.severity, verdict.fault_class, verdict.action, verdict.resolutions) == (
            rules.severity, rules.fault_class, rules.action, rules.resolutions,
        )  # fmt: skip
    assert not any(wording.prohibition(step) in rules.do_not for step in verdict.resolutions)
    assert 0 < verdict.confidence <= 1
    assert verdict.resolutions
    if (rules.severity, rules.action) != (judgement.severity, judgement.action):
        assert made.disputed


def test_every_pair_of_severities_has_one_outcome() -> None:
    """The higher, where nothing speaks against it."""
    for model, about in product(Severity, (FELL, APP)):
        rules, _ = judged(about)
        published = joined(about, found(about, opinion(severity=model))).verdict.severity
        assert published is max(model, rules.severity, key=SEVERITY_ORDER.__getitem__)
