"""What was approved of each tool, and whether a tool is still what was approved.

`tool_files` calls it to disable what drifted and to make the tools of MCP servers, `metier tools approve` to write `approved.json`.
A name, a description or a schema is something that a model obeys: when one changes behind the user's back, nothing is called.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from metier_infra.declared import Declared
from metier_infra.errors import BadSpec
from metier_tools.declare import LONGEST_DESCRIPTION, usual_risk
from metier_tools.json_schema import problem_of_schema, refusal_of, size_problem
from metier_tools.profile import Profile
from metier_tools.tool import Kind, Risk, ToolSpec, digest_of
from metier_tools.tool_kinds import ServerFile
from metier_tools.toolbox import ServerTool, Tool

FILE = "approved.json"
MOST_TOOLS = 128
"""Tools of one MCP server."""
_OFFERED = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


class Approved(Declared):
    """One tool as it was when the user approved it; its name is the key. `server` is the MCP server that it is from, or empty.

    `risk` is no part of the digest, for a server knows nothing of it; none: the usual one of its kind.
    """

    digest: str
    description: str
    parameters: dict[str, JsonValue]
    kind: Kind
    risk: Risk | None = None
    also: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    server: str = ""

    def spec(self, name: str, timeout_s: float = 10.0) -> ToolSpec:
        """The spec that was approved."""
        return ToolSpec(
            name=name,
            description=self.description,
            parameters=self.parameters,
            kind=self.kind,
            timeout_s=timeout_s,
            risk=self.risk or usual_risk(self.kind),
            also=self.also,
        )


Pins: TypeAlias = "Mapping[str, Approved]"
_FILE: TypeAdapter[dict[str, Approved]] = TypeAdapter(dict[str, Approved])


def judge(spec: ToolSpec, approved: Approved | None) -> str:
    """Why a tool may not be called, in one sentence; empty when it is what was approved."""
    then = f"look at `metier tools list`, then `metier tools approve {spec.name}`"
    if approved is None:
        return f"it has not been approved yet: {then}"
    if approved.digest == spec.digest and approved.spec(spec.name).risk == spec.risk:
        return ""
    return f"its {_changed(spec, approved)} changed since it was approved; {then}"


_PARTS = {
    "kind": "kind",
    "description": "description",
    "parameters": "parameters",
    "also": "output schema or hints (also)",
    "risk": "risk class",
}


def _changed(spec: ToolSpec, approved: Approved) -> str:
    """The parts that differ. Digests are compared, not values: to Python `1`, `1.0` and `True` are the same."""
    then = approved.spec(spec.name)
    differs = {part: digest_of(getattr(spec, part)) != digest_of(getattr(then, part)) for part in _PARTS}
    return " and ".join(word for part, word in _PARTS.items() if differs[part]) or "name"


def enable(tools: Iterable[Tool], pins: Pins) -> tuple[Tool, ...]:
    """The same tools; each that is not what was approved is disabled, and says why."""
    return tuple(replace(tool, disabled=judge(tool.spec, pins.get(tool.spec.name))) for tool in tools)


def approve(pins: Pins, specs: Iterable[ToolSpec], server: str = "") -> dict[str, Approved]:
    """The pins with these tools approved as they are now.

    Raises:
        BadSpec: a tool of an MCP server says what we do not take (see `accept`), or the server has too many tools.
        MissingPackage: as `accept`.
    """
    approved = dict(pins)
    for spec in specs:
        if server and (refused := accept(spec)):
            raise BadSpec(f"the tool {spec.name[:100]} cannot be approved: {refused}")
        approved[spec.name] = _approved(spec, server)
    if server and sum(one.server == server for one in approved.values()) > MOST_TOOLS:
        raise BadSpec(f"the server {server} has more than {MOST_TOOLS} approved tools; approve those that you need")
    return approved


def _approved(spec: ToolSpec, server: str) -> Approved:
    return Approved(
        digest=spec.digest,
        description=spec.description,
        parameters=spec.parameters,
        kind=spec.kind,
        risk=spec.risk,
        also=spec.also,
        server=server,
    )


def accept(spec: ToolSpec) -> str:
    """Why we do not take a tool of an MCP server, whatever the user says; empty when we do.

    Raises:
        MissingPackage: the extra `mcp` is not installed.
    """
    if not _OFFERED.fullmatch(spec.name):
        return "its name, with the server's before it, is not at most 64 letters, digits, _ and -"
    if not 0 < len(spec.description) <= LONGEST_DESCRIPTION:
        return f"its description is not between 1 and {LONGEST_DESCRIPTION} characters"
    return size_problem(spec.also) or refusal_of(spec.parameters)


def server_tools(server: ServerFile, pins: Pins, profile: Profile) -> tuple[Tool, ...]:
    """The approved tools of an MCP server. That it still says the same of them is checked where they are called."""
    mine = {name: one for name, one in pins.items() if one.server == server.name}
    return tuple(_server_tool(server, name, approved, profile) for name, approved in sorted(mine.items()))


def _server_tool(server: ServerFile, name: str, approved: Approved, profile: Profile) -> Tool:
    spec = approved.spec(name, server.timeout_s).model_copy(update={"risk": server.risk_of(name)})
    return Tool(
        spec,
        ServerTool(server.name, server.command, name.removeprefix(f"{server.name}__")),
        problem_of_schema(spec.parameters),
        profile,
        server.secrets,
        disabled=judge(spec, approved),
    )


def load_pins(folder: Path) -> dict[str, Approved]:
    """What was approved, by the tool's name; nothing when there is no file yet.

    Raises:
        BadSpec: the file is damaged, or was changed by hand.
    """
    path = folder / FILE
    try:
        pins = _FILE.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise BadSpec(f"{path}: {where}{first['msg']}; {_MEND}") from error
    except OSError as error:
        raise BadSpec(f"{path}: cannot be read: {error.strerror}") from error
    _check_whole(path, pins)
    return pins


_MEND = "restore the file from version control, or delete it and approve your tools again"


def _check_whole(path: Path, pins: Pins) -> None:
    for name, approved in pins.items():
        if approved.spec(name).digest != approved.digest:
            raise BadSpec(f"{path}: {name}: what stands here is not what was approved, its digest differs; {_MEND}")
        if approved.server and not name.startswith(f"{approved.server}__"):
            raise BadSpec(f"{path}: {name}: this is no name of a tool of the server {approved.server}; {_MEND}")


def write_pins(folder: Path, pins: Pins) -> None:
    """Replace the file in one step, in an order that shows only real changes to who compares versions. Raises `BadSpec`."""
    plain: dict[str, Any] = {name: approved.model_dump(mode="json") for name, approved in pins.items()}
    text = json.dumps(plain, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    try:
        _replace(folder / FILE, text.encode())
    except OSError as error:
        raise BadSpec(f"{folder / FILE}: cannot be written: {error.strerror}") from error


def _replace(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        new = Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            new.chmod(0o644)
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
