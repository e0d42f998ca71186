"""Tools as data: schemas from types, digests that pin them, arguments that fit or are refused in a sentence a model can act on.

The programs that typed functions become are run here by a plain Python: what a sandbox adds is tested with the sandbox.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import math
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, JsonValue

from metier_infra.errors import BadSpec
from metier_tools.builtin import BUILTIN, PYTHON
from metier_tools.command_line import WORD_BYTES
from metier_tools.declare import Arguments, Unresolved, filled, from_model, tool
from metier_tools.profile import STRICT, Profile
from metier_tools.tool import ToolSpec
from metier_tools.toolbox import Fixed, Function, Refusal, Tool, Toolbox, Written


def test_the_schema_comes_from_the_types() -> None:
    python = BUILTIN.spec("python")
    assert python is not None
    assert python.parameters["required"] == ["code"]
    assert python.parameters["additionalProperties"] is False
    assert "title" not in str(python.parameters)
    assert BUILTIN.names == ("python", "shell")


@pytest.mark.parametrize(
    "change",
    [{"name": "x"}, {"description": "x"}, {"parameters": {}}, {"kind": "function"}, {"also": {"a": 1}}],
    ids=str,
)
def test_the_digest_changes_with_all_that_a_model_is_told(change: dict[str, object]) -> None:
    spec = PYTHON.spec
    assert spec.model_copy(update=change).digest != spec.digest
    assert spec.model_copy(update={"timeout_s": 99}).digest == spec.digest
    assert ToolSpec.model_validate_json(spec.model_dump_json()).digest == spec.digest


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("perl", {"code": "1"}, "no tool 'perl'; there are python, shell"),
        ("python", {}, "code: Field required"),
        ("python", {"code": 7}, "code: Input should be a valid string"),
        ("python", {"code": ""}, "code: String should have at least 1 character"),
        ("python", {"code": "1", "timeout": 3}, "timeout: Extra inputs are not permitted"),
        ("python", {"code": "\ud800"}, "code: Input should be a valid string"),
        ("python", {"code": "x" * 200_001}, "code: String should have at most 200000"),
        ("shell", {"script": "a\0b"}, "none of them NUL"),
        ("shell", {"script": "é" * (WORD_BYTES // 2 + 1)}, "at most 120000 bytes"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_arguments_that_do_not_fit_are_refused(name: str, arguments: dict[str, JsonValue], says: str) -> None:
    refusal = BUILTIN.check(name, arguments)
    assert isinstance(refusal, Refusal)
    assert says in refusal.sentence


def test_what_is_said_of_bad_arguments_is_short_and_can_be_stored() -> None:
    said = PYTHON.problem({"x" * 5000 + str(number): 1 for number in range(50)}) or ""
    assert len(said) < 1000
    assert (PYTHON.problem({"\ud800": 1}) or "").encode()


def test_arguments_that_fit_give_the_tool() -> None:
    shell = BUILTIN.check("shell", {"script": "true"})
    assert isinstance(shell, Tool)
    assert shell.action == Written("shell", "script")
    assert shell.profile is STRICT


def test_a_toolbox_takes_no_two_tools_of_one_name_and_gives_only_what_it_has() -> None:
    with pytest.raises(BadSpec, match="two tools"):
        Toolbox([PYTHON, from_model("python", "another", Arguments, Written("python", "code"))])
    with pytest.raises(BadSpec, match="no tool 'perl'"):
        BUILTIN.specs(["python", "perl"])


@tool
def convert(
    celsius: Annotated[float, Field(ge=-273.15, le=1e9)],
    json: list[str],
    schema: str | None = None,
    to: Annotated[Literal["f", "k"], Field(description="the unit")] = "f",
) -> dict[str, object]:
    """Convert a temperature
    from Celsius.

    This is for people who read the code.

    Args:
        celsius: degrees, in
            Celsius.
        json (list): what else.
        to: not read, since the annotation says it.

    Returns:
        all of it: again.
    """
    import math
    from dataclasses import dataclass

    @dataclass
    class Degrees:
        value: float

        def in_f(self) -> Annotated[float, Unresolved]:
            return self.value * 9 / 5 + 32

    found: Annotated[float, Unresolved] = Degrees(celsius).in_f() if to == "f" else celsius + 273.15
    return {"degrees": math.floor(found), "json": json, "schema": schema}


@tool(name="greet-all", timeout_s=3, profile="web", secrets=("TOKEN",), take=("out.png",))
async def greet(names: list[str], times: int = 1) -> str:
    """Greet them."""
    import asyncio

    async def one(name: str) -> str:
        await asyncio.sleep(0)
        return f"hé {name}" * times

    return " ".join(await asyncio.gather(*map(one, names)))


def test_a_typed_function_is_a_tool() -> None:
    assert (convert.spec.name, convert.spec.kind, convert.profile) == ("convert", "code", STRICT)
    assert convert.spec.description == "Convert a temperature from Celsius."
    assert convert.spec.parameters == {
        "type": "object",
        "additionalProperties": False,
        "required": ["celsius", "json"],
        "properties": {
            "celsius": {"type": "number", "minimum": -273.15, "maximum": 1e9, "description": "degrees, in Celsius."},
            "json": {"type": "array", "items": {"type": "string"}, "description": "what else."},
            "schema": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
            "to": {"type": "string", "enum": ["f", "k"], "default": "f", "description": "the unit"},
        },
    }
    assert filled(convert.spec, {"celsius": 1, "json": []}) == {"celsius": 1, "json": [], "schema": None, "to": "f"}


def test_the_brackets_of_the_decorator_say_the_rest() -> None:
    assert isinstance(greet, Unresolved)
    assert (greet.spec.name, greet.spec.timeout_s, greet.wanted) == ("greet-all", 3, "web")
    assert (greet.secrets, greet.take, greet.profile) == (("TOKEN",), ("out.png",), STRICT)
    wide = Profile.model_validate({"name": "wide"})

    @tool(profile=wide)
    def inner() -> None:
        """Do nothing."""

    assert inner.profile is wide


@pytest.mark.parametrize(
    ("declared", "arguments", "printed"),
    [
        (convert, {"celsius": 20, "json": ["é"]}, '{"degrees": 68, "json": ["é"], "schema": null}\n'),
        (convert, {"celsius": 0, "json": [], "to": "k"}, '{"degrees": 273, "json": [], "schema": null}\n'),
        (greet, {"names": ["a", "b"], "times": 2}, "hé ahé a hé bhé b\n"),
    ],
)
def test_a_sandboxed_function_is_a_program_that_reads_its_arguments_and_prints_what_it_returns(
    declared: Tool, arguments: dict[str, JsonValue], printed: str
) -> None:
    assert declared.problem(arguments) is None
    assert output_of(declared, arguments) == printed


def output_of(declared: Tool, arguments: dict[str, JsonValue]) -> str:
    assert isinstance(declared.action, Fixed)
    program = [sys.executable, "-I", "-S", "-c", declared.action.source]
    ended = subprocess.run(program, input=json.dumps(arguments).encode(), capture_output=True, check=False)
    assert (ended.stderr.decode(), ended.returncode) == ("", 0)
    return ended.stdout.decode()


def function_in(folder: Path, source: str) -> FunctionType:
    """The function `f` of a module that holds this source."""
    path = folder / "authors.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("authors", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: FunctionType = module.f
    return found


@pytest.mark.parametrize(
    ("source", "printed"),
    [
        ("def f(n: int = 3) -> list:\n    'Count.'\n    return [n, *f(n - 1)] if n else []", "[3, 2, 1]\n"),
        ("def f(a: dict[str, list[int] | None] = {}) -> dict:\n    'Say it.'\n    return a", "{}\n"),
        ("def f() -> None:\n    'Say it.'\n    print(1)", "1\nnull\n"),
        ("def f() -> str:\n    'Say it.'\n    return __name__", "__main__\n"),
        ("def g(f):\n    return f\n@g\ndef f() -> int:\n    'Say it.'\n    return 1", "1\n"),
        ("if True:\n    def f() -> int:\n        '''Say\n        it.'''\n        x: int\n        x = 4\n        return x", "4\n"),
    ],
)  # fmt: skip
def test_what_a_function_may_do_in_a_program_of_its_own(tmp_path: Path, source: str, printed: str) -> None:
    assert output_of(tool(function_in(tmp_path, source)), {}) == printed


def test_a_trusted_function_is_called_as_it_is() -> None:
    outside = 40

    @tool(kind="function")
    async def add(more: int) -> int:
        """Add."""
        return outside + more

    @tool(kind="function")
    def count(text: str) -> int:
        """Count."""
        return len(text) + outside

    assert isinstance(add.action, Function)
    assert isinstance(count.action, Function)
    assert inspect.iscoroutinefunction(add.action.call)
    assert (asyncio.run(add.action.call(more=2)), count.action.call(text="ab")) == (42, 42)


DOES = "    'Do it.'\n"
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("def f(a: int):\n    return a", {}, "1: f: a docstring is missing"),
    ("def f(a, b: int = 1):\n" + DOES, {}, "1: f: the parameter a has no annotation"),
    ("def f(*a: int):\n" + DOES, {}, "1: f: the parameter *a: int is variadic positional"),
    ("def f(**a: int):\n" + DOES, {}, "1: f: the parameter **a: int is variadic keyword"),
    ("def f(a: int, /):\n" + DOES, {}, "1: f: the parameter a: int is positional-only"),
    ("def f(a: set[int]):\n" + DOES, {}, "1: f: the parameter a is no JSON value"),
    ("def f(a: list[bytes]):\n" + DOES, {}, "1: f: the parameter a is no JSON value"),
    ("def f(a: dict[int, str]):\n" + DOES, {}, "1: f: the parameter a is no JSON value"),
    ("from typing import *\ndef f(a: Literal[1]):\n" + DOES, {}, "2: f: the parameter a is no JSON value"),
    ("def f(a: 'Nowhere'):\n" + DOES, {}, "1: f: an annotation cannot be read: name 'Nowhere' is not defined"),
    ("def f(a: 'int +'):\n" + DOES, {}, "1: f: an annotation cannot be read"),
    ("def f(a: int = 'x'):\n" + DOES, {}, "1: f: the default of a does not fit its annotation"),
    ("def f(a: float = 1e999):\n" + DOES, {}, "1: f: the default of a does not fit its annotation"),
    (
        "from typing import *\nfrom pydantic import *\n\ndef f(a: Annotated[str, Field(pattern='(?=x)')]):\n" + DOES,
        {},
        "4: f: a type or pattern cannot be checked",
    ),
    ("X = 7\ndef f():\n" + DOES + "    return X", {}, "2: f: it uses X from outside itself"),
    ("import json, sys\ndef f():\n" + DOES + "    json.dump(1, sys.stdout)", {}, "2: f: it uses json, sys from outside"),
    ("def f():\n" + DOES + "    global X\n    X = 3", {}, "1: f: it uses X from outside itself"),
    ("def f():\n" + DOES + "    def g():\n        return [X for _ in 'a']\n    g()", {}, "1: f: it uses X from outside"),
    ("def f():\n" + DOES + "    class A:\n        x: X", {}, "1: f: it uses X from outside itself"),
    ("X = 7\ndef f(a: int = X):\n" + DOES, {}, "2: f: it uses X from outside itself"),
    ("def f():\n" + DOES + "    exit()", {}, "1: f: it uses exit from outside itself"),
    ("def g():\n  x = 1\n  def f():\n    'Do it.'\n    return x\n  return f\nf = g()", {}, "3: f: it uses x from outside"),
    ("def f():\n" + DOES + "    yield 1", {}, "1: f: a tool returns its result"),
    ("async def f():\n" + DOES + "    yield 1", {"kind": "function"}, "1: f: a tool returns its result"),
    ("g = lambda f: f\n@g\n@g\ndef f():\n" + DOES, {}, "2: f: it has another decorator"),
    (
        "import functools\ndef g(f):\n    @functools.wraps(f)\n    def h(): return f()\n    return h\n@g\ndef f():\n" + DOES,
        {},
        "3: f: it has another decorator",
    ),
    ("f = lambda: 1\nf.__doc__ = 'Do it.'", {"name": "a"}, "1: <lambda>: its source cannot be read"),
    ("def F():\n" + DOES + "f = F", {}, "1: F: name: 'F' is no name"),
    ("def f():\n" + DOES, {"name": "a__b"}, "1: f: name: 'a__b' is no name"),
    ("def f():\n" + DOES, {"timeout_s": 401}, "1: f: timeout_s: Input should be less than or equal to 400"),
    ("def f():\n" + DOES, {"secrets": ("token",)}, "1: f: secrets.0: 'token' is no secret's name"),
    ("def f():\n" + DOES, {"take": ("../a",)}, "1: f: take.0: the path '../a' cannot be used: it must be"),
    ("def f():\n" + DOES, {"take": ("a/./b",)}, "1: f: take.0: the path 'a/./b' cannot be used: it must be"),
    ("def f():\n" + DOES, {"take": (".",)}, "1: f: take.0: the path '.' cannot be used: it must be"),
    ("def f():\n" + DOES, {"take": ("a\nb",)}, "1: f: take.0: the path 'a\\nb' cannot be used: it is empty, or holds a NUL or"),
    ("def f():\n" + DOES, {"take": ("a\x1b[2J",)}, "1: f: take.0: the path 'a\\x1b[2J' cannot be used: it holds characters"),
    ("def f():\n" + DOES, {"take": ("é" * 128,)}, f"1: f: take.0: the path '{'é' * 128}' cannot be used: it is longer"),
    ("def f():\n" + DOES, {"kind": "function", "secrets": ("A",)}, "1: f: profile, secrets and take are for sandboxed"),
    ("def f():\n" + DOES, {"kind": "function", "profile": "web"}, "1: f: profile, secrets and take are for sandboxed"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "brackets", "says"), BAD)
def test_a_function_that_cannot_be_a_tool_is_refused_where_it_stands(
    tmp_path: Path, source: str, brackets: dict[str, Any], says: str
) -> None:
    function = function_in(tmp_path, source)
    with pytest.raises(BadSpec) as caught:
        tool(**brackets)(function)
    assert str(caught.value).startswith(f"{tmp_path / 'authors.py'}:{says}"), caught.value


def test_only_functions_with_a_source_become_tools() -> None:
    with pytest.raises(BadSpec, match="a tool is made of a function that is written with def"):
        tool(print)
    scope: dict[str, Any] = {}
    exec("def f() -> int:\n    'Do it.'\n    return 1", scope)
    with pytest.raises(BadSpec, match="its source cannot be read"):
        tool(scope["f"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_json_does_not_have_is_refused(tmp_path: Path, value: float) -> None:
    halve = tool(function_in(tmp_path, "def f(a: float) -> float:\n    'Halve it.'\n    return a / 2"))
    assert halve.problem({"a": 1}) is None
    assert halve.problem({"a": value}) == "a: Input should be a finite number"


VALIDATOR: Any = import_module("jsonschema").Draft202012Validator
NO_JSON = (math.inf, -math.inf, "\ud800")
LEAVES: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -300, 2.5, 1e9, 10**10, "f", "k", "abc", "", [], {}, ["a"], [1], *NO_JSON]
)


@given(
    arguments=st.fixed_dictionaries(
        {"celsius": LEAVES, "json": LEAVES}, optional={"schema": LEAVES, "to": LEAVES, "more": LEAVES}
    )
)
def test_what_fits_the_schema_passes_the_types_and_nothing_else_does(arguments: dict[str, Any]) -> None:
    fits = VALIDATOR(convert.spec.parameters).is_valid(arguments) and not any(map(NO_JSON.count, arguments.values()))
    assert fits == (convert.problem(arguments) is None)
