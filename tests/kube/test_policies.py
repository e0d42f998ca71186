"""What the chart renders keeps the rules, for every file of values; and a chart that was harmed is refused by the rule that is meant for it.

Not tested here: what a real API server says of it (`test_cluster`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from .harms import ALLOWED, HARMS, harmed
from .kit import CASES, SIDECAR_MODES, engine_of, rendered, template
from .manifests import Document, read
from .mutants import MUTANTS, Mutant
from .policies import RULES, digests

PRODUCTION = [values for values in CASES if "production" in values.name]


def without_engine(documents: Sequence[Document]) -> list[Document]:
    """The same documents, where the tool runner has no engine beside it: that one cannot be restricted."""
    return [_without_sidecars(document) for document in documents]


def _without_sidecars(document: Document) -> Document:
    if document["kind"] != "Deployment":
        return document
    template = document["spec"]["template"]
    first = [one for one in template["spec"].get("initContainers") or () if one.get("restartPolicy") != "Always"]
    pod = {**template["spec"], "initContainers": first}
    return {**document, "spec": {**document["spec"], "template": {**template, "spec": pod}}}


@cache
def documents_of(values: Path) -> list[Document]:
    return _restrictable(values, rendered(values))


def documents_of_copy(values: Path, chart: Path) -> list[Document]:
    done = template(values, chart=chart)
    assert done.returncode == 0, done.stderr
    return _restrictable(values, done.stdout)


def _restrictable(values: Path, text: str) -> list[Document]:
    return without_engine(read(text)) if engine_of(values) in SIDECAR_MODES else read(text)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("values", CASES, ids=lambda path: path.stem)
def test_what_renders_keeps_the_rule(values: Path, rule: str) -> None:
    assert list(RULES[rule](documents_of(values))) == []


@pytest.mark.parametrize("values", PRODUCTION, ids=lambda path: path.stem)
def test_values_for_production_fix_every_image_by_its_digest(values: Path) -> None:
    assert list(digests(documents_of(values))) == []


def test_there_are_values_for_production() -> None:
    assert PRODUCTION


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.does.replace(" ", "-"))
def test_a_chart_that_is_harmed_is_refused(mutant: Mutant, tmp_path: Path) -> None:
    chart = mutant.of_the_chart(tmp_path)
    rule, cases = (digests, PRODUCTION) if mutant.rule == "digests" else (RULES[mutant.rule], CASES)

    found = (list(rule(documents_of_copy(values, chart))) for values in cases)

    assert any(found)


@pytest.mark.parametrize("harm", HARMS)
def test_a_pod_that_is_not_restricted_is_seen_for_what_it_is(harm: str) -> None:
    assert list(RULES["restricted"]([harmed(*HARMS[harm])]))


@pytest.mark.parametrize("difference", ALLOWED)
def test_a_pod_that_is_restricted_is_let_be(difference: str) -> None:
    assert list(RULES["restricted"]([harmed(*ALLOWED[difference])])) == []


def test_every_rule_refuses_some_harm() -> None:
    assert {mutant.rule for mutant in MUTANTS} == {*RULES, "digests"}
