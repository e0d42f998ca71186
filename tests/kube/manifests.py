"""What Helm rendered, looked at by kind: the documents, the pods that they describe, and the containers in those.

Used by `policies` and the tests beside it. Nothing here knows a name of the chart's: whatever renders is found by its kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

Document = Mapping[str, Any]
_TEMPLATED = {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"}
LONG_RUNNING = {"Deployment", "StatefulSet", "DaemonSet"}


def read(text: str) -> list[Document]:
    """Return the documents of what `helm template` printed."""
    return [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]


def name_of(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def labels_of(document: Document) -> Mapping[str, str]:
    return document.get("metadata", {}).get("labels") or {}


@dataclass(frozen=True)
class Container:
    """One container of a pod; `lasts` is whether it runs as long as the pod is to run."""

    where: str
    spec: Document
    lasts: bool

    @property
    def security(self) -> Document:
        return self.spec.get("securityContext") or {}

    @property
    def words(self) -> list[str]:
        """The command and its arguments."""
        return [*self.spec.get("command", ()), *self.spec.get("args", ())]

    @property
    def ours(self) -> bool:
        """Whether it runs Métier, in any role."""
        return self.words[:1] == ["metier"]

    @property
    def literals(self) -> dict[str, str]:
        """The variables whose value stands in the manifest."""
        return {one["name"]: str(one["value"]) for one in self.spec.get("env") or () if "value" in one}

    @property
    def secrets(self) -> dict[str, str]:
        """The variables that come from a Secret, each with the Secret's name."""
        found = ((one["name"], one.get("valueFrom", {}).get("secretKeyRef")) for one in self.spec.get("env") or ())
        return {name: reference["name"] for name, reference in found if reference}


@dataclass(frozen=True)
class Pod:
    """A pod that a document describes, itself or as its template."""

    document: Document
    metadata: Document
    spec: Document

    @property
    def where(self) -> str:
        return name_of(self.document)

    @property
    def labels(self) -> Mapping[str, str]:
        return self.metadata.get("labels") or {}

    @property
    def security(self) -> Document:
        return self.spec.get("securityContext") or {}

    @property
    def volumes(self) -> Sequence[Document]:
        return self.spec.get("volumes") or ()

    def containers(self) -> Iterator[Container]:
        """Yield all of them, those that prepare and those that stay."""
        stays = self.document["kind"] in LONG_RUNNING
        for one in self.spec.get("initContainers") or ():
            yield Container(f"{self.where}, container {one['name']}", one, one.get("restartPolicy") == "Always")
        for one in self.spec["containers"]:
            yield Container(f"{self.where}, container {one['name']}", one, stays)


def pods(documents: Sequence[Document]) -> Iterator[Pod]:
    """Yield every pod that these documents describe."""
    for one in documents:
        if one["kind"] == "Pod":
            yield Pod(one, one["metadata"], one["spec"])
        elif one["kind"] in _TEMPLATED:
            template = one["spec"]["template"]
            yield Pod(one, template.get("metadata") or {}, template["spec"])
        elif one["kind"] == "CronJob":
            template = one["spec"]["jobTemplate"]["spec"]["template"]
            yield Pod(one, template.get("metadata") or {}, template["spec"])


def containers(documents: Sequence[Document]) -> Iterator[Container]:
    """Yield every container of every pod."""
    for pod in pods(documents):
        yield from pod.containers()


def selects(selector: Document, labels: Mapping[str, str]) -> bool:
    """Say whether a selector, with labels and expressions, takes an object of these labels."""
    if not (selector.get("matchLabels") or {}).items() <= labels.items():
        return False
    return all(_expression_holds(one, labels) for one in selector.get("matchExpressions") or ())


def _expression_holds(expression: Document, labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or ()
    holds = {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }
    return holds[expression["operator"]]
