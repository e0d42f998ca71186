"""The error tree: each type says what happens next, and the names in failure events never change by accident."""

from __future__ import annotations

import re

import pytest

from metier_infra import errors
from metier_infra.errors import (
    AskOperator,
    BuryRecord,
    BusGone,
    CallFailed,
    FailRun,
    FencedOff,
    MetierError,
    RejectRequest,
    RetryLater,
    UnknownWorkflow,
)

KINDS = (RetryLater, BuryRecord, RejectRequest, FailRun, AskOperator, FencedOff)


def tree() -> list[type[MetierError]]:
    found: list[type[MetierError]] = [MetierError]
    for kind in found:
        found += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", [kind for kind in tree() if kind is not MetierError], ids=lambda kind: kind.__name__)
def test_every_error_says_exactly_one_thing_that_happens_next(kind: type[MetierError]) -> None:
    assert sum(issubclass(kind, answer) for answer in KINDS) == 1


def test_the_docstring_shows_the_whole_tree() -> None:
    shown = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    assert sorted(["MetierError", *shown]) == sorted(kind.__name__ for kind in tree())


def test_codes_are_the_types_names_in_snake_case() -> None:
    assert UnknownWorkflow("no").code == "unknown_workflow"
    assert BusGone("no").code == "bus_gone"
    assert CallFailed("no", reason="model_failed").code == "call_failed"


def test_what_may_be_tried_again_can_wish_for_a_delay() -> None:
    assert BusGone("away").after_s is None
    assert RetryLater("limit", after_s=7.5).after_s == 7.5


def test_an_error_is_its_sentence() -> None:
    assert str(CallFailed("the agent failed", reason="x")) == "the agent failed"
