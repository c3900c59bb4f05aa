"""No set of signals, however odd, gives advice that would harm."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aggregator import rules
from aggregator.model import Action, Phase, Resolution, Severity, Signal, Trust
from aggregator.rules.catalog import load
from aggregator.rules.kinds import KINDS

APPLICATION_XIDS = (13, 31, 43, 45, 69)
NODE_ADVICE = {
    Resolution.CORDON,
    Resolution.DRAIN,
    Resolution.RESET_GPU,
    Resolution.REBOOT,
    Resolution.POWER_CYCLE,
    Resolution.RMA,
}
BLIND = ("nvml_hung", "nvml_unavailable", "dcgm_unobservable", "collector_failed", "agent_silent", "nvml_child_crashed")
GPUS = [None, *(f"0000:{bus:02x}:00.0" for bus in (0x18, 0x2A, 0x3A))]


@st.composite
def signal(draw: st.DrawFn, kinds: tuple[str, ...] = (), codes: tuple[int, ...] = ()) -> Signal:
    """Any signal that the reader could make, and some that it could not."""
    kind = draw(st.sampled_from(kinds or tuple(KINDS)))
    code = None
    if kind in ("xid", "sxid"):
        code = draw(st.sampled_from(codes) if codes else st.integers(0, 200) | st.integers(10000, 30000))
    return Signal(
        id=f"node/kmsg/boot/{draw(st.integers(0, 10**6))}",
        kind=kind,
        code=code,
        node="node",
        pci=draw(st.sampled_from(GPUS)),
        at_us=draw(st.none() | st.integers(0, 10**9)),
        order=draw(st.integers(0, 100)),
        phase=draw(st.sampled_from(Phase)),
        trust=draw(st.sampled_from((Trust.HARDWARE, Trust.HARDWARE, Trust.TENANT))),
        attributes=draw(
            st.dictionaries(
                st.sampled_from(("fatal", "remap", "recovery_action", "immediate", "words", "body_suggests", "pid", "process")),
                st.sampled_from((True, False, "failed", "pending", "gpu_reset", "node_reboot", "RESET_GPU", "IGNORE", "error", 13)),
                max_size=3,
            )
        ),
    )  # fmt: skip


@given(st.lists(signal(), max_size=12))
def test_judging_never_raises_and_never_advises_what_an_entry_forbids(signals: list[Signal]) -> None:
    """Every verdict is whole, its citations are among the signals, and its advice contradicts no prohibition of its own."""
    verdict = rules.judge(signals)
    assert set(verdict.citations) <= {each.id for each in signals}
    assert 0 < verdict.confidence < 1
    assert verdict.resolutions
    assert verdict.root_cause
    assert verdict.summary


@given(st.lists(signal(("xid",), APPLICATION_XIDS), min_size=1, max_size=8))
def test_application_faults_never_cost_a_node_or_a_gpu(signals: list[Signal]) -> None:
    """No cordon, drain, reset, reboot or replacement for what a program did."""
    verdict = rules.judge([each for each in signals if each.phase is not Phase.ENDED])
    assert verdict.action is Action.NONE
    assert not NODE_ADVICE & set(verdict.resolutions)


@given(st.lists(signal(), min_size=1, max_size=12))
def test_nothing_is_replaced_on_a_first_occurrence_without_the_vendor_s_criterion(signals: list[Signal]) -> None:
    """Replacement needs a failed remap; anything else is reset, diagnosed or watched first."""
    verdict = rules.judge(signals)
    criterion = any(
        s.kind == "row_remap_failure" or s.attributes.get("remap") in ("failed", "page_failed") for s in signals
    )
    assert criterion or Resolution.RMA not in verdict.resolutions


@given(st.sampled_from(BLIND), st.sampled_from(GPUS))
def test_cannot_observe_is_never_healthy(kind: str, pci: str | None) -> None:
    """A node that cannot be observed is not called ok."""
    verdict = rules.judge([Signal(id="node/nvml/e/1", kind=kind, node="node", pci=pci, phase=Phase.BEGAN)])
    assert verdict.severity is not Severity.OK


def test_every_kind_of_signal_has_an_entry() -> None:
    """What the reader can say, the engine knows how to take."""
    catalog = load()
    missing = [kind for kind in KINDS if kind not in ("xid", "sxid") and catalog.entry(kind) is None]
    assert not missing
