"""Whatever happens to driver, library or a GPU is evidence once, with its recovery, and the agent stays up."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from node_agent.collectors import CollectorAbsent
from node_agent.collectors.nvml import STATE_FILE, NvmlCollector, SnapshotUnavailable
from node_agent.evidence import Fact, GpuEvent, Inventory, Observation, Phase
from tests.doubles.nvml.double import Action, NvmlDouble, environment
from tests.nvml.conftest import FAST, Watched, is_process, watch

SECOND = "GPU-00000001-1111-2222-3333-000000000001"
REFUSALS = [
    (9, "nvml_unavailable"),
    (18, "driver_version_mismatch"),
    (4, "nvml_permission_denied"),
    (999, "nvml_unavailable"),
]


def _child_of(double: NvmlDouble) -> int:
    return int(double.state.last_pid)


# --- the driver as a whole
@pytest.mark.parametrize(("code", "kind"), REFUSALS)
async def test_a_refusing_driver_is_told_once_and_its_recovery_too(
    double: NvmlDouble, tmp_path: Path, code: int, kind: str
) -> None:
    double.refuse(code)
    async with watch(tmp_path / "state", environ=environment(double), required=True) as watched:
        await watched.until(kind)
        await watched.rounds()
        double.refuse(0)
        await watched.until(kind, Phase.ENDED)
        await watched.until_read()
        assert [fact.phase for fact in watched.of(kind)] == [Phase.BEGAN, Phase.ENDED]


async def test_one_refusal_gives_way_to_another(double: NvmlDouble, tmp_path: Path) -> None:
    double.refuse(9)
    async with watch(tmp_path / "state", environ=environment(double), required=True) as watched:
        await watched.until("nvml_unavailable")
        double.refuse(18)
        await watched.until("driver_version_mismatch")
        assert watched.kinds()[:3] == [
            "nvml_unavailable BEGAN",
            "nvml_unavailable ENDED",
            "driver_version_mismatch BEGAN",
        ]


async def test_a_driver_that_goes_away_under_the_agent(watched: Watched, double: NvmlDouble) -> None:
    double.fail_everything(999)
    await watched.until("nvml_unavailable")
    double.fail_everything(0)
    await watched.until("nvml_unavailable", Phase.ENDED)


async def test_a_node_without_driver_and_without_any_sign_of_a_gpu_has_nothing_to_read(tmp_path: Path) -> None:
    collector = _collector(tmp_path, environ={"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(tmp_path)})
    asked = asyncio.create_task(collector.snapshot(30))
    with pytest.raises(CollectorAbsent, match="no NVIDIA driver"):
        await collector.collect(_unexpected)
    for answer in (asked, collector.snapshot(30)):  # whoever asks for a reading is told at once, not after a deadline
        with pytest.raises(SnapshotUnavailable, match="no NVIDIA driver"):
            await asyncio.wait_for(answer, 5)


def _unexpected(fact: Fact) -> None:
    raise AssertionError(fact)


def _collector(state_dir: Path, **options: object) -> NvmlCollector:
    defaults = {"state_dir": state_dir, "report_snapshot": lambda _: None, "sysfs_root": state_dir, "timing": FAST}
    return NvmlCollector(**{**defaults, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("sign", ["configured", "remembered", "on the bus", "required"])
async def test_a_missing_driver_is_a_fault_where_gpus_are_known_to_be(
    double: NvmlDouble, tmp_path: Path, sign: str
) -> None:
    """A GPU that is expected, was there before, or sits on the PCI bus; or the operator says so."""
    state_dir = tmp_path / "state"
    options: dict[str, object] = {}
    if sign == "remembered":
        async with watch(state_dir, environ=environment(double)) as watched:
            await watched.until_read()
            await watched.rounds()
    if sign == "on the bus":
        device = tmp_path / "sys/bus/pci/devices/0000:1b:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text("0x030200\n")
    options = {
        "configured": {"expected_gpus": 8},
        "on the bus": {"sysfs_root": tmp_path / "sys"},
        "required": {"required": True},
    }.get(sign, {})
    async with watch(state_dir, environ={"LD_LIBRARY_PATH": str(tmp_path)}, **options) as watched:
        fact = await watched.until("nvml_unavailable")
    assert "12" in fact.detail


# --- hang, D state, crash
async def test_a_hang_is_told_by_its_deadline_with_what_was_called(watched: Watched, double: NvmlDouble) -> None:
    double.rule("nvmlDeviceGetTemperatureV", Action.HANG, gpu=1)
    began = time.monotonic()
    fact = await watched.until("nvml_hung")
    assert time.monotonic() - began < FAST.critical_deadline + 0.5
    assert "nvmlDeviceGetTemperatureV" in fact.detail
    assert SECOND in fact.detail
    assert watched.collector.deadline_misses == 1


async def test_the_agent_lives_on_during_a_hang_and_reads_again_after_it(watched: Watched, double: NvmlDouble) -> None:
    hung = _child_of(double)
    double.rule("nvmlDeviceGetTemperatureV", Action.HANG, count=1)
    await watched.until("nvml_hung")
    await watched.until("nvml_hung", Phase.ENDED)
    assert [fact.phase for fact in watched.of("nvml_hung")] == [Phase.BEGAN, Phase.ENDED]
    assert (await watched.values())["temperature_celsius"] == 41
    assert not is_process(hung), "the hung child is killed and reaped"


async def test_a_driver_that_goes_on_hanging_is_told_once(watched: Watched, double: NvmlDouble) -> None:
    double.rule("nvmlInitWithFlags", Action.HANG)
    double.rule("nvmlDeviceGetTemperatureV", Action.HANG)
    await watched.until("nvml_hung")
    loads = double.loads
    await asyncio.sleep(1)
    assert len(watched.of("nvml_hung")) == 1
    assert double.loads <= loads + 1, "a hanging init is not tried in a loop"
    with pytest.raises(SnapshotUnavailable, match="no answer"):
        await watched.collector.snapshot(1)


async def test_a_slow_driver_is_no_hang(watched: Watched, double: NvmlDouble) -> None:
    double.rule("nvmlDeviceGetTemperatureV", Action.STALL, delay_us=100_000)
    await watched.rounds(1.5)
    assert watched.of("nvml_hung") == []


async def test_a_child_that_cannot_be_killed_is_the_only_one_ever(watched: Watched, double: NvmlDouble) -> None:
    """What D state does: SIGKILL has no effect the parent can see. No other child starts until the kernel lets it go."""
    stuck = _child_of(double)
    double.rule("nvmlDeviceGetTemperatureV", Action.HANG_KILLED, count=1)
    await watched.until("nvml_hung", count=2)
    loads = double.loads
    await asyncio.sleep(1.5)
    assert double.loads == loads, "a second child was started beside the stuck one"
    assert is_process(stuck)
    assert [fact.phase for fact in watched.of("nvml_hung")] == [Phase.BEGAN, Phase.BEGAN]
    assert "SIGKILL does not end it" in watched.of("nvml_hung")[1].detail
    with pytest.raises(SnapshotUnavailable, match=str(stuck)):
        await watched.collector.snapshot(1)
    double.release()
    await watched.until("nvml_hung", Phase.ENDED)
    assert double.loads == loads + 1
    assert not is_process(stuck)


@pytest.mark.slow
async def test_a_restarted_agent_waits_for_the_stuck_child_of_the_one_before(
    double: NvmlDouble, tmp_path: Path
) -> None:
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        await watched.until_read()
        double.rule("nvmlDeviceGetTemperatureV", Action.HANG_KILLED, count=1)
        await watched.until("nvml_hung", count=2)
    loads = double.loads
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        await watched.until("nvml_hung")
        await watched.rounds()
        assert (double.loads, len(watched.facts)) == (loads, 1)
        double.release()
        await watched.until("nvml_hung", Phase.ENDED)
        assert double.loads == loads + 1


@pytest.mark.slow
async def test_a_stuck_child_makes_a_yield_say_that_the_driver_is_held(watched: Watched, double: NvmlDouble) -> None:
    double.rule("nvmlDeviceGetTemperatureV", Action.HANG_KILLED, count=1)
    await watched.until("nvml_hung", count=2)
    await watched.collector.yield_driver(30)
    assert watched.collector.yielded_until is None
    double.release()
    await watched.until("driver_yielded")
    assert watched.collector.yielded_until is not None


async def test_a_crash_of_the_driver_library_is_told_and_survived(watched: Watched, double: NvmlDouble) -> None:
    double.rule("nvmlDeviceGetPowerUsage", Action.SEGV, count=1)
    fact = await watched.until("nvml_child_crashed")
    assert "SIGSEGV" in fact.detail
    await watched.until("nvml_child_crashed", Phase.ENDED)
    assert (await watched.values())["temperature_celsius"] == 41
    assert len(watched.of("nvml_child_crashed")) == 2


async def test_a_child_that_is_killed_by_someone_is_a_crash(watched: Watched, double: NvmlDouble) -> None:
    os.kill(_child_of(double), 9)
    assert "SIGKILL" in (await watched.until("nvml_child_crashed")).detail
    await watched.until("nvml_child_crashed", Phase.ENDED)


async def test_conditions_that_ended_while_the_agent_was_down_are_told_as_ended(
    double: NvmlDouble, tmp_path: Path
) -> None:
    double.refuse(18)
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        await watched.until("driver_version_mismatch")
        await watched.rounds()
    double.refuse(0)
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        await watched.until("driver_version_mismatch", Phase.ENDED)


async def test_conditions_that_still_hold_are_told_again_after_a_restart(double: NvmlDouble, tmp_path: Path) -> None:
    double.refuse(18)
    for _ in range(2):
        async with watch(tmp_path / "state", environ=environment(double)) as watched:
            await watched.until("driver_version_mismatch")
            await watched.rounds()
            assert len(watched.of("driver_version_mismatch")) == 1


# --- GPUs
@pytest.mark.parametrize("code", [15, 999])
async def test_a_lost_gpu_is_told_once_by_name_and_the_other_is_read_on(
    watched: Watched, double: NvmlDouble, code: int
) -> None:
    double.gpu(1).lose(code)
    fact = await watched.until("nvml_gpu_lost")
    assert fact.gpu is not None
    assert (fact.gpu.uuid, fact.gpu.pci, fact.gpu.serial) == (SECOND, "0000:43:00.0", "1650123000001")
    assert isinstance(fact.body, Observation)
    assert (fact.body.field, fact.body.after) == ("nvml_return", code)
    await watched.rounds()
    snapshot = await watched.collector.snapshot(5)
    assert [(state.lost, "temperature_celsius" in state.values) for state in snapshot.gpus] == [
        (False, True),
        (True, False),
    ]
    assert len(watched.of("nvml_gpu_lost")) == 1
    assert watched.collector.nvml_gpus() == {"0000:1b:00.0"}
    double.gpu(1).find()
    await watched.until("nvml_gpu_lost", Phase.ENDED)
    assert len(watched.of("nvml_gpu_lost")) == 2


async def test_a_gpu_that_needs_a_reset_is_not_lost(watched: Watched, double: NvmlDouble) -> None:
    double.gpu(1).lose(16)
    fact = await watched.until("gpu_reset_required")
    assert fact.gpu is not None
    assert fact.gpu.uuid == SECOND
    double.gpu(1).find()
    await watched.until("gpu_reset_required", Phase.ENDED)
    assert watched.of("nvml_gpu_lost") == []


async def test_a_gpu_lost_before_the_agent_starts_is_named_from_memory(double: NvmlDouble, tmp_path: Path) -> None:
    """By index it cannot even be asked its name."""
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        await watched.until_read()
        await watched.rounds()
    double.gpu(1).lose(15, by_index=True)
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        fact = await watched.until("nvml_gpu_lost")
        assert fact.gpu is not None
        assert (fact.gpu.uuid, fact.gpu.serial) == (SECOND, "1650123000001")
        double.gpu(1).find()
        await watched.until("nvml_gpu_lost", Phase.ENDED)


async def test_a_lost_gpu_that_was_never_seen_is_evidence_all_the_same(double: NvmlDouble, tmp_path: Path) -> None:
    double.gpu(1).lose(999, by_index=True)
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        fact = await watched.until("nvml_gpu_lost")
        assert fact.gpu is not None
        assert fact.gpu.uuid == ""
        await watched.until_read()
        double.gpu(1).find()
        await watched.until("nvml_gpu_lost", Phase.ENDED)


async def test_fewer_gpus_after_a_reload_with_shifted_indices(
    make_double: Callable[..., NvmlDouble], tmp_path: Path
) -> None:
    """Eight, then seven: the one that is gone is named, those behind it keep their names though their indices moved."""
    double = make_double(gpus=8)
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        await watched.until_read()
        double.gpu(3).lose()
        await watched.until("nvml_gpu_lost")
        double.gpu(3).set(present=0)
        fact = await watched.until("gpu_count_low")
        assert isinstance(fact.body, Observation)
        assert (fact.body.after, fact.body.limit) == (7, 8)
        assert "0000:61:00.0" in fact.detail
        double.gpu(5).set(temperature=66)
        states = {state.gpu.uuid: state for state in (await watched.collector.snapshot(5)).gpus}
        assert states["GPU-00000005-1111-2222-3333-000000000005"].values["temperature_celsius"] == 66
        assert states["GPU-00000003-1111-2222-3333-000000000003"].lost
        await watched.rounds()
        assert (len(watched.of("gpu_count_low")), len(watched.of("nvml_gpu_lost"))) == (1, 1)
        double.gpu(3).set(present=1, lost=0)
        await watched.until("gpu_count_low", Phase.ENDED)
        await watched.until("nvml_gpu_lost", Phase.ENDED)


async def test_fewer_gpus_than_configured(double: NvmlDouble, tmp_path: Path) -> None:
    async with watch(tmp_path / "state", environ=environment(double), expected_gpus=8) as watched:
        fact = await watched.until("gpu_count_low")
        assert isinstance(fact.body, Observation)
        assert (fact.body.after, fact.body.limit) == (2, 8)
        inventory = (await watched.collector.snapshot(5)).inventory
        assert (inventory.expected_gpus, inventory.expected_from) == (8, "configured")


async def test_a_gpu_that_was_taken_out_is_missed_until_the_new_count_is_confirmed(
    double: NvmlDouble, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    async with watch(state, environ=environment(double)) as watched:
        await watched.until_read()
        await watched.rounds()
    double.gpu(1).set(present=0)
    async with watch(state, environ=environment(double)) as watched:
        fact = await watched.until("gpu_count_low")
        assert "0000:43:00.0" in fact.detail
        assert watched.of("nvml_gpu_lost") == [], "it is missing; nobody saw it fail"
        await watched.until_read()
        await watched.rounds()
        (state / STATE_FILE).unlink()
        await watched.until("gpu_count_low", Phase.ENDED)
    async with watch(state, environ=environment(double)) as watched:
        await watched.until_read()
        await watched.rounds()
        assert watched.of("gpu_count_low") == []


async def test_configuring_the_new_count_confirms_it(double: NvmlDouble, tmp_path: Path) -> None:
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        await watched.until_read()
        await watched.rounds()
    double.gpu(1).set(present=0)
    async with watch(tmp_path / "state", environ=environment(double), expected_gpus=1) as watched:
        await watched.until("inventory_changed", Phase.POINT)
        await watched.rounds()
        assert watched.of("gpu_count_low") == []


async def test_a_replaced_board_is_a_changed_inventory_and_no_loss(double: NvmlDouble, tmp_path: Path) -> None:
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        await watched.until_read()
        double.gpu(1).lose()
        await watched.until("nvml_gpu_lost")
        await watched.rounds()
    double.gpu(1).find()
    double.gpu(1).set(uuid="GPU-new", serial="1650199999999")
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        ended = await watched.until("nvml_gpu_lost", Phase.ENDED)
        assert ended.gpu is not None
        assert ended.gpu.uuid == SECOND
        fact = await watched.until("inventory_changed", Phase.POINT)
        assert isinstance(fact.body, Inventory)
        assert [gpu.serial for gpu in fact.body.gpus] == ["1650123000000", "1650199999999"]
        assert watched.of("gpu_count_low") == []


async def test_a_driver_upgrade_while_the_agent_is_down_changes_the_inventory(
    double: NvmlDouble, tmp_path: Path
) -> None:
    for version, told in ((b"570.158.01", 1), (b"570.158.01", 0), (b"580.95.05", 1)):
        double.state.driver_version = version
        async with watch(tmp_path / "state", environ=environment(double)) as watched:
            await watched.until_read()
            await watched.rounds()
            assert len(watched.of("inventory_changed")) == told


@pytest.mark.parametrize("content", ["", "{", '{"version": 99}', '{"version": 1, "gpus": [{}]}'])
async def test_a_damaged_memory_starts_anew(double: NvmlDouble, tmp_path: Path, content: str) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / STATE_FILE).write_text(content)
    async with watch(state, environ=environment(double)) as watched:
        await watched.until("inventory_changed", Phase.POINT)
        await watched.until_read()
        await watched.rounds()
    assert json.loads((state / STATE_FILE).read_text())["version"] == 1


async def test_an_unwritable_state_directory_costs_memory_and_nothing_else(double: NvmlDouble, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / f"{STATE_FILE}.new").mkdir()
    async with watch(state, environ=environment(double)) as watched:
        await watched.until_read()
        double.push(0, 79)
        await watched.until("xid", Phase.POINT)


# --- events
async def test_an_xid_is_told_once_with_its_device(watched: Watched, double: NvmlDouble) -> None:
    double.push(1, 79)
    fact = await watched.until("xid", Phase.POINT)
    assert fact.gpu is not None
    assert (fact.source, fact.gpu.uuid, fact.mig, fact.body) == ("nvml", SECOND, None, GpuEvent(8, 79))
    await watched.rounds()
    assert len(watched.of("xid")) == 1


@pytest.mark.parametrize(("ids", "expected"), [((3, 0), (3, 0)), ((3, 0xFFFFFFFF), (3, None))])
async def test_an_xid_names_its_mig_instance(
    watched: Watched, double: NvmlDouble, ids: tuple[int, int], expected: tuple[int, int | None]
) -> None:
    double.push(0, 31, mig=ids)
    assert (await watched.until("xid", Phase.POINT)).mig == expected


async def test_events_keep_their_order(watched: Watched, double: NvmlDouble) -> None:
    for number in range(100):
        double.push(number % 2, number)
    await watched.until("xid", Phase.POINT, count=100)
    assert [fact.body for fact in watched.of("xid")] == [GpuEvent(8, number) for number in range(100)]


async def test_an_event_of_unknown_type_is_kept(watched: Watched, double: NvmlDouble) -> None:
    double.push(0, 0, type=0x400)
    assert (await watched.until("nvml_event", Phase.POINT)).body == GpuEvent(0x400, 0)


@pytest.mark.parametrize("event_type", [0x2, 0x10, 0x8000])
async def test_an_event_hastens_the_reading_that_shows_what_changed(
    double: NvmlDouble, tmp_path: Path, event_type: int
) -> None:
    slow = replace(FAST, critical=3.0, counters=60.0)
    async with watch(tmp_path / "state", environ=environment(double), timing=slow) as watched:
        await watched.until_read()
        double.gpu(1).set(ecc_volatile_uncorrected=1, recovery_action=1)
        double.push(1, 0, type=event_type)
        await watched.until("ecc_uncorrectable", Phase.POINT, seconds=1.5)
        await watched.until("recovery_action", seconds=1.5)


async def test_a_lost_gpu_does_not_make_the_event_loop_spin_and_others_are_heard(
    watched: Watched, double: NvmlDouble
) -> None:
    await watched.rounds()
    double.gpu(1).lose()
    await watched.until("nvml_gpu_lost")
    await watched.until("evidence_gap", Phase.POINT)
    await asyncio.sleep(0.5)
    double.forget_calls()
    await asyncio.sleep(1)
    assert double.calls("nvmlEventSetWait_v2") <= 10
    async with asyncio.timeout(20):
        while not watched.of(
            "xid", Phase.POINT
        ):  # an event that falls into the remaking of the event set is lost to NVML
            double.push(0, 48)
            await asyncio.sleep(0.5)
    fact = watched.of("xid", Phase.POINT)[0]
    assert fact.gpu is not None
    assert fact.gpu.minor == 0


async def test_a_gpu_without_events_is_said_to_be_so(make_double: Callable[..., NvmlDouble], tmp_path: Path) -> None:
    double = make_double()
    double.gpu(1).support("nvmlDeviceGetSupportedEventTypes", yes=False)
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        await watched.until_read()
        registered = [state.values["xid_events_registered"] for state in (await watched.collector.snapshot(5)).gpus]
        assert registered == [True, False]
        double.push(0, 79)
        await watched.until("xid", Phase.POINT)


# --- two GPUs, one bad
@pytest.mark.parametrize("function", ["nvmlDeviceGetUUID", "nvmlDeviceGetTemperatureV", "nvmlDeviceGetFieldValues"])
@pytest.mark.parametrize("code", [15, 17, 999])
async def test_one_bad_gpu_never_hides_the_other(double: NvmlDouble, tmp_path: Path, function: str, code: int) -> None:
    double.rule(function, ret=code, gpu=0)
    double.gpu(1).set(remap_pending=1)
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        fact = await watched.until("row_remap_pending")
        assert fact.gpu is not None
        assert fact.gpu.uuid == SECOND


async def test_a_call_that_goes_on_failing_is_evidence(watched: Watched, double: NvmlDouble) -> None:
    """Told after twenty seconds, which facts.py is tested for; here: the snapshot shows the error at once."""
    double.rule("nvmlDeviceGetTotalEccErrors", ret=999, gpu=0)
    assert repr((await watched.values())["ecc_volatile_corrected_total"]) == "Unreadable(error='Unknown Error')"
