"""Files that people write in YAML, read into frozen models; an error names file, line and field.

`metier_agents.spec` reads agents with it, `metier_tools.tool_files` tools, profiles and servers.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from metier_infra.errors import BadSpec

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Loc: TypeAlias = "Sequence[int | str]"
LARGEST = 1 << 20
"""Bytes of a file."""


class Declared(BaseModel):
    """A frozen value that a person writes: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


D = TypeVar("D", bound=Declared)


def load(
    path: Path,
    kind: type[D],
    *,
    parts: Mapping[str, type[Declared]] | None = None,
    sentences: Mapping[str, str] | None = None,
) -> D:
    """What one file declares.

    Args:
        path: the file.
        kind: what it declares.
        parts: the models inside, by the field or tag that leads to them: to name the field that was meant.
        sentences: pydantic's error types in words of this kind of file.

    Raises:
        BadSpec: with file, line and field.
    """
    root, data = _read(path)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False)
        first = next(
            (one for one in found if one["type"] == "extra_forbidden"), found[0]
        )  # a misspelt field is also a missing one
        line, field = _place(root, first["loc"])
        where = f"{path}:{line}: {field}: " if field else f"{path}:{line}: "
        if first["type"] == "extra_forbidden":
            raise BadSpec(where + _unknown(first["loc"], {"": kind, **(parts or {})})) from error
        raise BadSpec(where + _sentence(first, sentences or {}, parts or {})) from error


def _read(path: Path) -> tuple[yaml.Node | None, Any]:
    try:
        text = _text(path)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_twice(path, root)
        return root, yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadSpec(f"{path}:{line}: not YAML: {error.problem}") from error
    except RecursionError as error:
        raise BadSpec(f"{path}: cannot be read: it lies too deep in brackets") from error
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise BadSpec(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def _text(path: Path) -> str:
    """Raises `BadSpec` for what is no file (a pipe would never end) or too large for one that a person wrote."""
    if path.exists() and not path.is_file():
        raise BadSpec(f"{path}: cannot be read: it is no file")
    with path.open("rb") as file:
        read = file.read(LARGEST + 1)
    if len(read) > LARGEST:
        raise BadSpec(f"{path}: cannot be read: it is larger than {LARGEST >> 10} KiB")
    return read.decode()


def _refuse_twice(path: Path, root: yaml.Node | None) -> None:
    """YAML takes a key that stands twice, and forgets the first."""
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            pairs: list[tuple[yaml.Node, yaml.Node]] = node.value
            _refuse_keys_twice(path, [key for key, _ in pairs if isinstance(key, yaml.ScalarNode)])
            waiting += [value for _, value in pairs]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _refuse_keys_twice(path: Path, keys: Sequence[yaml.ScalarNode]) -> None:
    seen = set[str]()
    for key in keys:
        if key.value in seen:
            raise BadSpec(f"{path}:{key.start_mark.line + 1}: {key.value}: this field stands here a second time")
        seen.add(key.value)


def _place(root: yaml.Node | None, loc: Loc) -> tuple[int, str]:
    """Line (from 1) and dotted name of the field at `loc`; a union's tag in `loc` names no field and is left out."""
    node, line, names = root, 1, list[str]()
    for depth, part in enumerate(loc):
        child = _child(node, part)
        if child is not None:
            line, node = child
        if child is not None or depth == len(loc) - 1:
            names.append(str(part))
    return line, ".".join(names)


def _child(node: yaml.Node | None, part: int | str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
        items: list[yaml.Node] = node.value
        return items[part].start_mark.line + 1, items[part]
    if isinstance(node, yaml.MappingNode):
        pairs: list[tuple[yaml.Node, yaml.Node]] = node.value
        return next(((key.start_mark.line + 1, value) for key, value in pairs if key.value == part), None)
    return None


_SENTENCES = {
    "missing": "this field is missing",
    "union_tag_not_found": "expected fields below it, kind among them",
    "model_attributes_type": "expected fields below it, kind among them",
}


def _sentence(error: ErrorDetails, own: Mapping[str, str], parts: Mapping[str, type[Declared]]) -> str:
    """What is wrong, in words of this kind of file. Its own for `model_type` are of the whole file, not of a part."""
    if error["type"] == "model_type" and error["loc"]:
        return _part(error["loc"], parts)
    said = own.get(error["type"], _SENTENCES.get(error["type"], error["msg"]))
    return said[:1].lower() + said[1:]


def _part(loc: Loc, parts: Mapping[str, type[Declared]]) -> str:
    owner = next((parts[part] for part in reversed(loc) if isinstance(part, str) and part in parts), None)
    return "expected fields below it" + (f", such as {next(iter(owner.model_fields))}" if owner else "")


def _unknown(loc: Loc, parts: Mapping[str, type[Declared]]) -> str:
    owner = next((parts[part] for part in reversed(loc[:-1]) if isinstance(part, str) and part in parts), parts[""])
    near = difflib.get_close_matches(str(loc[-1]), owner.model_fields, n=1)
    return "unknown field" + (f"; did you mean {near[0]}?" if near else "")
