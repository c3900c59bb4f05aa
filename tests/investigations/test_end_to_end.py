"""A fault on a node is judged by rules at once and looked into by a model over a real endpoint; people follow and read it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from aggregator.demo.play import list_incidents, wait_for_inventory
from aggregator.demo.processes import AggregatorProcess, SimulatedNode
from protos.v1 import sentinel_pb2, sentinel_pb2_grpc
from tests.doubles.llm import KEY, Asked, ScriptedLlm, Status, Step, answer, call

LINE = "NVRM: Xid (PCI:{gpu5}): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


def looks_and_concludes(asked: Asked) -> Step:
    """Asks one tool, then concludes from the first fact."""
    if asked.turns == 0:
        return call("explain_code", code="xid 79")
    quote = re.search(r"Xid \(PCI:[^)]*\): 79, .* fallen off the bus\.", asked.user_texts[0])
    return answer(
        {
            "severity": "critical",
            "fault_class": "pcie",
            "action": "drain",
            "resolutions": ["drain", "power_cycle", "rma"],
            "confidence": 0.9,
            "claims": [
                {
                    "role": "root_cause",
                    "text": "The GPU left the PCIe bus (XID 79).",
                    "support": [{"id": "e1", "quote": quote[0] if quote else ""}],
                },
                {"role": "finding", "text": "The rack lost power.", "support": [{"id": "e1", "quote": "AC lost"}]},
            ],
            "open_questions": [],
        }
    )


class Cluster:
    """An aggregator with a model, and one node."""

    def __init__(self, directory: Path, llm: ScriptedLlm, **variables: str) -> None:
        self.aggregator = AggregatorProcess(
            directory / "aggregator",
            LLM_API="anthropic",
            API_KEY=KEY,
            LLM_BASE_URL=llm.url,
            **variables,
        )
        self.aggregator.start()
        self.aggregator.wait_ready()
        self.channel = grpc.insecure_channel(self.aggregator.address)
        self.stub = sentinel_pb2_grpc.SentinelServiceStub(self.channel)
        self.node = SimulatedNode("gpu-node-1", directory / "node", self.aggregator.address)
        self.node.agent.start()
        wait_for_inventory(self.stub, [self.node], sleep=time.sleep)

    def stop(self) -> None:
        self.channel.close()
        self.node.agent.stop()
        self.aggregator.stop()

    def until(self, condition: Callable[[sentinel_pb2.Incident], bool], seconds: float = 20.0) -> sentinel_pb2.Incident:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for incident in list_incidents(self.stub):
                if incident.HasField("assessment") and condition(incident):
                    return incident
            time.sleep(0.1)
        log = (self.aggregator.directory / "serve.log").read_text()
        raise AssertionError(f"it did not come to this: {list_incidents(self.stub)}\n{log[-3000:]}")

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://{self.aggregator.metrics_address}/metrics") as response:
            text: str = response.read().decode()
            return text

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name("gcm-sentinel"), *arguments],
            env={**os.environ, "GCM_SENTINEL_AGGREGATOR_ADDRESS": self.aggregator.address},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def model() -> Iterator[ScriptedLlm]:
    with ScriptedLlm(looks_and_concludes) as llm:
        yield llm


@pytest.mark.slow
def test_a_fault_is_looked_into_and_the_verdict_says_what_was_proved(tmp_path: Path, model: ScriptedLlm) -> None:
    cluster = Cluster(tmp_path, model)
    try:
        cluster.node.kernel(LINE)
        first = cluster.until(lambda incident: True, 5.0)
        assert first.assessment.origin == "rules"
        found = cluster.until(lambda incident: incident.assessment.origin == "llm").assessment
        transcript = cluster.command("transcript", found.investigation_id)
        as_json = cluster.command("transcript", found.investigation_id, "--format", "json")
        metrics = cluster.metrics()
    finally:
        cluster.stop()
    assert [claim.text for claim in found.claims] == ["The GPU left the PCIe bus (XID 79)."]
    assert [claim.text for claim in found.dropped_claims] == ["The rack lost power."]
    assert found.citations[0] in {part.evidence_id for claim in found.claims for part in claim.support}
    assert {part.trust for claim in found.claims for part in claim.support} == {"hardware"}
    assert found.model == "claude-sonnet-5-5"
    assert found.cost_usd > 0
    assert transcript.returncode == 0
    assert "explain_code" in transcript.stdout
    assert json.loads(as_json.stdout)["state"] == "completed"
    assert 'sentinel_investigations_total{cluster="default",reason="",stop="completed"} 1.0' in metrics
    assert KEY not in transcript.stdout + as_json.stdout + metrics


@pytest.mark.slow
def test_a_person_has_a_node_looked_into_and_reads_the_verdict(tmp_path: Path, model: ScriptedLlm) -> None:
    cluster = Cluster(tmp_path, model, INVESTIGATE="manual")
    try:
        done = cluster.command(
            "investigate",
            "gpu-node-1",
            "--condition",
            "GcmXidErrorsProblem",
            "--message",
            "xid 79 GPU has fallen off the bus.",
        )
        unknown = cluster.command("investigate", "nobody")
    finally:
        cluster.stop()
    assert done.returncode == 0, done.stderr
    assert "GcmXidErrorsProblem" in done.stdout
    assert "round 1" in done.stderr
    assert unknown.returncode == 2


@pytest.mark.slow
def test_without_an_aggregator_one_is_started_for_the_question(model: ScriptedLlm) -> None:
    def ask(**variables: str) -> subprocess.CompletedProcess[str]:
        chosen = {f"GCM_SENTINEL_{name}": value for name, value in variables.items()}
        question = ("investigate", "gpu-9", "--standalone", "--condition", "GcmXidErrorsProblem", "--json")
        return subprocess.run(
            [Path(sys.executable).with_name("gcm-sentinel"), *question],
            env={**os.environ, **chosen},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    done = ask(LLM_API="anthropic", API_KEY=KEY, LLM_BASE_URL=model.url, KUBERNETES="off")
    wrong = ask(LLM_API="anthropic", KUBERNETES="off")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["node"] == "gpu-9"
    assert found["assessment"]["investigation_id"]
    assert (wrong.returncode, "GCM_SENTINEL_API_KEY" in wrong.stderr) == (2, True)


@pytest.mark.slow
def test_a_model_that_is_down_leaves_the_rules_verdict_and_says_so(tmp_path: Path) -> None:
    with ScriptedLlm(lambda asked: Status(529)) as llm:
        cluster = Cluster(tmp_path, llm)
        try:
            cluster.node.kernel(LINE)
            found = cluster.until(lambda incident: bool(incident.assessment.degraded_reason), 60.0).assessment
        finally:
            cluster.stop()
    assert (found.origin, found.severity, found.action) == ("rules", "critical", "drain")
    assert found.degraded_reason.startswith("overloaded")
