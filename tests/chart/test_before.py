"""What must be there before a role: the schema, the topics, a look at the stores; and what runs before the release itself.

Not tested here: the commands that do it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from .kit import CASES, MINIMAL, main_container, of_kind, pods, rendered, variables

EACH = pytest.mark.parametrize("case", CASES)


def test_a_role_waits_for_the_schema_and_the_topics_and_a_tool_runner_for_nothing() -> None:
    waits = {
        name: [" ".join(one["command"]) for one in pod.get("initContainers", ())]
        for name, pod in pods(rendered(MINIMAL)).items()
    }

    both = ["metier migrate --check --wait 300", "metier topics --check --wait 300"]
    assert waits["orchestrator"] == waits["agent-reasoner"] == both
    assert waits["tool-runner"] == []


def test_topics_are_awaited_as_they_are_made() -> None:
    makes = variables(main_container(rendered("full"), "topics"))
    (_, awaits) = pods(rendered("full"))["orchestrator"]["initContainers"]

    for name in ("METIER_KAFKA_PARTITIONS", "METIER_KAFKA_REPLICATION", "METIER_KAFKA_PREFIX"):
        assert variables(awaits)[name] == makes[name]
    assert makes["METIER_KAFKA_PARTITIONS"] == "12"


def test_one_broker_keeps_one_replica() -> None:
    assert variables(main_container(rendered("bundled"), "topics"))["METIER_KAFKA_REPLICATION"] == "1"


def test_jobs_are_named_for_the_revision_or_run_before_it_or_not_at_all() -> None:
    def jobs(case: str) -> dict[str, str]:
        found = of_kind(rendered(case), "Job")
        return {
            one["metadata"]["name"]: one["metadata"].get("annotations", {}).get("helm.sh/hook-weight", "")
            for one in found
        }

    assert jobs(MINIMAL) == {"rel-metier-doctor": "-5", "rel-metier-migrations-1": "", "rel-metier-topics-1": ""}
    assert jobs("full") == {"teams-doctor": "-5", "teams-migrations": "0", "teams-topics": "1"}
    assert jobs("plain") == {}


@EACH
def test_what_runs_before_the_release_needs_nothing_of_it(case: str) -> None:
    found = rendered(case)
    before = {one["metadata"]["name"] for one in found if "pre-install" in _hook(one)}
    later = {
        one["metadata"]["name"]
        for one in found
        if "pre-install" not in _hook(one) and one["kind"] in {"ConfigMap", "Secret", "ServiceAccount"}
    }

    for one in of_kind(found, "Job"):
        if "pre-install" in _hook(one):
            assert one["spec"]["template"]["spec"]["serviceAccountName"] in before
            needed = {word for word in json.dumps(one["spec"]).split('"') if word in later}
            assert needed == set(), one["metadata"]["name"]


def _hook(document: Any) -> str:
    return str(document["metadata"].get("annotations", {}).get("helm.sh/hook", ""))


@pytest.mark.parametrize("words", [(), ("--set", "doctor.enabled=false")], ids=["bundled", "off"])
def test_the_doctor_does_not_come_where_there_is_nothing_to_see_or_it_is_not_wanted(words: tuple[str, ...]) -> None:
    assert "doctor" not in pods(rendered("bundled" if not words else MINIMAL, *words))
