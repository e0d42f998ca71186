"""`metier tools exec`: lines in, lines out, in order, on the real engine; and what it does with lines that are none."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue
from structlog.testing import capture_logs

from metier import cli_tools, compose_tools, configuration
from metier.exec_lines import LONGEST_LINE, Lines, Turns
from metier.terminal import ENDING
from metier_infra.blobs import FolderBlobs
from metier_infra.errors import EngineGone, MissingService
from metier_tools import limits
from metier_tools.builtin import BUILTIN
from metier_tools.execution import Execution
from metier_tools.profile import Profile
from metier_tools.sandbox import Outcome, Request, ScriptedSandbox
from metier_tools.vault import FixedVault

FIELDS = {"id", "status", "exit_code", "stdout", "stderr", "truncated", "wall_ms", "container"}


def execute(*lines: str | dict[str, Any], code: int = 0) -> list[dict[str, Any]]:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    done = subprocess.run(
        [sys.executable, "-m", "metier", "tools", "exec"], input=text, capture_output=True, text=True, timeout=100, check=False
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def python(name: str, source: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "tool": "python", "arguments": {"code": source}, **more}


def shell(name: str, script: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "tool": "shell", "arguments": {"script": script}, **more}


def test_every_end_has_its_word_and_answers_come_in_the_order_of_the_lines() -> None:
    found = execute(
        python("slow", "import time; time.sleep(1); print('slow')"),
        python("quick", "print(6*7)"),
        shell("exit", "echo out; echo err >&2; exit 7"),
        python("late", "while True: pass", timeout_s=0.5),
        python("large", "x = bytearray(1 << 30)"),
        shell("flood", "yes"),
        {"id": "unknown", "tool": "perl", "arguments": {}},
        python("unfit", "print(1)", arguments={"code": 5}),
    )
    assert [one["id"] for one in found] == ["slow", "quick", "exit", "late", "large", "flood", "unknown", "unfit"]
    assert [one["status"] for one in found] == [
        "ok",
        "ok",
        "error",
        "timeout",
        "oom",
        "output_cut",
        "refused",
        "refused",
    ]
    assert all(one.keys() >= FIELDS for one in found)
    assert (found[1]["stdout"], found[2]["exit_code"], found[2]["stdout"], found[2]["stderr"]) == (
        "42\n",
        7,
        "out\n",
        "err\n",
    )
    assert found[5]["truncated"] is True
    assert [bool(one["container"]) for one in found] == [True] * 6 + [False] * 2


def test_calls_of_a_lease_share_a_container_in_order_and_others_share_none() -> None:
    leased = [
        shell(f"{lease}{n}", f"ls /tmp; touch /tmp/{n}; echo {n}", lease=lease) for n in range(3) for lease in "ab"
    ]
    found = execute(*leased, shell("alone", "ls /tmp"), shell("alone too", "ls /tmp"))
    of = {
        lease: {one["container"] for one in found if one["id"].startswith(lease) and len(one["id"]) == 2}
        for lease in "ab"
    }
    alone = [one["container"] for one in found[-2:]]
    assert [len(of["a"]), len(of["b"]), len(of["a"] | of["b"] | set(alone))] == [1, 1, 4]
    assert [one["stdout"] for one in found] == ["0\n", "0\n", "1\n", "1\n", "2\n", "2\n", "", ""]


def test_lines_that_are_no_calls_are_refused_and_the_others_run() -> None:
    found = execute(
        "no json",
        "[1, 2]",
        '{"id": 5, "tool": "python", "arguments": {}}',
        '{"id": "extra", "tool": "python", "arguments": {"code": "1"}, "timeout": 3}',
        '{"id": "time", "tool": "python", "arguments": {"code": "1"}, "timeout_s": -1}',
        '{"id": "nan", "tool": "python", "arguments": {"code": "1"}, "timeout_s": NaN}',
        '{"id": "half", "tool": "python", "arguments": {"code": "\\ud800"}}',
        "",
        python("runs", "print('still here')"),
    )
    assert [(one["id"], one["status"]) for one in found] == [
        *[(None, "refused")] * 3,
        *[(name, "refused") for name in ("extra", "time", "nan")],
        (None, "refused"),
        ("runs", "ok"),
    ]
    assert "timeout_s: Input should be greater than 0" in found[4]["stderr"]


def test_files_go_in_and_come_out() -> None:
    (found,) = execute(
        python(
            "files", "open('out/b', 'wb').write(open('in/a', 'rb').read()[::-1])", lease="x",
            files={"in/a": base64.b64encode(b"abc").decode(), "out/.keep": ""}, take=["out/b", "none"],
        )
    )  # fmt: skip
    assert found["files"] == {"out/b": base64.b64encode(b"cba").decode()}
    assert found["left_out"] == {"none": "it is not there, or its path leads over a link"}


def test_no_engine_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    done = subprocess.run(
        [sys.executable, "-m", "metier", "tools", "exec"], input="", capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "start Docker, or set DOCKER_HOST" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def process() -> Iterator[None]:
    """What a command changes of its process is as it was afterwards."""
    kept, heard = os.dup(1), {number: signal.getsignal(number) for number in ENDING}
    yield
    os.dup2(kept, 1)
    os.close(kept)
    for number, handler in heard.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("process")
async def test_an_engine_that_does_not_enforce_the_limits_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    host = limits.host

    def lax(profile: Profile, place: limits.Place) -> dict[str, JsonValue]:
        return {**host(profile, place), "ReadonlyRootfs": False}

    def as_they_are(_: str) -> None:
        """Logs of this process are not the command's to configure."""

    monkeypatch.setattr(limits, "host", lax)
    with pytest.raises(MissingService, match="this container engine does not enforce: read-only root"):
        await compose_tools.open_inline_lane(configuration.standalone(configuration.configure()))
    monkeypatch.setattr(configuration, "configure_logs", as_they_are)
    with pytest.raises(MissingService, match="read-only root"):
        cli_tools.execute()


def lines(script: Callable[[Request], Outcome], folder: Path) -> Lines:
    sandbox = ScriptedSandbox(script)
    return Lines(Execution(BUILTIN, sandbox, FixedVault({}), FolderBlobs(folder)), BUILTIN, sandbox, threads=4)


def test_an_answer_is_written_as_soon_as_it_is_there(tmp_path: Path) -> None:
    writer = io.BytesIO()
    read_end, write_end = os.pipe()
    running = threading.Thread(
        target=lambda: lines(lambda _: Outcome("ok", 0, "x"), tmp_path).run(os.fdopen(read_end, "rb"), writer)
    )
    running.start()
    with os.fdopen(write_end, "wb") as source:
        source.write(json.dumps(python("1", "x")).encode() + b"\n")
        source.flush()
        until = time.monotonic() + 10
        while not writer.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
        assert json.loads(writer.getvalue())["id"] == "1"
    running.join(10)
    assert not running.is_alive()


def test_an_engine_that_is_gone_is_told_for_each_call_and_in_the_end(tmp_path: Path) -> None:
    def gone(_: Request) -> Outcome:
        raise EngineGone("the container engine went away under the call")

    out = io.BytesIO()
    well = lines(gone, tmp_path).run(io.BytesIO(json.dumps(python("1", "x")).encode()), out)
    told = json.loads(out.getvalue())
    assert (well, told["status"], told["stderr"]) == (
        False,
        "died",
        "engine_gone: the container engine went away under the call",
    )


def test_a_line_at_which_we_break_is_told_so_and_the_next_ones_run(tmp_path: Path) -> None:
    def breaks(request: Request) -> Outcome:
        if request.source == "breaks":
            raise struct.error("'H' format requires 0 <= number <= 65535, and here is a secret")
        return Outcome("ok", 0, "fine")

    out, asked = io.BytesIO(), [python("1", "breaks"), python("2", "x")]
    with capture_logs() as logs:
        well = lines(breaks, tmp_path).run(io.BytesIO("\n".join(map(json.dumps, asked)).encode()), out)
    told = [json.loads(line) for line in out.getvalue().splitlines()]
    assert (well, [one["status"] for one in told]) == (False, ["died", "ok"])
    assert told[0]["stderr"] == "defect: Métier broke at this line with error, and goes on with the next one"
    assert [one["action"] for one in logs] == ["answer_died"]
    assert "secret" not in str(logs)


def test_a_stream_that_cannot_be_read_on_ends_the_command(tmp_path: Path) -> None:
    class Torn(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            return super().readline(size) or self._torn()

        def _torn(self) -> bytes:
            raise OSError("torn")

    out = io.BytesIO()
    running = lines(lambda _: Outcome("ok", 0), tmp_path)
    ended = Future[bool]()
    torn = Torn(json.dumps(python("1", "x")).encode())
    threading.Thread(target=lambda: ended.set_result(running.run(torn, out)), daemon=True).start()
    assert ended.result(20) is False
    assert [json.loads(line)["status"] for line in out.getvalue().splitlines()] == ["ok", "died"]


def test_more_files_than_a_call_may_have_are_refused_and_the_next_line_runs(tmp_path: Path) -> None:
    names = [f"{n:0>250}" for n in range(300)]
    asked = [
        python("take", "x", take=names),
        python("files", "x", files=dict.fromkeys(names, "")),
        python("time", "x", timeout_s=1e300),
        python("last", "x", take=names[:64], files=dict.fromkeys(names[:64], "")),
    ]
    out = io.BytesIO()
    assert lines(lambda _: Outcome("ok", 0), tmp_path).run(io.BytesIO("\n".join(map(json.dumps, asked)).encode()), out)
    told = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(one["id"], one["status"]) for one in told] == [
        *[(name, "refused") for name in ("take", "files", "time")],
        ("last", "ok"),
    ]
    assert "take: Tuple should have at most 64 items" in told[0]["stderr"]
    assert "files: Dictionary should have at most 64 items" in told[1]["stderr"]


def test_what_is_said_of_a_bad_line_is_short(tmp_path: Path) -> None:
    out = io.BytesIO()
    line = json.dumps(python("1", "x", **{"x" * 100_000: 1})).encode()
    lines(lambda _: Outcome("ok", 0), tmp_path).run(io.BytesIO(line), out)
    assert len(out.getvalue()) < 1000


def test_a_line_that_is_too_long_is_refused_and_the_next_one_runs(tmp_path: Path) -> None:
    out = io.BytesIO()
    huge = b'{"id": "' + b"x" * (LONGEST_LINE + 10) + b'"}\n'
    lines(lambda _: Outcome("ok", 0), tmp_path).run(io.BytesIO(huge + json.dumps(python("2", "x")).encode()), out)
    assert [json.loads(line)["status"] for line in out.getvalue().splitlines()] == ["refused", "ok"]


def test_a_mark_of_the_byte_order_before_the_first_line_is_no_part_of_it(tmp_path: Path) -> None:
    out, line = io.BytesIO(), json.dumps(python("1", "x")).encode()
    lines(lambda _: Outcome("ok", 0), tmp_path).run(io.BytesIO(b"\xef\xbb\xbf" + line), out)
    assert json.loads(out.getvalue())["status"] == "ok"


def test_turns_of_one_key_are_in_order_and_one_at_a_time() -> None:
    turns, running, order, most = Turns(8), [0], list[int](), [0]

    def work(n: int) -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.001)
        order.append(n)
        running[0] -= 1

    done = [turns.submit("key", partial(work, n)) for n in range(50)]
    for one in done:
        one.result(10)
    turns.close()
    assert (order, most) == (list(range(50)), [1])
