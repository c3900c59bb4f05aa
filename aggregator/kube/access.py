"""Where the API server is and who we are to it: in-cluster configuration or a kubeconfig, as the `kubernetes` package reads them.

The package is imported when it is first needed: that takes a second, and an aggregator without a cluster does without it.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubernetes.client import Configuration


class NoCluster(Exception):
    """Nothing here says that there is a cluster."""


class AccessWrong(Exception):
    """There is a configuration, and it cannot be used; the text names it and says why."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to speak to one API server."""

    url: str
    tls: ssl.SSLContext
    server_name: str | None
    proxy: str | None
    authorization: Callable[
        [], str
    ]  # the header's value, read anew as it expires; may run a program: not for the event loop
    came_from: str  # for people
    files: tuple[
        tuple[str, int], ...
    ]  # certificates and keys that `tls` was made of, with the time of their last change

    def same_server(self, other: Access) -> bool:
        """Connections made for the one serve for the other."""
        return (self.url, self.server_name, self.proxy, self.files) == (
            other.url,
            other.server_name,
            other.proxy,
            other.files,
        )


def find_access(environ: Mapping[str, str], *, wanted: bool) -> Callable[[], Access]:
    """What reads the configuration: a service account's where this runs in a pod, else the kubeconfig that KUBECONFIG names.

    Where a cluster is wanted, kubectl's own default will do as well. Raises NoCluster where there is none of these.
    """
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return _in_cluster
    named = environ.get("KUBECONFIG", "")
    default = Path(environ.get("HOME", "/root")) / ".kube" / "config"
    if named or (wanted and default.is_file()):
        return lambda: _kubeconfig(named or str(default))
    raise NoCluster("this is no pod, and KUBECONFIG names no file")


def _in_cluster() -> Access:
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, load_incluster_config

    found = Configuration()
    try:
        load_incluster_config(found)
    except (ConfigException, OSError) as error:
        raise AccessWrong(f"the pod's service account: {error}") from error
    return _access(found, "the pod's service account")


def _kubeconfig(path: str) -> Access:
    import yaml
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, load_kube_config

    missing = [name for name in path.split(os.pathsep) if name and not Path(name).is_file()]
    if missing and len(missing) == len(path.split(os.pathsep)):
        raise AccessWrong(f"kubeconfig {path}: there is no such file")
    found = Configuration()
    try:
        load_kube_config(config_file=path, client_configuration=found, persist_config=False)
    except (ConfigException, OSError, yaml.YAMLError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise AccessWrong(f"kubeconfig {path}: {' '.join(str(error).split())}") from error
    return _access(found, f"kubeconfig {path}")


def _access(found: Configuration, came_from: str) -> Access:
    from kubernetes.config import ConfigException

    def authorization() -> str:
        try:
            return found.get_api_key_with_prefix("BearerToken") or ""
        except (ConfigException, OSError) as error:
            raise AccessWrong(f"{came_from}: its token: {error}") from error

    try:
        tls = _tls(found.ssl_ca_cert, found.cert_file, found.key_file, verify=found.verify_ssl)
        named = [name for name in (found.ssl_ca_cert, found.cert_file, found.key_file) if name]
        files = tuple((name, Path(name).stat().st_mtime_ns) for name in named)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise AccessWrong(f"{came_from}: its certificates: {error}") from error
    return Access(
        url=found.host,
        tls=tls,
        server_name=found.tls_server_name,
        proxy=found.proxy,
        authorization=authorization,
        came_from=came_from,
        files=files,
    )


def _tls(ca_file: str | None, cert_file: str | None, key_file: str | None, *, verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if cert_file:
        context.load_cert_chain(cert_file, key_file)
    return context
