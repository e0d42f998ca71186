"""How authors declare tools in Python: a typed function, or a model of the arguments.

`tool` is the decorator that users know as `metier.tool`; `tool_kinds` makes tools of YAML files with the same parts. Schemas are made
from the types, and arguments are checked against the same types. `function_source` makes sandboxed programs of functions.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import FunctionType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, overload

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, SchemaError

from metier_infra.declared import Declared
from metier_infra.errors import BadSpec
from metier_tools.function_source import program_of
from metier_tools.paths import MOST_FILES, path_problem
from metier_tools.profile import STRICT, Profile
from metier_tools.tool import Kind, Risk, ToolSpec
from metier_tools.toolbox import Action, Command, Fixed, Function, ServerTool, Tool, Written

LONGEST_DESCRIPTION = 4000
"""Characters that a tool may say of itself: every request to a model carries them."""


class Arguments(BaseModel):
    """The base of a tool's arguments: unknown names are refused, nothing is converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def unfit(sentence: str) -> PydanticCustomError:
    """The error that a validator of a declaration raises: its sentence stands in the message as it is."""
    return PydanticCustomError("unfit", "{sentence}", {"sentence": sentence})


def _name(name: str) -> str:
    if len(name) > 63 or not re.fullmatch(r"[a-z](_?[a-z0-9-])*", name):
        raise unfit(f"{name!r} is no name: lower-case letters, digits, - and single _, at most 63, the first a letter")
    return name


def _secret(name: str) -> str:
    if len(name) > 64 or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
        raise unfit(f"{name!r} is no secret's name: upper-case letters, digits and _, at most 64, the first a letter")
    return name


def _inside(path: str) -> str:
    if problem := path_problem(path):
        raise unfit(f"the path {path!r} cannot be used: {problem}")
    return path


Name = Annotated[str, AfterValidator(_name)]
"""A name that every model provider takes; `__` stands between an MCP server's name and its tool's."""
Secret = Annotated[str, AfterValidator(_secret)]
Taken = Annotated[str, AfterValidator(_inside)]


class Facts(Declared):
    """What the author of any tool says of it."""

    name: Name = Field(description="lower-case letters, digits, `-` and single `_`; begins with a letter")
    description: str = Field(min_length=1, max_length=LONGEST_DESCRIPTION, description="what a model is told")
    timeout_s: float = Field(10.0, gt=0, le=400, description="what one call may take; seconds")
    risk: Risk | None = Field(
        None,
        description="what a call can do at worst, which safety bundles decide by and no model is told; none: `execute` in a sandbox, `network` where its profile "
        "lets it out, `destructive` for a trusted function",
    )


class Boxed(Declared):
    """What the author of a sandboxed tool says of its calls."""

    profile: str = Field("strict", description="limits of the container: `NAME` (its newest version) or `NAME@VERSION`")
    secrets: tuple[Secret, ...] = Field((), description="secrets that a call gets as environment variables of its own")


class Filing(Boxed):
    """What the author of a sandboxed program says of its calls."""

    take: tuple[Taken, ...] = Field(
        (), max_length=MOST_FILES, description="files that are read from the scratch folder after each call"
    )


@dataclass(frozen=True)
class Unresolved(Tool):
    """A tool whose profile is a name that `tool_files` still has to look up; until then the strictest holds. `risk` is what its author said, if anything."""

    wanted: str = "strict"
    risk: Risk | None = None


_KINDS: Mapping[type[Action], Kind] = {
    Written: "code",
    Fixed: "code",
    Command: "command",
    ServerTool: "mcp",
    Function: "function",
}


def from_model(
    name: str,
    description: str,
    arguments: type[BaseModel],
    action: Action,
    *,
    timeout_s: float = 10.0,
    profile: Profile = STRICT,
    secrets: tuple[str, ...] = (),
    take: tuple[str, ...] = (),
) -> Tool:
    """A tool whose JSON schema comes from its argument types. `timeout_s` is seconds."""
    kind = _KINDS[type(action)]
    spec = ToolSpec(
        name=name,
        description=description,
        parameters=schema_of(arguments),
        kind=kind,
        timeout_s=timeout_s,
        risk=usual_risk(kind, profile),
    )
    return Tool(spec, action, problem_of(arguments), profile, secrets, take)


def usual_risk(kind: Kind, profile: Profile = STRICT) -> Risk:
    """The risk class where the author says none. What no sandbox holds, or a stranger wrote, is taken to be able to do anything."""
    if kind in {"mcp", "function"}:
        return "destructive"
    return "network" if profile.egress else "execute"


def with_risk(tool: Tool, risk: Risk | None) -> Tool:
    """The tool with this risk class, or the one that is usual for its kind and profile."""
    return replace(tool, spec=tool.spec.model_copy(update={"risk": risk or usual_risk(tool.spec.kind, tool.profile)}))


def schema_of(arguments: type[BaseModel]) -> dict[str, JsonValue]:
    """The JSON schema of an argument model, without the titles and docstrings that pydantic takes from our own code."""
    schema = arguments.model_json_schema()
    fields: dict[str, JsonValue] = {name: _without(field, "title") for name, field in schema["properties"].items()}
    return {**_without(schema, "title", "description"), "properties": fields}


def _without(schema: Mapping[str, JsonValue], *names: str) -> dict[str, JsonValue]:
    return {name: value for name, value in schema.items() if name not in names}


def problem_of(arguments: type[BaseModel]) -> Callable[[Mapping[str, JsonValue]], str | None]:
    """What tells why arguments do not fit these types."""

    def problem(given: Mapping[str, JsonValue]) -> str | None:
        try:
            arguments.model_validate(given)
        except ValidationError as error:
            return reasons(error)
        return None

    return problem


def reasons(error: ValidationError) -> str:
    """The first three things that do not fit, in one line that is safe to store and not long."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    said = (f"{'.'.join(map(str, one['loc']))[:80] or 'arguments'}: {one['msg'][:300]}" for one in found[:3])
    return "; ".join(said).encode(errors="replace").decode()


def filled(spec: ToolSpec, arguments: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The arguments, with the schema's defaults for those that were left out."""
    fields = cast("Mapping[str, Mapping[str, JsonValue]]", spec.parameters.get("properties", {}))
    return {**{name: field["default"] for name, field in fields.items() if "default" in field}, **arguments}


_ANNOTATED: Any = Annotated


def arguments_model(fields: Mapping[str, tuple[Any, FieldInfo]]) -> type[Arguments]:
    """The model of arguments of any names, those that pydantic keeps for itself too. Raises `ValueError` for a type that it cannot check."""
    named: dict[str, Any] = {}
    for number, (name, (annotation, about)) in enumerate(fields.items()):
        named[f"argument_{number}"] = (_ANNOTATED[annotation, Field(alias=name)], about)
    try:
        return create_model("Arguments", __base__=Arguments, **named)
    except (PydanticUserError, SchemaError, TypeError) as error:
        raise ValueError(f"a type or pattern cannot be checked: {' '.join(str(error).split())[:200]}") from error


@overload
def tool(function: Callable[..., object], /) -> Tool: ...


@overload
def tool(
    *,
    name: str | None = None,
    kind: Literal["code", "function"] = "code",
    timeout_s: float = 10.0,
    profile: Profile | str = STRICT,
    secrets: tuple[str, ...] = (),
    take: tuple[str, ...] = (),
    risk: Risk | None = None,
) -> Callable[[Callable[..., object]], Tool]: ...


def tool(
    function: Callable[..., object] | None = None,
    /,
    *,
    name: str | None = None,
    kind: Literal["code", "function"] = "code",
    timeout_s: float = 10.0,
    profile: Profile | str = STRICT,
    secrets: tuple[str, ...] = (),
    take: tuple[str, ...] = (),
    risk: Risk | None = None,
) -> Tool | Callable[[Callable[..., object]], Tool]:
    """Make a tool of a typed function: its name, docstring and annotations are what a model is told.

    The parameters are JSON values: `str`, `int`, `float`, `bool`, `None`, `list`, `dict`, `Literal` of texts, unions of them, and `Annotated`
    with a `Field`. The first paragraph of the docstring is the description; its `Args:` describe the parameters.

    Args:
        function: the function, where the decorator stands without brackets.
        name: another name than the function's.
        kind: `code` runs the function's source in a sandbox, as a program of its own: it prints what the function returns, text as it
            is and anything else as JSON. `function` calls it in the tool runner's process, which trusts it.
        timeout_s: what one call may take, in seconds.
        profile: limits of the container, or the name of a profile of the tools folder. Sandboxed functions only, as the next two.
        secrets: names of the secrets that a call gets as environment variables.
        take: files that are read from the scratch folder after each call.
        risk: what a call can do at worst; see `metier_tools.tool.Risk`. None: what is usual for its kind and profile.

    Raises:
        BadSpec: with the function's file, line and name.
    """
    given = _Given(name, kind, timeout_s, profile, secrets, take, risk)
    return given.declared if function is None else given.declared(function)


@dataclass(frozen=True)
class _Given:
    """What stands in the decorator's brackets."""

    name: str | None
    kind: Literal["code", "function"]
    timeout_s: float
    profile: Profile | str
    secrets: tuple[str, ...]
    take: tuple[str, ...]
    risk: Risk | None

    def declared(self, function: Callable[..., object]) -> Tool:
        """The tool that a function becomes."""
        if not inspect.isfunction(function):
            raise BadSpec(f"a tool is made of a function that is written with def; {function!r} is none")
        place = f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}: {function.__name__}"
        try:
            return self._made(function)
        except ValidationError as error:
            raise BadSpec(f"{place}: {reasons(error)}") from error
        except ValueError as error:
            raise BadSpec(f"{place}: {error}") from error

    def _made(self, function: FunctionType) -> Tool:
        doc = inspect.getdoc(function) or ""
        if not doc.strip():
            raise ValueError("a docstring is missing; its first paragraph is what a model is told")
        facts = Facts(
            name=self.name or function.__name__,
            description=" ".join(doc.split("\n\n", 1)[0].split()),
            timeout_s=self.timeout_s,
            risk=self.risk,
        )
        made = from_model(
            facts.name,
            facts.description,
            arguments_model(_fields(function, _parameter_docs(doc))),
            self._action(function),
            timeout_s=facts.timeout_s,
        )
        return self._boxed(made)

    def _action(self, function: FunctionType) -> Action:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ValueError("a tool returns its result; it cannot yield it")
        if self.kind == "code":
            return Fixed("python", program_of(function))
        if self.secrets or self.take or self.profile != STRICT:
            raise ValueError("profile, secrets and take are for sandboxed tools; kind='function' runs in no sandbox")
        return Function(function)

    def _boxed(self, made: Tool) -> Tool:
        named = self.profile if isinstance(self.profile, str) else self.profile.key
        boxed = Filing(profile=named, secrets=self.secrets, take=self.take)
        if isinstance(self.profile, Profile):
            return with_risk(replace(made, profile=self.profile, secrets=boxed.secrets, take=boxed.take), self.risk)
        return Unresolved(
            made.spec, made.action, made.problem, STRICT, boxed.secrets, boxed.take, wanted=named, risk=self.risk
        )


def _fields(function: FunctionType, docs: Mapping[str, str]) -> dict[str, tuple[Any, FieldInfo]]:
    try:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise ValueError(f"an annotation cannot be read: {error}") from error
    return {parameter.name: _field(parameter, docs.get(parameter.name)) for parameter in parameters}


def _field(parameter: inspect.Parameter, doc: str | None) -> tuple[Any, FieldInfo]:
    kind, annotation = parameter.kind, parameter.annotation
    if kind not in {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}:
        raise ValueError(f"the parameter {parameter} is {kind.description}; a tool's arguments are given by name")
    if annotation is inspect.Parameter.empty:
        raise ValueError(f"the parameter {parameter.name} has no annotation")
    if not _is_json(annotation):
        raise ValueError(
            f"the parameter {parameter.name} is no JSON value: take str, int, float, bool, None, list, dict or a Literal of texts"
        )
    described = any(isinstance(part, FieldInfo) and part.description for part in get_args(annotation)[1:])
    about: dict[str, Any] = {"description": doc} if doc and not described else {}
    if parameter.default is inspect.Parameter.empty:
        return annotation, Field(..., **about)
    _check_default(parameter)
    return annotation, Field(parameter.default, **about)


def _check_default(parameter: inspect.Parameter) -> None:
    try:
        TypeAdapter(parameter.annotation).validate_python(parameter.default, strict=True)
        json.dumps(parameter.default, allow_nan=False)
    except (ValidationError, ValueError, TypeError) as error:
        raise ValueError(f"the default of {parameter.name} does not fit its annotation") from error


_PLAIN = (str, int, float, bool, NoneType, None, list, dict, Any, JsonValue)


def _is_json(annotation: Any) -> bool:
    """Whether values of this type are JSON values as they stand, so that nothing has to be converted."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _is_json(parts[0])
    if origin is Literal:
        return all(part is None or isinstance(part, str) for part in parts)  # Literal[1] would take True
    if origin is dict:
        return parts[0] is str and _is_json(parts[1])
    if origin in {list, Union, UnionType}:
        return all(_is_json(part) for part in parts)
    return any(annotation is plain for plain in _PLAIN)


_PARAMETER = re.compile(r"^ {2,8}(\w+)(?: \([^)]*\))?: +(.+(?:\n {6,}\S.*)*)", re.MULTILINE)


def _parameter_docs(doc: str) -> dict[str, str]:
    """What a docstring says of each parameter in its `Args:` section, in Google's style."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", doc, re.MULTILINE)
    found = _PARAMETER.findall(section.group(1)) if section else []
    return {name: " ".join(text.split()) for name, text in found}
