"""`metier tools exec` as a process: whose its streams are, and how it ends when it is told to. Not here: what calls do (test_exec_lines)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from metier_tools.boot import DOORS

EXEC = [sys.executable, "-m", "metier", "tools", "exec"]
FUNCTIONS = """
import os, sys, time
from metier import tool
print("imported")
EARLY = sys.stdout

@tool(kind="function")
def chatty() -> str:
    \"\"\"Say much.\"\"\"
    print("printed")
    print("kept", file=EARLY)
    os.write(1, b"written\\n")
    os.system("echo started")
    return "told"

@tool(kind="function")
def endless() -> str:
    \"\"\"Print for ever.\"\"\"
    while True:
        os.write(1, b"on and on\\n")
        time.sleep(0.0001)

@tool(kind="function", timeout_s=90)
def slow() -> str:
    \"\"\"Take long.\"\"\"
    print("began")
    time.sleep(90)
    return ""
"""
ABROAD = """
name: abroad
kind: code
description: Use the network.
language: shell
arguments: {script: {type: string, description: a script}}
argument: script
profile: abroad
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tools folder with functions that print, and a tool that may use the network; all approved."""
    (tmp_path / "chatterbox.py").write_text(FUNCTIONS)
    (tmp_path / "tools" / "profiles").mkdir(parents=True)
    (tmp_path / "tools" / "abroad.yaml").write_text(ABROAD)
    (tmp_path / "tools" / "profiles" / "abroad.yaml").write_text(
        "name: abroad\nversion: 1\negress: {hosts: [example.test]}\n"
    )
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("METIER_TOOL_FILES", str(tmp_path / "tools"))
    monkeypatch.setenv("METIER_TOOL_MODULES", "chatterbox")
    subprocess.run([*EXEC[:-1], "approve"], check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=100)
    return tmp_path


@pytest.fixture
def short_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="m-") as made:
        monkeypatch.setenv("TMPDIR", made)
        yield Path(made)


def line(name: str, **arguments: str) -> str:
    return json.dumps({"id": name, "tool": name, "arguments": arguments, "lease": name}) + "\n"


@pytest.mark.usefixtures("folder")
def test_only_answers_are_on_standard_output_whatever_a_function_prints() -> None:
    endless = json.dumps({"id": "endless", "tool": "endless", "arguments": {}, "timeout_s": 0.1}) + "\n"
    done = subprocess.run(EXEC, input=line("chatty") + endless, capture_output=True, text=True, timeout=100, check=True)
    told = [json.loads(answer) for answer in done.stdout.splitlines()]
    assert [(one["status"], one["stdout"]) for one in told] == [("ok", "told"), ("timeout", "")]
    for word in ("imported", "printed", "kept", "written", "started", "on and on"):
        assert word in done.stderr


@pytest.mark.usefixtures("folder")
def test_a_kind_that_is_not_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METIER_TOOL_KINDS", "code")
    done = subprocess.run(EXEC, input=line("chatty"), capture_output=True, text=True, timeout=100, check=True)
    told = json.loads(done.stdout)
    assert told["status"] == "refused"
    assert "METIER_TOOL_KINDS says code" in told["stderr"]


@pytest.mark.usefixtures("folder", "heeded")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["INT", "TERM", "HUP"]
)
def test_a_signal_ends_what_runs_and_leaves_nothing_behind(number: signal.Signals, code: int, short_tmp: Path) -> None:
    with subprocess.Popen(
        EXEC, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        run.stdin.write(line("abroad", script="true"))
        run.stdin.flush()
        assert json.loads(run.stdout.readline())["status"] == "ok"
        assert len(list(short_tmp.glob(f"{DOORS}*"))) == 1
        run.stdin.write(line("abroad", script="sleep 90") + line("shell", script="sleep 90") + line("slow"))
        run.stdin.flush()
        assert run.stderr is not None
        assert "began\n" in iter(run.stderr.readline, "")
        run.send_signal(number)
        assert run.wait(30) == code
        assert run.stdout.read() == ""
        said = run.stderr.read()
    assert ("Traceback" in said, "Fatal" in said, list(short_tmp.iterdir())) == (False, False, [])


def test_answers_that_cannot_be_written_are_a_sentence() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            EXEC, input=line("perl") * 3, stdout=full, stderr=subprocess.PIPE, text=True, timeout=100, check=False
        )
    said = "metier: the answers cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.parametrize(("closed", "name"), [("<&-", "standard input"), (">&-", "standard output")])
def test_a_stream_that_is_closed_is_said_in_a_sentence(closed: str, name: str) -> None:
    script = f'"$0" -m metier tools exec {closed}'
    done = subprocess.run(
        ["/bin/sh", "-c", script, sys.executable], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100,
        check=False, env=dict(os.environ),
    )  # fmt: skip
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert f"metier: {name} is closed" in done.stderr
