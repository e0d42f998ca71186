"""The face of the commands: each says what it does and shows an example that works as typed. Not here: what they do."""

from __future__ import annotations

import json
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from metier import cli
from metier.cli import app
from metier.terminal import shown_json
from metier_infra.errors import BadSettings, MissingRun, SchemaBehind

ROOT = typer.main.get_command(app)


def commands(command: object = ROOT, *path: str) -> Iterator[tuple[tuple[str, ...], object]]:
    inner: dict[str, object] = getattr(command, "commands", {})
    if not inner or getattr(command, "invoke_without_command", False):
        yield path, command
    for name, one in inner.items():
        yield from commands(one, *path, name)


EVERY = dict(commands())


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_each_command_says_what_it_does_and_shows_how(path: tuple[str, ...]) -> None:
    command = EVERY[path]
    said, example = str(getattr(command, "help", "")), str(getattr(command, "epilog", ""))
    assert said.endswith(".")
    assert example.startswith("Example: ")
    words = shlex.split(example.removeprefix("Example: "), comments=True)
    begin = words.index("metier") + 1
    assert tuple(words[begin : begin + len(path)]) == path


def test_calls_by_hand_say_what_becomes_of_blank_lines_refusals_and_calls_that_find_no_container() -> None:
    said = " ".join(str(getattr(EVERY["tools", "exec"], "help", "")).split())
    assert "blank lines are skipped" in said
    assert "`refused` is an answer" in said
    assert "a call waits METIER_SANDBOX_WAIT_S" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("greet", '{"a": NaN}'), "nobody could read this request: the data is not JSON"),
        (("greet", '{"a": "\\ud83d"}'), "nobody could read this request: the data is not JSON"),
        (("greet", "{}", "--id", "a\nb"), "nobody could read this request: ce_id must be"),
        (("", "{}"), "workflow: String should have at least 1 character"),
        (("greet", "{"), "the input is not JSON"),
        (("greet", '{"a":' * 100_000), "the input lies too deep in brackets"),
        (("greet", "{}", "--limits", "[]"), "what --limits says must be a JSON object, not list"),
    ],
)
def test_a_request_that_nobody_could_read_is_not_sent(words: tuple[str, ...], says: str) -> None:
    error = CliRunner().invoke(app, ["publish", *words]).exception
    assert isinstance(error, BadSettings)
    assert says in str(error)


def test_a_sentence_does_no_more_to_a_terminal_than_be_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise MissingRun("no run \x1b[2J\u202e\nis there")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == "metier: no run \\x1b[2J\\u202e\nis there\n"


def test_json_for_a_terminal_says_the_same_and_does_no_more_than_be_shown() -> None:
    evil = {"a\x9b": ["\x1b[2J\u202e\n é 🙂", "\U000e0001"]}
    told = shown_json(evil).plain
    assert json.loads(told) == evil
    assert told.replace("\n", "").isprintable()
    assert "é 🙂" in told


def test_all_commands_of_the_roles_and_the_users_are_there() -> None:
    names = {" ".join(path) for path in EVERY}
    roles = {"orchestrator", "agent", "tools", "dev", "topics", "migrate"}
    users = {"publish", "runs list", "runs show", "runs watch", "trace", "version", "demo"}
    tools = {"tools list", "tools approve", "tools exec", "tools selftest"}
    assert roles | users | tools | {"bench orchestrator", "bench sandbox"} <= names


@pytest.mark.parametrize("words", [(), ("--check",)], ids=["migrate", "check"])
def test_a_journal_of_a_newer_version_is_not_called_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METIER_SQLITE_PATH", str(tmp_path / "journal.db"))
    for name in ("METIER_KAFKA_BOOTSTRAP", "METIER_POSTGRES_URL"):
        monkeypatch.delenv(name, raising=False)
    assert CliRunner().invoke(app, ["migrate"]).exit_code == 0
    with closing(sqlite3.connect(tmp_path / "journal.db")) as connection, connection:
        connection.execute("INSERT INTO metier_schema (version, at) VALUES (9999, 0)")
    error = CliRunner().invoke(app, ["migrate", *words]).exception
    assert isinstance(error, SchemaBehind)
    assert "deploy a newer Métier" in str(error)
