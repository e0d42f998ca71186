"""Whom TLS believes: an authority of one's own reaches each container that comes to what it vouches for, and no other."""

from __future__ import annotations

from collections.abc import Iterator

from .kit import Document, containers, pods, rendered, variables

FULL = "full"


def mounted(pod: Document, container: Document) -> dict[str, Document]:
    """What a container finds where: the source of the volume, by the folder."""
    volumes = {one["name"]: one for one in pod["volumes"]}
    return {one["mountPath"]: volumes[one["name"]] for one in container["volumeMounts"]}


def by_variable(name: str) -> Iterator[tuple[str, Document, Document]]:
    """Every container with this variable, its pod, and the component."""
    for component, pod in pods(rendered(FULL)).items():
        for one in containers(pod):
            if name in variables(one):
                yield component, pod, one


def test_whoever_comes_to_the_journal_knows_its_authority_and_asks_for_it() -> None:
    found = list(by_variable("METIER_POSTGRES_URL"))

    for _, pod, one in found:
        told = variables(one)
        folder, _, file = told["PGSSLROOTCERT"].rpartition("/")
        secret = mounted(pod, one)[folder]["secret"]
        assert (told["PGSSLMODE"], secret["secretName"]) == ("verify-full", "journal-ca")
        assert secret["items"] == [{"key": "ca.crt", "path": file}]
    assert {component for component, _, _ in found} >= {"orchestrator", "agent-helper", "migrations", "test"}
    assert len(found) == len(list(by_variable("PGSSLROOTCERT")))


def test_an_agents_own_authorities_stand_before_those_of_all() -> None:
    source = {}
    for component, pod, one in by_variable("SSL_CERT_FILE"):
        told = variables(one)
        folder, _, file = told["SSL_CERT_FILE"].rpartition("/")
        config = mounted(pod, one)[folder]["configMap"]
        assert told["REQUESTS_CA_BUNDLE"] == told["SSL_CERT_FILE"]
        assert [item["path"] for item in config["items"]] == [file]
        source[component] = (config["name"], config["items"][0]["key"])

    assert source["agent-deep-thinker"] == ("models", "ca.pem")
    assert source["agent-helper"] == ("authorities", "ca-bundle.crt")
    assert {"tool-runner", "orchestrator"} <= source.keys()


def test_nothing_of_it_is_there_unless_it_is_asked_for() -> None:
    told = {name for pod in pods(rendered("minimal")).values() for one in containers(pod) for name in variables(one)}

    assert not told & {"PGSSLMODE", "PGSSLROOTCERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"}
