"""The aggregator's composition root: reads nothing itself, makes every part and gives each what it needs, and stops them in order.

`gcm-sentinel serve` and `python -m aggregator` run it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

import httpx2
import structlog
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from aggregator import rules
from aggregator.correlator import Windows
from aggregator.identity import Authenticator, IdentityUnusable, LocalTrust, TokensFile
from aggregator.investigator.assembly import Investigator, InvestigatorUnusable, assemble
from aggregator.kube.access import AccessWrong, NoCluster, find_access
from aggregator.kube.client import KubeClient
from aggregator.kube.cluster import Cluster
from aggregator.kube.cluster import assemble as assemble_cluster
from aggregator.kube.errors import ApiError
from aggregator.kube.lease import Lease, LeaseLost
from aggregator.kube.silence import Silence
from aggregator.kube.walls import WallAbsent, Walls
from aggregator.outputs import Target
from aggregator.outputs.annotations import Annotations
from aggregator.outputs.courier import Couriers
from aggregator.outputs.endpoints import Endpoint, EndpointsUnusable, read_endpoints
from aggregator.outputs.log import AssessmentLog
from aggregator.outputs.metrics import Metrics
from aggregator.outputs.node_events import NodeEvents
from aggregator.outputs.webhook import Webhook, open_client
from aggregator.outputs.wording import Site
from aggregator.pipeline import Pipeline, read_record
from aggregator.server import AddressInUse, Server, TlsFiles
from aggregator.server.agents import Limits
from aggregator.server.asking import ask, read_now
from aggregator.server.http import HttpServer, probes
from aggregator.server.presence import Presence
from aggregator.server.sessions import Sessions
from aggregator.settings import PREFIX, Address, Settings, SettingsError, misspelt, without_credentials
from aggregator.store import Store, StoreUnusable
from aggregator.store.retention import trim
from aggregator.web import create_app

if TYPE_CHECKING:
    from aggregator.remediation.remediator import Remediator

GRACE_SECONDS = 2.0
OUTPUTS = ("log", "metrics", "webhooks", "node_events", "annotations")  # that can be switched off

log = structlog.get_logger(__name__)


class StartRefused(Exception):
    """Something this machine can see to be wrong stops the start; the text names the variable."""


def main() -> int:
    """Run until told to stop; return the exit code."""
    try:
        settings = Settings.from_environment()
        _log_json(settings.log_level)
        for name, near in misspelt(os.environ).items():
            log.warning("variable_unknown", variable=name, did_you_mean=near or None, why="nothing reads it")
        asyncio.run(serve(settings))
    except (SettingsError, StartRefused) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, or until another process leads. Raises StartRefused."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    registry = CollectorRegistry()
    metrics = Metrics(registry, settings.cluster_name)
    with _naming("TOKENS_FILE", IdentityUnusable):
        authenticator = _authenticator(settings)
    with _naming("RULES_OVERLAY", rules.CatalogError, OSError):
        catalog = rules.load(settings.rules_overlay.read_bytes() if settings.rules_overlay else None)
    with _naming("WEBHOOKS_FILE" if settings.webhooks_file else "WEBHOOK_URL", EndpointsUnusable):
        endpoints = read_endpoints(settings.webhook_url.get_secret_value(), settings.webhooks_file)
    async with _cluster(settings) as cluster, _leading(settings, cluster, registry, stop) as lease:
        if stop.is_set():
            return
        with _naming("DATABASE_URL" if settings.database_url else "STATE_DIR", StoreUnusable):
            store = Store(settings.database, read_record, fence=lease.require if lease else None)
        try:
            async with open_client() as client:
                targets = [*_webhooks(settings, endpoints, client), *await _node_targets(settings, store, cluster)]
                remediator = _remediator(settings, store, cluster, metrics, lease)
                targets += [remediator] if remediator else []
                await _serve(
                    settings, store, metrics, registry, authenticator, catalog, targets, cluster, remediator, stop
                )
        except* LeaseLost:
            log.info("stopping", why="another process may lead")
        finally:
            await store.close()
    log.info("stopped")


async def _serve(
    settings: Settings,
    store: Store,
    metrics: Metrics,
    registry: CollectorRegistry,
    authenticator: Authenticator,
    catalog: rules.Catalog,
    targets: Sequence[Target],
    cluster: KubeClient | None,
    remediator: Remediator | None,
    stop: asyncio.Event,
) -> None:
    sessions = Sessions(Limits().max_streams)
    couriers = Couriers(store, targets, metrics)
    outputs = [output for output in (metrics, AssessmentLog()) if output.name not in settings.outputs_off]
    context = rules.Context(catalog=catalog)
    pipeline = Pipeline(store, outputs, metrics, Windows(), context, couriers.routes)
    pipeline.on_posted = couriers.wake
    investigator = await _investigator(settings, pipeline, metrics, context, cluster, sessions)
    presence = Presence(
        pipeline,
        sessions,
        metrics,
        silent_seconds=settings.agent_silent_seconds,
        forget_seconds=settings.retention_days * 86_400,
    )
    server = Server(
        pipeline, sessions, presence, authenticator, metrics, limits=Limits(), cluster=settings.cluster_name
    )
    server.questions.investigator = investigator.queue if investigator else None
    pages = _http("HTTP_ADDRESS", settings.http_address, create_app(store, authenticator), settings)
    measured = _http("METRICS_ADDRESS", settings.metrics_address, probes(registry, lambda: store.refusal))
    with _naming("GRPC_ADDRESS", AddressInUse):
        port = await server.start(str(settings.grpc_address), _tls(settings))
    _log_banner(settings, catalog, port, measured.port, pages.port)
    watched = _watched(settings, cluster, pipeline, metrics) if cluster else None
    if remediator is not None and watched is not None:
        remediator.around.ask = partial(ask, sessions)
        remediator.around.view = watched.present
    if cluster is None and settings.kubernetes != "off":
        log.info("no_cluster", consequence="this aggregator works on agents alone")
    try:
        async with asyncio.TaskGroup() as group:
            for http in (measured, pages):
                group.create_task(http.serve())
            working = [
                group.create_task(pipeline.run()),
                group.create_task(couriers.run()),
                group.create_task(presence.watch()),
                group.create_task(trim(store, settings.retention_days, settings.retention_bytes)),
            ]
            if cluster is not None and watched is not None:
                presence.cluster = Silence(cluster, watched.watch, lambda: sessions.nodes)
                pipeline.places = watched.topology.telling
                working += [group.create_task(watched.run()), group.create_task(presence.cluster.run())]
            if investigator is not None:
                working.append(group.create_task(investigator.run()))
            await stop.wait()
            log.info("stopping")
            await server.stop(GRACE_SECONDS)
            for task in working:
                task.cancel()
            for http in (measured, pages):
                http.stop()
    finally:
        await server.stop(0)


async def _investigator(
    settings: Settings,
    pipeline: Pipeline,
    metrics: Metrics,
    context: rules.Context,
    cluster: KubeClient | None,
    sessions: Sessions,
) -> Investigator | None:
    if settings.llm_api == "none":
        return None
    try:
        made = await asyncio.to_thread(  # plug-ins are imported, which may take its time
            assemble,
            settings,
            pipeline.store,
            metrics,
            context,
            reader=cluster,
            collect=partial(read_now, sessions),
            ended=pipeline.join_outcomes,
        )
    except InvestigatorUnusable as error:
        raise StartRefused(f"{PREFIX}{error}") from error
    pipeline.on_judged, pipeline.on_saved = made.queue.note, made.queue.wake
    return made


def _http(variable: str, address: Address, app: Starlette, tls: Settings | None = None) -> HttpServer:
    certificate = str(tls.tls_cert_file) if tls and tls.tls_cert_file else None
    key = str(tls.tls_key_file) if tls and tls.tls_key_file else None
    with _naming(variable, AddressInUse):
        return HttpServer(app, address.host, address.port, certificate=certificate, key=key)


@asynccontextmanager
async def _cluster(settings: Settings) -> AsyncIterator[KubeClient | None]:
    """The API server's client; None where there is no cluster, or none is wanted."""
    if settings.kubernetes == "off":
        yield None
        return
    try:
        client = KubeClient(find_access(os.environ, wanted=settings.kubernetes == "on"))
        await client.check()
    except AccessWrong as error:
        raise StartRefused(f"{PREFIX}KUBERNETES: {error}") from error
    except NoCluster as error:
        if settings.kubernetes == "on":
            raise StartRefused(f"{PREFIX}KUBERNETES: {error}") from error
        yield None
        return
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def _leading(
    settings: Settings, cluster: KubeClient | None, registry: CollectorRegistry, stop: asyncio.Event
) -> AsyncIterator[Lease | None]:
    """The lease, once this process holds it; None where none is asked for. `stop` is set when it is lost."""
    if not settings.lease:
        yield None
        return
    if cluster is None:
        raise StartRefused(f"{PREFIX}LEASE: {settings.lease} needs a cluster, and there is none")
    namespace, _, name = settings.lease.partition("/")
    lease = Lease(cluster, namespace, name, f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}")
    await _stand_by(lease, settings, registry, stop)
    keeping = asyncio.create_task(lease.keep())
    keeping.add_done_callback(lambda _: stop.set())
    try:
        yield lease
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        if lease.epoch and not lease.holds():
            log.error("leadership_lost", holder=lease.holder, consequence="this process ends")
        await lease.release()


async def _stand_by(lease: Lease, settings: Settings, registry: CollectorRegistry, stop: asyncio.Event) -> None:
    """Alive and not ready until this process leads, or is told to stop."""

    def unready() -> str:
        return f"stands by: {lease.holder or 'nobody'} leads"

    waiting = _http("METRICS_ADDRESS", settings.metrics_address, probes(registry, unready))
    ends = [asyncio.create_task(lease.acquire()), asyncio.create_task(stop.wait())]
    async with asyncio.TaskGroup() as group:
        group.create_task(waiting.serve())
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        waiting.stop()
    for task in ends:
        task.cancel()
    await asyncio.gather(*ends, return_exceptions=True)


def _watched(settings: Settings, client: KubeClient, pipeline: Pipeline, metrics: Metrics) -> Cluster:
    """What comes in from the cluster."""
    return assemble_cluster(
        client,
        pipeline.store,
        pipeline.receive,
        globs=settings.watch_conditions,
        place_labels=settings.places,
        cooldown_seconds=settings.cooldown_seconds,
        on_up=metrics.watch_up,
        on_rejected=metrics.cluster_rejected,
    )


async def _node_targets(settings: Settings, store: Store, cluster: KubeClient | None) -> list[Target]:
    """What is written on the cluster's nodes. Raises StartRefused where the mode's last wall is seen to be absent."""
    if cluster is None:
        if settings.action_mode != "recommend":
            raise StartRefused(f"{PREFIX}ACTION_MODE: {settings.action_mode} needs a cluster, and there is none")
        return []
    targets: list[Target] = [NodeEvents(cluster, socket.gethostname())]
    if settings.action_mode != "recommend":
        walls = Walls(cluster, settings.action_mode)
        try:
            await walls.check()
        except WallAbsent as error:
            raise StartRefused(f"{PREFIX}ACTION_MODE: {error}") from error
        except ApiError as error:
            log.warning("walls_not_proved", reason=str(error), consequence="nothing is written until they are")
        targets.append(Annotations(cluster, store, walls))
    return [target for target in targets if target.route.target not in settings.outputs_off]


def _remediator(
    settings: Settings, store: Store, cluster: KubeClient | None, metrics: Metrics, lease: Lease | None
) -> Remediator | None:
    """Who acts: in execute mode alone is there anybody, and the code for it in this process."""
    if settings.action_mode != "execute" or cluster is None:
        return None
    from aggregator.remediation.assembly import assemble as assemble_remediation

    made = assemble_remediation(settings, cluster, store, metrics)
    made.around.leads = lease.holds if lease else lambda: True
    return made


def _webhooks(settings: Settings, endpoints: Sequence[Endpoint], client: httpx2.AsyncClient) -> list[Target]:
    known = {*OUTPUTS, *(endpoint.name for endpoint in endpoints)}
    if unknown := sorted({*settings.outputs_off} - known):
        raise StartRefused(f"{PREFIX}OUTPUTS_OFF: {unknown[0]!r} is none of {', '.join(sorted(known))}")
    site = Site(settings.cluster_name, settings.pages_url)
    wanted = [one for one in endpoints if not {"webhooks", one.name} & {*settings.outputs_off}]
    return [Webhook(endpoint, client, site) for endpoint in wanted]


def _authenticator(settings: Settings) -> Authenticator:
    return TokensFile(settings.tokens_file) if settings.tokens_file else LocalTrust()


def _tls(settings: Settings) -> TlsFiles | None:
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    certificate, key = settings.tls_cert_file, settings.tls_key_file
    try:  # gRPC and uvicorn would each fail in their own words, and name the address or nothing
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
        return TlsFiles(certificate.read_bytes(), key.read_bytes())
    except OSError as error:  # an SSLError is one
        raise StartRefused(
            f"{PREFIX}TLS_CERT_FILE: {certificate} and {key} are no PEM certificate chain and unencrypted key of it: {error}"
        ) from error


@contextmanager
def _naming(variable: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn a part's refusal to start into one that names the variable to change."""
    try:
        yield
    except kinds as error:
        raise StartRefused(f"{PREFIX}{variable}: {error}") from error


def _log_banner(settings: Settings, catalog: rules.Catalog, grpc_port: int, metrics_port: int, http_port: int) -> None:
    """What an operator wants to know of a running aggregator, once, without a secret."""
    log.info(
        "serving",
        product="gcm-sentinel",
        version=version("gcm-sentinel"),
        rules_version=rules.rules_version(catalog),
        action_mode=settings.action_mode,
        cluster=settings.cluster_name,
        database=str(settings.database),
        grpc=f"{settings.grpc_address.host}:{grpc_port}",
        metrics=f"http://{settings.metrics_address.host}:{metrics_port}/metrics",
        pages=f"http://{settings.http_address.host}:{http_port}/",
        node_allowlist=list(settings.node_allowlist) or "all nodes for analysis, none for actions",
        cooldown_seconds=settings.cooldown_seconds,
        max_actions_per_hour=settings.max_actions_per_hour,
        llm_api=settings.llm_api,
        investigate=settings.investigate,
        prometheus_url=without_credentials(settings.prometheus_url),
        alertmanager_url=without_credentials(settings.alertmanager_url),
        retention_days=settings.retention_days,
        identity="tokens" if settings.tokens_file else "everyone who reaches the address",
        tls=settings.tls_cert_file is not None,
    )


def _log_json(level: str) -> None:
    """One JSON object a line on stderr; libraries' own records too."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    libraries = logging.StreamHandler(sys.stderr)
    libraries.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(
        level=max(logging.getLevelNamesMapping()[level], logging.WARNING), handlers=[libraries], force=True
    )


if __name__ == "__main__":
    sys.exit(main())
