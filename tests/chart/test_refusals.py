"""Values that no release can be made of are refused at `helm template`, with a sentence that says what to set."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytest
import yaml

from .kit import CHART, MINIMAL, rendered, template

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
        [
            "kafka.external.securityProtocol=SASL_SSL",
            "kafka.external.existingSecret=x",
            "kafka.external.users.coder=x",
        ],
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
    "a broker with a scheme": (
        ["kafka.external.bootstrap=PLAINTEXT://kafka:9092"],
        'kafka.external.bootstrap: "PLAINTEXT://kafka:9092" is no address of a broker. Set it to host:port',
    ),
    "a broker without a port": (["kafka.external.bootstrap=kafka"], '"kafka" is no address of a broker'),
    "a second broker that has no name": (["kafka.external.bootstrap=kafka:9092\\,"], '"" is no address of a broker'),
    "a broker at a port that there is not": (["kafka.external.bootstrap=kafka:99999"], "Set it to host:port"),
    "users where nobody shows who they are": (
        ["kafka.external.users.operator=x"],
        "kafka.external.users is set, and kafka.external.securityProtocol is PLAINTEXT",
    ),
    "an engine without a port": (["toolRunner.engine.remote.host=tcp://sandboxes"], "Set it to tcp://host:2376"),
    "an engine without a user": (["toolRunner.engine.remote.host=ssh://sandboxes"], "Set it to ssh://user@host"),
    "an address of Redis with a scheme": (
        ["redis.external.keda.address=redis://redis:6379"],
        'redis.external.keda.address is "redis://redis:6379". Set it to host:port, without a scheme',
    ),
    "an address of Redis for KEDA, which finds it": (
        [
            "redis.external.existingSecret=",
            "redis.bundled.enabled=true",
            "redis.bundled.password=x",
            "redis.external.keda.address=redis:6379",
        ],
        "redis.bundled.enabled is true, which KEDA finds by itself. Remove one of them",
    ),
    "more sandboxes kept warm than there may be": (
        ["toolRunner.sandbox.pool=9"],
        "toolRunner.sandbox.pool is 9, more than toolRunner.sandbox.limit=8 lets there be. Set pool to at most that",
    ),
    "a registry with a scheme": (["image.repository=https://ghcr.io/metier"], "'/image/repository'"),
    "a tag in the repository": (["image.repository=metier/{role}:1.2"], "'/image/repository'"),
    "a role that is misspelt": (["image.repository=metier/{rol}"], "'/image/repository'"),
    "a Secret for pulling that has no name": (["image.pullSecrets={Pull_Secret}"], "Set it to lower-case letters"),
    "a URL in place of a Secret's name": (
        ["postgres.external.existingSecret=postgresql://u:p@h/db"],
        "'/postgres/external/existingSecret': 'postgresql://u:p@h/db' does not match pattern",
    ),
    "a kind of quantity": (["commandResources.limits.memory=512MB"], "'/commandResources/limits/memory': '512MB'"),
    "half a byte of memory": (["orchestrator.resources.limits.memory=512m"], "'/orchestrator/resources/limits/memory'"),
    "a misspelt limit": (
        ["agents.reasoner.resources.limit.memory=1Gi"],
        "'/agents/reasoner/resources': additional properties 'limit' not allowed",
    ),
    "a size of nothing": (["kafka.bundled.storage=lots"], "'/kafka/bundled/storage': 'lots' does not match pattern"),
    "a toleration of nothing that there is": (
        ["podDefaults.tolerations[0].effect=NoRun"],
        "'/podDefaults/tolerations/0/effect': value must be one of 'NoSchedule'",
    ),
    "a misspelt affinity": (["podDefaults.affinity.nodeAfinity.x=y"], "additional properties 'nodeAfinity'"),
    "a peer that is a text": (["networkPolicy.metricsFrom={monitoring}"], "'/networkPolicy/metricsFrom/0': got string"),
    "a port that there is not": (
        ["networkPolicy.egress.kafka.ports={99999}"],
        "networkPolicy.egress.kafka.ports: 99999 is no port. Set it to 1 to 65535",
    ),
    "a variable that the checks would not know": (
        ["env.METIER_KAFKA_PARTITIONS=x"],
        "env.METIER_KAFKA_PARTITIONS is the chart's own. Set topics.partitions",
    ),
    "a password for every role": (
        ["env.METIER_POSTGRES_URL=x"],
        "env.METIER_POSTGRES_URL is the chart's own. Set postgres.external.existingSecret",
    ),
    "a model's key that is the journal's": (
        [
            "agents.reasoner.modelKeys.METIER_POSTGRES_URL.existingSecret=x",
            "agents.reasoner.modelKeys.METIER_POSTGRES_URL.key=x",
        ],
        "agents.reasoner.modelKeys.METIER_POSTGRES_URL is the chart's own",
    ),
    "a model's key twice": (
        [
            "agents.reasoner.modelKeys.OPENAI_API_KEY.existingSecret=x",
            "agents.reasoner.modelKeys.OPENAI_API_KEY.key=x",
            "env.OPENAI_API_KEY=x",
        ],
        "OPENAI_API_KEY is both in agents.reasoner.modelKeys and in an env, which would take its place. Remove it from env",
    ),
    "a label that selects": (
        ["podDefaults.labels.app\\.kubernetes\\.io/name=x"],
        "podDefaults.labels: app.kubernetes.io/name is the chart's own. Leave it out",
    ),
    "a file that is no YAML": (["files.tenants=["], "files.tenants is not the YAML of a map"),
    "a bundle that is no YAML": (["files.safety.a\\.yaml=x"], "files.safety: a.yaml is not the YAML of a map"),
    "another name in an agent's file": (
        ["agents.reasoner.file.name=x"],
        'agents.reasoner.file.name is "x", and the chart writes "reasoner" there. Leave it out of the file',
    ),
    "another model in an agent's file": (["agents.reasoner.file.model=x"], "Leave it out of the file"),
    "a model of two words": (["agents.reasoner.model=gpt 5"], "'/agents/reasoner/model': 'gpt 5' does not match"),
    "a module of two words": (["orchestrator.workflows=my module"], "'/orchestrator/workflows': 'my module'"),
    **{
        f"nothing at {path}": ([f"{path}=null"], f"{path} is null, which takes away what the chart has there. Set it")
        for path in (
            *(
                "toolRunner",
                "orchestrator",
                "kafka",
                "postgres",
                "redis",
                "agentDefaults",
                "api",
                "migrations",
                "topics",
            ),
            *(
                "metrics",
                "image.digests",
                "agentDefaults.file",
                "kafka.external.tls",
                "topics.partitions",
                "podDefaults.labels",
            ),
            *("networkPolicy.egress.dns", "env", "toolRunner.resources", "longestCallSeconds"),
        )
    },
    "nothing where an agent says how it scales": (
        ["agents.reasoner.autoscaling=null"],
        "'/agents/reasoner/autoscaling': got null, want object",
    ),
    "an API": (["api.enabled=true"], "api.enabled: there is no `metier api` yet. Leave it false"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_with_what_to_set(what: str) -> None:
    settings, sentence = REFUSED[what]

    done = template(MINIMAL, *(word for one in settings for word in ("--set", one)), apis=())

    assert done.returncode != 0
    assert sentence in " ".join(done.stderr.split())


def test_every_value_that_may_not_be_null_is_known_as_such() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    shape = (CHART / "templates/_shape.tpl").read_text(encoding="utf-8")

    written = shape.partition('"metier.shape" -}}\n')[2].partition("\n{{- end")[0].splitlines()

    assert written == list(levels(values, schema))


def levels(values: Mapping[str, Any], schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """A line for each level that is ours: its path, and what of it is no text that may be empty. Without agents every chart says so itself."""
    names = [name for name, value in values.items() if value != "" and (path or name not in {"global", "agents"})]
    if names:
        yield f"{path or 'values'}: {' '.join(names)}"
    for name, value in values.items():
        below = schema["properties"][name]
        if isinstance(value, Mapping) and below.get("properties") and below.get("additionalProperties") is False:
            yield from levels(cast("Mapping[str, Any]", value), below, f"{path}.{name}".removeprefix("."))


@pytest.mark.parametrize("path", ["image.tag", "nameOverride", "toolRunner.engine.registrySecret", "kafka.prefix"])
def test_a_text_that_may_be_empty_may_be_null(path: str) -> None:
    assert rendered(MINIMAL, "--set", f"{path}=null") == rendered(MINIMAL)


@pytest.mark.parametrize(
    "setting",
    [
        "kafka.external.bootstrap=a.b-c:9092\\,10.0.0.1:9093\\,[fd00::1]:9092",
        "toolRunner.engine.remote.host=ssh://user@host:22/run/docker.sock",
        "image.repository=localhost:5000/metier/{role}",
        "image.repository=ghcr.io/example/metier-{role}",
        "commandResources.limits.cpu=2",
        "commandResources.limits.example\\.com/gpu=1",
        "commandResources.limits.memory=0.5Gi",
        "agents.reasoner.resources.limits=null",
        "agents.reasoner.file.name=reasoner",
        "kafka.bundled.storage=10G",
    ],
)
def test_what_is_right_is_let_in(setting: str) -> None:
    done = template(MINIMAL, "--set", setting)

    assert done.returncode == 0, done.stderr


def test_keda_is_not_asked_for_redis_that_it_cannot_find() -> None:
    done = template(MINIMAL, "--set", "toolRunner.autoscaling.type=keda")

    assert done.returncode != 0
    assert "Set redis.external.keda.address to host:port" in done.stderr


def test_a_way_out_on_every_port_is_not_left_by_naming_none() -> None:
    done = template(MINIMAL, "--set-json", "networkPolicy.egress.kafka.ports=[]")

    assert done.returncode != 0
    assert "networkPolicy.egress.kafka.ports is empty, which lets everything out. Name the ports" in done.stderr


def test_keda_has_no_more_pods_to_fall_back_on_than_it_may_make() -> None:
    done = template(MINIMAL, "--set", f"{SCALED}=keda,agents.reasoner.autoscaling.fallbackReplicas=9")

    assert done.returncode != 0
    assert "fallbackReplicas is 9, more than maxReplicas=6. Set fallbackReplicas to at most that" in done.stderr


def test_a_kubernetes_that_is_too_old_is_refused() -> None:
    done = template(MINIMAL, "--kube-version", "1.30.0")

    assert "incompatible with Kubernetes v1.30.0" in done.stderr
