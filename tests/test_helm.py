"""The chart `helm/metier`, rendered by the real helm and checked against the Kubernetes schemas.

Not tested: a cluster's admission, the pulling of images, probes and network policies at work.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
CHART = REPOSITORY / "helm" / "metier"
CASES = sorted((CHART / "ci").glob("*-values.yaml"))
OLDEST, NEWEST = "1.31.0", "1.37.0"
Document = Mapping[str, Any]


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "infra/local/helm.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def render(values: Path, *words: str, kubernetes: str = NEWEST) -> str:
    done = helm("template", "rel", str(CHART), "-n", "app", "--kube-version", kubernetes, "-f", str(values), *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def documents(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.fixture(scope="module")
def minimal() -> list[Document]:
    return documents(render(CHART / "ci" / "minimal-values.yaml"))


@pytest.fixture(scope="module")
def full() -> list[Document]:
    return documents(render(CHART / "ci" / "full-values.yaml"))


def named(found: list[Document], name: str) -> Document:
    (one,) = [document for document in found if document["metadata"]["name"] == name]
    return one


def pods(found: list[Document]) -> list[Document]:
    return [one["spec"]["template"]["spec"] for one in found if one["kind"] in {"Deployment", "Job"}]


def containers(pod: Document) -> list[Document]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def variables(container: Document) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


@pytest.mark.parametrize("kubernetes", [OLDEST, NEWEST])
@pytest.mark.parametrize("values", CASES, ids=lambda path: path.stem)
def test_every_document_fits_the_schema_of_kubernetes(values: Path, kubernetes: str, tmp_path: Path) -> None:
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(render(values, kubernetes=kubernetes))
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", "-k", kubernetes.rpartition(".")[0]]

    done = subprocess.run([*command, str(rendered)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert len(documents(rendered.read_text())) >= 6


@pytest.mark.parametrize("values", CASES, ids=lambda path: path.stem)
def test_lint_has_nothing_to_say(values: Path) -> None:
    done = helm("lint", "--strict", "--quiet", "--kube-version", NEWEST, "-f", str(values), str(CHART))

    assert done.returncode == 0, done.stdout + done.stderr


def test_each_role_is_there_under_its_name(minimal: list[Document]) -> None:
    assert sorted((one["kind"], one["metadata"]["name"]) for one in minimal) == [
        ("Deployment", "rel-metier-agent-careful"),
        ("Deployment", "rel-metier-agent-coder"),
        ("Deployment", "rel-metier-agent-reasoner"),
        ("Deployment", "rel-metier-orchestrator"),
        ("Deployment", "rel-metier-tools"),
        ("Job", "rel-metier-setup-1"),
        ("ServiceAccount", "rel-metier"),
    ]


def test_a_deployment_selects_its_own_pods_and_no_others(minimal: list[Document]) -> None:
    deployments = [one for one in minimal if one["kind"] == "Deployment"]

    selectors = [one["spec"]["selector"]["matchLabels"] for one in deployments]

    assert len({tuple(sorted(selector.items())) for selector in selectors}) == len(deployments)
    for one, selector in zip(deployments, selectors, strict=True):
        assert selector.items() <= one["spec"]["template"]["metadata"]["labels"].items()
        assert one["metadata"]["labels"]["app.kubernetes.io/instance"] == "rel"
        assert one["metadata"]["labels"]["app.kubernetes.io/component"] in one["metadata"]["name"]


def test_only_the_tool_runner_knows_the_engine_and_only_the_journals_users_know_the_database(
    minimal: list[Document],
) -> None:
    found = {container["name"]: variables(container) for pod in pods(minimal) for container in containers(pod)}

    with_engine = {name for name, env in found.items() if "DOCKER_HOST" in env}
    with_database = {name for name, env in found.items() if "METIER_POSTGRES_URL" in env}

    assert with_engine == {"tools"}
    assert with_database == {"orchestrator", "agent", "migrate"}
    assert found["tools"].keys() & {"METIER_KAFKA_BOOTSTRAP"} == set()
    assert found["agent"]["METIER_GRANT_KEY"] == {"secretKeyRef": {"name": "metier", "key": "grant-key"}}


def test_every_variable_is_a_setting_that_the_code_reads(full: list[Document]) -> None:
    from metier_infra.settings import FREE_PREFIXES, known_names

    names = {name for pod in pods(full) for container in containers(pod) for name in variables(container)}

    ours = {name for name in names if name.startswith("METIER_")}
    assert {name for name in ours - known_names() if not name.startswith(FREE_PREFIXES)} == set()
    assert "METIER_MODEL_DEEP_THINKER" in ours


def test_the_commands_are_those_of_the_cli(minimal: list[Document]) -> None:
    assert sorted(" ".join(container["command"]) for pod in pods(minimal) for container in containers(pod)) == [
        "metier agent careful",
        "metier agent coder",
        "metier agent reasoner",
        "metier migrate",
        "metier orchestrator",
        "metier tools",
        "metier topics",
    ]


@pytest.mark.parametrize("values", CASES, ids=lambda path: path.stem)
def test_every_pod_is_restricted(values: Path) -> None:
    for pod in pods(documents(render(values))):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            ready_file = variables(container)["METIER_READY_FILE"]
            assert any(ready_file.startswith(mount["mountPath"] + "/") for mount in container["volumeMounts"])


def test_readiness_is_the_ready_file_and_the_grace_outlasts_the_drain(full: list[Document]) -> None:
    for one in full:
        if one["kind"] == "Deployment":
            pod = one["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            assert container["readinessProbe"]["exec"]["command"] == ["sh", "-c", 'test -f "$METIER_READY_FILE"']
            assert pod["terminationGracePeriodSeconds"] > float(variables(container)["METIER_DRAIN_S"])


def test_an_agent_is_merged_over_the_defaults_and_null_leaves_one_out(full: list[Document]) -> None:
    agents = [one for one in full if one["metadata"]["name"].startswith("rel-metier-agent-")]

    assert [one["metadata"]["name"] for one in agents] == ["rel-metier-agent-deep-thinker"]
    (container,) = agents[0]["spec"]["template"]["spec"]["containers"]
    assert agents[0]["spec"]["replicas"] == 3
    assert container["resources"]["limits"] == {"memory": "1Gi"}
    assert container["envFrom"] == [{"secretRef": {"name": "openai"}}]
    assert variables(container)["METIER_MODEL_DEEP_THINKER"] == "openai:gpt-5"


def test_agent_files_reach_every_role_that_reads_them(full: list[Document]) -> None:
    text = named(full, "rel-metier-agents")["data"]["deep-thinker.yaml"]

    assert yaml.safe_load(text)["name"] == "deep-thinker"
    readers = {
        container["name"]
        for pod in pods(full)
        for container in containers(pod)
        if "METIER_AGENTS" in variables(container)
        and {"name": "agents", "mountPath": "/etc/metier/agents", "readOnly": True} in container["volumeMounts"]
    }
    assert readers == {"orchestrator", "agent", "topics"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "nosuch=1"], "additional properties 'nosuch' not allowed"),
        (["--set", "agents.coder.modle=x"], "additional properties 'modle' not allowed"),
        (["--set", "tools.dockerHost=unix:///var/run/docker.sock"], "does not match pattern"),
        (["--set", "agents.Bad_Name.replicas=1"], "invalid propertyName 'Bad_Name'"),
        (["--set", "kafka.bootstrap="], "kafka.bootstrap is required"),
        (["--set", "existingSecret="], "existingSecret is required"),
        (["--set", "tools.dockerHost="], "tools.dockerHost is required"),
        (["--kube-version", "1.30.0"], "incompatible with Kubernetes v1.30.0"),
    ],
    ids=["name", "agent-field", "host-socket", "agent-name", "no-broker", "no-secret", "no-engine", "old-kubernetes"],
)
def test_values_that_do_not_fit_are_refused_with_a_sentence(words: list[str], sentence: str) -> None:
    base = ["template", "rel", str(CHART), "--kube-version", NEWEST, "-f", str(CHART / "ci" / "minimal-values.yaml")]

    done = helm(*base, *words)

    assert done.returncode != 0
    assert sentence in done.stderr


def test_notes_warn_of_an_engine_without_tls() -> None:
    base = ["install", "rel", str(CHART), "--dry-run=client", "-n", "app"]

    done = helm(*base, "-f", str(CHART / "ci" / "minimal-values.yaml"))

    assert done.returncode == 0, done.stderr
    assert "WARNING: tools.dockerHost is tcp:// without tools.dockerTlsSecret" in done.stdout
