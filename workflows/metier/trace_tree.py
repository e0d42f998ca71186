"""What a run's trace is made of, and how a terminal shows it. `trace` and `trace_decisions` make the nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from rich.text import Text
from rich.tree import Tree

from metier.terminal import shown
from metier_infra.words import Word

Kind = Literal[
    "event",
    "workflow",
    "segment",
    "decision",
    "call",
    "wait",
    "run",
    "agent",
    "model",
    "weighing",
    "approval",
    "tool",
    "container",
    "answer",
    "outcome",
]
_STYLE: Mapping[Kind, str] = {
    "event": "magenta",
    "workflow": "bold",
    "segment": "magenta",
    "wait": "magenta",
    "run": "bold",
    "decision": "yellow",
    "call": "dim",
    "agent": "bold cyan",
    "model": "cyan",
    "weighing": "yellow",
    "approval": "bold magenta",
    "tool": "green",
    "container": "blue",
    "answer": "bold green",
    "outcome": "bold yellow",
}


class TraceNode(Word):
    """One thing that happened. `at_ms` counts from the acceptance of the request; `ms` is how long it took; None: not recorded.

    `tokens` are those that models read and wrote in it.
    """

    kind: Kind
    name: str
    at_ms: float | None = None
    ms: float | None = None
    cost_usd: float | None = None
    tokens: int | None = None
    note: str = ""
    children: tuple[TraceNode, ...] = ()


def since_ms(begin: float | None, then: float | None) -> float | None:
    """Milliseconds from one time to another, both in seconds; None where one is not known."""
    return None if begin is None or then is None else max(0.0, (then - begin) * 1000)


def short(text: str, limit: int = 60) -> str:
    """A text in one line that is not too long."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def render(node: TraceNode, into: Tree | None = None) -> Tree:
    """The tree for a terminal."""
    line = Text()
    line.append(f"{node.kind} ", style="dim")
    line.append(shown(node.name), style=_STYLE[node.kind])
    if node.ms is not None:
        line.append(f"  {node.ms:.1f} ms", style="bold" if node.kind in {"workflow", "container"} else "")
    if node.cost_usd is not None:
        line.append(f"  ${node.cost_usd:.6f}", style="yellow")
    if node.tokens:
        line.append(f"  {node.tokens} tokens", style="yellow")
    if node.at_ms is not None:
        line.append(f"  @{node.at_ms:.0f}", style="dim")
    if node.note:
        line.append(f"  {shown(node.note)}", style="dim")
    branch = Tree(line) if into is None else into.add(line)
    for child in node.children:
        render(child, branch)
    return branch
