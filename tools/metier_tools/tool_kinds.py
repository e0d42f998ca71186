"""What a tool file says, by its kind, and the action that it means.

`tool_files` reads files into these models and makes tools of them. All that can be wrong with a file is found here, in the field where it
stands; what a value may be is said once, and becomes both the JSON schema and the check.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    FiniteFloat,
    JsonValue,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import SchemaError

from metier_infra.declared import Declared
from metier_tools.command_line import fits_in_a_word, only_place, places
from metier_tools.declare import Arguments, Boxed, Facts, Filing, Name, arguments_model, unfit
from metier_tools.json_schema import fault
from metier_tools.tool import Language, Risk
from metier_tools.toolbox import Action, Command, Fixed, Function, Written

_PLAIN: Mapping[str, Any] = {"string": str, "integer": int, "number": FiniteFloat, "boolean": bool}
_MEANT_FOR: Mapping[str, tuple[str, ...]] = {
    "enum": ("string", "integer"),
    "minimum": ("integer", "number"),
    "maximum": ("integer", "number"),
    "max_length": ("string",),
    "pattern": ("string",),
}
_ANNOTATED: Any = Annotated
_LIST: Any = list


class Argument(Declared):
    """One argument of a tool. Of a list, `enum`, `minimum`, `maximum`, `max_length` and `pattern` speak of each value in it."""

    type: Literal[
        "string", "integer", "number", "boolean", "list[string]", "list[integer]", "list[number]", "list[boolean]"
    ]
    description: str = Field(min_length=1, description="what a model is told of it")
    enum: tuple[str | int, ...] = Field((), description="the only values that it takes; none named: any")
    minimum: int | FiniteFloat | None = None
    maximum: int | FiniteFloat | None = None
    max_length: int | None = Field(None, ge=0, description="characters")
    pattern: str | None = Field(
        None, description="what a text must contain; begin with ^ and end with $ to mean all of it"
    )
    default: JsonValue = Field(None, description="what holds when it is left out; an argument without one is required")

    @property
    def is_list(self) -> bool:
        """Whether it is several values."""
        return self.type.startswith("list[")

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return "default" not in self.model_fields_set

    @property
    def _each(self) -> str:
        return self.type.removeprefix("list[").removesuffix("]")

    @property
    def annotation(self) -> Any:
        """The type of its values."""
        each = _PLAIN[self._each]
        limits = Field(ge=self.minimum, le=self.maximum, max_length=self.max_length, pattern=self.pattern)
        one = _ANNOTATED[each, limits, *_one_of(self.enum)]
        return _LIST[one] if self.is_list else one

    @model_validator(mode="after")
    def _sound(self) -> Argument:
        for name, kinds in _MEANT_FOR.items():
            if name in self.model_fields_set and self._each not in kinds:
                raise unfit(f"{name} is for {' and '.join(kinds)}, not for {self._each}")
        if strange := [value for value in self.enum if not _fits(_PLAIN[self._each], value)]:
            raise unfit(f"enum: {strange[0]!r} is no {self._each}")
        try:
            fits = _fits(self.annotation, self.default) or self.required
        except SchemaError as error:
            raise unfit(f"pattern: {self.pattern!r} cannot be used: {fault(error)}") from error
        if not fits:
            raise unfit(f"default: {self.default!r} does not fit")
        return self


def _one_of(values: tuple[str | int, ...]) -> tuple[Any, ...]:
    """What an annotation needs to take these values only. A `Literal` would take `True` for 1."""

    def member(value: str | int) -> str | int:
        if value not in values:
            raise unfit(f"must be one of {', '.join(map(str, values))}")
        return value

    return (AfterValidator(member), Field(json_schema_extra={"enum": list(values)})) if values else ()


def _fits(annotation: Any, value: object) -> bool:
    try:
        TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _named(arguments: dict[str, Argument]) -> dict[str, Argument]:
    for name in arguments:
        if not (name.isascii() and name.isidentifier() and name[0].isalpha() and len(name) <= 63):
            raise unfit(f"{name!r} is no argument's name: letters, digits and _, at most 63, the first a letter")
    return arguments


NamedArguments = Annotated[dict[str, Argument], AfterValidator(_named)]


class _Arguments(Declared):
    arguments: NamedArguments = Field(default_factory=dict[str, Argument], description="by name: what a call takes")

    @property
    def model(self) -> type[Arguments]:
        """What a call takes."""
        return arguments_model({name: (self._annotation(name), _about(one)) for name, one in self.arguments.items()})

    def _annotation(self, name: str) -> Any:
        return self.arguments[name].annotation


def _about(argument: Argument) -> Any:
    return Field(... if argument.required else argument.default, description=argument.description)


class CodeFile(Facts, Filing, _Arguments):
    """A program in a sandbox: the author's own, or one that the model writes."""

    kind: Literal["code"]
    language: Language
    program: str | None = Field(
        None, min_length=1, description="the program; it reads the arguments as one JSON object from standard input"
    )
    argument: str | None = Field(None, validate_default=True, description="or the argument whose value is the program")

    @field_validator("argument")
    @classmethod
    def _one_program(cls, argument: str | None, info: ValidationInfo) -> str | None:
        if "program" in info.data and (argument is None) == (info.data["program"] is None):
            raise unfit("give either program or argument: the text of the program, or the argument that holds it")
        declared: Mapping[str, Argument] = info.data.get("arguments", {})
        if argument is not None and "arguments" in info.data:
            _check_holder(argument, declared)
        return argument

    @property
    def action(self) -> Action:
        """The program."""
        return Written(self.language, self.argument) if self.argument else Fixed(self.language, self.program or "")

    def _annotation(self, name: str) -> Any:
        plain = super()._annotation(name)
        script = name == self.argument and self.language == "shell"
        return _ANNOTATED[plain, AfterValidator(fits_in_a_word)] if script else plain


def _check_holder(argument: str, declared: Mapping[str, Argument]) -> None:
    holder = declared.get(argument)
    if holder is None:
        raise unfit(f"{argument!r} is not among the arguments")
    if holder.type != "string" or not holder.required:
        raise unfit(f"the argument {argument!r} holds the program: its type is string and it has no default")


class CommandFile(Facts, Filing, _Arguments):
    """A program of the image. `{name}` stands for an argument's value; other braces are text, and `{{name}}` is the text `{name}`."""

    kind: Literal["command"]
    stdin: str = Field("", description="what the program reads")
    command: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=1, description="the program and its words; a list is a word of its own and becomes several"
    )

    @field_validator("stdin")
    @classmethod
    def _known_in_stdin(cls, stdin: str, info: ValidationInfo) -> str:
        _check_places([stdin], info.data.get("arguments"))
        return stdin

    @field_validator("command")
    @classmethod
    def _known_and_used(cls, command: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        arguments: Mapping[str, Argument] | None = info.data.get("arguments")
        if any("\0" in word for word in command) or places(command[0]):
            raise unfit("the program is named by its author: no NUL, and no argument in the first word")
        _check_places(command, arguments)
        _check_lists(command, arguments or {})
        used = {name for template in (*command, info.data.get("stdin", "")) for name in places(template)}
        if "stdin" in info.data and (unused := [name for name in arguments or {} if name not in used]):
            raise unfit(f"the argument {unused[0]!r} is used nowhere: put {{{unused[0]}}} into command or stdin")
        return command

    @property
    def action(self) -> Action:
        """The command."""
        return Command(self.command, self.stdin)


def _check_places(templates: tuple[str, ...] | list[str], arguments: Mapping[str, Argument] | None) -> None:
    for name in (name for template in templates for name in places(template)):
        if arguments is not None and name not in arguments:
            raise unfit(f"{{{name}}} is not among the arguments; if it is meant as text, write {{{{{name}}}}}")


def _check_lists(command: tuple[str, ...], arguments: Mapping[str, Argument]) -> None:
    lists = {name for name, argument in arguments.items() if argument.is_list}
    for template in command:
        if (inside := lists.intersection(places(template))) and not only_place(template):
            raise unfit(f"the list {{{min(inside)}}} must be a word of its own")


class FunctionFile(Facts, _Arguments):
    """A trusted Python function, called in the tool runner's process."""

    kind: Literal["function"]
    function: str = Field(pattern=r"^[\w.]+:\w+$", description="`package.module:name`")

    @field_validator("function")
    @classmethod
    def _callable(cls, function: str, info: ValidationInfo) -> str:
        try:
            signature = inspect.signature(_imported(function))
            signature.bind(**dict.fromkeys(info.data.get("arguments", {})))
        except TypeError as error:
            raise unfit(f"{function} cannot be called with these arguments: {error}") from error
        return function

    @property
    def action(self) -> Action:
        """The function."""
        return Function(_imported(self.function))


def _imported(path: str) -> Callable[..., object]:
    module, _, name = path.partition(":")
    try:
        found: object = getattr(import_module(module), name)
    except Exception as error:
        raise unfit(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise unfit(f"{path} is no function")
    return found


class ServerFile(Boxed):
    """An MCP server that speaks over standard input and output, in a container. Its tools are those of them that were approved."""

    kind: Literal["mcp"]
    name: Name = Field(max_length=32, description="stands before the names of its tools: `NAME__TOOL`")
    timeout_s: float = Field(10.0, gt=0, le=400, description="what one call may take; seconds")
    command: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1, description="what starts the server")
    risk: Risk = Field(
        "destructive",
        description="what a call of any of its tools can do at worst; what the server says of that is not asked",
    )
    risks: dict[str, Risk] = Field(
        default_factory=dict[str, Risk], description="the same for single tools, by the name that the server gives them"
    )

    def risk_of(self, tool: str) -> Risk:
        """The risk class of one of its tools, by the tool's name with or without the server's before it."""
        return self.risks.get(tool.removeprefix(f"{self.name}__"), self.risk)
