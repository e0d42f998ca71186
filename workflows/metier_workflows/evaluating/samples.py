"""A user's eval set: one JSON object a line, read into samples; an error names file, line and field.

`metier eval run` reads one, `capture` makes samples of runs, and a folder of results holds a copy of the set that it is of.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Self, cast

import pydantic_core
from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from metier_infra.declared import Declared
from metier_infra.errors import BadSpec
from metier_infra.words import Name, stable_id
from metier_workflows.evaluating.scorers import KINDS, NEED_EXPECTED, SCORERS, Exact, Expected, Scorer, Value, unfit

LONGEST_LINE = 1 << 20
"""Bytes of one line."""
MOST_SAMPLES = 100_000
Tag = Annotated[Name, Field(max_length=100)]


class Provenance(Declared):
    """Where a captured sample comes from: the run and its calls, what each agent answered there, and what was said of it."""

    run_id: str
    workflow: str
    call_ids: tuple[str, ...]
    answers: dict[str, str] = Field(default_factory=dict[str, str])
    outcome: float | None = None
    outcome_by: str = ""


class Sample(Declared):
    """One line of a set: what is asked, and how an answer is scored.

    `category` is what kind of task it is, `context` JSON that the agent is given beside the text. Without a `scorer` it is `exact`. `todo` says
    what a person has yet to write; a sample with it is not run.
    """

    id: Name = ""
    text: str = Field(min_length=1)
    expected: Expected | None = None
    scorer: Scorer = Exact()
    category: Annotated[Name, Field(max_length=100)] = "general"
    context: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    tags: Annotated[tuple[Tag, ...], Field(max_length=50)] = ()
    todo: str = ""
    provenance: Provenance | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        """A scorer may be written as its name alone; a sample without an id gets one of what it asks."""
        if not isinstance(data, Mapping):
            return data
        told = dict(cast("Mapping[str, Any]", data))
        if isinstance(told.get("scorer"), str):
            told["scorer"] = {"name": told["scorer"]}
        if isinstance(told.get("text"), str) and "id" not in told:
            told["id"] = derived_id(told["text"], told.get("category", "general"), told.get("context", {}))
        return told

    @field_validator("text")
    @classmethod
    def _asks_something(cls, text: str) -> str:
        if not text.strip():
            raise pydantic_core.PydanticCustomError("blank", "there is nothing to ask in it")
        return text

    @model_validator(mode="after")
    def _can_be_scored(self) -> Self:
        if self.scorer.name not in NEED_EXPECTED or self.todo:
            return self
        missing = f"the scorer {self.scorer.name} needs to know what is right" if self.expected in (None, ()) else ""
        if fault := missing or unfit(self.scorer, self.wanted):
            raise pydantic_core.PydanticCustomError("needs_expected", "expected: {fault}", {"fault": fault})
        return self

    @property
    def digest(self) -> str:
        """16 hex characters over all that decides its result."""
        return stable_id("sample", self.model_dump_json(exclude={"tags", "todo", "provenance"}))[:16]

    @property
    def wanted(self) -> tuple[Value, ...]:
        """The values that are right; none where nothing is expected."""
        return () if self.expected is None else self.expected if isinstance(self.expected, tuple) else (self.expected,)


def derived_id(text: str, category: object, context: object) -> str:
    """The id of a sample that has none of its own: 12 hex characters of what it asks."""
    return stable_id("sample", text, json.dumps([category, context], sort_keys=True, default=str))[:12]


def read_set(path: Path, *, todo: bool = False) -> tuple[Sample, ...]:
    """The samples of a file, blank lines left out. `todo`: those that a person has yet to complete may be among them.

    Raises:
        BadSpec: with file, line and field; for an empty file, and for two samples of one id, too.
    """
    return tuple(placed_set(path, todo=todo).values())


def placed_set(path: Path, *, todo: bool = False) -> dict[str, Sample]:
    """The same, each sample under its place: file and line, with which an error begins."""
    lines: dict[str, int] = {}
    found: dict[str, Sample] = {}
    for number, line in _lines(path):
        sample = read_sample(line, place := f"{path}:{number}")
        if sample.todo and not todo:
            raise BadSpec(f"{place}: todo: {sample.todo}; do that, and take `todo` away")
        if (before := lines.setdefault(sample.id, number)) != number:
            raise BadSpec(f"{place}: id: {_twice(sample, before)}")
        found[place] = sample
        if len(found) > MOST_SAMPLES:
            raise BadSpec(f"{place}: a set has at most {MOST_SAMPLES} samples")
    if not found and not todo:
        raise BadSpec(f"{path}: there is no sample in it; write one JSON object a line, such as {EXAMPLE}")
    return found


def _twice(sample: Sample, before: int) -> str:
    if sample.id == derived_id(sample.text, sample.category, sample.context):
        return f"line {before} asks the same; to ask it twice, give each an `id` of its own"
    return f"{sample.id!r} is the id of line {before} too; each sample needs its own"


EXAMPLE = '{"text": "How many legs have two cats?", "expected": 8, "scorer": "numeric"}'


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            yield from _bounded_lines(path, file)
    except OSError as error:
        raise BadSpec(f"{path}: cannot be read: {error.strerror}") from error


def _bounded_lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise BadSpec(f"{path}:{number}: the line is longer than {LONGEST_LINE} bytes")
        if line.strip():
            yield number, line


def read_sample(line: bytes, place: str) -> Sample:
    """The sample on a line. Raises `BadSpec` that begins with `place`."""
    try:
        data = pydantic_core.from_json(line.removeprefix(b"\xef\xbb\xbf"), allow_inf_nan=False)
    except ValueError as error:
        raise BadSpec(f"{place}: not JSON: {str(error).partition(' at line')[0]}") from error
    if not isinstance(data, dict):
        raise BadSpec(f"{place}: a sample is a JSON object, such as {EXAMPLE}")
    if field := _infinite(cast("dict[str, object]", data)):
        raise BadSpec(f"{place}: {field}: a number in it is too large to be carried")
    try:
        return Sample.model_validate(data)
    except ValidationError as error:
        raise BadSpec(f"{place}: {_sentence(error)}") from error


def _infinite(data: Mapping[str, object]) -> str:
    """The field that holds a number such as 1e999, which JSON has and no float; empty where there is none."""

    def inside(value: object) -> bool:
        if isinstance(value, dict):
            return any(map(inside, cast("dict[str, object]", value).values()))
        return (
            any(map(inside, cast("list[object]", value))) if isinstance(value, list) else value in (math.inf, -math.inf)
        )

    return next((name for name, value in data.items() if inside(value)), "")


_FORMS = {
    "expected": "it is a text, a number, true or false, or a list of them",
    "scorer": 'it is a name, or an object such as {"name": "numeric", "tolerance": 0.5}',
}


def _sentence(error: ValidationError) -> str:
    """Field and fault of the first error; a misspelt field comes first, for it is also a missing one."""
    found = error.errors(include_url=False)
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    field = ".".join(str(part) for part in _fields(first["loc"]))
    match first["type"]:
        case "extra_forbidden":
            return f"{field}: unknown field{_near(str(first['loc'][-1]))}"
        case "union_tag_invalid" | "union_tag_not_found":
            return f"{field}: there is no such scorer; there are {', '.join(SCORERS)}"
        case "missing":
            return f"{field}: this field is missing"
        case "string_pattern_mismatch":
            return f"{field}: control characters are not allowed in it"
        case _ if field in _FORMS:
            return f"{field}: {_FORMS[field]}"
        case _:
            said = str(first["msg"])
            return f"{field}: {said[:1].lower()}{said[1:]}" if field else said


def _fields(loc: Sequence[int | str]) -> list[int | str]:
    """The path without what names a member of a union."""
    tagged = len(loc) > 1 and loc[0] == "scorer" and loc[1] in SCORERS
    kept = [loc[0], *loc[2:]] if tagged else list(loc)
    return kept[:1] if kept and kept[0] == "expected" else kept


def _near(name: str) -> str:
    known = {*Sample.model_fields, *(field for kind in KINDS for field in kind.model_fields)} - {"name"}
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def line_of(sample: Sample) -> str:
    """A sample as a line of a set, with what it says and nothing that is implied."""
    told = sample.model_dump(mode="json", exclude_defaults=True)
    if sample.scorer != Exact():
        options = sample.scorer.model_dump(mode="json", exclude_defaults=True)
        told["scorer"] = {"name": sample.scorer.name, **options} if options else sample.scorer.name
    return json.dumps(told, ensure_ascii=False) + "\n"
