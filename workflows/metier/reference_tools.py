"""The reference page of tool files, written from the models that read them.

`reference` puts it beside the other pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from metier.reference_tables import default_of, described, table, with_bounds
from metier_tools.declare import Boxed, Facts, Filing
from metier_tools.profile import KIB, MIB, Egress, Profile
from metier_tools.tool_kinds import Argument, CodeFile, CommandFile, FunctionFile, ServerFile


def tool_page() -> str:
    """The fields of tool files, profiles, and what they hold."""
    return "\n".join(["# Tool files\n", _HEAD, *(_section(*part) for part in _PARTS)])


def _section(title: str, about: str, model: type[BaseModel], left_out: Sequence[type[BaseModel]]) -> str:
    """A model's own fields; those of `left_out` stand in a section of their own."""
    elsewhere = {name for one in left_out for name in one.model_fields}
    rows = [
        (f"`{name}`", _type(name, field), _default(name, field), field.description or _WORDS[name])
        for name, field in model.model_fields.items()
        if name not in elsewhere
    ]
    return f"## {title}\n\n{about or described(model)}\n\n" + table(("field", "type", "default", "meaning"), rows)


def _type(name: str, field: FieldInfo) -> str:
    return _TYPES.get(name) or ("size" if _is_size(field) else with_bounds(field))


def _default(name: str, field: FieldInfo) -> str:
    return _DEFAULTS.get(name) or (f"`{_size(field.default)}`" if _is_size(field) else default_of(field))


def _is_size(field: FieldInfo) -> bool:
    return any(isinstance(one, BeforeValidator) for one in field.metadata)


def _size(value: int) -> str:
    return f"{value // MIB}MiB" if value % MIB == 0 else f"{value // KIB}KiB"


_TYPES: Mapping[str, str] = {"arguments": "map of text to argument", "default": "JSON", "egress": "egress or none"}
_DEFAULTS: Mapping[str, str] = {"default": "none: required", "arguments": "none"}
_WORDS: Mapping[str, str] = {
    "kind": "which kind of tool",
    "language": "what the program is written in",
    "type": "what a value is; nothing is converted",
    "minimum": "the smallest value",
    "maximum": "the largest value",
    "name": "a DNS label",
}
_PARTS: Sequence[tuple[str, str, type[BaseModel], Sequence[type[BaseModel]]]] = (
    ("Every tool", "Fields of `code`, `command` and `function`.", Facts, ()),
    ("Every sandboxed tool", "Fields of `code`, `command` and `mcp`.", Boxed, ()),
    ("Every sandboxed program", "Fields of `code` and `command`.", Filing, (Boxed,)),
    ("`kind: code`", "", CodeFile, (Facts, Filing)),
    ("`kind: command`", "", CommandFile, (Facts, Filing)),
    ("`kind: function`", "", FunctionFile, (Facts,)),
    ("`kind: mcp`", "", ServerFile, (Boxed,)),
    ("An entry of `arguments`", "", Argument, ()),
    ("A profile", "A file in `profiles/`. The profile `strict@1` is always there, with these defaults.", Profile, ()),
    ("`egress` of a profile", "", Egress, ()),
)
_HEAD = """`METIER_TOOL_FILES` names the folder. A file `*.yaml` in it declares one tool or one MCP server, a file `profiles/*.yaml` the limits of a container. A
field that is not on this page is refused, with file, line and the nearest name. A *size* is a number of bytes, or words such as `64MiB`.

What is declared can be called once it is in `approved.json`, which `metier tools approve` writes. [Declare a tool](../how-to/declare-a-tool.md) shows how.
"""
