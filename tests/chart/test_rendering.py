"""What the chart makes of its values: which roles there are, what each is told, which secrets it holds, how it ends.

Not tested here: that documents fit the schemas of Kubernetes, and the rules that hold for every pod (`tests/kube`); a cluster.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from metier import reference_cli
from metier.doctor.parts import PARTS
from metier_infra import telemetry
from metier_infra.settings import FREE_PREFIXES, known_names

from .kit import (
    CASES,
    MINIMAL,
    REPOSITORY,
    component,
    containers,
    main_container,
    named,
    of_kind,
    ours,
    pods,
    rendered,
    variables,
)

KAFKA, POSTGRES = "METIER_KAFKA_BOOTSTRAP", "METIER_POSTGRES_URL"
REDIS, GRANT = "METIER_REDIS_URL", "METIER_GRANT_KEY"
ENGINE = "DOCKER_HOST"
HOLDS = {
    "orchestrator": {KAFKA, POSTGRES},
    "agent-reasoner": {KAFKA, POSTGRES, REDIS, GRANT},
    "tool-runner": {REDIS, GRANT, ENGINE},
    "migrations": {POSTGRES},
    "topics": {KAFKA},
    "doctor": {KAFKA, POSTGRES, REDIS, GRANT},
    "test": {KAFKA, POSTGRES},
}
"""The table of the chart's README."""
EACH = pytest.mark.parametrize("case", CASES)


def test_each_part_is_there_under_its_name() -> None:
    assert sorted((one["kind"], one["metadata"]["name"]) for one in rendered(MINIMAL)) == [
        ("ConfigMap", "rel-metier-agents"),
        ("ConfigMap", "rel-metier-agents-before"),
        ("Deployment", "rel-metier-agent-reasoner"),
        ("Deployment", "rel-metier-orchestrator"),
        ("Deployment", "rel-metier-tool-runner"),
        ("Job", "rel-metier-doctor"),
        ("Job", "rel-metier-migrations-1"),
        ("Job", "rel-metier-topics-1"),
        ("Pod", "rel-metier-test"),
        ("PodDisruptionBudget", "rel-metier-agent-reasoner"),
        ("PodDisruptionBudget", "rel-metier-orchestrator"),
        ("PodDisruptionBudget", "rel-metier-tool-runner"),
        ("ServiceAccount", "rel-metier-agent-reasoner"),
        ("ServiceAccount", "rel-metier-before"),
        ("ServiceAccount", "rel-metier-commands"),
        ("ServiceAccount", "rel-metier-orchestrator"),
        ("ServiceAccount", "rel-metier-tool-runner"),
    ]


@EACH
def test_every_variable_is_a_setting_that_the_code_reads(case: str) -> None:
    given = {name for found in ours(rendered(case)).values() for one in found for name in variables(one)}

    unknown = {
        name for name in given - known_names() if name.startswith("METIER_") and not name.startswith(FREE_PREFIXES)
    }

    assert unknown == set()
    assert len(given) > 15


@EACH
def test_every_command_is_one_of_the_cli_and_parses(case: str) -> None:
    known: dict[str, Any] = dict(reference_cli.commands())
    lines = [one["command"] for found in ours(rendered(case)).values() for one in found]

    for _, command, *words in lines:
        assert known[f"metier {command}"].make_context(command, list(words)), words
    assert {command for _, command, *_ in lines} >= {"orchestrator", "agent", "tools", "migrate", "topics"}


def test_the_doctor_leaves_out_parts_that_there_are() -> None:
    words = main_container(rendered(MINIMAL), "doctor")["command"]

    skipped = words[words.index("--skip") + 1].split(",")

    assert set(skipped) <= {part.name for part in PARTS}


def test_a_role_holds_what_it_needs_and_nothing_else() -> None:
    every = {KAFKA, POSTGRES, REDIS, GRANT, ENGINE}

    holds = {name: variables(main_container(rendered(MINIMAL), name)).keys() & every for name in HOLDS}

    assert holds == HOLDS


def test_a_models_key_goes_to_its_agent_alone() -> None:
    found = ours(rendered("full"))
    with_key = {
        name for name, all_of_it in found.items() if any("OPENAI_API_KEY" in variables(one) for one in all_of_it)
    }

    assert with_key == {"agent-deep-thinker"}
    assert variables(main_container(rendered("full"), "agent-deep-thinker"))["OPENAI_API_KEY"] == {
        "secretKeyRef": {"name": "openai", "key": "api-key"}
    }


@EACH
def test_only_the_tool_runner_sees_the_engine_or_the_tools_secrets(case: str) -> None:
    for name, pod in pods(rendered(case)).items():
        volumes = {one["name"] for one in pod["volumes"]}
        assert name == "tool-runner" or not volumes & {"engine-access", "engine-socket", "tool-secrets"}, name


@EACH
def test_the_time_to_end_is_the_longest_call_and_thirty_seconds(case: str) -> None:
    for one in of_kind(rendered(case), "Deployment"):
        pod = one["spec"]["template"]["spec"]
        drain = float(variables(pod["containers"][0])["METIER_DRAIN_S"])
        assert pod["terminationGracePeriodSeconds"] == drain + 30
        assert 0 < pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"] < 30


def test_the_default_is_three_hundred_and_thirty_seconds() -> None:
    assert pods(rendered(MINIMAL))["orchestrator"]["terminationGracePeriodSeconds"] == 330


@EACH
def test_roles_are_probed_where_they_listen(case: str) -> None:
    for name, pod in pods(rendered(case)).items():
        container = pod["containers"][0]
        if container["name"] in {"orchestrator", "agent", "tool-runner"}:
            paths = {
                kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")
            }
            assert paths == {"startup": "/livez", "readiness": "/readyz", "liveness": "/livez"}, name
            (port,) = container["ports"]
            assert port["name"] == "http"
            assert variables(container)["METIER_HTTP_PORT"] == str(port["containerPort"])
            assert variables(container)["METIER_HTTP_HOST"] == "0.0.0.0"


def test_a_role_reports_under_the_name_that_the_chart_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given = variables(main_container(rendered(MINIMAL), "agent-reasoner"))["OTEL_SERVICE_NAME"]
    monkeypatch.setenv("OTEL_SERVICE_NAME", given)

    assert telemetry.service("agent") == "metier-agent-reasoner"


def test_what_is_traced_says_which_pod_it_came_from() -> None:
    told = variables(main_container(rendered("full"), "orchestrator"))

    assert told["OTEL_SERVICE_NAME"] == "metier-orchestrator"
    attributes = dict(one.split("=") for one in told["OTEL_RESOURCE_ATTRIBUTES"].split(","))
    assert attributes["k8s.pod.name"] == "$(K8S_POD)"
    assert attributes["deployment.environment.name"] == "staging"
    assert told["K8S_POD"] == {"fieldRef": {"fieldPath": "metadata.name"}}


@EACH
def test_what_a_variable_is_made_of_stands_before_it(case: str) -> None:
    for container in (one for pod in pods(rendered(case)).values() for one in containers(pod)):
        names = list(variables(container))
        for at, (name, value) in enumerate(variables(container).items()):
            used = {other for other in names if isinstance(value, str) and f"$({other})" in value}
            assert used <= set(names[:at]), name


def test_an_agent_is_merged_over_the_defaults_and_its_file_is_whole() -> None:
    found = rendered("full")
    file = yaml.safe_load(named(found, "ConfigMap", "teams-agents")["data"]["deep-thinker.yaml"])

    assert file == {
        "name": "deep-thinker",
        "model": "openai:gpt-5",
        "policy": {"kind": "meta_reasoned"},
        "tools": [{"name": "python"}],
        "safety": "careful@1",
        "limits": {"timeout_s": 240},
    }
    assert named(found, "Deployment", "teams-agent-deep-thinker")["spec"]["replicas"] == 12
    assert variables(main_container(found, "agent-deep-thinker"))["METIER_CONCURRENCY"] == "4"
    assert variables(main_container(found, "agent-helper"))["METIER_CONCURRENCY"] == "16"


def test_a_value_of_no_or_nought_is_a_value_and_not_the_default() -> None:
    found = rendered(MINIMAL, "--set", "agents.reasoner.replicas=0,agents.reasoner.pod.disruptionBudget=false")

    assert named(found, "Deployment", "rel-metier-agent-reasoner")["spec"]["replicas"] == 0
    assert [component(one) for one in of_kind(found, "PodDisruptionBudget")] == ["orchestrator", "tool-runner"]


@EACH
def test_the_files_of_agents_are_read_by_the_code(case: str) -> None:
    from metier_agents.spec import AgentSpec

    name = "teams-agents" if case == "full" else "rel-metier-agents"
    files = named(rendered(case), "ConfigMap", name)["data"]

    assert files
    for file, text in files.items():
        assert AgentSpec.model_validate(yaml.safe_load(text)).name == file.removesuffix(".yaml")


def test_every_reader_of_agent_files_has_them() -> None:
    readers = {
        name
        for name, found in ours(rendered("full")).items()
        for one in found
        if "METIER_AGENTS" in variables(one)
        and {"name": "agents", "mountPath": "/etc/metier/agents", "readOnly": True} in one["volumeMounts"]
    }

    assert readers == {"orchestrator", "agent-deep-thinker", "agent-helper", "topics", "doctor"}


def test_a_role_reads_a_file_where_it_is_mounted() -> None:
    for name in ("orchestrator", "agent-helper"):
        container = main_container(rendered("full"), name)
        folders = {mount["mountPath"] for mount in container["volumeMounts"]}
        for variable in ("METIER_SAFETY", "METIER_TOOL_FILES", "METIER_AGENTS"):
            assert variables(container)[variable] in folders
        for variable in ("METIER_TENANTS", "METIER_SCHEDULES", "METIER_MODELS"):
            folder, _, file = variables(container)[variable].rpartition("/")
            assert folder in folders
            assert file in named(rendered("full"), "ConfigMap", "teams-settings")["data"]


def test_an_agent_rolls_when_its_own_file_changes_and_no_other_agent_does() -> None:
    before = {component(one): _checksum(one) for one in of_kind(rendered("bundled"), "Deployment")}
    after = rendered("bundled", "--set", "agents.coder.model=openai:gpt-5")

    changed = {component(one) for one in of_kind(after, "Deployment") if _checksum(one) != before[component(one)]}

    assert changed == {"agent-coder", "orchestrator"}


def test_every_role_rolls_when_a_secret_that_is_made_here_changes() -> None:
    before = {component(one): one["spec"]["template"] for one in of_kind(rendered("plain"), "Deployment")}
    after = of_kind(rendered("plain", "--set", "grantKey.value=another"), "Deployment")

    assert all(one["spec"]["template"] != before[component(one)] for one in after)


def _checksum(document: Any) -> str:
    return str(document["spec"]["template"]["metadata"]["annotations"]["checksum/config"])


def test_files_in_a_configmap_of_the_operator_are_read_from_there() -> None:
    found = rendered(
        MINIMAL,
        "--set",
        "agentFiles.existingConfigMap=our-agents,agents.reasoner.model=,agents.deep-thinker.model=openai:gpt-5",
    )

    assert of_kind(found, "ConfigMap") == []
    volumes = pods(found)["orchestrator"]["volumes"]
    assert {"name": "agents", "configMap": {"name": "our-agents"}} in volumes
    told = variables(main_container(found, "orchestrator"))
    assert [name for name in told if name.startswith("METIER_MODEL_")] == ["METIER_MODEL_DEEP_THINKER"]
    assert "METIER_MODEL_DEEP_THINKER" not in variables(main_container(found, "agent-reasoner"))


def test_the_operators_environment_replaces_ours_and_stands_once() -> None:
    found = rendered(MINIMAL, "--set", "orchestrator.env.METIER_LOG_LEVEL=debug")
    names = [one["name"] for one in main_container(found, "orchestrator")["env"]]

    assert variables(main_container(found, "orchestrator"))["METIER_LOG_LEVEL"] == "debug"
    assert len(names) == len(set(names))


def test_kafka_is_told_who_comes_by_a_secret() -> None:
    told = variables(main_container(rendered("full"), "agent-helper"))

    assert told["METIER_KAFKA_SECURITY_PROTOCOL"] == "SASL_SSL"
    assert told["METIER_KAFKA_PASSWORD"] == {"secretKeyRef": {"name": "kafka-user", "key": "password"}}
    mounts = {mount["mountPath"] for mount in main_container(rendered("full"), "agent-helper")["volumeMounts"]}
    for name in ("METIER_KAFKA_CA_FILE", "METIER_KAFKA_CERT_FILE", "METIER_KAFKA_KEY_FILE"):
        assert told[name].rpartition("/")[0] in mounts


def test_each_role_comes_to_kafka_as_the_user_that_the_access_lists_name() -> None:
    roles = yaml.safe_load((REPOSITORY / "infra/kafka-acls.yaml").read_text())["roles"]
    found = ours(rendered("production"))
    users = {
        (name, one["name"]): variables(one)["METIER_KAFKA_USERNAME"]["secretKeyRef"]["name"]
        for name, all_of_it in found.items()
        for one in all_of_it
        if KAFKA in variables(one)
    }

    assert users == {
        ("orchestrator", "orchestrator"): "kafka-orchestrator",
        ("orchestrator", "wait-for-topics"): "kafka-operator",
        ("agent-researcher", "agent"): "kafka-researcher",
        ("agent-researcher", "wait-for-topics"): "kafka-operator",
        ("agent-reviewer", "agent"): "kafka-reviewer",
        ("agent-reviewer", "wait-for-topics"): "kafka-operator",
        ("topics", "topics"): "kafka-topics",
        ("doctor", "doctor"): "kafka-operator",
        ("test", "test"): "kafka-operator",
    }
    assert {"orchestrator", "agent-{agent}", "topics", "operator", "scaler"} <= roles.keys()


def test_a_certificate_is_mounted_where_the_role_looks_for_it_and_each_user_has_its_own() -> None:
    words = ("--set", "kafka.external.users.operator=one,kafka.external.users.agent-helper=two")
    pod = pods(rendered("full", *words))["agent-helper"]
    secrets = {one["name"]: one["secret"]["secretName"] for one in pod["volumes"] if "secret" in one}

    (_, wait), (agent,) = pod["initContainers"], pod["containers"]
    there = [
        secrets[mount["name"]]
        for one in (wait, agent)
        for mount in one["volumeMounts"]
        if mount["mountPath"] == "/etc/metier/kafka-client"
    ]
    assert there == ["one", "two"]


def test_the_tests_pod_asks_for_a_run_that_the_examples_answer() -> None:
    from metier.examples.specialists import Question

    command = main_container(rendered(MINIMAL), "test")["command"]

    assert command[:3] == ["metier", "publish", "specialists"]
    assert Question.model_validate_json(command[3])
    assert "--wait" in command


@pytest.mark.parametrize("length", [35, 50], ids=["too-long-for-a-pod", "too-long-for-a-label"])
def test_long_names_stay_apart_and_short_enough_for_a_hosts_name(length: int) -> None:
    long = "a-very-long-name-for-an-agent-that-nobody-would-want"[: length - 1]
    words = ("--set", f"agents.{long}x.model=m,agents.{long}y.model=m")

    names = [one["metadata"]["name"] for one in of_kind(rendered(MINIMAL, *words), "Deployment")]

    assert len(names) == len(set(names)) == 5
    assert max(map(len, names)) <= 46
