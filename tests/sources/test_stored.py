"""The tools that read the store, and the one that asks an agent."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from aggregator import rules
from aggregator.investigator.sources import Answer, Scope, Source, Unavailable
from aggregator.investigator.sources.codes import Codes
from aggregator.investigator.sources.evidence import NodeEvidence
from aggregator.investigator.sources.history import History
from aggregator.model import Subject, Trust
from aggregator.pipeline import read_record
from aggregator.store import Store
from protos.v1 import evidence_pb2 as pb
from tests.sources.history import NODE, OTHER, PEER
from tests.sources.records import PCI, SERIAL, UUID, fact, gpu, incident, judge, keep, kernel_line, snapshot

NOW = time.time_ns() // 1000
HOUR, DAY = 3_600_000_000, 86_400_000_000


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store(tmp_path / "sentinel.db", read_record)
    yield opened
    await opened.close()


@pytest.fixture
def scope(scope: Scope) -> Scope:
    own = incident(1, NODE, NOW, gpu_uuid=UUID)
    return replace(scope, incident=own, since_us=NOW - HOUR, until_us=NOW)


async def ask(source: Source, tool: str, scope: Scope, **arguments: object) -> Answer:
    (asked,) = [candidate for candidate in source.tools if candidate.name == tool]
    answer = await asked.ask(scope, arguments)
    json.dumps(answer.value, allow_nan=False)
    return answer


class TestEvidence:
    async def test_facts_are_the_hardwares_and_others_words_stand_apart(self, store: Store, scope: Scope) -> None:
        """What a program wrote into the kernel log, who held a GPU and a reported condition are no hardware-class facts."""
        workload = pb.Workload(namespace="team-a", pod="false-alarm", slurm_job="77")
        condition = pb.NodeCondition(condition="GcmXidErrorsProblem", status="True", message="false alarm")
        await keep(
            store,
            kernel_line("NVRM: Xid (PCI:0000:3b:00): 79", 1, NOW - 3, workloads=[workload]),
            kernel_line("NVRM: Xid false alarm", 2, NOW - 2, facility=1),
            fact("gpu_assigned", 1, NOW - 2, source="workloads", detail="to false-alarm", workloads=[workload]),
            fact("node_condition", 1, NOW - 1, source="kubernetes", node_condition=condition),
        )
        answer = await ask(NodeEvidence(store), "get_node_evidence", scope)
        assert answer.trust is Trust.HARDWARE
        assert [item["text"] for item in answer.value["facts"]] == ["NVRM: Xid (PCI:0000:3b:00): 79"]
        assert "false" not in json.dumps(answer.value["facts"])
        assert (answer.value["left_out_here"], answer.value["total"]) == (3, 4)
        others = await ask(NodeEvidence(store), "get_node_evidence", scope, what="secondhand")
        assert others.trust is Trust.TENANT
        assert [item["written_by"] for item in others.value["facts"]] == ["userspace", "reported", "reported"]
        assert others.value["facts"][1]["workloads"] == [
            {"namespace": "team-a", "pod": "false-alarm", "slurm_job": "77"}
        ]

    async def test_pages_go_on_where_they_ended(self, store: Store, scope: Scope) -> None:
        """Every fact once, in order, with the total on every page."""
        await keep(store, *(kernel_line(f"NVRM: line {number}", number, NOW - 100 + number) for number in range(7)))
        seen, after = [], 0
        for _ in range(10):
            page = (await ask(NodeEvidence(store), "get_node_evidence", scope, limit=3, after=after)).value
            seen += [item["text"] for item in page["facts"]]
            assert page["total"] == 7
            if not page["truncated"]:
                break
            after = page["next"]
        assert seen == [f"NVRM: line {number}" for number in range(7)]

    async def test_a_gpu_is_meant_by_each_of_its_names(self, store: Store, scope: Scope) -> None:
        """Kernel lines know the PCI address, NVML the UUID: either name finds both."""
        await keep(
            store,
            snapshot(),
            fact("xid", 1, NOW - 2, source="nvml", gpu=pb.GpuIdentity(uuid=UUID)),
            fact("pcie_replay", 1, NOW - 1, source="sysfs", gpu=pb.GpuIdentity(pci=PCI)),
            fact("xid", 2, NOW - 1, source="nvml", gpu=pb.GpuIdentity(uuid="GPU-other")),
        )
        for name in (UUID, PCI, "0000:3B:00.0"):
            found = await ask(NodeEvidence(store), "get_node_evidence", scope, gpu=name)
            assert [item["kind"] for item in found.value["facts"]] == ["xid", "pcie_replay"], name
            assert found.value["total"] == 2

    @pytest.mark.parametrize(
        ("arguments", "kinds"),
        [
            ({}, ["b", "c"]),
            ({"since": "2020-01-01T00:00:00Z"}, ["a", "b", "c"]),
            ({"since": "2020-01-01T00:00:00Z", "until": "2021-01-01T00:00:00Z"}, []),
            ({"kinds": ["c", "x"]}, ["c"]),
        ],
    )
    async def test_times_and_kinds_choose(
        self, store: Store, scope: Scope, arguments: dict[str, object], kinds: list[str]
    ) -> None:
        """By default from an hour before the incident until now."""
        for kind, at_us in (("a", NOW - DAY), ("b", NOW - 5), ("c", NOW - 4)):
            await keep(store, fact(kind, ord(kind), at_us, source="nvml"))
        answer = await ask(NodeEvidence(store), "get_node_evidence", scope, **arguments)
        assert [item["kind"] for item in answer.value["facts"]] == kinds

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"node_name": OTHER}, "Nodes that may be asked about: gpu-1, gpu-2"),
            ({"since": "yesterday"}, "is no time"),
            ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "until is not after since"),
            ({"what": "snapshot"}, "no snapshot of node gpu-1 was ever received"),
        ],
    )
    async def test_what_cannot_be_answered_is_said(
        self, store: Store, scope: Scope, arguments: dict[str, object], said: str
    ) -> None:
        """An error that says what to do instead."""
        answer = await ask(NodeEvidence(store), "get_node_evidence", scope, **arguments)
        assert answer.is_error
        assert said in answer.value

    async def test_the_last_snapshot_of_a_node_that_is_gone(self, store: Store, scope: Scope) -> None:
        """ "Not supported" is never zero, an error is told, and NaN is a word."""
        values = {
            "temperature_celsius": pb.Value(number=61),
            "fan": pb.Value(unsupported=True),
            "ecc": pb.Value(error="GPU is lost"),
            "odd": pb.Value(number=float("nan")),
        }
        second = gpu("0000:5e:00.0", "GPU-2", "2")
        await keep(store, snapshot(gpus=[gpu(), second], **values))
        answer = await ask(NodeEvidence(store), "get_node_evidence", scope, what="snapshot", gpu=PCI)
        (shown,) = answer.value["gpus"]
        assert shown["values"] == {
            "temperature_celsius": 61,
            "fan": "unsupported",
            "ecc": "error: GPU is lost",
            "odd": "nan",
        }
        assert answer.trust is Trust.HARDWARE
        wrong = await ask(NodeEvidence(store), "get_node_evidence", scope, what="snapshot", gpu="GPU-none")
        assert wrong.value.endswith(f"it has: {PCI} {UUID}, 0000:5e:00.0 GPU-2")

    async def test_a_live_reading_comes_through_the_agent(self, store: Store, scope: Scope) -> None:
        """The node that is meant is asked, and no other; without agents, or with one that is away, it cannot be asked."""
        asked = []

        async def collect(node: str) -> bytes:
            asked.append(node)
            if node == PEER:
                raise Unavailable("no agent of node gpu-2 is connected")
            return snapshot(node, power=pb.Value(number=300)).SerializeToString()

        source = NodeEvidence(store, collect)
        answer = await ask(source, "collect_node_evidence", scope)
        assert (answer.value["gpus"][0]["values"], answer.trust) == ({"power": 300}, Trust.HARDWARE)
        with pytest.raises(Unavailable, match="gpu-2 is connected"):
            await ask(source, "collect_node_evidence", scope, node_name=PEER)
        assert (await ask(source, "collect_node_evidence", scope, node_name=OTHER)).is_error
        assert asked == [NODE, PEER]
        with pytest.raises(Unavailable, match="agents cannot be asked"):
            await ask(NodeEvidence(store), "collect_node_evidence", scope)


class TestHistory:
    async def test_a_boards_history_follows_it_to_another_slot(self, store: Store, scope: Scope) -> None:
        """Incidents by UUID on the node where it was before; another board in its slot has a history of its own."""
        await keep(
            store,
            fact(
                "inventory_changed", 1, NOW - 9 * DAY, node=OTHER, source="nvml", inventory=pb.Inventory(gpus=[gpu()])
            ),
            snapshot(),
        )
        await judge(
            store,
            incident(2, OTHER, NOW - 8 * DAY, gpu_uuid=UUID, code=48),
            incident(3, OTHER, NOW - 2 * DAY, gpu_uuid="GPU-next", code=31),
            incident(4, NODE, NOW - 7 * DAY, gpu_uuid="GPU-before", code=63),
            incident(5, NODE, NOW - 1 * DAY, code=74),
            incident(6, OTHER, NOW - 400 * DAY, gpu_uuid=UUID, code=94),
            scope.incident,
        )
        answer = await ask(History(store), "get_gpu_history", scope)
        assert answer.value["gpu"] == {"uuid": UUID, "serial": SERIAL, "pci": PCI, "model": "NVIDIA H100"}
        assert answer.value["seen_on_nodes"] == [NODE, OTHER]
        assert [(item["node"], item["codes"]) for item in answer.value["incidents"]] == [
            (NODE, ["xid 74"]),
            (OTHER, ["xid 48"]),
        ]
        assert (answer.value["total"], answer.value["truncated"], answer.trust) == (2, False, Trust.CLUSTER)
        by_serial = await ask(History(store), "get_gpu_history", scope, gpu=SERIAL)
        assert by_serial.value["incidents"] == answer.value["incidents"]

    async def test_a_gpu_outside_is_refused(self, store: Store, scope: Scope) -> None:
        """The GPUs in scope are named."""
        await keep(store, snapshot())
        answer = await ask(History(store), "get_gpu_history", scope, gpu="GPU-of-somebody")
        assert answer.is_error
        assert answer.value.endswith(f"GPUs: gpu-1 {PCI} {UUID}")

    async def test_an_incident_of_no_single_gpu_says_so(self, store: Store, scope: Scope) -> None:
        """There is nothing to guess."""
        whole = replace(scope, incident=replace(scope.incident, subject=Subject("node", NODE)))
        answer = await ask(History(store), "get_gpu_history", whole)
        assert "about no single GPU" in answer.value

    async def test_a_models_words_never_come_back(self, store: Store, scope: Scope) -> None:
        """Prose of an earlier verdict is in no answer, whichever way one asks."""
        marker = "MARKER-of-an-earlier-verdict"
        await keep(store, snapshot(), snapshot(PEER))
        await judge(store, incident(2, NODE, NOW - DAY, gpu_uuid=UUID), incident(3, PEER, NOW - DAY), words=marker)
        source = History(store)
        answers = [await ask(source, "get_gpu_history", scope)]
        answers += [await ask(source, "find_similar_incidents", scope, by=by) for by in ("code", "model", "driver")]
        assert all(answer.value["incidents"] for answer in answers)
        assert marker not in json.dumps([answer.value for answer in answers])

    async def test_alike_by_code_on_other_nodes(self, store: Store, scope: Scope) -> None:
        """The same XID elsewhere within the days asked for; the node's own and other codes are not alike."""
        await keep(store, snapshot(), snapshot(PEER), snapshot(OTHER))
        await judge(
            store,
            scope.incident,
            incident(2, OTHER, NOW - DAY),
            incident(3, PEER, NOW - DAY, code=31),
            incident(4, NODE, NOW - DAY),
            incident(5, PEER, NOW - 20 * DAY),
        )
        answer = await ask(History(store), "find_similar_incidents", scope, by="code")
        assert [item["node"] for item in answer.value["incidents"]] == [OTHER]
        assert (answer.value["nodes_compared"], answer.value["nodes_with_incidents"]) == (3, 1)
        assert answer.value["incidents"][0]["verdict"]["action"] in ("cordon", "drain", "reboot")
        longer = await ask(History(store), "find_similar_incidents", scope, by="code", days=30)
        assert [item["node"] for item in longer.value["incidents"]] == [OTHER, PEER]
        other = await ask(History(store), "find_similar_incidents", scope, by="code", code="XID  31")
        assert [item["node"] for item in other.value["incidents"]] == [PEER]

    async def test_alike_by_driver_and_model(self, store: Store, scope: Scope) -> None:
        """Nodes with the same version, and no others, are compared."""
        await keep(store, snapshot(), snapshot(PEER, driver="535.1"), snapshot(OTHER))
        await judge(store, incident(2, PEER, NOW - DAY), incident(3, OTHER, NOW - DAY, code=31))
        answer = await ask(History(store), "find_similar_incidents", scope, by="driver")
        assert (answer.value["value"], answer.value["nodes_compared"]) == ("550.54.15", 1)
        assert [item["node"] for item in answer.value["incidents"]] == [OTHER]
        model = await ask(History(store), "find_similar_incidents", scope, by="model")
        assert sorted(item["node"] for item in model.value["incidents"]) == [OTHER, PEER]

    async def test_alike_by_rack(self, store: Store, scope: Scope) -> None:
        """Whoever knows racks is asked; where nobody does, that is said."""

        async def neighbours(node: str, by: str) -> tuple[str, Sequence[str]]:
            return f"{by} of {node}", [NODE, PEER]

        await judge(store, incident(2, PEER, NOW - DAY), incident(3, OTHER, NOW - DAY))
        answer = await ask(History(store, neighbours), "find_similar_incidents", scope, by="rack")
        assert [item["node"] for item in answer.value["incidents"]] == [PEER]
        assert answer.value["value"] == "rack of gpu-1"
        unknown = await ask(History(store), "find_similar_incidents", scope, by="switch")
        assert unknown.value == "nothing here says which switch node gpu-1 belongs to"

    async def test_alike_by_job(self, store: Store, scope: Scope) -> None:
        """Siblings in Kubernetes, or nodes whose facts name the same Slurm job."""
        await judge(store, incident(2, PEER, NOW - DAY), incident(3, OTHER, NOW - DAY))
        siblings = replace(scope, siblings=(("team-a", "train-1", PEER),))
        answer = await ask(History(store), "find_similar_incidents", siblings, by="job")
        assert [item["node"] for item in answer.value["incidents"]] == [PEER]
        nobody = await ask(History(store), "find_similar_incidents", scope, by="job")
        assert "no job is known" in nobody.value
        for number, (node, job) in enumerate(((NODE, "77"), (PEER, "78"), (OTHER, "77")), 1):
            await keep(store, kernel_line("NVRM: x", number, NOW, node=node, workloads=[pb.Workload(slurm_job=job)]))
        slurm = await ask(History(store), "find_similar_incidents", scope, by="job")
        assert [item["node"] for item in slurm.value["incidents"]] == [OTHER]


@pytest.mark.parametrize(
    ("code", "known", "meaning"),
    [("xid 79", True, "bus"), ("XID79", True, "bus"), ("sxid 20034", True, ""), ("row_remap_pending", True, "")],
)
async def test_codes_are_explained_from_the_catalog(scope: Scope, code: str, known: bool, meaning: str) -> None:
    """However they are written, with sources."""
    answer = await ask(Codes(rules.load()), "explain_code", scope, code=code)
    assert answer.value["known"] is known
    assert meaning in json.dumps(answer.value)
    assert answer.value["sources"]


async def test_an_unknown_code_is_said_to_be_unknown(scope: Scope) -> None:
    """Nothing is guessed; a misspelt kind gets its neighbours."""
    answer = await ask(Codes(rules.load()), "explain_code", scope, code="xid 9999")
    assert answer.value["known"] is False
    wrong = await ask(Codes(rules.load()), "explain_code", scope, code="row_remap_pendin")
    assert (wrong.is_error, "row_remap_pending" in wrong.value) == (True, True)
