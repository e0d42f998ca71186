"""What a person reads after an install: what to type next, and what this release is not fit for."""

from __future__ import annotations

import re

import pytest

from metier import reference_cli

from .kit import CHART, helm

WITHOUT_KEDA = ("--set", "agentDefaults.autoscaling.type=none,toolRunner.autoscaling.type=none,toolRunner.replicas=2")
"""Helm tells what a cluster has of custom resources to its templates, but not when it installs without one."""


def notes(case: str, *words: str) -> str:
    values = CHART / "ci" / f"{case}-values.yaml"
    more = (*words, *(WITHOUT_KEDA if case == "production" else ()))
    done = helm("install", "rel", CHART, "--dry-run=client", "-n", "app", "-f", values, *more)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:")[2]


WARNINGS = {
    "kafka.bundled: EVALUATION ONLY": ("bundled", "production"),
    "postgres.bundled: EVALUATION ONLY": ("bundled", "production"),
    "redis.bundled: EVALUATION ONLY": ("bundled", "production"),
    "PRIVILEGED containers": ("engine-dind", "production"),
    "the engine's container is outside the restricted Pod Security standard": ("engine-sysbox", "production"),
    "every pod may reach everything": ("minimal", "production"),
    "a single replica of toolRunner": ("minimal", "production"),
    "image.digests is not filled in": ("minimal", "production"),
    "Secrets are made of plain values": ("plain", "production"),
    "metier doctor did not run before this release": ("bundled", "production"),
    "no traces": ("minimal", "production"),
}


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    return {case: notes(case) for case in {case for cases in WARNINGS.values() for case in cases}}


@pytest.mark.parametrize("warning", WARNINGS)
def test_a_warning_stands_where_it_holds_and_nowhere_else(warning: str, told: dict[str, str]) -> None:
    there, not_there = WARNINGS[warning]

    assert f"WARNING: {_sentence(told[there], warning)}" in told[there]
    assert warning not in told[not_there]


def _sentence(text: str, warning: str) -> str:
    """The line that it is in, from its beginning."""
    return next(line.removeprefix("WARNING: ") for line in text.splitlines() if warning in line)


def test_what_is_fit_for_production_gets_no_warning(told: dict[str, str]) -> None:
    assert "WARNING" not in told["production"]


def test_one_replica_of_a_topic_is_told() -> None:
    assert "WARNING: topics.replication is 1" in notes("minimal", "--set", "topics.replication=1")


def test_the_next_commands_are_there(told: dict[str, str]) -> None:
    known = {name.removeprefix("metier ") for name, _ in reference_cli.commands()}

    typed = {" ".join(words.split()[:2]) for words in re.findall(r"-- metier (.+)", told["bundled"])}

    assert all(words in known or words.split()[0] in known for words in typed)
    assert {words.split()[0] for words in typed} == {"publish", "runs", "doctor"}
    assert "helm test rel -n app" in told["bundled"]
