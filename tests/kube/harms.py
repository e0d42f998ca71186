"""A pod that is restricted, and the ways in which it is not when one thing in it is another.

Used by `test_policies`, which asks our own rule, and by `test_cluster`, which asks the API server: they must say the same.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

RESTRICTED: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "restricted"},
    "spec": {
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "containers": [
            {
                "name": "one",
                "image": "images.example/one:1.0.0",
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    },
}

POD, CONTAINER = ("spec",), ("spec", "containers", 0)
POD_SECURITY, SECURITY = (*POD, "securityContext"), (*CONTAINER, "securityContext")
HARMS: dict[str, tuple[tuple[str | int, ...], dict[str, Any]]] = {
    "root may run it": (POD_SECURITY, {"runAsNonRoot": False}),
    "nothing says that root may not": (POD_SECURITY, {"runAsNonRoot": None}),
    "its container overrules the pod": (SECURITY, {"runAsNonRoot": False}),
    "it runs as root": (POD_SECURITY, {"runAsUser": 0}),
    "it has no seccomp profile": (POD_SECURITY, {"seccompProfile": None}),
    "its seccomp profile lets all through": (SECURITY, {"seccompProfile": {"type": "Unconfined"}}),
    "it may gain rights": (SECURITY, {"allowPrivilegeEscalation": True}),
    "nothing says that it may not gain rights": (SECURITY, {"allowPrivilegeEscalation": None}),
    "it is privileged": (SECURITY, {"allowPrivilegeEscalation": None, "privileged": True}),
    "it keeps its capabilities": (SECURITY, {"capabilities": None}),
    "it has one capability more": (SECURITY, {"capabilities": {"drop": ["ALL"], "add": ["SYS_PTRACE"]}}),
    "its /proc is open": (SECURITY, {"procMount": "Unmasked"}),
    "AppArmor is off": (SECURITY, {"appArmorProfile": {"type": "Unconfined"}}),
    "SELinux takes it for another": (POD_SECURITY, {"seLinuxOptions": {"user": "system_u"}}),
    "it sets the kernel": (POD_SECURITY, {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}),
    "it is in the node's network": (POD, {"hostNetwork": True}),
    "it sees the node's processes": (POD, {"hostPID": True}),
    "it shares the node's memory": (POD, {"hostIPC": True}),
    "it takes a port of the node": (CONTAINER, {"ports": [{"containerPort": 8080, "hostPort": 8080}]}),
    "it sees the node's files": (POD, {"volumes": [{"name": "tmp", "hostPath": {"path": "/var/lib"}}]}),
    "it mounts a share": (POD, {"volumes": [{"name": "tmp", "nfs": {"server": "files.example", "path": "/"}}]}),
    "what prepares it is not restricted": (
        POD,
        {"initContainers": [{"name": "first", "image": "images.example/one:1"}]},
    ),
}

ALLOWED: dict[str, tuple[tuple[str | int, ...], dict[str, Any]]] = {
    "as it is": (POD, {}),
    "it may take a low port": (SECURITY, {"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}),
    "its container says for itself that root may not": (SECURITY, {"runAsNonRoot": True}),
    "it reads what is given to it": (POD, {"volumes": [{"name": "tmp", "secret": {"secretName": "any"}}]}),
}


def harmed(where: tuple[str | int, ...], what: dict[str, Any]) -> dict[str, Any]:
    """Return the restricted pod with some fields of one of its objects set, or, where they are None, without them."""
    pod = deepcopy(RESTRICTED)
    place: Any = pod
    for step in where:
        place = place[step]
    place.update(what)
    for name in [name for name, value in what.items() if value is None]:
        del place[name]
    return pod
