"""Tables of the reference pages, and types, defaults and limits in a reader's words.

`reference` and `reference_tools` write pages with it.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NewType, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are made safe."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows)]) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def type_name(kind: Any) -> str:
    """A type as a reader writes it."""
    origin, inside = get_origin(kind), get_args(kind)
    if kind is type(None):
        return "none"
    if isinstance(kind, NewType):
        return type_name(kind.__supertype__)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in {Union, types.UnionType}:
        return " or ".join(type_name(one) for one in inside)
    if origin is not None and hasattr(kind, "__metadata__"):
        return type_name(inside[0])
    name = {"SecretStr": "secret", "Path": "path", "str": "text", "bool": "true or false", "int": "whole number"}
    plain = name.get(getattr(origin or kind, "__name__", ""), getattr(origin or kind, "__name__", "JSON"))
    listed = [type_name(one) for one in inside if one is not Ellipsis]
    plain = {"float": "number", "JsonValue": "JSON", "tuple": "list", "frozenset": "list", "dict": "map"}.get(
        plain, plain
    )
    return f"{plain} of {' to '.join(listed)}" if listed else plain


def default_of(field: FieldInfo) -> str:
    """A field's default; those that a process makes for itself are named, not shown."""
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        made: Any = field.default_factory
        return "see below" if isinstance(made, types.FunctionType) else f"`{made()}`"
    if field.default is None:
        return "none"
    return f"`{field.default}`" if field.default or isinstance(field.default, (bool, int, float)) else "empty"


def bounds(field: FieldInfo) -> str:
    """What the field's constraints say, as words."""
    found = [f"{sign} {getattr(one, name)}" for one in field.metadata for name, sign in _SIGNS if hasattr(one, name)]
    return ", ".join(found)


_SIGNS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


def described(model: type[BaseModel]) -> str:
    """What a model's docstring says, without the indentation."""
    return (model.__doc__ or "").strip().replace("\n    ", "\n")


def with_bounds(field: FieldInfo) -> str:
    """A field's type, and its limits."""
    limits = bounds(field)
    return type_name(field.annotation) + (f"; {limits}" if limits else "")
