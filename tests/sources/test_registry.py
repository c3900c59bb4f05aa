"""Which sources there are, from what an operator configured; plug-ins, good and bad; the worked example of docs/sources.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from aggregator import rules
from aggregator.investigator.sources import Registry, Scope
from aggregator.investigator.sources.configuration import Configuration, SourcesUnusable, read_configuration
from aggregator.investigator.sources.plugins import check
from aggregator.investigator.sources.registry import Given, Sources, build
from aggregator.kube.access import find_access
from aggregator.kube.client import KubeClient
from aggregator.pipeline import read_record
from aggregator.store import Store

DOCS = Path(__file__).parents[2] / "docs" / "sources.md"
STORED = {"get_node_evidence", "collect_node_evidence", "get_gpu_history", "find_similar_incidents", "explain_code"}
KUBERNETES = {"get_node_info", "get_node_events", "get_workload_info", "get_workload_logs", "get_pod_logs"}
EXPORTERS = {"query_dcgm_direct", "query_node_exporter_direct", "query_infiniband_direct"}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store(tmp_path / "sentinel.db", read_record)
    yield opened
    await opened.close()


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules can be imported while the test runs."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        del sys.modules[name]


def built(store: Store, configuration: Configuration | None = None, **given: object) -> Sources:
    return build(Given(configuration or Configuration(), store, rules.load(), **given))  # type: ignore[arg-type]


def reader(tmp_path: Path) -> KubeClient:
    """A client of no server: enough to be a source."""
    return KubeClient(find_access({"KUBECONFIG": str(tmp_path / "none")}, wanted=True))


async def test_sources_follow_what_is_there(store: Store, tmp_path: Path) -> None:
    """Without anything: the store and the catalog. Each URL and a cluster add theirs. Names are those of the reference."""
    assert built(store).registry.tools.keys() == STORED
    with_prometheus = built(store, prometheus_url="http://127.0.0.1:9").registry.tools.keys()
    assert with_prometheus == STORED | {"query_prometheus", "get_gcm_health"}
    everything = built(
        store,
        prometheus_url="http://127.0.0.1:9",
        alertmanager_url="http://127.0.0.1:9",
        reader=reader(tmp_path),
    )
    names = everything.registry.tools.keys()
    assert names == STORED | KUBERNETES | EXPORTERS | {"query_prometheus", "query_alertmanager", "get_gcm_health"}
    assert everything.problems == ()


async def test_every_tool_of_ours_passes_the_check_for_plug_ins(store: Store, tmp_path: Path) -> None:
    """Descriptions say something, schemas are closed, defaults fit their own schema."""
    sources = built(store, prometheus_url="http://x", alertmanager_url="http://x", reader=reader(tmp_path))
    for source in sources.registry.sources:
        check(source.name, source, set())
        for tool in source.tools:
            for name, schema in tool.parameters["properties"].items():
                assert "default" not in schema or Draft202012Validator(schema).is_valid(schema["default"]), name
            required = dict.fromkeys(tool.parameters["required"], "x")
            assert tool.parameters["required"] == [name for name in required if name in tool.parameters["properties"]]


async def test_the_documented_file_is_one_that_is_read(tmp_path: Path) -> None:
    """Every key of the example in docs/sources.md exists."""
    (example,) = re.findall(r"```toml\n(plugins.*?)```", DOCS.read_text(), re.DOTALL)
    path = tmp_path / "sources.toml"
    path.write_text(example)
    found = read_configuration(path)
    assert found.kubernetes.denied_namespaces == ("payroll",)
    assert found.exporters.node.urls["*"] == "http://{node}:9100/metrics"
    assert found.places[0].nodes == ("gpu-1", "gpu-2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[prometheus", "Expected"),
        ("[promethius]\nx = 1", "promethius: Extra inputs"),
        ("[prometheus]\ntokens = 1", "prometheus.tokens: Extra"),
        ('[prometheus]\nmetrics = [".*"]', "prometheus.metrics.0: Value error, expected the name of a metric"),
        ('[exporters.dcgm]\nurls = {a = "file:///etc/passwd"}', "expected http://"),
        ("[exporters.dcgm]\nport = 99999", "exporters.dcgm.port"),
        ('plugins = ["no colon"]', "plugins.0"),
        ('[[places]]\nkind = "street"\nname = "x"\nnodes = []', "places.0.kind"),
        ("\x00", "Invalid"),
    ],
)
def test_a_wrong_file_is_refused_with_the_field(tmp_path: Path, text: str, said: str) -> None:
    """One line that names the file and what is wrong in it."""
    path = tmp_path / "sources.toml"
    path.write_text(text)
    with pytest.raises(SourcesUnusable) as refused:
        read_configuration(path)
    assert str(path) in str(refused.value)
    assert said in str(refused.value)


async def test_the_worked_example_runs(store: Store, importable: Path, scope: Scope) -> None:
    """The plug-in of docs/sources.md, word for word: named in the file, it answers within the scope and only there."""
    (importable / "rack_heat.py").write_text(_example())
    sources = built(store, Configuration(plugins=("rack_heat:make",)))
    assert sources.problems == ()
    tool = sources.registry.tools["get_inlet_temperature"]
    answer = await tool.ask(scope, {"node_name": "gpu-2"})
    assert answer.value == {"node": "gpu-2", "inlet_celsius": 38.0}
    outside = await tool.ask(scope, {"node_name": "gpu-10"})
    assert (outside.is_error, outside.value) == (True, "ask about one of: gpu-1, gpu-2")


async def test_an_entry_point_needs_no_line(store: Store, importable: Path) -> None:
    """A package that names itself under gcm_sentinel.sources is found."""
    (importable / "rack_heat.py").write_text(_example())
    info = importable / "rack_heat-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rack-heat\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[gcm_sentinel.sources]\nrack-heat = rack_heat:make\n")
    assert "get_inlet_temperature" in built(store).registry.tools


GOOD = "from aggregator.investigator.sources import Answer, Tool\nfrom aggregator.model import Trust\n"
SOURCE = """
async def ask(scope, arguments):
    return Answer("x", Trust.TENANT)

class S:
    name = {name!r}
    tools = (Tool({tool!r}, {description!r}, {schema!r}, ask, {seconds}),)
    async def unavailable(self):
        return ""
"""
CLOSED: dict[str, object] = {"type": "object", "properties": {}, "additionalProperties": False}


def plugin(**more: object) -> str:
    parts = {"name": "s", "tool": "mine", "description": "d", "schema": CLOSED, "seconds": 5.0, **more}
    return GOOD + SOURCE.format(**parts)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nothing_like_it", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def S(:", "SyntaxError"),
        ("x = 1", "AttributeError: module 'bad' has no attribute 'S'"),
        ("def S():\n    raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("def S():\n    return None", "AttributeError: 'NoneType'"),
        (plugin(tool="query_prometheus"), "a tool named 'query_prometheus' exists already"),
        (plugin(tool="read_result"), "a tool named 'read_result' exists already"),
        (plugin(tool="good"), "a tool named 'good' exists already"),
        (plugin(tool="a b"), "a tool's name has letters"),
        (plugin(description=""), "tool mine: its description"),
        (plugin(schema={"type": "nonsense"}), "no JSON schema"),
        (plugin(schema={"type": "object", "properties": {}}), "no JSON schema"),
        (plugin(schema={"type": "object", "additionalProperties": True}), "additionalProperties false"),
        (plugin(schema=[]), "no JSON schema"),
        (plugin(seconds=4000.0), "timeout_seconds at most 120"),
        (plugin().replace("tools = (Tool", "tools = ('text', Tool"), "str is no Tool"),
        (plugin(name="no name!"), "a source has a name, tools and unavailable()"),
    ],
)
async def test_a_bad_plug_in_is_named_in_one_line_and_left_out(
    store: Store, importable: Path, code: str, said: str
) -> None:
    """The rest works, another plug-in among it."""
    (importable / "good.py").write_text(plugin(tool="good"))
    (importable / "bad.py").write_text(code)
    sources = built(store, Configuration(plugins=("good:S", "bad:S")), prometheus_url="http://127.0.0.1:9")
    (problem,) = sources.problems
    assert problem.startswith("plug-in bad:S: ")
    assert said in problem
    assert "\n" not in problem
    assert {"good", "query_prometheus"} <= sources.registry.tools.keys()


@pytest.mark.slow
async def test_a_plug_in_that_hangs_does_not_keep_anything_from_starting(store: Store, importable: Path) -> None:
    """After ten seconds it is left out."""
    (importable / "hangs.py").write_text("import time\ntime.sleep(14)\n")
    sources = built(store, Configuration(plugins=("hangs:S",)))
    assert sources.problems == ("plug-in hangs:S: did not load within 10 s",)


def test_two_tools_of_one_name_are_refused() -> None:
    """Also among sources that were put together by hand."""

    class One:
        name = "one"
        tools = (next(iter(_tools())),)

        async def unavailable(self) -> str:
            return ""

    with pytest.raises(ValueError, match="exists already"):
        Registry.of(One(), One())


def _tools() -> Iterator[object]:
    from aggregator.investigator.sources.codes import Codes

    yield from Codes(rules.load()).tools


def test_no_source_imports_an_sdk_at_start() -> None:
    """The API server's package and the models' SDKs are imported where they are first used."""
    code = (
        "import sys, aggregator.investigator.sources.registry as r;"
        "print([m for m in ('kubernetes', 'anthropic', 'openai') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []


def _example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return str(code)
