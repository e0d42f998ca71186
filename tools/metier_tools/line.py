"""The port to what runs in a container: one line for each way of speaking with it.

`docker_sandbox` opens `conversation` (our PID 1), `bare` (an image without Python) or `server_line` (an MCP server), and runs calls on it.
"""

from __future__ import annotations

from typing import Protocol

from metier_tools.sandbox import Outcome, Request
from metier_tools.tool import ToolSpec


class Line(Protocol):
    """Speaks with one container. Every byte that comes from it is bounded and every wait has an end."""

    @property
    def definitions(self) -> tuple[ToolSpec, ...]:
        """What a server says of its tools; empty where there is none."""
        ...

    def run(self, request: Request) -> Outcome:
        """Run one program, or a server's tool, to its end: an outcome, whatever the container does. One at a time."""
        ...

    def alive(self) -> bool:
        """Whether another call may run in it."""
        ...

    def hang_up(self) -> None:
        """End it. From any thread; a call in hand ends as `died`."""
        ...
