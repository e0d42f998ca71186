"""Patterns that an author writes over text that a stranger wrote: matched in linear time, whatever either of them says.

`safety` declares fields of them, `approval` and `output_check` match with them. They are those of Rust's `regex`, which also checks the
`pattern` of tool arguments: no look-around and no back-references.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, SchemaError

from metier_tools.json_schema import fault


@lru_cache(4096)
def _matcher(pattern: str) -> TypeAdapter[str]:
    return TypeAdapter(Annotated[str, Field(pattern=pattern)])


def _usable(pattern: str) -> str:
    try:
        _matcher(pattern)
    except SchemaError as error:
        raise PydanticCustomError("pattern", "this pattern cannot be used: {fault}", {"fault": fault(error)}) from error
    return pattern


Pattern = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_usable)]
"""Found anywhere in a text; `^` and `$` mean its ends, `(?i)` in front of it that case does not matter."""
Glob = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\s\[\]]+$")]
"""A name, in which `*` stands for any text and `?` for one character."""


def found(pattern: str, text: str) -> bool:
    """Whether the pattern is anywhere in the text. What is no Unicode (a lone surrogate) counts as `?`."""
    try:
        _matcher(pattern).validate_python(text.encode("utf-8", "replace").decode())
    except ValidationError:
        return False
    return True


def named(globs: tuple[str, ...], name: str) -> bool:
    """Whether one of the globs means this name."""
    return any(fnmatchcase(name, glob) for glob in globs)


def is_name(glob: str) -> bool:
    """Whether a glob can mean one name only."""
    return not {"*", "?"} & set(glob)
