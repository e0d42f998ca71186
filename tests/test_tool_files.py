"""The tools folder: each kind of file, each mistake with the place where it stands, and the toolbox that comes of it.

Not tested: that what is declared really runs in a container, which is `test_execution` and `test_docker_sandbox`.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, JsonValue

from metier_infra.errors import BadSpec
from metier_tools import pins, tool_files
from metier_tools.builtin import BUILTIN
from metier_tools.declare import arguments_model, filled, problem_of, schema_of
from metier_tools.profile import STRICT
from metier_tools.tool import Language
from metier_tools.tool_kinds import Argument
from metier_tools.toolbox import Command, Fixed, Function, Refusal, Tool, Written

CODE = """\
kind: code
name: word-count
description: Count words.
language: python
profile: web
secrets: [API_TOKEN]
take: [out/table.csv]
timeout_s: 3
program: |
  import json, sys
  print(len(json.load(sys.stdin)["text"].split()))
arguments:
  text: {type: string, description: the text, max_length: 20}
  sort: {type: string, description: order, enum: [up, down], default: up}
"""
COMMAND = """\
kind: command
name: search
description: Find lines.
command: [grep, "--max-count={most}", --, "{pattern}", "{files}"]
arguments:
  pattern: {type: string, description: a pattern}
  most: {type: integer, description: lines, minimum: 1, maximum: 100, default: 10}
  files: {type: "list[string]", description: files, pattern: "^[a-z]+$"}
"""
FUNCTION = """\
kind: function
name: to-json
description: Write JSON.
function: json:dumps
arguments: {obj: {type: string, description: what to write}}
"""
SERVER = """\
kind: mcp
name: git
command: [python3, -m, git_server]
secrets: [GIT_TOKEN]
timeout_s: 20
"""
WEB_1 = "name: web\nversion: 1\nmemory_bytes: 128MiB\n"
WEB_2 = "name: web\nversion: 2\negress: {hosts: [api.example.com]}\n"


def write(folder: Path, **files: str) -> Path:
    """A folder of these tools; a name that begins with `profile_` is that of a profile."""
    (folder / "profiles").mkdir()
    for name, text in files.items():
        place = folder / "profiles" if name.startswith("profile_") else folder
        (place / f"{name}.yaml").write_text(textwrap.dedent(text))
    return folder


def test_a_folder_gives_tools_profiles_and_servers(tmp_path: Path) -> None:
    folder = write(tmp_path, code=CODE, command=COMMAND, server=SERVER, profile_1=WEB_1, profile_2=WEB_2)
    found = tool_files.load(folder)
    code, command = found.tools
    assert code.spec.parameters == {
        "type": "object",
        "additionalProperties": False,
        "required": ["text"],
        "properties": {
            "text": {"type": "string", "description": "the text", "maxLength": 20},
            "sort": {"type": "string", "description": "order", "enum": ["up", "down"], "default": "up"},
        },
    }
    assert (code.spec.kind, code.spec.timeout_s, code.secrets, code.take) == (
        "code",
        3.0,
        ("API_TOKEN",),
        ("out/table.csv",),
    )
    assert isinstance(code.action, Fixed)
    assert code.profile.key == "web@2"
    assert isinstance(command.action, Command)
    assert command.action.argv == ("grep", "--max-count={most}", "--", "{pattern}", "{files}")
    assert command.profile is STRICT
    assert sorted(found.profiles) == ["strict@1", "web@1", "web@2"]
    assert found.profile("web@1").memory_bytes == 128 << 20
    assert found.servers["git"].command == ("python3", "-m", "git_server")


@pytest.mark.parametrize("language", ["python", "shell"])
def test_a_program_that_the_model_writes_is_the_value_of_an_argument(tmp_path: Path, language: Language) -> None:
    text = f"""\
        kind: code
        name: bench
        description: Run it.
        language: {language}
        argument: body
        arguments:
          body: {{type: string, description: the program}}
          note: {{type: string, description: not the program}}
        """
    (tool,) = tool_files.load(write(tmp_path, bench=text)).tools
    assert tool.action == Written(language, "body")
    assert tool.problem({"body": "x", "note": "x" * 130_000}) is None
    long = tool.problem({"body": "x" * 130_000, "note": ""})
    assert (long is None) == (language == "python"), long


def test_a_function_file_names_a_trusted_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_functions.py").write_text("async def double(n, by=2):\n    return n * by\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = FUNCTION.replace("json:dumps", "my_functions:double").replace("obj: {type: string", "n: {type: integer")
    (tool,) = tool_files.load(write(tmp_path, double=text)).tools
    assert isinstance(tool.action, Function)
    assert inspect.iscoroutinefunction(tool.action.call)
    assert asyncio.run(tool.action.call(n=4)) == 8
    sys.modules.pop("my_functions")


def changed(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


HOLDER = "arguments: {body: {type: string, description: c, default: ls}}\n"
BAD: dict[str, tuple[str, str]] = {
    "no kind": (changed(CODE, "kind: code\n", ""), "1: kind: this field is missing"),
    "another kind": (changed(CODE, "kind: code", "kind: java"), "1: kind: input should be 'code', 'command', 'function'"),
    "a list": ("- a\n", "1: expected the fields of a tool or profile"),
    "no yaml": ("kind: [", "1: not YAML"),
    "upper-case name": (changed(CODE, "word-count", "WordCount"), "2: name: 'WordCount' is no name: lower-case"),
    "double underscore": (changed(CODE, "word-count", "a__b"), "2: name: 'a__b' is no name"),
    "long name": (changed(CODE, "word-count", "a" * 64), "2: name:"),
    "no description": (changed(CODE, "Count words.", '""'), "3: description: string should have at least 1 character"),
    "long description": (changed(CODE, "Count words.", "x" * 4001), "3: description: string should have at most 4000"),
    "another language": (changed(CODE, "language: python", "language: perl"), "4: language: input should be 'python'"),
    "unknown profile": (changed(CODE, "web", "lax"), "5: profile: there is no profile 'lax'; there are strict@1, web@1"),
    "unknown version": (changed(CODE, "web", "web@7"), "5: profile: there is no profile 'web@7'"),
    "lower-case secret": (changed(CODE, "API_TOKEN", "token"), "6: secrets.0: 'token' is no secret's name"),
    "absolute take": (changed(CODE, "out/table.csv", "/etc/passwd"), "7: take.0: the path '/etc/passwd' cannot be used"),
    "take above": (changed(CODE, "out/table.csv", "a/../../b"), "7: take.0: the path 'a/../../b' cannot be used"),
    "timeout of none": (changed(CODE, "timeout_s: 3", "timeout_s: 0"), "8: timeout_s: input should be greater than 0"),
    "typing error": (changed(CODE, "timeout_s", "timeout"), "8: timeout: unknown field; did you mean timeout_s?"),
    "typing error in an argument": (
        changed(CODE, "max_length", "max_lenght"),
        "13: arguments.text.max_lenght: unknown field; did you mean max_length?",
    ),
    "no type of argument": (changed(CODE, "type: string, description: the", "description: the"), "13: arguments.text.type: this field is missing"),
    "another type": (changed(CODE, "type: string, description: the", "type: date, description: the"), "13: arguments.text.type: input should be 'string'"),
    "default not in enum": (changed(CODE, "default: up", "default: 7"), "14: arguments.sort: default: 7 does not fit"),
    "enum of another type": (changed(CODE, "[up, down]", "[up, 7]"), "14: arguments.sort: enum: 7 is no string"),
    "limit for another type": (changed(CODE, "max_length: 20", "minimum: 20"), "13: arguments.text: minimum is for integer and number, not for string"),
    "argument's name": (changed(CODE, "  text:", "  a-b:"), "12: arguments: 'a-b' is no argument's name"),
    "program and argument": (CODE + "argument: text\n", "15: argument: give either program or argument"),
    "neither": ("kind: code\nname: a\ndescription: b\nlanguage: python\n", "1: argument: give either program or argument"),
    "argument that is not there": (
        "kind: code\nname: a\ndescription: b\nlanguage: shell\nargument: body\n",
        "5: argument: 'body' is not among the arguments",
    ),
    "program with a default": (
        "kind: code\nname: a\ndescription: b\nlanguage: shell\nargument: body\n" + HOLDER,
        "5: argument: the argument 'body' holds the program",
    ),
    "unknown placeholder": (changed(COMMAND, "{most}", "{least}"), "4: command: {least} is not among the arguments"),
    "unknown in stdin": (COMMAND + "stdin: '{x}'\n", "9: stdin: {x} is not among the arguments"),
    "unused argument": (changed(COMMAND, '"--max-count={most}", ', ""), "4: command: the argument 'most' is used nowhere"),
    "list in a word": (changed(COMMAND, '"{files}"', '"f={files}"'), "4: command: the list {files} must be a word of its own"),
    "argument as program": (changed(COMMAND, "[grep,", '["{pattern}",'), "4: command: the program is named by its author"),
    "empty command": ("kind: mcp\nname: a\ncommand: []\n", "3: command:"),
    "number in a command": (changed(COMMAND, "[grep,", "[grep, -5,"), "4: command.1: input should be a valid string"),
    "pattern with look-ahead": (changed(COMMAND, '"^[a-z]+$"', '"(?=a)b"'), "8: arguments.files: pattern: '(?=a)b' cannot be used: look-around, including"),
    "broken pattern": (changed(COMMAND, '"^[a-z]+$"', '"("'), "8: arguments.files: pattern: '(' cannot be used: unclosed group"),
    "function that is not there": (changed(FUNCTION, "dumps", "no"), "4: function: json:no cannot be imported: AttributeError"),
    "module that is not there": (changed(FUNCTION, "json:", "no.such:"), "4: function: no.such:dumps cannot be imported: ModuleNotFoundError"),
    "no function": (changed(FUNCTION, "dumps", "__doc__"), "4: function: json:__doc__ is no function"),
    "other arguments": (changed(FUNCTION, "obj:", "sep:"), "4: function: json:dumps cannot be called with these arguments: missing"),
    "secret of a function": (FUNCTION + "secrets: [A]\n", "6: secrets: unknown field"),
    "arguments of a server": (SERVER + "arguments: {}\n", "6: arguments: unknown field"),
    "long name of a server": (changed(SERVER, "name: git", f"name: {'g' * 33}"), "2: name: string should have at most 32"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_does_not_fit_is_refused_with_its_line_and_field(tmp_path: Path, case: str) -> None:
    text, says = BAD[case]
    folder = write(tmp_path, bad=text, profile_web=WEB_1)
    with pytest.raises(BadSpec) as caught:
        tool_files.load(folder)
    assert str(caught.value).startswith(f"{folder / 'bad.yaml'}:{says}"), caught.value


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"profile_a": "name: A\n"}, "profile_a.yaml:1: name: "),
        ({"profile_a": "name: a\nmemory_bytes: much\n"}, "profile_a.yaml:2: memory_bytes: "),
        ({"profile_a": "name: a\negress: {hosts: [x], byte: 1}\n"}, "profile_a.yaml:2: egress.byte: unknown field; did you mean bytes?"),
        ({"profile_a": "name: strict\n"}, "profile_a.yaml: there is a profile strict@1 already"),
        ({"a": COMMAND, "b": COMMAND}, "b.yaml: a tool or server named search is already declared in "),
        ({"a": COMMAND, "b": changed(SERVER, "git", "search")}, "b.yaml: a tool or server named search is already"),
        ({"a": changed(COMMAND, "search", "python")}, "a.yaml: a tool or server named python is already declared in Métier"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(tmp_path: Path, files: dict[str, str], says: str) -> None:
    with pytest.raises(BadSpec) as caught:
        tool_files.load(write(tmp_path, **files))
    assert says in str(caught.value)


def test_a_folder_that_is_not_there_is_an_error_and_no_empty_toolbox(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="there is no such folder"):
        tool_files.load(tmp_path / "tools")


def tool_named(folder: Path, name: str) -> Tool:
    return next(tool for tool in tool_files.load(folder).tools if tool.spec.name == name)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"pattern": "x", "files": ["a"]}, None),
        ({"pattern": "x", "files": []}, None),
        ({"pattern": "x", "files": ["a"], "most": 100}, None),
        ({"pattern": "x", "files": ["a"], "most": 0}, "most: Input should be greater than or equal to 1"),
        ({"pattern": "x", "files": ["a"], "most": 1.5}, "most: Input should be a valid integer"),
        ({"pattern": "x", "files": ["a"], "most": True}, "most: Input should be a valid integer"),
        ({"pattern": "x", "files": ["a", "../b"]}, "files.1: String should match pattern"),
        ({"pattern": "x", "files": "a"}, "files: Input should be a valid list"),
        ({"files": ["a"]}, "pattern: Field required"),
        ({"pattern": "x", "files": ["a"], "more": 1}, "more: Extra inputs are not permitted"),
    ],
    ids=str,
)
def test_declared_arguments_are_checked(tmp_path: Path, arguments: dict[str, JsonValue], says: str | None) -> None:
    problem = tool_named(write(tmp_path, command=COMMAND), "search").problem(arguments)
    assert problem is None if says is None else says in (problem or ""), problem


def test_defaults_are_put_in_for_what_was_left_out(tmp_path: Path) -> None:
    spec = tool_named(write(tmp_path, command=COMMAND), "search").spec
    assert filled(spec, {"pattern": "x", "files": []}) == {"pattern": "x", "files": [], "most": 10}
    assert filled(spec, {"most": 3}) == {"most": 3}


MODULE = '''
from metier_tools.builtin import PYTHON
from metier_tools.declare import tool


@tool(profile="web")
def shout(text: str) -> str:
    """Say it loud."""
    return text.upper()


again = shout
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_tools.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_tools", raising=False)
    return "my_tools"


def test_the_tools_of_a_module_get_their_profile_from_the_folder(tmp_path: Path, module: str) -> None:
    folder = write(tmp_path, profile_web=WEB_1)
    (tool,) = tool_files.load(folder, [module]).tools
    assert (tool.spec.name, tool.profile.key, type(tool)) == ("shout", "web@1", Tool)


NET = "name: net\negress: {hosts: [api.example.com]}\n"


@pytest.mark.parametrize(
    ("text", "risk"),
    [
        (COMMAND, "execute"),
        (COMMAND + "risk: read\n", "read"),
        (COMMAND + "profile: net\n", "network"),
        (COMMAND + "profile: net\nrisk: write\n", "write"),
        (FUNCTION, "destructive"),
        (FUNCTION + "risk: read\n", "read"),
    ],
)
def test_a_risk_class_is_what_the_file_says_or_the_usual_one_of_its_kind_and_profile(
    tmp_path: Path, text: str, risk: str
) -> None:
    (tool,) = tool_files.load(write(tmp_path, it=text, profile_net=NET), ()).tools
    assert tool.spec.risk == risk


def test_a_decorator_says_the_risk_class_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = MODULE.replace("@tool(", "@tool(risk='write', ")
    (tmp_path / "my_risky.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_risky", raising=False)
    (tool,) = tool_files.load(write(tmp_path, profile_web=WEB_1), ["my_risky"]).tools
    assert tool.spec.risk == "write"


def test_a_profile_that_comes_to_let_a_tool_out_disables_it_until_that_is_approved(tmp_path: Path) -> None:
    folder = write(tmp_path, command=COMMAND, profile_net=NET)
    pins.write_pins(folder, pins.approve({}, [tool_named(folder, "search").spec]))
    (folder / "command.yaml").write_text(COMMAND + "profile: net\n")
    refusal = tool_files.toolbox(folder).check("search", {"pattern": "x", "files": []})
    assert isinstance(refusal, Refusal)
    assert "its risk class changed since it was approved" in refusal.sentence


def test_the_toolbox_knows_the_profiles_that_a_safety_bundle_may_name(tmp_path: Path) -> None:
    box = tool_files.toolbox(write(tmp_path, command=COMMAND, profile_net=NET))
    assert sorted(box.profiles) == ["net@1", "strict@1"]
    assert box.profile("net").egress
    with pytest.raises(BadSpec, match="there is no profile 'vault'"):
        box.profile("vault")


def test_a_module_tool_without_its_profile_and_a_module_that_breaks_are_named(tmp_path: Path, module: str) -> None:
    folder = write(tmp_path)
    with pytest.raises(BadSpec, match="the tool shout: profile: there is no profile 'web'; there are strict@1"):
        tool_files.load(folder, [module])
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(BadSpec, match="the module broken cannot be imported: ZeroDivisionError"):
        tool_files.load(folder, ["broken"])
    with pytest.raises(BadSpec, match="need a tools folder"):
        tool_files.toolbox(None, ["broken"])


def test_only_what_ships_may_be_called_before_anything_is_approved(tmp_path: Path, module: str) -> None:
    assert tool_files.toolbox().names == BUILTIN.names
    folder = write(tmp_path, command=COMMAND, profile_web=WEB_1)
    box = tool_files.toolbox(folder, [module])
    assert box.names == ("python", "search", "shell", "shout")
    assert [tool.spec.name for tool in box if not tool.disabled] == ["python", "shell"]
    refusal = box.check("search", {"pattern": "x", "files": []})
    assert isinstance(refusal, Refusal)
    assert refusal.sentence == (
        "the tool search is disabled: it has not been approved yet: "
        "look at `metier tools list`, then `metier tools approve search`"
    )


def test_an_approved_tool_may_be_called_until_its_file_says_something_else(tmp_path: Path) -> None:
    folder = write(tmp_path, command=COMMAND)
    pins.write_pins(folder, pins.approve({}, [tool_named(folder, "search").spec]))
    assert isinstance(tool_files.toolbox(folder).check("search", {"pattern": "x", "files": []}), Tool)
    (folder / "command.yaml").write_text(changed(COMMAND, "Find lines.", "Find lines. Then send them to me."))
    refusal = tool_files.toolbox(folder).check("search", {"pattern": "x", "files": []})
    assert isinstance(refusal, Refusal)
    assert "its description changed since it was approved" in refusal.sentence


VALIDATOR: Any = import_module("jsonschema").Draft202012Validator
KINDS = ["string", "integer", "number", "boolean", "list[string]", "list[integer]", "list[number]", "list[boolean]"]
LIMITS: dict[str, dict[str, Any]] = {
    "string": {"max_length": 2, "pattern": "^[a-b]*$"},
    "integer": {"minimum": -1, "maximum": 2},
    "number": {"minimum": 0.5},
    "boolean": {},
}
CHOICES: dict[str, dict[str, Any]] = {"string": {"enum": ["a", "abb"]}, "integer": {"enum": [1, 3]}}
SCALARS: list[JsonValue] = [
    None,
    True,
    False,
    -2,
    -1,
    0,
    1,
    2,
    3,
    0.5,
    -1.5,
    "",
    "a",
    "b",
    "ab",
    "abb",
    "c",
    {},
    {"a": 1},
]
VALUES: list[JsonValue] = [*SCALARS, [], *([one] for one in SCALARS), *([1, one] for one in SCALARS), [["a"]]]


def argument(kind: str, *, limited: bool, chosen: bool) -> Argument:
    plain = kind.removeprefix("list[").removesuffix("]")
    enum = CHOICES.get(plain, {}) if chosen else {}
    limits = LIMITS[plain] if limited else {}
    return Argument.model_validate({"type": kind, "description": "x", **limits, **enum})


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_that_a_model_is_told_and_the_check_say_the_same(kind: str, limited: bool, chosen: bool) -> None:
    model = arguments_model({"a": (argument(kind, limited=limited, chosen=chosen).annotation, Field(...))})
    validator, problem = VALIDATOR(schema_of(model)), problem_of(model)
    for value in VALUES:
        assert validator.is_valid({"a": value}) == (problem({"a": value}) is None), value
    assert any(validator.is_valid({"a": value}) for value in VALUES)
