"""Tool calls as lines of JSON: what `metier tools exec` reads and writes.

Calls run on a few threads, those of one lease one after another in the order of their lines; answers are written in that order too, each
as soon as it and all before it are there.
"""

from __future__ import annotations

import base64
import codecs
import json
import queue
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, TypeVar

import structlog
from pydantic import AfterValidator, Field, JsonValue, ValidationError

from metier_infra.declared import Declared
from metier_infra.errors import MetierError
from metier_infra.words import CallId, RunId, ToolCallId
from metier_tools.execution import Execution
from metier_tools.paths import MOST_FILES
from metier_tools.sandbox import Held, Sandbox
from metier_tools.tool import FileRef, ToolCall, ToolResult
from metier_tools.toolbox import Toolbox

log = structlog.get_logger()

CONTAINERS = 64
"""How many containers the leases of one command may have at a time."""
LONGEST_LINE = 64 * 1024 * 1024
"""A longer line is refused; bytes."""
WAIT_S = 60.0
"""How long a call may wait for a container beyond its own time; seconds."""
AHEAD = 256
"""How many lines are read before the first of them is answered."""
T = TypeVar("T")


def _base64(text: str) -> str:
    base64.b64decode(text, validate=True)
    return text


class Asked(Declared):
    """One line in."""

    id: str
    tool: str
    arguments: dict[str, JsonValue]
    timeout_s: float | None = Field(None, gt=0, le=86_400)
    lease: str | None = Field(None, max_length=200)
    files: dict[str, Annotated[str, AfterValidator(_base64)]] = Field(
        default_factory=dict[str, str], max_length=MOST_FILES
    )
    take: tuple[str, ...] = Field((), max_length=MOST_FILES)


class _Named(Declared, extra="ignore"):
    id: str


class Turns:
    """Work on a few threads: that of one key in order, one at a time; other work whenever there is a thread."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="exec")
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[Callable[[], None]]] = {}

    def submit(self, key: str, work: Callable[[], T]) -> Future[T]:
        """Do the work when it is its turn."""
        done: Future[T] = Future()

        def turn() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)
            finally:
                self._next(key)

        with self._lock:
            line = self._waiting.get(key)
            if line is None:
                self._waiting[key] = deque()
                self._threads.submit(turn)
            else:
                line.append(turn)
        return done

    def _next(self, key: str) -> None:
        with self._lock:
            if self._waiting[key]:
                self._threads.submit(self._waiting[key].popleft())
            else:
                del self._waiting[key]

    def close(self) -> None:
        """Wait for all that was submitted."""
        self._threads.shutdown()

    def give_up(self) -> None:
        """Begin nothing more, and wait for nothing."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Holdings:
    """The calls that run now, so that they can be stopped when nobody waits for them any more. For any number of threads."""

    def __init__(self) -> None:
        self._lock, self._held, self._given_up = threading.Lock(), dict[int, Held](), False

    @contextmanager
    def holding(self, held: Held) -> Generator[None]:
        """See `execution.Holding`. A call that begins too late is stopped at once."""
        with self._lock:
            self._held[id(held)] = held
            late = self._given_up
        try:
            if late:
                held.stop()
            yield
        finally:
            with self._lock:
                del self._held[id(held)]

    def give_up(self) -> None:
        """Stop them all, and those to come."""
        with self._lock:
            self._given_up, running = True, list(self._held.values())
        for held in running:
            held.stop()


class Lines:
    """Reads calls, runs them, writes what came of them."""

    def __init__(self, execution: Execution, toolbox: Toolbox, sandbox: Sandbox, *, threads: int) -> None:
        self._execution, self._toolbox, self._sandbox = execution, toolbox, sandbox
        self._turns, self._releasing = Turns(threads), ThreadPoolExecutor(2, thread_name_prefix="release")
        self._answers: queue.Queue[Future[bytes] | None] = queue.Queue(AHEAD)
        self._holdings, self._well, self._over = Holdings(), True, threading.Event()

    def run(self, lines: IO[bytes], out: IO[bytes]) -> bool:
        """Until the lines end; whether every call could be carried out. Raises `OSError` when an answer cannot be written.

        Whatever ends it early, such as a signal, stops the calls that run.
        """
        reader = threading.Thread(target=self._read, args=(lines,), name="exec-reader", daemon=True)
        reader.start()
        try:
            while (answer := self._answers.get()) is not None:
                _write(out, answer.result())
        except BaseException:
            self._over.set()
            self._turns.give_up()
            self._holdings.give_up()
            raise
        self._turns.close()
        self._releasing.shutdown()
        return self._well

    def _read(self, lines: IO[bytes]) -> None:
        try:
            for line in _each(lines):
                if len(line) > LONGEST_LINE:
                    _skip(lines, line)
                    self._answers.put(_done(_refused(None, f"a line is at most {LONGEST_LINE} bytes")))
                elif line.strip():
                    self._answers.put(self._answer(line))
        except Exception as error:
            self._answers.put(_done(self._broken(None, error)))
        finally:
            self._answers.put(None)

    def _answer(self, line: bytes) -> Future[bytes]:
        try:
            asked = Asked.model_validate_json(line)
        except ValidationError as error:
            return _done(_refused(_id_of(line), f"not a tool call: {_reason(error)}"))
        lease = f"lease-{asked.lease}" if asked.lease is not None else f"call-{uuid.uuid4().hex}"
        return self._turns.submit(lease, lambda: self._run(asked, lease))

    def _run(self, asked: Asked, lease: str) -> bytes:
        try:
            return _line(asked.id, self._execution.run(self._call(asked, lease), self._holdings.holding))
        except Exception as error:
            return self._broken(asked.id, error)
        finally:
            if asked.lease is None:
                self._releasing.submit(self._sandbox.release, lease)

    def _broken(self, name: str | None, error: Exception) -> bytes:
        """The answer to what could not be carried out at all; the other lines go on."""
        self._well = False
        if isinstance(error, MetierError):
            return _line(name, ToolResult(status="died", stderr=f"{error.code}: {error}"))
        if not self._over.is_set():  # else nobody reads answers any more, and what we closed ourselves is no defect
            log.error("a line broke us", action="answer_died", error=type(error).__name__, place=_place(error))
        why = f"defect: Métier broke at this line with {type(error).__name__}, and goes on with the next one"
        return _line(name, ToolResult(status="died", stderr=why))

    def _call(self, asked: Asked, lease: str) -> ToolCall:
        spec = self._toolbox.spec(asked.tool)
        timeout_s = asked.timeout_s or (spec.timeout_s if spec else 1.0)
        return ToolCall(
            tool_call_id=ToolCallId(uuid.uuid4().hex),
            run_id=RunId(lease),
            call_id=CallId(lease),
            tool=asked.tool,
            digest=spec.digest if spec else "",
            arguments=asked.arguments,
            files={path: FileRef.holding(base64.b64decode(text)) for path, text in asked.files.items()},
            take=asked.take,
            deadline=time.time() + timeout_s + WAIT_S,
            timeout_s=timeout_s,
            grant="",
        )


def _place(error: Exception) -> str:
    """Where it was raised; what it says may quote a call."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return "".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in last)


def _each(lines: IO[bytes]) -> Iterator[bytes]:
    """The lines, cut where they are too long; a mark of the byte order, which some programs begin with, is no part of the first."""
    line = lines.readline(len(codecs.BOM_UTF8) + LONGEST_LINE + 1).removeprefix(codecs.BOM_UTF8)
    while line:
        yield line
        line = lines.readline(LONGEST_LINE + 1)


def _write(out: IO[bytes], answer: bytes) -> None:
    """All of it: a stream without a buffer may take less at a time."""
    left = memoryview(answer)
    while left:
        left = left[out.write(left) :]


def _skip(lines: IO[bytes], line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = lines.readline(LONGEST_LINE)


def _done(answer: bytes) -> Future[bytes]:
    done: Future[bytes] = Future()
    done.set_result(answer)
    return done


def _id_of(line: bytes) -> str | None:
    try:
        return _Named.model_validate_json(line).id
    except ValidationError:
        return None


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc']))[:80] or 'line'}: {first['msg'][:300]}"


def _refused(name: str | None, why: str) -> bytes:
    return _line(name, ToolResult(status="refused", stderr=why))


def _line(name: str | None, result: ToolResult) -> bytes:
    told: dict[str, object] = {
        "id": name,
        "status": result.status,
        "exit_code": result.exit_code,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "truncated": result.truncated,
        "wall_ms": result.wall_ms,
        "container": result.container,
        "image": result.image,
    }
    if result.files or result.left_out:
        told["files"] = {path: file.inline or {"sha256": file.sha256} for path, file in result.files.items()}
        told["left_out"] = result.left_out
    return json.dumps(told, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
