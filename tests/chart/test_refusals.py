"""Values that no release can be made of are refused at `helm template`, with a sentence that says what to set."""

from __future__ import annotations

import pytest

from .kit import MINIMAL, template

SCALED = "agents.reasoner.autoscaling.type"
REFUSED = {
    "a misspelt name": (["nosuch=1"], "additional properties 'nosuch' not allowed"),
    "a misspelt name of an agent": (
        ["agents.reasoner.modle=x"],
        "'/agents/reasoner': additional properties 'modle' not allowed",
    ),
    "a misspelt name of an engine": (["toolRunner.engine.mod=x"], "additional properties 'mod' not allowed"),
    "an engine that there is not": (
        ["toolRunner.engine.mode=kubernetes"],
        "must be one of 'remote', 'sysbox', 'dind'",
    ),
    "no agent": (["agents=null"], "agents: there is none. Name one, such as agents.helper.model=openai:gpt-5"),
    "an agent without a model": (["agents.helper.replicas=1"], "agents.helper has no model. Set agents.helper.model"),
    "one name in other case": (["agents.Reasoner.model=x"], "agents: Reasoner and reasoner are one name in other case"),
    "a name in capitals": (["agents.Helper.model=x"], "agents.Helper cannot be an agent's name. Rename it: lower-case"),
    "two sources of agents' files": (
        ["agentFiles.existingConfigMap=ours", "agents.reasoner.file.description=x"],
        "agents.reasoner.file and agentFiles.existingConfigMap are both set",
    ),
    "more replicas than partitions": (
        ["agents.reasoner.replicas=7"],
        "Set topics.partitions to at least 7, or fewer replicas",
    ),
    "more replicas than partitions, scaled": (
        [f"{SCALED}=hpa", "agents.reasoner.autoscaling.maxReplicas=7"],
        "agents.reasoner.autoscaling.maxReplicas is 7, and its topic has topics.partitions=6",
    ),
    "more orchestrators than partitions": (["orchestrator.replicas=7"], "orchestrator.replicas is 7"),
    "a least that is more than the most": (
        [f"{SCALED}=hpa", "agents.reasoner.autoscaling.minReplicas=5", "agents.reasoner.autoscaling.maxReplicas=4"],
        "agents.reasoner.autoscaling.minReplicas is 5, more than maxReplicas=4",
    ),
    "scaling to nothing": (["agents.reasoner.autoscaling.minReplicas=0"], "minimum: got 0, want 1"),
    "a share of no request": (
        [f"{SCALED}=hpa", "agents.reasoner.resources.requests.cpu=null"],
        "Set agents.reasoner.resources.requests.cpu",
    ),
    "KEDA without its definitions": (
        [f"{SCALED}=keda"],
        "the cluster has no keda.sh/v1alpha1. Install KEDA first",
    ),
    "KEDA without its definitions, for tool runners": (
        ["toolRunner.autoscaling.type=keda"],
        "toolRunner.autoscaling.type is keda, and the cluster has no keda.sh/v1alpha1",
    ),
    "a privileged engine by chance": (
        ["toolRunner.engine.mode=dind", "toolRunner.engine.remote.host="],
        "Set toolRunner.engine.acknowledgePrivileged=true",
    ),
    "no engine": (["toolRunner.engine.remote.host="], "Set it to tcp://host:2376 or ssh://user@host"),
    "an engine without TLS": (
        ["toolRunner.engine.remote.existingSecret="],
        "an engine is reached over TLS or SSH alone",
    ),
    "a node's own socket": (["toolRunner.engine.remote.host=unix:///var/run/docker.sock"], "does not match pattern"),
    "two engines": (
        ["toolRunner.engine.mode=sysbox"],
        "toolRunner.engine.remote.host is set. Keep the one that is meant",
    ),
    "no broker": (["kafka.external.bootstrap="], "Set kafka.external.bootstrap to host:port of a broker"),
    "two brokers": (["kafka.bundled.enabled=true"], "kafka.external and kafka.bundled.enabled are both set"),
    "no journal": (
        ["postgres.external.existingSecret="],
        "postgres: where is it? Set postgres.external.existingSecret",
    ),
    "two journals": (["postgres.external.url=postgresql://x"], "existingSecret and postgres.external.url are both set"),
    "an authority of a journal that speaks no TLS": (
        [
            "postgres.external.existingSecret=",
            "postgres.bundled.enabled=true",
            "postgres.bundled.password=x",
            "postgres.external.tls.caSecret=ca",
        ],
        "postgres.bundled.enabled is true, which speaks no TLS. Remove one of them",
    ),
    "no Redis": (["redis.external.existingSecret="], "redis: where is it? Set redis.external.existingSecret"),
    "two Redises": (["redis.bundled.enabled=true"], "redis.external and redis.bundled.enabled are both set"),
    "a bundled store that lets anybody in": (
        ["redis.external.existingSecret=", "redis.bundled.enabled=true"],
        "Set redis.bundled.password",
    ),
    "no grant key": (["grantKey.existingSecret="], "Set grantKey.existingSecret"),
    "two grant keys": (["grantKey.value=x"], "grantKey.existingSecret and grantKey.value are both set"),
    "a password that nobody gave": (["kafka.external.securityProtocol=SASL_SSL"], "Set kafka.external.existingSecret"),
    "an authority of a broker that speaks no TLS": (
        ["kafka.external.tls.caSecret=x"],
        "kafka.external.securityProtocol is PLAINTEXT, which has no TLS. Set it to SSL or SASL_SSL",
    ),
    "a password that nobody asks for": (
        ["kafka.external.existingSecret=x"],
        "kafka.external.securityProtocol is PLAINTEXT, which asks for none. Set it to SASL_SSL",
    ),
    "a drain that the grace of the pods does not follow": (
        ["agents.reasoner.env.METIER_DRAIN_S=x"],
        "agents.reasoner.env.METIER_DRAIN_S is the chart's own. Set longestCallSeconds",
    ),
    "a port that the probes do not know": (["env.METIER_HTTP_PORT=x"], "env.METIER_HTTP_PORT is the chart's own."),
    "a name that no object can have": (["fullnameOverride=Teams"], "'/fullnameOverride': 'Teams' does not match"),
    "a part of a name that no object can have": (["nameOverride=a.b"], "'/nameOverride': 'a.b' does not match"),
    "an image by digest and tag": (["image.repository=x@sha256:1"], "'/image/repository': 'x@sha256:1' does not match"),
    "a user of Kafka that nobody is": (
        ["kafka.external.users.coder=x"],
        "kafka.external.users.coder: nobody comes to Kafka as that. Set one of agent-reasoner, operator,",
    ),
    "a hook that needs what the release makes": (
        ["migrations.mode=hook", "postgres.external.existingSecret=", "postgres.external.url=postgresql://x"],
        "Set postgres.external.existingSecret, or migrations.mode=job",
    ),
    "a hook that needs the bundled broker": (
        ["topics.mode=hook", "kafka.external.bootstrap=", "kafka.bundled.enabled=true"],
        "Set kafka.external.bootstrap, or topics.mode=job",
    ),
    "an API": (["api.enabled=true"], "api.enabled: there is no `metier api` yet. Leave it false"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_with_what_to_set(what: str) -> None:
    settings, sentence = REFUSED[what]

    done = template(MINIMAL, *(word for one in settings for word in ("--set", one)), apis=())

    assert done.returncode != 0
    assert sentence in " ".join(done.stderr.split())


def test_keda_is_not_asked_for_redis_that_it_cannot_find() -> None:
    done = template(MINIMAL, "--set", "toolRunner.autoscaling.type=keda")

    assert done.returncode != 0
    assert "Set redis.external.keda.address to host:port" in done.stderr


def test_a_kubernetes_that_is_too_old_is_refused() -> None:
    done = template(MINIMAL, "--kube-version", "1.30.0")

    assert "incompatible with Kubernetes v1.30.0" in done.stderr
