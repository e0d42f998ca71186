"""How right an answer is: the scorers that a sample may name, and those of them that are plain functions.

`samples` reads them from a set's lines. `score` does `exact`, `numeric` and `contains`; what `schema`, `code` and `judged` need beyond plain Python
lies with `metier.eval_scoring` (it asks the sandbox and the library of JSON Schema) and `asking` (it asks the judges, whom `judging` counts).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator
from pydantic_core import PydanticCustomError

from metier_infra.declared import Declared
from metier_infra.words import Name, Word
from metier_workflows.evaluating.numbers import number_of

Value = str | int | float | bool
Expected = Value | tuple[Value, ...]
"""What is right; of several values each is."""
LONGEST_COMPARED = 300
"""Characters of a comparable text; a longer one is cut, and ends in a digest of all of it."""
SLACK = 1e-9
"""Two numbers whose relative difference is no larger are equal: both were written down as decimals."""
_FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Exact(Declared):
    """The same text, white space at the ends and repeated aside. Case counts unless `case` is false."""

    name: Literal["exact"] = "exact"
    case: bool = True


class Numeric(Declared):
    """The same number, at most `tolerance` away. `numbers` has the rules by which a text is read."""

    name: Literal["numeric"] = "numeric"
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class Contains(Declared):
    """The expected text stands in the answer: of several, each (`all`) or one (`any`). Case counts only where `case` is true."""

    name: Literal["contains"] = "contains"
    match: Literal["all", "any"] = "all"
    case: bool = False


class Schema(Declared):
    """The answer is JSON, bare or in a fenced block, and fits this JSON Schema."""

    name: Literal["schema"] = "schema"
    fits: dict[str, JsonValue] = Field(description="a JSON Schema")


class Code(Declared):
    """The answer is a Python program, bare or in a fenced block, and runs in the sandbox.

    With a `test`, that program runs, and may import the answer as the module `answer`: it passes when it comes to its end. Without one, the
    answer itself runs, and what it prints must be what is expected; where nothing is, it must only end well. `timeout_s` is in seconds.
    """

    name: Literal["code"] = "code"
    test: Annotated[str, Field(min_length=1, max_length=200_000)] | None = None
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 10.0


class Judged(Declared):
    """Other agents say how good the answer is, by this rubric; see `judging`.

    `judges` names them; none named: those of `metier eval run --judges`. By `majority` the answer passes or does not, by `mean` its score is theirs.
    Nobody judges its own answer, or that of the model that it runs on, unless `own` is true.
    """

    name: Literal["judged"] = "judged"
    rubric: str = Field(min_length=1, max_length=20_000)
    judges: Annotated[tuple[Name, ...], Field(max_length=15)] = ()
    by: Literal["majority", "mean"] = "majority"
    own: bool = False

    @field_validator("judges")
    @classmethod
    def _each_once(cls, judges: tuple[str, ...]) -> tuple[str, ...]:
        """Whoever is named twice would have two votes."""
        if twice := next((name for at, name in enumerate(judges) if name in judges[:at]), None):
            raise PydanticCustomError("twice", "{name} is named twice", {"name": repr(twice)})
        return judges


Scorer = Annotated[Exact | Numeric | Contains | Schema | Code | Judged, Field(discriminator="name")]
KINDS: tuple[type[Declared], ...] = (Exact, Numeric, Contains, Schema, Code, Judged)
SCORERS: tuple[str, ...] = tuple(kind.model_fields["name"].default for kind in KINDS)
NEED_EXPECTED = frozenset({"exact", "numeric", "contains"})


def unfit(scorer: Scorer, wanted: Iterable[Value]) -> str:
    """Why a scorer could make nothing of what is expected, whatever is answered; empty where it can."""
    for one in wanted:
        if not text_of(one).strip():
            return f"an empty text is no answer, and {'stands in each' if scorer.name == 'contains' else 'never right'}"
        if scorer.name == "numeric" and number_of(text_of(one)) is None:
            return f"no number can be read in {text_of(one)[:80]!r}, and the scorer is numeric"
    return ""


class Score(Word):
    """How right an answer is, 0 to 1, and why in one sentence. None: nobody could tell."""

    value: Annotated[float, Field(ge=0, le=1)] | None
    reason: str = ""


def score(scorer: Exact | Numeric | Contains, expected: Expected, answer: str) -> Score:
    """The score of an answer by one of the scorers that need nothing but the texts. An empty answer is never right."""
    wanted = expected if isinstance(expected, tuple) else (expected,)
    if not answer.strip():
        return Score(value=0.0, reason="there is no answer")
    match scorer:
        case Exact():
            return _said(
                any(_plain(one, case=scorer.case) == _plain(answer, case=scorer.case) for one in wanted), wanted
            )
        case Numeric():
            return _numeric(scorer, wanted, answer)
        case Contains():
            found = [_plain(one, case=scorer.case) in _plain(answer, case=scorer.case) for one in wanted]
            return _said(all(found) if scorer.match == "all" else any(found), wanted)


def _said(right: bool, wanted: Iterable[Value]) -> Score:
    return Score(value=1.0) if right else Score(value=0.0, reason=f"expected {shown(wanted)}")


def shown(wanted: Iterable[Value]) -> str:
    """What is expected, in few words."""
    return " or ".join(repr(text_of(one)[:80]) for one in wanted)[:300]


def _numeric(scorer: Numeric, wanted: tuple[Value, ...], answer: str) -> Score:
    given = number_of(answer)
    if given is None:
        return Score(value=0.0, reason=f"no number can be read in the answer; expected {shown(wanted)}")
    numbers = [number_of(text_of(one)) for one in wanted]
    return _said(any(one is not None and _near(one, given, scorer.tolerance) for one in numbers), wanted)


def _near(one: float, other: float, tolerance: float) -> bool:
    return abs(one - other) <= tolerance + SLACK * max(abs(one), abs(other))


def text_of(value: Value) -> str:
    """A value as an answer would write it: JSON's form, and a text as it is."""
    return value if isinstance(value, str) else json.dumps(value)


def _plain(value: Value, *, case: bool) -> str:
    text = " ".join(text_of(value).split())
    return text if case else text.casefold()


def block_of(text: str) -> str:
    """What the answer's first fenced block holds; without a block, all of it."""
    block = _FENCED.search(text)
    return block[1] if block else text


def comparable(scorer: Scorer, answer: str) -> str:
    """The text by which answers agree: a number by its value, JSON in its one form, a program as it is, anything else without superfluous white space."""
    match scorer:
        case Numeric():
            number = number_of(answer)
            return _bounded(_plain(answer, case=False) if number is None else format(number, ".9g"))
        case Schema():
            return _bounded(_canonical(block_of(answer)))
        case Code():
            return _bounded(block_of(answer).strip())
        case Exact() | Contains():
            return _bounded(_plain(answer, case=scorer.case))
        case Judged():
            return _bounded(_plain(answer, case=False))


def _canonical(text: str) -> str:
    try:
        return json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        return _plain(text, case=True)


def _bounded(text: str) -> str:
    if len(text) <= LONGEST_COMPARED:
        return text
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:32]
    return f"{text[: LONGEST_COMPARED - 33]}…{digest}"
