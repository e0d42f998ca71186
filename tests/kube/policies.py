"""What must hold of everything that the chart renders, as rules over the documents: each yields a sentence for what breaks it.

Used by `test_policies`, where every rule must refuse a mutant of the chart. A rule finds documents by kind and by what they select, never
by name, so that an object which somebody adds is held to it too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from . import pod_security
from .manifests import LONG_RUNNING, Container, Document, containers, labels_of, name_of, pods, selects
from .secrets import leaks, strays

Rule = Callable[[Sequence[Document]], Iterator[str]]

_RECOMMENDED = ("name", "instance", "version", "managed-by")
_MUTABLE = {"", "latest", "main", "master", "edge", "nightly", "dev", "stable"}
_POWERS = {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}
_HANDLERS = ("httpGet", "exec", "tcpSocket", "grpc")
_ENGINE_SOCKET = re.compile(r"/(docker|containerd|crio|podman)\S*\.sock")
_GRACE_S = 30
"""Seconds between the end of a drain and the kill: issue 8, "grace = longest call + 30 s"."""


def restricted(documents: Sequence[Document]) -> Iterator[str]:
    """Every pod fits the Pod Security Standard *restricted*."""
    for pod in pods(documents):
        yield from pod_security.violations(pod)


def hardened(documents: Sequence[Document]) -> Iterator[str]:
    """Beyond *restricted*: a root file system that nobody writes, and a user with a number, which needs no image to be checked."""
    for pod in pods(documents):
        for one in pod.containers():
            if one.security.get("readOnlyRootFilesystem") is not True:
                yield f"{one.where}: its root file system can be written"
            if not {**pod.security, **one.security}.get("runAsUser"):
                yield f"{one.where}: its user has no number"


def powerless(documents: Sequence[Document]) -> Iterator[str]:
    """Nothing talks to the API server: no token in any pod or account, no roles."""
    for document in documents:
        if document["kind"] in _POWERS:
            yield f"{name_of(document)}: the chart gives nobody rights in the cluster"
        if document["kind"] == "ServiceAccount" and document.get("automountServiceAccountToken") is not False:
            yield f"{name_of(document)}: its token is mounted"
    for pod in pods(documents):
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.where}: the token of its account is mounted"
        if any(
            "serviceAccountToken" in part for one in pod.volumes for part in one.get("projected", {}).get("sources", ())
        ):
            yield f"{pod.where}: a volume holds a token"


def node_untouched(documents: Sequence[Document]) -> Iterator[str]:
    """No pod sees the node's files, nor an engine's socket on it."""
    for pod in pods(documents):
        for volume in pod.volumes:
            if "hostPath" in volume:
                yield f"{pod.where}: volume {volume['name']} is {volume['hostPath'].get('path')} of the node"
        for one in pod.containers():
            places = [mount["mountPath"] for mount in one.spec.get("volumeMounts") or ()]
            if any(map(_ENGINE_SOCKET.search, places)):
                yield f"{one.where}: an engine's socket is mounted"


def probed(documents: Sequence[Document]) -> Iterator[str]:
    """What runs for long is probed in three ways, and what keeps it alive asks nobody else."""
    for one in containers(documents):
        if one.lasts:
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                if not any(handler in (one.spec.get(kind) or {}) for handler in _HANDLERS):
                    yield f"{one.where}: it has no {kind}"
            yield from _lives_alone(one)


def _lives_alone(one: Container) -> Iterator[str]:
    """A liveness probe on a dependency restarts everybody when that is down: ours is `/livez`, and never what says "ready"."""
    alive: Document = one.spec.get("livenessProbe") or {}
    ready: Document = one.spec.get("readinessProbe") or {}
    if one.ours and alive.get("httpGet", {}).get("path") != "/livez":
        yield f"{one.where}: its livenessProbe is not /livez"
    if "httpGet" in alive and alive["httpGet"] == ready.get("httpGet"):
        yield f"{one.where}: its livenessProbe asks what its readinessProbe asks"


def bounded(documents: Sequence[Document]) -> Iterator[str]:
    """Every container asks for CPU and memory, and has a limit of memory."""
    for one in containers(documents):
        resources: Document = one.spec.get("resources") or {}
        for kind, what in (("requests", "cpu"), ("requests", "memory"), ("limits", "memory")):
            if not (resources.get(kind) or {}).get(what):
                yield f"{one.where}: resources.{kind}.{what} is not set"


def fixed_images(documents: Sequence[Document]) -> Iterator[str]:
    """An image has a digest, or a tag that is no moving name."""
    for one in containers(documents):
        image = one.spec["image"]
        if "@sha256:" not in image and image.rpartition("/")[2].partition(":")[2] in _MUTABLE:
            yield f"{one.where}: {image} is not the same image tomorrow"


def digests(documents: Sequence[Document]) -> Iterator[str]:
    """Every image has a digest: for values that are meant for production."""
    for one in containers(documents):
        if not re.search(r"@sha256:[0-9a-f]{64}$", one.spec["image"]):
            yield f"{one.where}: {one.spec['image']} has no digest"


def labelled(documents: Sequence[Document]) -> Iterator[str]:
    """Objects and pods carry the labels that Kubernetes recommends."""
    for document in documents:
        for label in (*(f"app.kubernetes.io/{one}" for one in _RECOMMENDED), "helm.sh/chart"):
            if not labels_of(document).get(label):
                yield f"{name_of(document)}: it has no label {label}"
    for pod in pods(documents):
        for label in ("name", "instance", "component"):
            if not pod.labels.get(f"app.kubernetes.io/{label}"):
                yield f"{pod.where}: its pods have no label app.kubernetes.io/{label}"


def selected(documents: Sequence[Document]) -> Iterator[str]:
    """What keeps pods selects its own and no others', and a Service selects pods that there are."""
    found = list(pods(documents))
    for document in documents:
        if document["kind"] in LONG_RUNNING:
            taken = {pod.where for pod in found if selects(document["spec"]["selector"], pod.labels)}
            if taken != {name_of(document)}:
                yield f"{name_of(document)}: it selects the pods of {', '.join(sorted(taken)) or 'nobody'}"
        if document["kind"] == "Service":
            selector: Document = document["spec"].get("selector") or {}
            if not any(selects({"matchLabels": selector}, pod.labels) for pod in found):
                yield f"{name_of(document)}: it selects the pods of nobody"


def patient(documents: Sequence[Document]) -> Iterator[str]:
    """What runs for long says how long its end may take, and that is longer than its drain."""
    for pod in pods(documents):
        if pod.document["kind"] in LONG_RUNNING:
            grace = pod.spec.get("terminationGracePeriodSeconds")
            drains = [float(one.literals.get("METIER_DRAIN_S", 0)) for one in pod.containers() if one.lasts]
            if grace is None or grace < max(drains) + _GRACE_S * any(drains):
                yield f"{pod.where}: terminationGracePeriodSeconds is {grace}, its drain {max(drains):g} s"


def evictable(documents: Sequence[Document]) -> Iterator[str]:
    """Each Deployment has one PodDisruptionBudget, and that lets a node be drained."""
    budgets = [one for one in documents if one["kind"] == "PodDisruptionBudget"]
    for pod in pods(documents):
        if pod.document["kind"] == "Deployment":
            own = [one for one in budgets if selects(one["spec"]["selector"], pod.labels)]
            if len(own) != 1:
                yield f"{pod.where}: it has {len(own)} PodDisruptionBudgets"
    for one in budgets:
        if not one["spec"].get("maxUnavailable"):
            yield f"{name_of(one)}: maxUnavailable is not set, and a drain may wait for ever"


def spread(documents: Sequence[Document]) -> Iterator[str]:
    """The pods of a Deployment keep apart from each other, as far as the cluster has room."""
    for pod in pods(documents):
        if pod.document["kind"] == "Deployment":
            rules = pod.spec.get("topologySpreadConstraints") or ()
            if not any(
                selects(one.get("labelSelector") or {}, pod.labels) and one.get("labelSelector") for one in rules
            ):
                yield f"{pod.where}: no topologySpreadConstraint is about its own pods"


def needed_secrets(documents: Sequence[Document]) -> Iterator[str]:
    """A role has the secrets that it needs, and no others."""
    for one in containers(documents):
        yield from strays(one)


def hidden_secrets(documents: Sequence[Document]) -> Iterator[str]:
    """No secret stands in a manifest's plain values."""
    for one in containers(documents):
        yield from leaks(one)


def fenced(documents: Sequence[Document]) -> Iterator[str]:
    """Where there are network policies, every pod is under one for both directions, and none lets everything through."""
    policies = [one for one in documents if one["kind"] == "NetworkPolicy"]
    for policy in policies:
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            if any(not rule.get(peers) and not rule.get("ports") for rule in policy["spec"].get(direction) or ()):
                yield f"{name_of(policy)}: a rule of {direction} lets everything through"
    for pod in pods(documents) if policies else ():
        over = [one["spec"] for one in policies if selects(one["spec"]["podSelector"], pod.labels)]
        for direction in {"Ingress", "Egress"} - {way for spec in over for way in spec.get("policyTypes") or ()}:
            yield f"{pod.where}: no NetworkPolicy is about its {direction}"


def unique(documents: Sequence[Document]) -> Iterator[str]:
    """No two objects have the same kind and name, and a name is one that a label can hold."""
    for name, count in Counter(map(name_of, documents)).items():
        if count > 1:
            yield f"{name}: there are {count} of it"
        if len(name.partition("/")[2]) > 63:
            yield f"{name}: its name is longer than 63 characters"


def finite(documents: Sequence[Document]) -> Iterator[str]:
    """A Job gives up, starts nothing twice in the same pod, and goes away when it is over."""
    for one in documents:
        if one["kind"] == "Job":
            if not {"backoffLimit", "ttlSecondsAfterFinished"} <= one["spec"].keys():
                yield f"{name_of(one)}: it needs backoffLimit and ttlSecondsAfterFinished"
            if one["spec"]["template"]["spec"].get("restartPolicy") != "Never":
                yield f"{name_of(one)}: restartPolicy is not Never, and the log of what failed is lost"


THEIRS = "trust"
"""The volume of the authorities that an operator has in a ConfigMap of their own."""


def grounded(documents: Sequence[Document]) -> Iterator[str]:
    """What a pod names of this release is there: its account, its ConfigMaps; and when one changes, the pod is replaced."""
    there = {
        kind: {one["metadata"]["name"] for one in documents if one["kind"] == kind}
        for kind in ("ServiceAccount", "ConfigMap")
    }
    for pod in pods(documents):
        account = pod.spec.get("serviceAccountName")
        if account not in there["ServiceAccount"]:
            yield f"{pod.where}: there is no ServiceAccount {account}"
        maps = {one["configMap"]["name"] for one in pod.volumes if "configMap" in one and one["name"] != THEIRS}
        maps |= {
            source["configMapRef"]["name"]
            for one in pod.containers()
            for source in one.spec.get("envFrom") or ()
            if "configMapRef" in source
        }
        for name in maps - there["ConfigMap"]:
            yield f"{pod.where}: there is no ConfigMap {name}"
        notes: Mapping[str, str] = pod.metadata.get("annotations") or {}
        if maps and pod.document["kind"] in LONG_RUNNING and not any(note.startswith("checksum/") for note in notes):
            yield f"{pod.where}: it stays as it is when {', '.join(sorted(maps))} changes"


RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (
        restricted,
        hardened,
        powerless,
        node_untouched,
        probed,
        bounded,
        fixed_images,
        labelled,
        selected,
        patient,
        evictable,
        spread,
        needed_secrets,
        hidden_secrets,
        fenced,
        unique,
        finite,
        grounded,
    )
}
"""The rules that hold for all values; `digests` holds for those that are meant for production."""
