"""The chart on a real control plane: what the API server admits, what the controllers make of it, what its accounts may do.

Not tested here: the pulling of images, network policies at work, containers and their probes, KEDA's scaling: the nodes only pretend.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import Cluster, Namespace, new_namespace
from .harms import ALLOWED, HARMS, harmed
from .kit import CASES, CHART, SIDECAR_MODES, engine_of, every_document, rendered
from .manifests import Document, Pod, pods, read
from .mutants import MUTANTS

pytestmark = pytest.mark.timeout(900)  # the first of them starts the cluster, and builds it where `make kube` did not

MINIMAL = CHART / "ci/minimal-values.yaml"
WAIT = ("--wait", "--timeout", "120s")
OURS = "app.kubernetes.io/instance=rel"
KINDS = "deployments,replicasets,pods,jobs,configmaps,secrets,serviceaccounts,services,poddisruptionbudgets,networkpolicies,horizontalpodautoscalers"
restrictable = [values for values in CASES if engine_of(values) not in SIDECAR_MODES]
with_sidecar = [values for values in CASES if engine_of(values) in SIDECAR_MODES]


def ready_by_name(namespace: Namespace) -> dict[str, int]:
    found = namespace.get("deployments", "-l", OURS)
    return {one["metadata"]["name"]: one["status"].get("readyReplicas", 0) for one in found}


def wanted_by_name(values: Path) -> dict[str, int]:
    found = [one for one in read(rendered(values)) if one["kind"] == "Deployment"]
    return {one["metadata"]["name"]: one["spec"]["replicas"] for one in found}


def test_a_release_is_installed_tested_upgraded_rolled_back_and_uninstalled(namespace: Namespace) -> None:
    wanted = wanted_by_name(MINIMAL)
    (orchestrator,) = (name for name in wanted if "orchestrator" in name)

    namespace.helm("install", "rel", CHART, "-f", MINIMAL, *WAIT)
    assert ready_by_name(namespace) == wanted
    namespace.helm("test", "rel", "--timeout", "120s")

    namespace.helm("upgrade", "rel", CHART, "-f", MINIMAL, "--set", "orchestrator.replicas=3", *WAIT)
    assert ready_by_name(namespace) == wanted | {orchestrator: 3}

    namespace.helm("rollback", "rel", "1", *WAIT)
    assert ready_by_name(namespace) == wanted
    history = json.loads(namespace.helm("history", "rel", "-o", "json"))
    assert [one["status"] for one in history] == ["superseded", "superseded", "deployed"]

    namespace.helm("uninstall", "rel", *WAIT)
    namespace.kubectl("wait", "--for=delete", "pods", "-l", OURS, "--timeout=120s")
    assert [f"{one['kind']}/{one['metadata']['name']}" for one in namespace.get(KINDS, "-l", OURS)] == []


@pytest.fixture(scope="module")
def release(cluster: Cluster) -> Iterator[Namespace]:
    """A release that is there, for those who only look at it or go on from it."""
    with new_namespace(cluster) as made:
        made.helm("install", "rel", CHART, "-f", MINIMAL, "--wait-for-jobs", *WAIT)
        yield made


def test_each_revision_has_jobs_of_its_own_that_came_to_their_end(release: Namespace) -> None:
    release.helm("upgrade", "rel", CHART, "-f", MINIMAL, "--wait-for-jobs", *WAIT)
    (latest,) = json.loads(release.helm("history", "rel", "--max", "1", "-o", "json"))

    jobs = {one["metadata"]["name"]: one["status"].get("succeeded") for one in release.get("jobs", "-l", OURS)}

    assert jobs
    assert all(name.endswith(f"-{latest['revision']}") and done == 1 for name, done in jobs.items()), jobs


def test_where_what_looks_before_the_release_fails_there_is_no_release(namespace: Namespace) -> None:
    failing = ["--set-json", 'podDefaults.annotations={"metier.test/outcome": "fail"}']

    done = namespace.cluster.run("helm", "-n", namespace.name, "install", "rel", CHART, "-f", MINIMAL, *failing, *WAIT)

    assert done.returncode == 1
    assert "pre-install" in done.stderr
    assert namespace.get("deployments") == []


@pytest.mark.usefixtures("operators")
def test_the_api_server_accepts_every_object_of_all_values(namespace: Namespace) -> None:
    documents = [one for one in every_document() if one["kind"] != "Pod"]

    done = namespace.create(documents, "--dry-run=server", "-o", "name")

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len(documents)


def _objects(values: Sequence[Path]) -> list[Document]:
    """The pods of these values as objects of their own, each under a name that no other has."""
    return [
        _object(pod, f"p-{number}")
        for number, pod in enumerate(pod for one in values for pod in pods(read(rendered(one))))
    ]


def _object(pod: Pod, name: str) -> dict[str, Any]:
    claimed = [one["metadata"]["name"] for one in pod.document["spec"].get("volumeClaimTemplates") or ()]
    volumes = [*pod.volumes, *({"name": one, "persistentVolumeClaim": {"claimName": one}} for one in claimed)]
    metadata = {"name": name, "annotations": {"of": pod.where}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**pod.spec, "volumes": volumes}}


def _accounts(values: Sequence[Path]) -> list[Document]:
    found = (one for each in values for one in read(rendered(each)) if one["kind"] == "ServiceAccount")
    return list({one["metadata"]["name"]: one for one in found}.values())


def _with_what_they_name(namespace: Namespace, values: Sequence[Path]) -> None:
    """Make the accounts, priorities and runtimes that pods name, without which nobody looks at the pod."""
    specs = [pod.spec for each in values for pod in pods(read(rendered(each)))]
    priorities = {one["priorityClassName"] for one in specs if "priorityClassName" in one}
    runtimes = {one["runtimeClassName"] for one in specs if "runtimeClassName" in one}
    priority = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 1000}
    runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": "any"}
    named = [{**priority, "metadata": {"name": name}} for name in priorities]
    named += [{**runtime, "metadata": {"name": name}} for name in runtimes]
    text = yaml.safe_dump_all([*_accounts(values), *named])
    namespace.kubectl("apply", "-f", "-", told=text)


def test_pod_security_admits_every_pod_of_all_values_without_an_engine_beside_it(namespace: Namespace) -> None:
    _with_what_they_name(namespace, restrictable)
    wanted = _objects(restrictable)

    done = namespace.create(wanted, "--dry-run=server", "-o", "name")

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len(wanted)
    assert "PodSecurity" not in done.stderr


@pytest.mark.parametrize("values", with_sidecar, ids=lambda path: path.stem)
def test_with_an_engine_beside_it_pod_security_refuses_the_tool_runner_alone(
    namespace: Namespace, values: Path
) -> None:
    _with_what_they_name(namespace, [values])

    done = {
        one["metadata"]["annotations"]["of"]: namespace.create([one], "--dry-run=server") for one in _objects([values])
    }

    refused = {name for name, one in done.items() if one.returncode}
    assert refused == {"Deployment/rel-metier-tool-runner"}
    assert 'violates PodSecurity "restricted' in done["Deployment/rel-metier-tool-runner"].stderr


@pytest.mark.parametrize("does", ["lets root in", "is privileged", "keeps the capabilities"])
def test_pod_security_refuses_the_pods_of_a_chart_that_is_harmed(
    namespace: Namespace, does: str, tmp_path: Path
) -> None:
    (mutant,) = (one for one in MUTANTS if one.does == does)

    namespace.helm("install", "rel", mutant.of_the_chart(tmp_path), "-f", MINIMAL, "--no-hooks")

    namespace.kubectl("wait", "deployments", "--all", "--for=condition=ReplicaFailure", "--timeout=120s")
    failures = [
        condition
        for one in namespace.get("deployments")
        for condition in one["status"]["conditions"]
        if condition["type"] == "ReplicaFailure"
    ]
    assert {one["reason"] for one in failures} == {"FailedCreate"}
    assert all('violates PodSecurity "restricted' in one["message"] for one in failures)
    assert namespace.get("pods") == []


def test_the_api_server_sees_what_our_rule_for_pods_sees_and_lets_be_what_it_lets_be(namespace: Namespace) -> None:
    wrong, right = ([harmed(*one) for one in table.values()] for table in (HARMS, ALLOWED))
    for number, pod in enumerate([*wrong, *right]):
        pod["metadata"]["name"] = f"p-{number}"

    done = namespace.create([*wrong, *right], "--dry-run=server", "-o", "name")

    said = r'[Pp]ods? "(p-\d+)" is (?:forbidden: violates PodSecurity "restricted|invalid: .*procMount)'
    refused = re.findall(said, done.stderr)
    assert refused == [pod["metadata"]["name"] for pod in wrong]
    assert done.stdout.split() == [f"pod/{pod['metadata']['name']}" for pod in right]


DANGERS = [
    ("create", "", "pods"),
    ("create", "", "pods/exec"),
    ("get", "", "pods/log"),
    ("list", "", "pods"),
    ("get", "", "secrets"),
    ("list", "", "configmaps"),
    ("create", "", "serviceaccounts/token"),
    ("get", "", "nodes"),
    ("patch", "apps", "deployments"),
    ("create", "batch", "jobs"),
    ("create", "rbac.authorization.k8s.io", "rolebindings"),
    ("escalate", "rbac.authorization.k8s.io", "clusterroles"),
    ("impersonate", "", "users"),
    ("*", "*", "*"),
]


def _question(namespace: str, account: str, danger: tuple[str, str, str]) -> dict[str, Any]:
    verb, group, resource = danger
    kind, _, part = resource.partition("/")
    asked = {"namespace": namespace, "verb": verb, "group": group, "resource": kind, "subresource": part}
    spec = {"user": f"system:serviceaccount:{account}", "groups": _groups(account), "resourceAttributes": asked}
    return {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}


def _groups(account: str) -> list[str]:
    return ["system:authenticated", "system:serviceaccounts", f"system:serviceaccounts:{account.partition(':')[0]}"]


def answers(cluster: Cluster, questions: Sequence[Mapping[str, Any]]) -> list[bool]:
    """What `kubectl auth can-i` would say to each of these, asked at once."""
    asked = json.dumps({"apiVersion": "v1", "kind": "List", "items": questions})
    told = cluster.must("kubectl", "create", "-f", "-", "-o", 'jsonpath={.status.allowed}{"\\n"}', told=asked)
    return [line == "true" for line in told.split()]


def test_no_account_of_the_release_may_do_anything_dangerous(release: Namespace) -> None:
    accounts = [one["metadata"]["name"] for one in release.get("serviceaccounts", "-l", OURS)]
    asked = [(f"{release.name}:{one}", danger) for one in accounts for danger in DANGERS]
    asked.append(("kube-system:job-controller", ("create", "", "pods")))

    *dangerous, known = answers(release.cluster, [_question(release.name, *one) for one in asked])

    assert accounts
    assert [one for one, allowed in zip(asked[:-1], dangerous, strict=True) if allowed] == []
    assert known, "an account that may create pods is said to, or nothing is proved"


def test_no_pod_of_the_release_holds_a_token(release: Namespace) -> None:
    found = release.get("pods", "-l", OURS)

    assert found
    assert [one for one in found if "serviceaccount" in json.dumps(one["spec"]["containers"]).lower()] == []


KEDA = CHART / "ci/keda-values.yaml"


def test_without_the_custom_resources_of_keda_a_release_that_wants_them_is_refused_with_a_sentence(
    namespace: Namespace,
) -> None:
    done = namespace.cluster.run("helm", "-n", namespace.name, "install", "rel", CHART, "-f", KEDA)

    assert done.returncode == 1
    assert "keda" in done.stderr
    assert "Install KEDA" in done.stderr
    assert namespace.get("deployments") == []


@pytest.mark.usefixtures("operators")
def test_with_the_custom_resources_of_keda_its_scaled_objects_are_there_and_go_with_the_release(
    namespace: Namespace,
) -> None:
    wanted = {one["metadata"]["name"] for one in read(rendered(KEDA)) if one["kind"] == "ScaledObject"}

    namespace.helm("install", "rel", CHART, "-f", KEDA, "--no-hooks")
    there = {one["metadata"]["name"] for one in namespace.get("scaledobjects")}
    namespace.helm("uninstall", "rel", "--no-hooks", *WAIT)

    assert wanted
    assert there == wanted
    assert namespace.get("scaledobjects") == []
