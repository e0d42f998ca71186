"""The scorers that need more than the texts: a JSON Schema, and code that runs in the sandbox. `eval_run` calls `Scoring` for each answer.

Code of an answer runs where tools run, in a container without a network, carried there by the tool lane; never on this host.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pydantic import JsonValue

from metier_infra.errors import BadSettings, BadSpec, RetryLater
from metier_infra.words import CallId, RunId, ToolCallId, stable_id
from metier_tools import grant
from metier_tools.json_schema import problem_of_schema, refusal_of
from metier_tools.lane import ToolLane
from metier_tools.tool import FileRef, ToolCall, ToolResult, ToolSpec
from metier_workflows.evaluating.samples import Sample
from metier_workflows.evaluating.scorers import (
    Code,
    Contains,
    Exact,
    Judged,
    Numeric,
    Schema,
    Score,
    block_of,
    score,
    shown,
    text_of,
)

TRIES = 3
"""How often code is sent to a lane that does not answer."""
WAIT_S = 60.0
"""How long code may wait for a container, beyond its own time; seconds."""
TOOL = "python"
_HOISTED = ("$schema", "$defs", "definitions")


def check_schemas(placed: Mapping[str, Sample]) -> None:
    """Raise `BadSpec` for a schema that we do not take, by the sample's place, and `MissingPackage` where there is one and no library for it."""
    for place, one in placed.items():
        if isinstance(one.scorer, Schema) and (why := refusal_of(_wrapped(one.scorer.fits))):
            raise BadSpec(f"{place}: scorer.fits: {why}")


def _wrapped(schema: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The same as a schema of arguments, one of which is the answer: what it defines stays at the root, where its references look."""
    hoisted = {name: schema[name] for name in _HOISTED if name in schema}
    inner: dict[str, JsonValue] = {name: value for name, value in schema.items() if name not in hoisted}
    return {**hoisted, "type": "object", "properties": {"answer": inner}, "required": ["answer"]}


def by_schema(schema: Mapping[str, JsonValue], answer: str) -> Score:
    """1 where the answer is JSON that fits."""
    try:
        value: JsonValue = json.loads(block_of(answer), parse_constant=_no_json)
    except (ValueError, RecursionError):
        return Score(value=0.0, reason="the answer is not JSON")
    problem = problem_of_schema(_wrapped(schema))({"answer": value})
    return Score(value=0.0, reason=problem[:500]) if problem else Score(value=1.0)


def _no_json(constant: str) -> None:
    """Python reads NaN and Infinity, which JSON does not have."""
    raise ValueError(constant)


@dataclass(frozen=True)
class Program:
    """What runs for an answer, and how its result is read."""

    source: str
    files: Mapping[str, bytes]
    read: Callable[[ToolResult], Score]


def program_of(scorer: Code, wanted: Sequence[str], answer: str) -> Program:
    """The program that runs for an answer: itself, or the sample's test beside it.

    A test passes when it prints, as its last act, a word that nobody knows before: an answer that ends the process early does not pass. It runs in
    one process with the answer, so this is no defence against an answer that sets out to find that word.
    """
    code = block_of(answer)
    if scorer.test is None:
        return Program(code, {}, lambda result: _printed(result, wanted))
    word = secrets.token_hex(16)
    source = f"import runpy, sys\nsys.path.insert(0, '')\nrunpy.run_path('check.py', run_name='__main__')\nprint('\\n{word}')\n"
    files = {"answer.py": code.encode(errors="replace"), "check.py": scorer.test.encode(errors="replace")}
    return Program(source, files, lambda result: _passed(result, word))


def _printed(result: ToolResult, wanted: Sequence[str]) -> Score:
    if not result.ok:
        return _ended_badly(result)
    if not wanted or result.stdout.strip() in [one.strip() for one in wanted]:
        return Score(value=1.0)
    return Score(value=0.0, reason=f"it printed {result.stdout.strip()[:80]!r}; expected {shown(wanted)}")


def _passed(result: ToolResult, word: str) -> Score:
    if not result.ok:
        return _ended_badly(result)
    came = result.stdout.rstrip().endswith(word)
    return Score(value=1.0) if came else Score(value=0.0, reason="the test did not come to its end")


def _ended_badly(result: ToolResult) -> Score:
    last = next((line for line in reversed(result.stderr.splitlines()) if line.strip()), "")
    return Score(value=0.0, reason=f"the code ended with {result.status}: {last[:300]}".rstrip(": "))


@dataclass
class Sandboxed:
    """Runs programs through the lane, at most `slots` at a time. Each slot is a lease: its container is used again, and reset after each program."""

    lane: ToolLane
    key: bytes
    spec: ToolSpec
    evaluation: str
    slots: int = 4
    _free: asyncio.Queue[int] = field(default_factory=asyncio.Queue[int])

    def __post_init__(self) -> None:
        for slot in range(self.slots):
            self._free.put_nowait(slot)

    async def score(self, scorer: Code, wanted: Sequence[str], answer: str) -> Score:
        """The score; of None where the lane does not answer. Raises `BadSettings` where the tool cannot be called."""
        program = program_of(scorer, wanted, answer)
        try:
            result = await self._run(program, scorer.timeout_s)
        except RetryLater as error:
            return Score(value=None, reason=f"the code could not be run: {error}"[:500])
        if result.status == "refused":
            raise BadSettings(f"the tool {TOOL}, in which code is scored, cannot be called: {result.stderr}")
        return program.read(result)

    async def _run(self, program: Program, timeout_s: float) -> ToolResult:
        async with self._slot() as lease:
            for left in reversed(range(TRIES)):
                try:
                    return await self.lane.call(self._call(program, lease, timeout_s))
                except RetryLater:
                    if not left:
                        raise
        raise AssertionError("the last try returns or raises")

    @asynccontextmanager
    async def _slot(self) -> AsyncGenerator[str]:
        slot = await self._free.get()
        try:
            yield stable_id("eval", self.evaluation, slot)
        finally:
            self._free.put_nowait(slot)

    def _call(self, program: Program, lease: str, timeout_s: float) -> ToolCall:
        name = secrets.token_hex(16)
        call = ToolCall(
            tool_call_id=ToolCallId(name),
            run_id=RunId(lease),
            call_id=CallId(name),
            tool=TOOL,
            digest=self.spec.digest,
            arguments={"code": program.source},
            files={path: FileRef.holding(data) for path, data in program.files.items()},
            deadline=time.time() + timeout_s + WAIT_S,
            timeout_s=timeout_s,
            grant="",
        )
        return grant.granted(self.key, call)


@dataclass(frozen=True)
class Scoring:
    """Scores answers. `sandbox` is None where no sample of the set has code to run."""

    sandbox: Sandboxed | None = None

    async def score(self, sample: Sample, answer: str) -> Score:
        """The score of an answer that no judge is asked about."""
        match sample.scorer:
            case Exact() | Numeric() | Contains() as plain:
                return score(plain, sample.wanted, answer)
            case Schema() as schema:
                return by_schema(schema.fits, answer)
            case Code() as code if self.sandbox:
                return await self.sandbox.score(code, [text_of(one) for one in sample.wanted], answer)
            case Code() | Judged():
                return Score(value=None, reason="there is nothing here that could score it")
