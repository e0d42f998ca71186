"""JSON schemas that strangers wrote: which of them we take, and whether arguments fit one. The only place that imports `jsonschema`.

`pins` calls it for the tools of MCP servers. A schema can be an attack on who checks with it, so those are refused that lead out of
themselves, around in circles, or to work without an end; patterns are matched in linear time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import cache, lru_cache
from importlib import import_module
from itertools import islice
from typing import Annotated, Any, TypeAlias, cast
from urllib.parse import unquote

from pydantic import Field, JsonValue, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from metier_infra.errors import MissingPackage

LARGEST_BYTES = 32 * 1024
DEEPEST = 16
LONGEST_PATTERN = 256
MOST_PARTS = 10_000
"""Parts of a schema once every reference stands written out: what one value may cost to check."""
MOST_WORK = 1_000_000
"""Parts of the schema times values in the arguments: what one call may cost to check."""
MOST_REFERENCES = 32
"""References that lead to one another."""
DIALECTS = ("2020-12", "2019-09", "draft-07")
_LEADS_ASIDE = {
    "$schema",
    "$id",
    "$anchor",
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
    "$recursiveAnchor",
    "$vocabulary",
}
_COSTS = {"patternProperties", "unevaluatedProperties", "unevaluatedItems"}
_REFUSED = _LEADS_ASIDE | _COSTS
Problem: TypeAlias = "Callable[[Mapping[str, JsonValue]], str | None]"


def refusal_of(schema: Mapping[str, JsonValue]) -> str:
    """Why we do not take this schema of arguments, in one sentence; empty when we do. Raises `MissingPackage`."""
    try:
        _taken(schema)
    except ValueError as error:
        return str(error)
    return ""


def _taken(schema: Mapping[str, JsonValue]) -> tuple[Any, int]:
    """A validator of a schema that we take, and how many parts it has. Raises `ValueError` for one that we do not."""
    if too_large := size_problem(dict(schema)):
        raise ValueError(too_large)
    if schema.get("type") != "object":
        raise ValueError("its schema is not one of an object")
    parts = _Walk(schema).parts()
    return _validator(schema), parts


def size_problem(value: JsonValue) -> str:
    """Why a JSON value is more than a server may say; empty when it is not."""
    if _depth(value) > DEEPEST:
        return f"its schema is deeper than {DEEPEST} levels"
    if len(json.dumps(value)) > LARGEST_BYTES:
        return f"its schema is larger than {LARGEST_BYTES} bytes"
    return ""


def _depth(value: JsonValue) -> int:
    """Levels of lists and objects, counted no further than is of interest."""
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        level = [inner for one in level for inner in _inner(one)]
        depth += 1
    return depth - 1 if not level else depth


def _inner(value: JsonValue) -> list[JsonValue]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


class _Walk:
    """Goes over a schema as a validator would, with every reference followed, and raises `ValueError` at what may not be there."""

    def __init__(self, root: Mapping[str, JsonValue]) -> None:
        self._root, self._left = dict(root), MOST_PARTS

    def parts(self) -> int:
        """Go over all of it, and say how many parts it has."""
        self._visit({name: part for name, part in self._root.items() if name != "$schema"}, ())
        return MOST_PARTS - self._left

    def _visit(self, node: JsonValue, followed: tuple[str, ...]) -> None:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"its schema has more than {MOST_PARTS} parts when its references are followed")
        if isinstance(node, dict):
            self._check(node)
            self._follow(node.get("$ref"), followed)
        for inner in _inner(node):
            self._visit(inner, followed)

    def _check(self, node: Mapping[str, JsonValue]) -> None:
        if refused := sorted(_REFUSED & node.keys()):
            raise ValueError(f"its schema uses {refused[0]}, which is not supported")
        pattern = node.get("pattern")
        if isinstance(pattern, str):
            _matcher(pattern)

    def _follow(self, ref: JsonValue, followed: tuple[str, ...]) -> None:
        if not isinstance(ref, str):
            return
        if ref in followed:
            raise ValueError(f"its schema refers to itself at {ref[:80]!r}")
        if len(followed) == MOST_REFERENCES:
            raise ValueError(f"its schema has a chain of more than {MOST_REFERENCES} references")
        self._visit(self._target(ref), (*followed, ref))

    def _target(self, ref: str) -> JsonValue:
        """What a reference within the schema leads to."""
        if ref != "#" and not ref.startswith("#/"):
            raise ValueError(f"its schema refers to {ref[:80]!r}, outside itself")
        node: JsonValue = self._root
        for part in unquote(ref).split("/")[1:]:
            node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
        if node is None:
            raise ValueError(f"its schema refers to {ref[:80]!r}, which is not in it")
        return node


@lru_cache(1024)
def _matcher(pattern: str) -> TypeAdapter[str]:
    """Matches in linear time, whatever the pattern; so look-around and back-references are refused."""
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"its schema has a pattern of more than {LONGEST_PATTERN} characters")
    try:
        return TypeAdapter(Annotated[str, Field(pattern=pattern)])
    except SchemaError as error:
        raise ValueError(
            f"its schema has the pattern {pattern[:80]!r}, which cannot be used: {fault(error)}"
        ) from error


def fault(error: SchemaError) -> str:
    """Why the engine that matches in linear time does not take a pattern, in its own words: the last of those that it says."""
    return (
        str(error).rstrip().splitlines()[-1].removeprefix("error: ").strip().removeprefix("SchemaError: ").rstrip(".")
    )


def _matches(pattern: str, value: str) -> bool:
    try:
        _matcher(pattern).validate_python(value)
    except ValidationError:
        return False
    return True


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingPackage("tools of MCP servers need an extra package: pip install 'metier[mcp]'") from error


def _validator(schema: Mapping[str, JsonValue]) -> Any:
    """A validator that fetches nothing. Raises `ValueError` for a dialect that we do not know, and for no schema at all."""
    jsonschema = _library("jsonschema")
    dialect = schema.get("$schema", DIALECTS[0])
    if not isinstance(dialect, str) or not any(known in dialect for known in DIALECTS):
        raise ValueError(f"its schema is in a dialect that is not supported: {str(dialect)[:80]!r}")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"its schema is none: {error.message[:200]}") from error
    linear = jsonschema.validators.extend(kind, {"pattern": _pattern, "uniqueItems": _unique})
    return linear(schema, registry=_library("referencing").Registry())


def _pattern(_: Any, pattern: str, value: Any, __: Any) -> Generator[Any]:
    if isinstance(value, str) and not _matches(pattern, value):
        yield _library("jsonschema").ValidationError(f"it does not match {pattern!r}")


def _unique(_: Any, wanted: bool, value: Any, __: Any) -> Generator[Any]:
    """The library compares every two items; this takes each once."""
    if wanted and isinstance(value, list):
        items = [json.dumps(item, sort_keys=True) for item in cast("list[JsonValue]", value)]
        if len(set(items)) < len(items):
            yield _library("jsonschema").ValidationError("it has the same item twice")


def problem_of_schema(schema: Mapping[str, JsonValue]) -> Problem:
    """What tells why arguments do not fit a schema. A schema that we would refuse lets no arguments pass."""
    taken = cache(lambda: _taken(schema))

    def problem(given: Mapping[str, JsonValue]) -> str | None:
        try:
            validator, parts = taken()
            if parts * _count(dict(given)) > MOST_WORK:
                return "they are too many to be checked"
            return "; ".join(_said(validator.iter_errors(dict(given)))) or None
        except (ValueError, ArithmeticError, RecursionError) as error:
            return f"they cannot be checked: {str(error)[:300]}"

    return problem


def _count(value: JsonValue) -> int:
    """Values in a value, itself among them."""
    left, count = [value], 0
    while left:
        count += 1
        left.extend(_inner(left.pop()))
    return count


def _said(errors: Iterator[Any]) -> Iterator[str]:
    for error in islice(errors, 3):
        where = ".".join(map(str, error.absolute_path))[:80] or "arguments"
        yield f"{where}: {error.message[:300]}".encode(errors="replace").decode()
