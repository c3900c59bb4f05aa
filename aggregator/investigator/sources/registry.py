"""Every source there is, a line each; made once at start. docs/sources.md shows how to add one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from aggregator.investigator.case import Case
from aggregator.investigator.sources import Registry, Scope, Source, plugins
from aggregator.investigator.sources.alertmanager import Alertmanager
from aggregator.investigator.sources.cluster import Cluster, Reader, by_daemon_set
from aggregator.investigator.sources.codes import Codes
from aggregator.investigator.sources.configuration import Configuration, ExporterPlace
from aggregator.investigator.sources.confined import ConfinedPrometheus
from aggregator.investigator.sources.evidence import Collect, NodeEvidence
from aggregator.investigator.sources.exporters import Dcgm, Finder, NodeExporter, by_url
from aggregator.investigator.sources.gcm_health import GcmHealth
from aggregator.investigator.sources.history import History
from aggregator.investigator.sources.http import Endpoint
from aggregator.investigator.sources.logs import Logs
from aggregator.investigator.sources.nodes import Nodes
from aggregator.investigator.sources.places import Places
from aggregator.investigator.sources.prometheus import METRICS, Addresses, Prometheus, no_addresses
from aggregator.investigator.sources.scoping import widened
from aggregator.investigator.sources.workloads import Workloads
from aggregator.rules import Catalog
from aggregator.store import Store

BEFORE_US = 3_600_000_000  # of an incident's first fact: what sources look at by default begins here
RESERVED = frozenset(("read_result", "submit_assessment"))  # the loop's own


@dataclass(frozen=True, slots=True)
class Given:
    """What the sources stand on; a part that is missing leaves its sources out."""

    configuration: Configuration
    store: Store
    catalog: Catalog
    prometheus_url: str = ""
    alertmanager_url: str = ""
    reader: Reader | None = None  # of the API server
    collect: Collect | None = None  # a fresh reading through an agent's stream


@dataclass(frozen=True, slots=True)
class Sources:
    """All of them, and whom they may be asked about."""

    registry: Registry
    problems: tuple[str, ...]  # plug-ins that were left out, a line each
    scope_of: Callable[[Case], Awaitable[Scope]]


def build(given: Given) -> Sources:
    """Every source that can exist here."""
    places = _places(given)
    own = list(_own(given, places))
    extra, problems = plugins.load(given.configuration.plugins, {t.name for s in own for t in s.tools} | RESERVED)
    return Sources(Registry.of(*own, *extra), tuple(problems), _scoping(given, places))


def _own(given: Given, places: Places) -> Iterator[Source]:
    files, cluster = given.configuration, _cluster(given)
    system = files.kubernetes.system_namespaces
    prometheus, addresses = _prometheus(given), _addresses(given)
    yield NodeEvidence(given.store, given.collect)
    yield History(given.store, places.neighbours)
    yield Codes(given.catalog)
    if prometheus:
        yield Prometheus(prometheus, (*METRICS, *files.prometheus.metrics), addresses)
    if given.alertmanager_url:
        endpoint = Endpoint(given.alertmanager_url, files.alertmanager.credentials)
        yield Alertmanager(endpoint, addresses, system)
    if find := _finder(cluster, files.exporters.dcgm):
        yield Dcgm(find)
    if find := _finder(cluster, files.exporters.node):
        yield NodeExporter(find)
    if prometheus or cluster:
        yield GcmHealth(prometheus, cluster, addresses)
    if cluster:
        workloads = _workloads(given, cluster)
        yield Nodes(cluster)
        yield workloads
        yield Logs(cluster, workloads, system)


def _scoping(given: Given, places: Places) -> Callable[[Case], Awaitable[Scope]]:
    cluster = _cluster(given)

    async def scope_of(case: Case) -> Scope:
        incident = case.incident
        scope = Scope(
            incident=incident,
            node=incident.subject.node,
            since_us=incident.opened_us - BEFORE_US,
            until_us=case.now_us,
            peers=await places.peers(incident.subject.node),
            denied_namespaces=given.configuration.kubernetes.denied_namespaces,
        )
        return await widened(scope, _workloads(given, cluster)) if cluster else scope

    return scope_of


def _places(given: Given) -> Places:
    rules = given.configuration.kubernetes
    declared: dict[str, dict[str, tuple[str, ...]]] = {}
    for place in given.configuration.places:
        declared.setdefault(place.kind, {})[place.name] = place.nodes
    labels = {"rack": rules.rack_labels, "switch": rules.switch_labels, "nvlink": rules.nvlink_labels}
    return Places(declared, labels, _cluster(given))


def _cluster(given: Given) -> Cluster | None:
    return Cluster(given.reader) if given.reader else None


def _workloads(given: Given, cluster: Cluster) -> Workloads:
    rules = given.configuration.kubernetes
    return Workloads(cluster, rules.gpu_resources, rules.system_namespaces)


def _prometheus(given: Given) -> ConfinedPrometheus | None:
    if not given.prometheus_url:
        return None
    endpoint = Endpoint(given.prometheus_url, given.configuration.prometheus.credentials)
    return ConfinedPrometheus(endpoint, given.configuration.kubernetes.system_namespaces)


def _addresses(given: Given) -> Addresses:
    cluster = _cluster(given)
    return cluster.addresses if cluster else no_addresses


def _finder(cluster: Cluster | None, place: ExporterPlace) -> Finder | None:
    """Addresses that an operator wrote go first."""
    if place.urls:
        return by_url(place.urls)
    if cluster and place.namespace and place.port:
        return by_daemon_set(cluster, place.namespace, place.selector, place.port, place.path)
    return None
