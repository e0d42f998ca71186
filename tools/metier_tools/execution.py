"""One checked call, by the kind of its tool: what it needs is gathered, it runs where it belongs, and what comes back is made fit to show.

The runner calls it once for each call that is to run. `request_of` says what the container is asked; trusted functions go to
`function_call`.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import assert_never

from pydantic import JsonValue

from metier_infra import telemetry
from metier_infra.blobs import Blobs
from metier_infra.errors import ServerBroken
from metier_tools import function_call, measuring
from metier_tools.command_line import argv_of, stdin_of
from metier_tools.declare import filled
from metier_tools.kept import kept
from metier_tools.paths import MOST_FILES, path_problem
from metier_tools.profile import Attempt, Profile
from metier_tools.sandbox import Held, Outcome, Recipe, Request, Sandbox, Server
from metier_tools.tightening import held_to
from metier_tools.tool import FileRef, ToolCall, ToolResult
from metier_tools.toolbox import Command, Fixed, Function, Refusal, ServerTool, Tool, Toolbox, Written
from metier_tools.vault import Scrub, Vault, scrubber

INLINE = 48 * 1024
"""Files up to this size travel inside the call or the result; larger ones by claim check; bytes."""
SAID = 16 * 1024
"""What is kept of the words with which an MCP server failed; bytes."""
Holding = Callable[[Held], AbstractContextManager[None]]
"""To be entered as long as a call runs in a container: within, the container may be stopped because the call is given up."""


@dataclass(frozen=True)
class Needs:
    """What a call needs beside its arguments: the tool's secrets and the call's files."""

    secrets: Mapping[str, str]
    files: Mapping[str, bytes]


class Execution:
    """Runs calls. Blocks; for any number of threads."""

    def __init__(self, toolbox: Toolbox, sandbox: Sandbox, vault: Vault, blobs: Blobs) -> None:
        self._toolbox, self._sandbox, self._vault, self._blobs = toolbox, sandbox, vault, blobs

    def run(self, call: ToolCall, holding: Holding) -> ToolResult:
        """What comes of a call. Raises as `ToolLane.call` says."""
        tool = self._toolbox.check(call.tool, call.arguments)
        if not isinstance(tool, Refusal):
            tool = _same(tool, call)
        if not isinstance(tool, Refusal):
            tool = held_to(tool, call.hold, self._toolbox.profiles)
        if isinstance(tool, Refusal):
            return _refused(tool)
        needs = self._needs(tool, call)
        if isinstance(needs, Refusal):
            return _refused(needs)
        outcome = self._outcome(tool, call, needs, holding)
        return _refused(outcome) if isinstance(outcome, Refusal) else outcome

    def _needs(self, tool: Tool, call: ToolCall) -> Needs | Refusal:
        found = {name: self._vault.value(name) for name in tool.secrets}
        missing = sorted(name for name, value in found.items() if value is None)
        if missing:
            return Refusal(
                f"the tool {call.tool} needs the secret {missing[0]}, which this tool runner does not have: "
                "its operator puts it into METIER_TOOL_SECRETS"
            )
        files = self._files(tool, call)
        if isinstance(files, Refusal):
            return files
        return Needs({name: value for name, value in found.items() if value is not None}, files)

    def _files(self, tool: Tool, call: ToolCall) -> dict[str, bytes] | Refusal:
        unfit = unfit_files(tool, call)
        if unfit is not None:
            return unfit
        found = {name: self._content(file) for name, file in call.files.items()}
        wrong = [name for name, data in found.items() if len(data) != call.files[name].size]
        return Refusal(f"the file {wrong[0]!r} has not the size that was said") if wrong else found

    def _content(self, file: FileRef) -> bytes:
        return base64.b64decode(file.inline) if file.inline is not None else self._blobs.get(file.sha256)

    def _outcome(self, tool: Tool, call: ToolCall, needs: Needs, holding: Holding) -> ToolResult | Refusal:
        scrub = scrubber(needs.secrets.values())
        if isinstance(tool.action, Function):
            outcome = function_call.run(tool.action, call, filled(tool.spec, call.arguments), holding)
            return outcome if isinstance(outcome, Refusal) else self._told(outcome, tool, scrub)
        timeout_s = max(0.001, min(call.timeout_s, call.deadline - time.time()))
        request = request_of(tool, call, needs, timeout_s)
        if isinstance(request, Refusal):
            return request
        try:
            return self._contained(tool, call, request, recipe_of(tool, needs), scrub, holding)
        except ServerBroken as error:
            said, cut = kept(str(error), SAID)
            return ToolResult(
                status="error", stderr=scrub(said.encode(), cut).decode("utf-8", "replace"), truncated=cut
            )

    def _contained(
        self, tool: Tool, call: ToolCall, request: Request, recipe: Recipe, scrub: Scrub, holding: Holding
    ) -> ToolResult:
        with ExitStack() as stack:
            with telemetry.span(telemetry.SANDBOX_LEASE, attributes=telemetry.stamped(call.stamp)) as span:
                held = stack.enter_context(self._sandbox.hold(call.run_id, call.deadline - time.time(), recipe))
                span.set(_where(held))
                measuring.held(held)
            left_s = max(0.001, min(request.timeout_s, call.deadline - time.time()))
            where = {**_where(held), **telemetry.stamped(call.stamp)}
            with telemetry.span(telemetry.SANDBOX_EXEC, attributes=where) as span, holding(held):
                outcome = held.run(replace(request, timeout_s=left_s))
                span.set({telemetry.SANDBOX_STATUS: outcome.status, telemetry.SANDBOX_EXIT_CODE: outcome.exit_code})
                measuring.ran(outcome)
                for attempt in outcome.attempts:
                    span.event(telemetry.EGRESS, _used(attempt))
        told = self._told(outcome, tool, scrub)
        return told.model_copy(update=_of_container(held))

    def _told(self, outcome: Outcome, tool: Tool, scrub: Scrub) -> ToolResult:
        """The outcome as a result: without secrets, its files as references."""
        cut = outcome.truncated
        return ToolResult(
            status=outcome.status,
            exit_code=outcome.exit_code,
            stdout=scrub(outcome.stdout.encode(), cut).decode("utf-8", "replace"),
            stderr=scrub(outcome.stderr.encode(), cut).decode("utf-8", "replace"),
            truncated=cut,
            files={name: self._reference(scrub(data, False)) for name, data in outcome.files.items()},
            left_out=dict(outcome.left_out),
            profile=self._limits(tool),
            wall_ms=outcome.wall_ms,
        )

    def _limits(self, tool: Tool) -> str:
        """The profile that held, and whether a safety bundle made it stricter."""
        declared = self._toolbox.tool(tool.spec.name)
        stricter = declared is not None and declared.profile != tool.profile
        return f"{tool.profile.key}, tightened" if stricter else tool.profile.key

    def _reference(self, data: bytes) -> FileRef:
        if len(data) <= INLINE:
            return FileRef.holding(data)
        return FileRef(sha256=self._blobs.put(data), size=len(data))


def _same(tool: Tool, call: ToolCall) -> Tool | Refusal:
    """The tool, if it is the one that the model was shown."""
    if call.digest == tool.spec.digest:
        return tool
    return Refusal(
        f"the tool {call.tool} is not the same here as where it was offered ({tool.spec.digest[:12]}, not {call.digest[:12]}): "
        "bring agents and tool runners to the same tool files",
        gone=True,
    )


def _refused(refusal: Refusal) -> ToolResult:
    return ToolResult(status="refused", stderr=refusal.sentence, gone=refusal.gone)


def unfit_files(tool: Tool, call: ToolCall) -> Refusal | None:
    """Why a call may not bring these files, or have those taken; None when it may. Pure."""
    if isinstance(tool.action, Function | ServerTool) and (call.files or call.take):
        return Refusal(f"a call of {call.tool} can bring no files, and none can be taken after it: it runs no program")
    if max(len(call.files), len(call.take)) > MOST_FILES:
        return Refusal(f"a call can bring at most {MOST_FILES} files, and have at most {MOST_FILES} taken after it")
    for name in (*call.files, *call.take):
        if problem := path_problem(name):
            return Refusal(f"the path {name!r} cannot be used: {problem}")
    return _too_large(tool.profile, call, b"")


def _too_large(profile: Profile, call: ToolCall, stdin: bytes) -> Refusal | None:
    if sum(file.size for file in call.files.values()) + len(stdin) <= profile.put_bytes:
        return None
    return Refusal(f"the files and the standard input of this call take more than {profile.put_bytes} bytes")


def recipe_of(tool: Tool, needs: Needs) -> Recipe:
    """What kind of container the tool needs. A server gets its secrets when it starts, other programs with each call."""
    if isinstance(tool.action, ServerTool):
        return Recipe(tool.profile, Server(tool.action.server, tool.action.command, tuple(needs.secrets.items())))
    return Recipe(tool.profile)


def request_of(tool: Tool, call: ToolCall, needs: Needs, timeout_s: float) -> Request | Refusal:
    """What the container is asked. Pure."""
    request = _request(tool, call, needs, timeout_s)
    if isinstance(request, Refusal):
        return request
    return _too_large(tool.profile, call, request.stdin) or request


def _request(tool: Tool, call: ToolCall, needs: Needs, timeout_s: float) -> Request | Refusal:
    take = tuple(dict.fromkeys((*tool.take, *call.take)))
    plain = Request(
        "python", "", timeout_s, environment=needs.secrets, files=needs.files, take=take, digest=tool.spec.digest
    )
    match tool.action:
        case Written(language, argument):
            return replace(plain, runs=language, source=str(call.arguments[argument]))
        case Fixed(language, source):
            given = json.dumps(filled(tool.spec, call.arguments), ensure_ascii=False)
            return replace(plain, runs=language, source=source, stdin=given.encode())
        case Command():
            return _command(plain, tool.action, filled(tool.spec, call.arguments))
        case ServerTool(name=name):
            return replace(plain, runs="mcp", source=name, arguments=call.arguments, environment={})
        case Function():
            return Refusal("a function runs in no container")
        case _:
            assert_never(tool.action)


def _command(plain: Request, command: Command, arguments: Mapping[str, JsonValue]) -> Request | Refusal:
    argv, stdin = argv_of(command, arguments), stdin_of(command, arguments)
    if isinstance(argv, Refusal):
        return argv
    if isinstance(stdin, Refusal):
        return stdin
    return replace(plain, runs="command", argv=argv, stdin=stdin)


def _of_container(held: Held) -> Mapping[str, object]:
    return {
        "container": held.container,
        "image": held.image,
        "cold": held.cold,
        "wait_ms": round(held.wait_ms, 3),
        "boot_ms": round(held.boot_ms, 3),
    }


def _used(attempt: Attempt) -> Mapping[str, telemetry.Value]:
    return {
        telemetry.SERVER_ADDRESS: attempt.host,
        telemetry.SERVER_PORT: attempt.port,
        telemetry.EGRESS_VERDICT: attempt.verdict,
        telemetry.EGRESS_BYTES: attempt.bytes,
    }


def _where(held: Held) -> Mapping[str, telemetry.Value]:
    return {
        telemetry.SANDBOX_CONTAINER: held.container,
        telemetry.SANDBOX_IMAGE: held.image,
        telemetry.SANDBOX_COLD: held.cold,
        telemetry.SANDBOX_WAIT_MS: held.wait_ms,
    }
