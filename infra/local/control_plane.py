"""The parts of a cluster as frozen specs: what each program is told, when it is ready, how one talks to the API server.

Called by `cluster`; hands on to `lifecycle` through `services.Service`. Everything listens on 127.0.0.1. Whoever has the token is the
administrator; there is no other user but the cluster's own service accounts.
"""

import http.client
import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ready
from services import Service
from state import State

NODES = ("node-1", "node-2")
_STAGES = Path(__file__).parent / "kwok/stages.yaml"
_ISSUER = "https://kubernetes.default.svc"
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class ControlPlane:
    """Where one control plane lives, the ports that it has, and who may command it."""

    state: State
    programs: Mapping[str, Path]
    etcd: int
    """Its port; the one after it is etcd's too."""
    api: int
    token: str

    @property
    def keys(self) -> Path:
        """The folder of keys and certificates; the API server makes its own there."""
        return self.state.folder("keys")

    @property
    def kubeconfig(self) -> Path:
        """The file by which kubectl, helm and the parts of the cluster reach the API server."""
        return self.state.root / "kubeconfig"

    def write_files(self) -> None:
        """Write the kubeconfig, and the list of who is known to the API server; both hold the token."""
        cluster = {"server": f"https://{ready.HOST}:{self.api}", "certificate-authority": str(self._certificate)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "local",
            "clusters": [{"name": "local", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": self.token}}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": "admin"}}],
        }
        for path, text in (
            (self.kubeconfig, json.dumps(config)),
            (self._users, f"{self.token},admin,admin,system:masters\n"),
        ):
            path.touch(mode=0o600)
            path.write_text(text)

    @property
    def _certificate(self) -> Path:
        return self.keys / "apiserver.crt"

    @property
    def _users(self) -> Path:
        return self.keys / "users.csv"

    def parts(self) -> list[Service]:
        """Describe the processes: etcd, the API server, then those that need it."""
        return [self._etcd(), self._apiserver(), self._controllers(), self._scheduler(), self._kwok()]

    def _etcd(self) -> Service:
        client, peer = (f"http://{ready.HOST}:{port}" for port in (self.etcd, self.etcd + 1))
        options = {
            "name": "local",
            "data-dir": self.state.folder("etcd") / "data",
            "unsafe-no-fsync": "true",
            "log-level": "warn",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"local={peer}",
        }
        return self._part("etcd", options, self._etcd_answers, url=client)

    def _etcd_answers(self) -> bool:
        connection = http.client.HTTPConnection(ready.HOST, self.etcd, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK

    def _apiserver(self) -> Service:
        options = {
            "etcd-servers": f"http://{ready.HOST}:{self.etcd}",
            "bind-address": ready.HOST,
            "advertise-address": ready.HOST,
            "secure-port": self.api,
            "endpoint-reconciler-type": "none",
            "cert-dir": self.keys,
            "service-cluster-ip-range": "10.0.0.0/24",
            "allow-privileged": "true",  # else it is not Pod Security that refuses a privileged pod
            "authorization-mode": "RBAC",
            "anonymous-auth": "false",
            "token-auth-file": self._users,
            "service-account-issuer": _ISSUER,
            "service-account-key-file": self.keys / "accounts.pub",
            "service-account-signing-key-file": self.keys / "accounts.key",
            "api-audiences": _ISSUER,
        }
        return self._part(
            "kube-apiserver", options, partial(self.has, "/readyz"), url=f"https://{ready.HOST}:{self.api}"
        )

    def _controllers(self) -> Service:
        options = {
            "kubeconfig": self.kubeconfig,
            "leader-elect": "false",
            "secure-port": 0,
            "service-account-private-key-file": self.keys / "accounts.key",
            "root-ca-file": self._certificate,
        }
        account = partial(self.has, "/api/v1/namespaces/default/serviceaccounts/default")
        return self._part("kube-controller-manager", options, account)

    def _scheduler(self) -> Service:
        options = {"kubeconfig": self.kubeconfig, "leader-elect": "false", "secure-port": 0}
        return self._part("kube-scheduler", options, lambda: True)

    def _kwok(self) -> Service:
        options = {
            "kubeconfig": self.kubeconfig,
            "config": _STAGES,
            "manage-all-nodes": "true",
            "node-ip": ready.HOST,
            "node-lease-duration-seconds": 40,
        }
        return self._part("kwok", options, lambda: all(map(self._is_ready, NODES)))

    def _part(self, name: str, options: Mapping[str, object], check: Callable[[], bool], url: str = "") -> Service:
        command = [str(self.programs[name]), *(f"--{option}={value}" for option, value in options.items())]
        return Service(
            name=name,
            url=url or f"https://{ready.HOST}:{self.api}",
            command=lambda: command,
            ready=check,
            pidfile=self.state.pidfile(name),
            log=self.state.log(name),
            folder=self.state.root,
            patience=_PATIENCE_S,
        )

    def has(self, path: str) -> bool:
        """Say whether the API server has that path, and lets us read it."""
        return self._ask("GET", path)[0] == http.HTTPStatus.OK

    def _is_ready(self, node: str) -> bool:
        status, body = self._ask("GET", f"/api/v1/nodes/{node}")
        found: dict[str, Any] = json.loads(body) if status == http.HTTPStatus.OK else {}
        conditions: Sequence[Mapping[str, str]] = found.get("status", {}).get("conditions", ())
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    def add_node(self, name: str) -> None:
        """Make a node: nobody runs it but kwok."""
        labels = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "topology.kubernetes.io/zone": f"zone-{name}",
        }
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
        self._ask("POST", "/api/v1/nodes", json.dumps(node))

    def _ask(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        if not self._certificate.exists():
            return 0, b""
        trusting = ssl.create_default_context(cafile=self._certificate)
        connection = http.client.HTTPSConnection(ready.HOST, self.api, timeout=10, context=trusting)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
