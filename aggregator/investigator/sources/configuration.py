"""What operators say of the sources beyond two URLs: one TOML file, checked at start. docs/sources.md describes it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from aggregator.investigator.sources.http import Credentials
from aggregator.investigator.sources.labels import SYSTEM_NAMESPACES
from aggregator.investigator.sources.workloads import GPU_RESOURCES

_METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\*?")


class SourcesUnusable(ValueError):
    """The file cannot be used; the text names the field."""


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected http://… or https://…")
    return text


def _metric(text: str) -> str:
    if not _METRIC.fullmatch(text):
        raise ValueError('expected the name of a metric, or its beginning with "_", ":" or "*" at the end')
    return text


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(_Table):
    """How to speak to a server whose URL is a setting."""

    token_file: Path | None = None
    basic_file: Path | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    @property
    def credentials(self) -> Credentials:
        """The same for `http.Endpoint`."""
        return Credentials(self.token_file, self.basic_file, self.ca_file, self.certificate_file, self.key_file)


class PrometheusServer(Server):
    """Prometheus has metrics that may be asked for, too."""

    metrics: tuple[Annotated[str, AfterValidator(_metric)], ...] = ()  # beside those that always may


class ExporterPlace(_Table):
    """Where an exporter is: the pods of a DaemonSet, or by node a URL."""

    namespace: str = Field("", pattern=r"^[a-z0-9.-]*$")
    selector: str = Field("", max_length=500)
    port: int = Field(0, ge=0, le=65535)
    path: str = Field(default="/metrics", pattern=r"^/[A-Za-z0-9/_.-]*$")
    urls: dict[str, Annotated[str, AfterValidator(_url)]] = {}


class Exporters(_Table):
    """The two exporters that are asked directly."""

    dcgm: ExporterPlace = ExporterPlace(namespace="gpu-operator", selector="app=nvidia-dcgm-exporter", port=9400)
    node: ExporterPlace = ExporterPlace(
        namespace="monitoring", selector="app.kubernetes.io/name=prometheus-node-exporter", port=9100
    )


class KubernetesRules(_Table):
    """What may be read in the cluster, and what it is called."""

    system_namespaces: tuple[str, ...] = SYSTEM_NAMESPACES
    denied_namespaces: tuple[str, ...] = ()
    gpu_resources: tuple[str, ...] = GPU_RESOURCES
    rack_labels: tuple[str, ...] = ("topology.kubernetes.io/rack", "topology.kubernetes.io/block")
    switch_labels: tuple[str, ...] = ("topology.kubernetes.io/switch", "network.topology.nvidia.com/leaf")
    nvlink_labels: tuple[str, ...] = ("nvidia.com/gpu.clique", "network.topology.nvidia.com/accelerator")


class Place(_Table):
    """Nodes that share something, where no label of Kubernetes says so."""

    kind: Literal["rack", "switch", "nvlink"]
    name: str = Field(min_length=1, max_length=253)
    nodes: tuple[str, ...]


class Configuration(_Table):
    """The file."""

    prometheus: PrometheusServer = PrometheusServer()
    alertmanager: Server = Server()
    exporters: Exporters = Exporters()
    kubernetes: KubernetesRules = KubernetesRules()
    places: tuple[Place, ...] = ()
    plugins: tuple[Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")], ...] = ()  # module:attribute


def read_configuration(path: Path | None) -> Configuration:
    """The file's content, or the defaults where there is none. Raises SourcesUnusable."""
    if path is None:
        return Configuration()
    try:
        return Configuration.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        raise SourcesUnusable(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        raise SourcesUnusable(f"{path}: {error}") from error
