"""The Pod Security Standard *restricted*, as a function over one pod: what the API server would refuse, and why.

Used by `policies`; the cluster tier shows that the real admission agrees. Each check is a section of "Pod Security Standards" in the
documentation of Kubernetes 1.36, for Linux pods.
"""

from __future__ import annotations

from collections.abc import Iterator

from .manifests import Container, Document, Pod

_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_PROFILES = {"RuntimeDefault", "Localhost"}
_SHARED = ("hostNetwork", "hostPID", "hostIPC")


def violations(pod: Pod) -> Iterator[str]:
    """Yield what of a pod is not restricted."""
    for shared in _SHARED:
        if pod.spec.get(shared):
            yield f"{pod.where}: {shared} is set"
    for volume in pod.volumes:
        for kind in volume.keys() - {"name"} - _VOLUMES:
            yield f"{pod.where}: volume {volume['name']} is a {kind}"
    for sysctl in pod.security.get("sysctls") or ():
        yield f"{pod.where}: sysctl {sysctl['name']} is set"
    for container in pod.containers():
        yield from (f"{container.where}: {what}" for what in _violations(pod, container))


def _violations(pod: Pod, container: Container) -> Iterator[str]:
    own = container.security
    kept: Document = own.get("capabilities") or {}
    drop, add = (set[str](kept.get(which) or ()) for which in ("drop", "add"))
    if own.get("privileged"):
        yield "it is privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if "ALL" not in drop or add - {"NET_BIND_SERVICE"}:
        yield "it keeps capabilities"
    if (own.get("procMount") or "Default") != "Default":
        yield "its /proc is not masked"
    if any(port.get("hostPort") for port in container.spec.get("ports") or ()):
        yield "it takes a port of the node"
    yield from _identity(pod, container)


def _identity(pod: Pod, container: Container) -> Iterator[str]:
    effective = {**pod.security, **container.security}
    if effective.get("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if effective.get("runAsUser") == 0:
        yield "runAsUser is root"
    if (effective.get("seccompProfile") or {}).get("type") not in _PROFILES:
        yield "it has no seccomp profile"
    if (effective.get("appArmorProfile") or {}).get("type", "RuntimeDefault") not in _PROFILES:
        yield "AppArmor is off"
    if (effective.get("seLinuxOptions") or {}).keys() & {"user", "role"}:
        yield "it sets a SELinux user or role"
