"""Network policies against what each part is told to talk to; and engines beside the tool runner.

Not tested here: a network that enforces them.
"""

from __future__ import annotations

from typing import Any

import pytest

from .kit import component, containers, named, of_kind, pods, rendered, variables

NEEDS = {
    "METIER_KAFKA_BOOTSTRAP": 9092,
    "METIER_POSTGRES_URL": 5432,
    "METIER_REDIS_URL": 6379,
    "OTEL_EXPORTER_OTLP_ENDPOINT": 4318,
    "DOCKER_HOST": 2376,
}
"""What a container is told, and the port that it must reach for it."""


def policies(case: str) -> dict[str, Any]:
    return {component(one): one["spec"] for one in of_kind(rendered(case), "NetworkPolicy")}


def ports(rules: list[Any]) -> set[int]:
    return {port["port"] for rule in rules for port in rule["ports"]}


@pytest.mark.parametrize("case", ["network-policies", "full", "production", "bundled"])
def test_a_pod_reaches_what_it_is_told_of_and_names(case: str) -> None:
    for name, pod in pods(rendered(case)).items():
        told = {one for container in containers(pod) for one in variables(container)}
        allowed = ports(policies(case)[name].get("egress") or [])
        assert {port for variable, port in NEEDS.items() if variable in told} <= allowed, name
        assert name in {"kafka", "postgres", "redis"} or 53 in allowed, name


def test_the_internet_is_for_agents_alone_and_without_private_addresses() -> None:
    wide = {name for name, spec in policies("network-policies").items() if 443 in ports(spec.get("egress") or [])}

    assert wide == {"agent-reasoner", "tool-runner"}
    (rule,) = [
        one for one in policies("network-policies")["agent-reasoner"]["egress"] if one["ports"][0]["port"] == 443
    ]
    but = {peer["ipBlock"]["cidr"]: peer["ipBlock"]["except"] for peer in rule["to"]}
    assert but.keys() == {"0.0.0.0/0", "::/0"}
    assert "169.254.0.0/16" in but["0.0.0.0/0"]
    assert {"fc00::/7", "fe80::/10"} == set(but["::/0"])


def test_nothing_comes_in_but_who_reads_metrics() -> None:
    for name, spec in policies("network-policies").items():
        rules: list[Any] = spec.get("ingress") or []
        reads = [rule["from"] for rule in rules]
        role = name in {"orchestrator", "tool-runner", "agent-reasoner"}
        assert reads == (
            [[{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]] if role else []
        )


def test_all_pods_are_denied_what_no_other_policy_allows() -> None:
    spec = policies("network-policies")["network"]

    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["podSelector"]["matchLabels"] == {
        "app.kubernetes.io/name": "metier",
        "app.kubernetes.io/instance": "rel",
    }
    assert not spec.get("egress")


def test_a_bundled_store_lets_in_who_uses_it_and_nobody_else() -> None:
    users = {
        store: {
            peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
            for peer in policies("bundled")[store]["ingress"][0]["from"]
        }
        for store in ("kafka", "postgres", "redis")
    }

    agents = {"agent-careful", "agent-coder", "agent-reasoner"}
    assert users["kafka"] == agents | {"orchestrator", "topics", "test"}
    assert users["postgres"] == agents | {"orchestrator", "migrations", "test"}
    assert users["redis"] == agents | {"tool-runner"}


def test_an_address_in_the_release_is_that_of_a_service_there() -> None:
    found = rendered("bundled")
    services = {
        f"{one['metadata']['name']}.app.svc:{one['spec']['ports'][0]['port']}" for one in of_kind(found, "Service")
    }

    secret = named(found, "Secret", "rel-metier-postgres")["stringData"]["url"]
    assert secret.partition("@")[2].partition("/")[0] in services
    assert (
        named(found, "Secret", "rel-metier-redis")["stringData"]["url"].partition("@")[2].partition("/")[0] in services
    )
    kafka = variables(pods(found)["orchestrator"]["containers"][0])["METIER_KAFKA_BOOTSTRAP"]
    assert kafka in services
    assert (
        f"advertised.listeners=PLAINTEXT://{kafka}\n"
        in named(found, "ConfigMap", "rel-metier-kafka")["data"]["server.properties"]
    )


@pytest.mark.parametrize(("case", "privileged"), [("engine-dind", True), ("engine-sysbox", False)])
def test_an_engine_in_the_pod_outlives_the_runner_and_has_the_image_before_it_starts(
    case: str, privileged: bool
) -> None:
    pod = pods(rendered(case))["tool-runner"]
    engine, fetch = pod["initContainers"]

    assert engine["restartPolicy"] == "Always"
    assert engine["securityContext"].get("privileged", False) is privileged
    (runner,) = pod["containers"]
    assert variables(runner)["METIER_SANDBOX_IMAGE"] in fetch["command"]
    assert fetch["securityContext"] == runner["securityContext"]
    assert pod.get("hostUsers", True) is privileged


@pytest.mark.parametrize("case", ["engine-dind", "engine-sysbox"])
def test_an_engine_in_the_pod_listens_on_a_socket_that_the_runner_finds_and_on_no_port(case: str) -> None:
    pod = pods(rendered(case))["tool-runner"]
    engine, (runner,) = pod["initContainers"][0], pod["containers"]
    address = variables(runner)["DOCKER_HOST"]

    words = " ".join([*engine["command"], *engine.get("args", ())])
    assert address in words
    assert "tcp:" not in words
    places = [{mount["mountPath"]: mount["name"] for mount in one["volumeMounts"]} for one in (engine, runner)]
    for folder in (address.removeprefix("unix://").rpartition("/")[0], variables(runner)["TMPDIR"]):
        assert places[0][folder] == places[1][folder]


def test_a_remote_engine_is_let_see_who_comes() -> None:
    (runner,) = pods(rendered("production"))["tool-runner"]["containers"]

    told = variables(runner)
    assert told["DOCKER_TLS_VERIFY"] == "1"
    assert told["DOCKER_CERT_PATH"] in {mount["mountPath"] for mount in runner["volumeMounts"]}


def test_ssh_finds_its_key_in_its_home() -> None:
    pod = pods(rendered("engine-ssh"))["tool-runner"]
    (runner,) = pod["containers"]

    mounts = {mount["name"]: mount["mountPath"] for mount in runner["volumeMounts"]}
    assert mounts["engine-access"] == f"{variables(runner)['HOME']}/.ssh"
    (access,) = [one for one in pod["volumes"] if one["name"] == "engine-access"]
    assert {item["path"] for item in access["secret"]["items"]} == {"id_ed25519", "known_hosts"}
