"""The catalog's data: complete, sourced, and without advice that could harm; a site's overlay is checked like our own files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from aggregator.model import Action, FaultClass, Resolution, Severity
from aggregator.rules.catalog import CODED, Catalog, CatalogError, Entry, load
from aggregator.rules.kinds import KINDS, About

NODE_ADVICE = {
    Resolution.CORDON,
    Resolution.DRAIN,
    Resolution.RESET_GPU,
    Resolution.REBOOT,
    Resolution.POWER_CYCLE,
    Resolution.RMA,
}
ENTRIES = tuple(load().entries.values())


def where(breaks: Callable[[Entry], bool]) -> list[str]:
    """The names of the entries that break a rule."""
    return [f"{entry.kind} {entry.code}" for entry in ENTRIES if breaks(entry)]


NEW_ENTRY = """
[xid.4000]
name = "SITE"
meaning = "Something of this site."
severity = "warning"
fault_class = "unknown"
action = "none"
resolutions = ["investigate"]
weight = 10
confidence = 0.5
sources = ["wiki"]
[sources]
wiki = "the site's wiki"
"""


def xid(code: int, catalog: Catalog | None = None) -> Entry:
    entry = (catalog or load()).entry("xid", code)
    assert entry is not None
    return entry


def test_every_published_xid_has_an_entry() -> None:
    assert [code for code in (*range(1, 174), 177) if ("xid", code) not in load().entries] == []


def test_every_signal_kind_has_an_entry() -> None:
    assert [kind for kind in KINDS if kind not in CODED and (kind, None) not in load().entries] == []


def test_an_entry_says_what_it_is_and_where_that_comes_from() -> None:
    assert where(lambda entry: not entry.meaning.endswith(".") or not entry.sources) == []


def test_what_an_entry_forbids_it_advises_nowhere() -> None:
    assert where(lambda entry: bool(set(entry.do_not) & set(entry.resolutions))) == []


def test_only_the_remap_failure_flag_replaces_a_board_at_once() -> None:
    assert where(lambda entry: Resolution.RMA in entry.resolutions) == ["row_remap_failure None"]


def test_severity_and_node_action_fit() -> None:
    """A critical fault takes the node, or its GPU, out of service; a lesser one read alone does not."""
    assert where(lambda entry: (entry.severity is Severity.CRITICAL) != (entry.action is not Action.NONE)) == []


def test_nothing_unknown_is_healthy_and_no_fault_is_no_more_than_a_record() -> None:
    assert where(lambda entry: entry.severity is Severity.OK and entry.fault_class is not FaultClass.NONE) == []
    harmless = (Severity.OK, Severity.INFO)
    assert where(lambda entry: entry.fault_class is FaultClass.NONE and entry.severity not in harmless) == []


def test_an_application_fault_forbids_every_step_against_the_node() -> None:
    application = FaultClass.APPLICATION
    assert where(lambda entry: entry.fault_class is application and not set(entry.do_not) >= NODE_ADVICE) == []
    assert where(lambda entry: entry.fault_class is application and entry.action is not Action.NONE) == []


@pytest.mark.parametrize("kind", sorted(name for name, kind in KINDS.items() if kind.about is About.DEVICE))
def test_a_fault_of_another_device_touches_no_gpu(kind: str) -> None:
    entry = load().entry(kind)
    assert entry is not None
    assert {Resolution.RESET_GPU, Resolution.RMA} <= set(entry.do_not)


@pytest.mark.parametrize(
    "kind",
    ["nvml_hung", "nvml_child_crashed", "dcgm_unobservable", "collector_failed", "agent_silent", "agent_stopped",
     "evidence_gap", "kernel_storm", "nvml_unavailable", "nvml_permission_denied"],
)  # fmt: skip
def test_what_cannot_be_observed_is_not_ok(kind: str) -> None:
    entry = load().entry(kind)
    assert entry is not None
    assert entry.severity is not Severity.OK


@pytest.mark.parametrize(
    ("code", "severity", "fault_class", "first"),
    [
        (13, "warning", "application", "restart_app"),
        (31, "warning", "application", "restart_app"),
        (43, "info", "application", "restart_app"),
        (48, "critical", "memory", "reset_gpu"),
        (63, "info", "memory", "monitor"),
        (64, "critical", "memory", "reset_gpu"),
        (74, "critical", "nvlink", "reset_gpu"),
        (79, "critical", "pcie", "reboot"),
        (92, "info", "memory", "monitor"),
        (94, "warning", "memory", "restart_app"),
        (95, "critical", "memory", "reset_gpu"),
        (119, "critical", "driver", "reset_gpu"),
        (140, "critical", "memory", "reset_gpu"),
        (177, "warning", "memory", "reset_gpu"),
    ],
)
def test_the_codes_that_operators_meet_most(code: int, severity: str, fault_class: str, first: str) -> None:
    entry = xid(code)
    assert (entry.severity, entry.fault_class, entry.resolutions[0]) == (severity, fault_class, first)


@pytest.mark.parametrize(
    ("cause", "effect"), [(79, 119), (79, 74), (64, 48), (48, 95), (95, 63), (63, 94), (48, 171), (13, 109), (69, 8)]
)
def test_a_cause_outweighs_its_consequence(cause: int, effect: int) -> None:
    assert xid(cause).weight > xid(effect).weight


def test_only_traces_of_other_faults_yield() -> None:
    """What yields is dropped as a cause whatever it stands beside, so nothing critical may."""
    assert where(lambda entry: entry.yields and entry.severity is Severity.CRITICAL) == []


@pytest.mark.parametrize("code", [43, 45, 154, 159])
def test_sympathetic_codes_yield(code: int) -> None:
    assert xid(code).yields


@pytest.mark.parametrize(
    ("code", "severity", "first"),
    [(11012, "info", "monitor"), (20034, "critical", "reset_gpu"), (12020, "critical", "reboot"),
     (23017, "critical", "reboot"), (19084, "critical", "reset_gpu"), (12028, "warning", "monitor")],
)  # fmt: skip
def test_sxids_follow_the_lists_of_the_fabric_manager_guide(code: int, severity: str, first: str) -> None:
    entry = load().entry("sxid", code)
    assert entry is not None
    assert (entry.severity, entry.resolutions[0]) == (severity, first)


@pytest.mark.parametrize(("kind", "code"), [("xid", 4000), ("sxid", 28006), ("brand_new", None)])
def test_what_nobody_knows_is_a_named_warning_without_guesses(kind: str, code: int | None) -> None:
    entry = load().unknown(kind, code)
    assert load().entry(kind, code) is None
    assert (entry.kind, entry.code, entry.severity) == (kind, code, Severity.WARNING)
    assert entry.meaning.startswith(kind)
    assert entry.resolutions[0] is Resolution.INVESTIGATE


def test_an_overlay_changes_one_field_and_leaves_the_rest() -> None:
    changed = load(b'version = "site-3"\n[xid.63]\nseverity = "warning"\n')
    assert xid(63, changed).severity is Severity.WARNING
    assert xid(63, changed).resolutions == xid(63).resolutions
    assert xid(63, changed).sources[-1] == "site overlay"
    assert xid(64, changed) == xid(64)
    assert changed.version == f"{load().version}+site-3"


def test_an_overlay_of_a_pattern_reaches_every_entry_like_it() -> None:
    changed = load(b"[like.engine]\nconfidence = 0.11\n")
    assert {xid(code, changed).confidence for code in (39, 68, 104)} == {0.11}


def test_an_overlay_adds_a_code_with_its_own_source() -> None:
    added = load(NEW_ENTRY.encode())
    assert xid(4000, added).name == "SITE"
    assert xid(4000, added).sources == ("the site's wiki", "site overlay")
    assert load().entry("xid", 4000) is None


def test_the_digest_names_the_data() -> None:
    assert load(b"").digest != load().digest
    assert load(b"# a").digest != load(b"# b").digest
    assert load(b"# a").digest == load(b"# a").digest


@pytest.mark.parametrize(
    ("overlay", "named"),
    [
        ("[xid.63]\nseverity = 'awful'", ["[xid.63] severity", "awful", "critical"]),
        ("[xid.63]\nresolutions = []", ["[xid.63] resolutions"]),
        ("[xid.63]\nresolutions = ['pray']", ["[xid.63] resolutions", "pray"]),
        ("[xid.63]\nresolutions = 'rma'", ["[xid.63] resolutions", "list"]),
        ("[xid.63]\nresolutions = ['rma']", ["[xid.63] resolutions", "do_not"]),
        ("[xid.63]\nweight = 1000", ["[xid.63] weight"]),
        ("[xid.63]\nweight = true", ["[xid.63] weight"]),
        ("[xid.63]\nconfidence = 1.5", ["[xid.63] confidence"]),
        ("[xid.63]\nyields = 'no'", ["[xid.63] yields"]),
        ("[xid.63]\nname = ''", ["[xid.63] name"]),
        ("[xid.63]\nsources = ['hearsay']", ["[xid.63] sources", "hearsay"]),
        ("[xid.63]\nlike = 'nothing'", ["[xid.63] like", "nothing"]),
        ("[xid.63]\ncolour = 'red'", ["[xid.63] colour"]),
        ("[xid.4000]\nname = 'X'", ["[xid.4000]", "missing"]),
        ("[xid.seventy]\nlike = 'reset'", ["[xid.seventy]", "number"]),
        ("[kind.no_such_kind]\nlike = 'reset'", ["no_such_kind"]),
        ("[xids.63]\nlike = 'reset'", ["[xids]"]),
        ("[xid]\n63 = 5", ["[xid.63]", "table"]),
        ("[xid.166]\nfault_class = 'unknown'\nseverity = 'ok'", ["[xid.166] severity"]),
        ("version = 7", ["version"]),
        ("[sources]\nwiki = 7\n[xid.63]\nsources = ['wiki']", ["[sources] wiki"]),
        ("[xid.63", ["not TOML"]),
    ],
)
def test_a_wrong_overlay_is_refused_with_file_entry_and_field(overlay: str, named: list[str]) -> None:
    with pytest.raises(CatalogError) as raised:
        load(overlay.encode())
    message = str(raised.value)
    assert [part for part in ("overlay", *named) if part not in message] == [], message


def test_an_overlay_that_is_no_text_is_refused() -> None:
    with pytest.raises(CatalogError, match="overlay: not TOML"):
        load(b"\xff\xfe\x00")


def test_load_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not asserted by a clock; that a second load costs nothing is."""
    code = (
        "import time, aggregator.rules.kinds, importlib.resources, tomllib, hashlib\n"
        "from aggregator.rules import catalog\n"
        "catalog._packaged.cache_clear(); catalog._packaged_files.cache_clear()\n"
        "start = time.perf_counter(); catalog.load(); print(f'{(time.perf_counter() - start) * 1000:.0f} ms')\n"
    )
    took = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    with capsys.disabled():
        sys.stdout.write(f"\ncatalog loaded in {took}")
    assert load() is load()
