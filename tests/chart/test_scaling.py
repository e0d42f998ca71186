"""What makes replicas more and fewer, against the names that the code gives to topics, groups and queues.

Not tested here: KEDA and the autoscaler at work.
"""

from __future__ import annotations

from typing import Any

import pytest
from kombu.transport.redis import Channel

from metier_infra.events import tasks_group, tasks_topic
from metier_tools.celery_app import Config, make_app
from metier_tools.serve import KINDS

from .kit import MINIMAL, component, named, of_kind, rendered

PREFIX = "prod."


def scaled(case: str, name: str) -> Any:
    return named(rendered(case), "ScaledObject", f"rel-metier-{name}")["spec"]


def test_an_agent_follows_the_lag_of_its_own_topic_in_the_group_of_its_workers() -> None:
    (trigger,) = scaled("keda", "agent-reasoner")["triggers"]

    assert trigger["type"] == "kafka"
    assert trigger["metadata"]["topic"] == PREFIX + tasks_topic("reasoner")
    assert trigger["metadata"]["consumerGroup"] == PREFIX + tasks_group("reasoner")
    assert trigger["metadata"]["offsetResetPolicy"] == "earliest"
    assert "excludePersistentLag" not in trigger["metadata"]


@pytest.mark.parametrize(("agent", "threshold"), [("reasoner", "4"), ("coder", "2")])
def test_a_pod_is_wanted_for_as_many_calls_as_it_works_on(agent: str, threshold: str) -> None:
    (trigger,) = scaled("keda", f"agent-{agent}")["triggers"]

    assert trigger["metadata"]["lagThreshold"] == threshold


def test_a_topic_of_so_many_partitions_has_at_most_so_many_pods() -> None:
    partitions = 6

    most = {name: scaled("keda", f"agent-{name}")["maxReplicaCount"] for name in ("reasoner", "coder")}

    assert most == {"reasoner": partitions, "coder": 3}


@pytest.mark.parametrize("name", ["agent-reasoner", "tool-runner"])
def test_nobody_goes_in_haste_or_while_nothing_is_known(name: str) -> None:
    spec = scaled("keda", name)

    assert spec["minReplicaCount"] >= 1
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"
    down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert down["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 120}]


def test_keda_shows_kafka_what_the_roles_show_it() -> None:
    (trigger,) = scaled("keda", "agent-reasoner")["triggers"]
    login = named(rendered("keda"), "TriggerAuthentication", trigger["authenticationRef"]["name"])

    assert (trigger["metadata"]["sasl"], trigger["metadata"]["tls"]) == ("scram_sha512", "enable")
    assert {one["parameter"]: (one["name"], one["key"]) for one in login["spec"]["secretTargetRef"]} == {
        "username": ("kafka-user", "username"),
        "password": ("kafka-user", "password"),
        "ca": ("kafka-ca", "ca.crt"),
    }


def test_keda_comes_as_a_user_of_its_own_where_there_is_one() -> None:
    login = named(rendered("production"), "TriggerAuthentication", "rel-metier-kafka")["spec"]["secretTargetRef"]

    assert {one["name"] for one in login} == {"kafka-scaler", "kafka-ca"}


def test_tool_runners_follow_celerys_lists_and_what_is_in_hand() -> None:
    config = Config(redis_url="redis://here", namespace="metier")
    prefix = make_app(config).conf.broker_transport_options["global_keyprefix"]
    spec = scaled("keda", "tool-runner")

    lists = {one["name"]: one["metadata"]["listName"] for one in spec["triggers"]}

    assert lists == {
        "code": prefix + config.queue("code"),
        "command": prefix + config.queue("command"),
        "in_hand": prefix + Channel.unacked_key,
    }
    modifiers = spec["advanced"]["scalingModifiers"]
    assert set(modifiers["formula"].split(" + ")) == lists.keys()
    assert modifiers["target"] == "8"


def test_every_kind_of_tool_is_served_and_counted_where_nobody_says_otherwise() -> None:
    words = ("--set", "toolRunner.autoscaling.type=keda,redis.external.keda.address=redis:6379")

    spec = named(rendered(MINIMAL, *words), "ScaledObject", "rel-metier-tool-runner")["spec"]

    assert {one["name"] for one in spec["triggers"]} == {*KINDS, "in_hand"}


def test_what_is_scaled_has_no_number_of_replicas_of_its_own() -> None:
    for case in ("keda", "hpa"):
        scaled_ones = {
            one["metadata"]["name"] for one in of_kind(rendered(case), "ScaledObject", "HorizontalPodAutoscaler")
        }
        fixed = {one["metadata"]["name"] for one in of_kind(rendered(case), "Deployment") if "replicas" in one["spec"]}
        assert len(scaled_ones) >= 2
        assert fixed == {"rel-metier-orchestrator"}
        assert not fixed & scaled_ones


def test_the_processor_is_followed_where_that_is_wanted() -> None:
    found = of_kind(rendered("hpa"), "HorizontalPodAutoscaler")
    shares = {component(one): one["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] for one in found}

    assert shares == {"agent-reasoner": 70, "tool-runner": 60}
    assert all(one["spec"]["behavior"]["scaleDown"]["policies"][0]["periodSeconds"] == 120 for one in found)
