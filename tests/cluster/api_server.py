"""etcd and kube-apiserver as processes on loopback, and what a cluster's administrator does to them.

Nodes are plain objects here: nothing runs on them. Requests are synchronous; a test that must not block its loop asks in a thread.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from tests.cluster import components

ADMIN = "admin-token"
READY_SECONDS = 90
AUDIT_POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: Request, verbs: [create, update, patch, delete, deletecollection]}
  - {level: Metadata}
"""

Object = dict[str, Any]


class ApiServer:
    """One API server with its own etcd. `request` and what stands on it speak as a cluster administrator."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._programs = components.find("etcd", "kube-apiserver")
        self._etcd_port, self._peer_port, self.port = _free_ports(3)
        self._etcd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._tokens = {ADMIN: ("admin", ("system:masters",))}
        self._audit_from = 0

    # --- the processes

    def start(self) -> None:
        """Start both and wait until the API is ready."""
        self.directory.mkdir(parents=True, exist_ok=True)
        key = self.directory / "service-accounts.key"
        if not key.exists():
            subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        (self.directory / "audit-policy.yaml").write_text(AUDIT_POLICY)
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._peer_port}"
        self._etcd = self._run(
            "etcd",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )
        self.start_server()

    def start_server(self, *flags: str) -> None:
        """Start the API server alone, on the port that it always has, and wait until it is ready."""
        tokens = [f'{token},{user},{user},"{",".join(groups)}"' for token, (user, groups) in self._tokens.items()]
        (self.directory / "tokens.csv").write_text("\n".join(tokens) + "\n")
        key = self.directory / "service-accounts.key"
        self._server = self._run(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            "--endpoint-reconciler-type=none",
            f"--cert-dir={self.directory / 'certificates'}",
            f"--token-auth-file={self.directory / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--disable-admission-plugins=ServiceAccount",  # no controller makes the accounts that pods would need
            f"--audit-log-path={self.directory / 'audit.jsonl'}",
            f"--audit-policy-file={self.directory / 'audit-policy.yaml'}",
            *flags,
        )
        self._wait_ready()

    def stop_server(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the API server alone; what it stored stays."""
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError):
                self._server.send_signal(signal.SIGCONT)
                self._server.send_signal(number)
            self._server.wait(30)
            self._server = None

    def restart_server(self, *flags: str) -> None:
        """End the API server and start it anew; watches break."""
        self.stop_server()
        self.start_server(*flags)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The API server accepts connections and answers nothing."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._server.send_signal(signal.SIGCONT)

    def compact(self) -> None:
        """Drop every old revision from etcd: who asks for one hears 410."""
        etcd = f"http://127.0.0.1:{self._etcd_port}/v3/kv"
        revision = httpx2.post(f"{etcd}/range", json={"key": "AA=="}).json()["header"]["revision"]
        httpx2.post(f"{etcd}/compaction", json={"revision": revision, "physical": True}).raise_for_status()

    def stop(self) -> None:
        """End both."""
        self.stop_server()
        if self._etcd is not None:
            self._etcd.kill()
            self._etcd.wait(30)

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{program}.log").open("ab") as output:
            return subprocess.Popen([self._programs[program], *arguments], stdout=output, stderr=output)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            assert self._server is not None
            assert self._server.poll() is None, f"kube-apiserver ended: {self._tail('kube-apiserver')}"
            with contextlib.suppress(httpx2.TransportError, OSError), self._client() as client:
                if client.get("/readyz").text == "ok":
                    return
            time.sleep(0.1)
        raise TimeoutError(f"kube-apiserver is not ready: {self._tail('kube-apiserver')}")

    def _tail(self, program: str) -> str:
        return (self.directory / f"{program}.log").read_text(errors="replace")[-3000:]

    # --- who may speak to it

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> Path:
        """What its certificate is checked against."""
        return self.directory / "certificates" / "apiserver.crt"

    def add_user(self, name: str, *groups: str) -> str:
        """A static token of a user; it holds from the next start of the API server on."""
        self._tokens[f"{name}-token"] = (name, groups)
        return f"{name}-token"

    def service_account(self, name: str, rules: Sequence[Object] = (), *, namespace: str = "default") -> str:
        """Make (or change) a service account that may do cluster-wide what the rules say; return a token of it.

        A rule is an RBAC PolicyRule, for example {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]}.
        """
        self.apply("/api/v1/namespaces/" + namespace + "/serviceaccounts", {"metadata": {"name": name}})
        self.permit(name, rules, namespace=namespace)
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        token: str = self.request("POST", path, asked)["status"]["token"]
        return token

    def permit(self, name: str, rules: Sequence[Object], *, namespace: str = "default") -> None:
        """What a service account may do from now on, and nothing else."""
        rbac, role = "/apis/rbac.authorization.k8s.io/v1", f"{namespace}-{name}"
        self.apply(f"{rbac}/clusterroles", {"metadata": {"name": role}, "rules": list(rules)})
        binding = {
            "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        }
        self.apply(f"{rbac}/clusterrolebindings", binding)

    def kubeconfig(self, path: Path, token: str = ADMIN, *, token_file: Path | None = None) -> Path:
        """Write a kubeconfig for a token, or for a file that holds one."""
        user = {"tokenFile": str(token_file)} if token_file else {"token": token}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": self.url, "certificate-authority": str(self.ca_file)}}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "c",
        }
        path.write_text(json.dumps(config))
        return path

    # --- what an administrator does

    def request(self, method: str, path: str, body: object = None, *, token: str = ADMIN, **more: Any) -> Object:
        """One request; its answer. Raises httpx2.HTTPStatusError."""
        with self._client(token) as client:
            answer = client.request(method, path, **({"json": body} if body is not None else {}), **more)
        if answer.is_error:
            raise httpx2.HTTPStatusError(
                f"{answer.status_code}: {answer.text}", request=answer.request, response=answer
            )
        found: Object = answer.json()
        return found

    def patch(self, path: str, body: object, *, token: str = ADMIN, kind: str = "merge") -> Object:
        """Patch an object; kind is merge, strategic-merge or json."""
        headers = {"content-type": f"application/{kind}-patch+json"}
        return self.request("PATCH", path, token=token, content=json.dumps(body), headers=headers)

    def apply(self, collection: str, body: Object) -> Object:
        """Make an object, or change it to be so."""
        try:
            return self.request("POST", collection, body)
        except httpx2.HTTPStatusError as error:
            if error.response.status_code != httpx2.codes.CONFLICT:
                raise
        return self.patch(f"{collection}/{body['metadata']['name']}", body)

    def namespace(self, name: str) -> None:
        """Make a namespace."""
        self.apply("/api/v1/namespaces", {"metadata": {"name": name}})

    def node(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        capacity: Mapping[str, str] | None = None,
        **spec: object,
    ) -> Object:
        """Make a node: an object without a machine."""
        metadata = {"name": name, "labels": dict(labels or {}), "annotations": dict(annotations or {})}
        made = self.request("POST", "/api/v1/nodes", {"metadata": metadata, "spec": spec})
        if capacity:
            made = self.patch(f"/api/v1/nodes/{name}/status", {"status": {"capacity": dict(capacity)}})
        return made

    def condition(
        self, node: str, name: str, status: str, *, reason: str = "", message: str = "", at: str | None = None
    ) -> Object:
        """Set one condition of a node as its monitor would: `at` is its last transition, as RFC 3339 (now unless given)."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        found = {
            "type": name,
            "status": status,
            "reason": reason or f"{name}Because",
            "message": message,
            "lastHeartbeatTime": now,
            "lastTransitionTime": at or now,
        }
        return self.patch(f"/api/v1/nodes/{node}/status", {"status": {"conditions": [found]}}, kind="strategic-merge")

    def delete(self, path: str) -> None:
        """Delete an object, at once."""
        self.request("DELETE", path, {"gracePeriodSeconds": 0})

    def clear(self) -> None:
        """Delete every node, pod, lease and event, so that the next test begins with none."""
        for path in (
            "/api/v1/nodes",
            "/api/v1/namespaces/default/pods",
            "/api/v1/namespaces/default/events",
            "/apis/coordination.k8s.io/v1/namespaces/default/leases",
        ):
            self.request("DELETE", path, {"gracePeriodSeconds": 0})

    # --- what it saw

    def mark_audit(self) -> None:
        """`audited` tells what comes from here on."""
        self._audit_from = self._audit_log().stat().st_size if self._audit_log().exists() else 0

    def audited(self, user: str = "", *verbs: str) -> list[Object]:
        """Completed requests since the mark, of a user (service accounts: system:serviceaccount:NAMESPACE:NAME), by verb."""
        with self._audit_log().open("rb") as log:
            log.seek(self._audit_from)
            entries = [json.loads(line) for line in log if line.endswith(b"\n")]
        return [
            entry
            for entry in entries
            if entry["stage"] == "ResponseComplete"
            and (not user or entry["user"]["username"] == user)
            and (not verbs or entry["verb"] in verbs)
        ]

    def _audit_log(self) -> Path:
        return self.directory / "audit.jsonl"

    def _client(self, token: str = ADMIN) -> httpx2.Client:
        return httpx2.Client(
            base_url=self.url,
            verify=ssl.create_default_context(cafile=self.ca_file),
            headers={"authorization": f"Bearer {token}"},
            timeout=30,
            trust_env=False,
        )


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as open_sockets:
        held = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
