"""What the demo shows, as pure functions over what was recorded: scores, tables, JSON. `demo` calls it."""

from __future__ import annotations

import ast
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from metier.examples.specialists import comparable
from metier.trace import Rows, tree
from metier.trace_tree import TraceNode, render
from metier_agents.recordings import RecordedQuery
from metier_infra.routers import RouterVersion
from metier_infra.words import Decision
from metier_tools.tool import ToolResult

CATEGORIES = ("math_word", "math_competition", "code_reasoning")


@dataclass(frozen=True)
class Case:
    """One query and the run that answered it."""

    query: RecordedQuery
    rows: Rows

    @property
    def answer(self) -> str:
        """What the workflow answered; empty when the run failed."""
        return str((self.rows.run.result or {}).get("answer", ""))

    @property
    def right(self) -> bool:
        """Whether that is the right answer."""
        return is_right(self.query, self.answer)

    @property
    def cost_usd(self) -> float:
        """What the run cost, in USD."""
        return self.rows.run.cost_usd


@dataclass(frozen=True)
class Learned:
    """The second part: the router that learned and was promoted, and the same queries answered by its decisions."""

    router: RouterVersion
    cases: Sequence[Case]

    @property
    def score(self) -> Score:
        """How the workflow did under it."""
        return _ours("workflow routed", self.cases)


def is_right(query: RecordedQuery, answer: str) -> bool:
    """Code answers are compared as Python literals or as what they print, others as numbers or text. What nobody solved is wrong.

    On the recordings this agrees with ZeroEval's own verdict on all maths answers and on 97.7 % of the code answers.
    """
    if query.gold is None:
        return False
    if query.category != "code_reasoning":
        return comparable(answer) == comparable(query.gold)
    wanted, given = _literal(query.gold), _literal(answer)
    return wanted == given or answer.strip() == str(wanted).strip()


def _literal(text: str) -> object:
    """The value that a text writes down, or the bare text."""
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
            return ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text.strip()


@dataclass(frozen=True)
class Score:
    """How somebody did on the same queries. Accuracy is a share; None where there was no query of the category."""

    name: str
    accuracy: float
    by_category: Mapping[str, float | None]
    cost_usd: float


def score(name: str, queries: Sequence[RecordedQuery], right: Sequence[bool], cost_usd: float) -> Score:
    """Shares over all queries and by category."""
    by: defaultdict[str, list[bool]] = defaultdict(list)
    for query, good in zip(queries, right, strict=True):
        by[query.category].append(good)
    return Score(name, _share(right) or 0.0, {category: _share(by[category]) for category in CATEGORIES}, cost_usd)


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def scores(cases: Sequence[Case]) -> list[Score]:
    """The workflow first, then each recorded model alone on the same queries, best first."""
    queries = [case.query for case in cases]
    alone = [_alone(model, queries) for model in sorted({model for query in queries for model in query.answers})]
    return [_ours("workflow specialists", cases), *sorted(alone, key=lambda found: -found.accuracy)]


def _ours(name: str, cases: Sequence[Case]) -> Score:
    right, cost_usd = [case.right for case in cases], sum(case.cost_usd for case in cases)
    return score(name, [case.query for case in cases], right, cost_usd)


def _alone(model: str, queries: Sequence[RecordedQuery]) -> Score:
    right = [is_right(query, query.answers[model].answer or "") for query in queries]
    return score(model, queries, right, sum(query.answers[model].cost_usd for query in queries))


@dataclass(frozen=True)
class Sandboxes:
    """What the tool calls took: counts by agent and status, and times in milliseconds."""

    calls: Mapping[tuple[str, str], int]
    containers: int
    wall_ms: Sequence[float]
    wait_ms: Sequence[float]
    boot_ms: Sequence[float]


def sandboxes(cases: Sequence[Case]) -> Sandboxes:
    """Gather every tool call of every run."""
    rows = [row for case in cases for row in case.rows.tools if row.result is not None]
    results = [ToolResult.model_validate(row.result) for row in rows]
    return Sandboxes(
        Counter((row.agent, result.status) for row, result in zip(rows, results, strict=True)),
        len({result.container for result in results if result.container}),
        [result.wall_ms for result in results],
        [result.wait_ms for result in results],
        [result.boot_ms for result in results if result.cold],
    )


def shown(cases: Sequence[Case]) -> TraceNode | None:
    """The trace worth showing: a run whose calls used tools the most."""
    best = max(cases, key=lambda case: (len(case.rows.tools), len(case.rows.calls)), default=None)
    return tree(best.rows) if best else None


def tables(
    cases: Sequence[Case], learned: Learned | None, models: Mapping[str, str], elapsed_s: float, mode: str
) -> RenderableType:
    """Everything for a terminal."""
    both = [*cases, *(learned.cases if learned else ())]
    failed = [case for case in both if case.rows.run.status != "succeeded"]
    parts: list[RenderableType] = [_score_table(cases, learned, models), _decision_table(cases, "Decisions by rules")]
    if learned:
        on, report = learned.router.fitted_on.get("rows"), learned.router.report
        parts.append(_decision_table(learned.cases, f"Decisions of a router that learned on {on} other queries"))
        parts.append(f"{learned.router.version}: {report.verdict}, {report.why}\n" if report else "")
    parts.append(_tool_table(sandboxes(cases)))
    node = shown(cases)
    if node:
        parts += ["\n[bold]One run, from event to event[/bold]", render(node)]
    parts.append(
        f"\n{len(both)} runs in {elapsed_s:.1f} s, {mode}; {len(failed)} failed. Answers and costs are recorded;"
    )
    parts.append("the calls of tools were written by a fixed rule, and the code was really run in containers.")
    parts += [f"failed: {case.rows.run.run_id} {case.rows.run.failure}" for case in failed[:5]]
    return Group(*parts)


def _score_table(cases: Sequence[Case], learned: Learned | None, models: Mapping[str, str]) -> Table:
    counts = {**Counter(case.query.category for case in cases), "all": len(cases)}
    table = Table(title="The workflow against each model alone, on the same queries")
    table.add_column("who", no_wrap=True)
    for head in ("all", *CATEGORIES):
        table.add_column(head.replace("_", "\n") + f"\n({counts.get(head, 0)})", justify="right")
    table.add_column("cost\nUSD", justify="right")
    by_model = {model.removeprefix("recorded:"): name for name, model in models.items()}
    ours, *alone = scores(cases)
    for found in (ours, *([learned.score] if learned else ()), *alone):
        name = f"{found.name} [dim]({by_model[found.name]})[/dim]" if found.name in by_model else found.name
        cells = [_percent(found.accuracy), *(_percent(found.by_category[category]) for category in CATEGORIES)]
        table.add_row(
            name, *cells, f"{found.cost_usd:.4f}", style="bold green" if found.name.startswith("workflow") else ""
        )
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _decision_table(cases: Sequence[Case], title: str) -> Table:
    table = Table("category", "asked", "runs", "dissent", "why", title=title)
    seen: defaultdict[tuple[str, str, str], list[Case]] = defaultdict(list)
    for case in cases:
        for decision in case.rows.decisions:
            seen[decision.category, " + ".join(decision.chosen), decision.reason].append(case)
    for (category, chosen, why), found in sorted(seen.items()):
        dissent = sum(bool((case.rows.run.result or {}).get("dissent")) for case in found)
        table.add_row(category, chosen, str(len(found)), str(dissent), why)
    return table


def _tool_table(found: Sandboxes) -> Table:
    table = Table("what", "count", "p50 ms", "p95 ms", title="Tool calls, each in a strict container of its run")
    for (agent, status), count in sorted(found.calls.items()):
        table.add_row(f"{agent}: {status}", str(count), "", "")
    for name, times in (
        ("run the code", found.wall_ms),
        ("wait for a container", found.wait_ms),
        ("boot a container", found.boot_ms),
    ):
        table.add_row(name, str(len(times)), *_p50_p95(times))
    table.add_row("containers used", str(found.containers), "", "")
    return table


def _p50_p95(times: Sequence[float]) -> tuple[str, str]:
    found = _summary(times)
    return ("-", "-") if not times else (f"{found['p50']:.1f}", f"{found['p95']:.1f}")


def document(
    cases: Sequence[Case],
    learned: Learned | None,
    *,
    seed: int,
    elapsed_s: float,
    mode: str,
    models: Mapping[str, str],
) -> dict[str, Any]:
    """Everything for a machine. Runs are in the order of the queries, so that two demos can be compared line by line."""
    found, node = sandboxes(cases), shown(cases)
    return {
        "mode": mode,
        "seed": seed,
        "queries": len(cases),
        "elapsed_s": round(elapsed_s, 3),
        "agents": dict(models),
        "scores": [{**vars(one), "by_category": dict(one.by_category)} for one in scores(cases)],
        "decisions": _counted(_without_seed(one) for case in cases for one in case.rows.decisions),
        "tool_calls": [
            {"agent": agent, "status": status, "count": n} for (agent, status), n in sorted(found.calls.items())
        ],
        "sandbox_ms": {
            "wall": _summary(found.wall_ms),
            "wait": _summary(found.wait_ms),
            "boot": _summary(found.boot_ms),
        },
        "runs": [_run(case) for case in cases],
        "learned": _learned(learned) if learned else None,
        "trace": node.model_dump(mode="json") if node else None,
    }


def _learned(found: Learned) -> dict[str, Any]:
    report = found.router.report
    return {
        "router": found.router.version,
        "fitted_on": found.router.fitted_on,
        "verdict": report.verdict if report else None,
        "why": report.why if report else None,
        "score": {**vars(found.score), "by_category": dict(found.score.by_category)},
        "decisions": _counted(_without_seed(one) for case in found.cases for one in case.rows.decisions),
        "runs": [_run(case) for case in found.cases],
    }


def _without_seed(decision: Decision) -> dict[str, Any]:
    """The decision, without what no two of them share."""
    return decision.model_dump(mode="json", exclude={"seed"})


def _counted(decisions: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    kinds: dict[str, dict[str, Any]] = {}
    for decision in decisions:
        kinds.setdefault(repr(decision), {**decision, "runs": 0})["runs"] += 1
    return list(kinds.values())


def _summary(times: Sequence[float]) -> dict[str, float | int | None]:
    ordered = sorted(times)
    at = {
        f"p{share}": ordered[min(len(ordered) - 1, share * len(ordered) // 100)] if ordered else None
        for share in (50, 95)
    }
    return {"count": len(ordered), **at}


def _run(case: Case) -> dict[str, Any]:
    run = case.rows.run
    return {
        "query": case.query.id,
        "run_id": run.run_id,
        "status": run.status,
        "answer": case.answer,
        "right": case.right,
        "cost_usd": run.cost_usd,
        "tool_calls": sorted([row.agent, row.tool, row.arguments, bool(row.ok)] for row in case.rows.tools),
        "failure": run.failure.model_dump() if run.failure else None,
    }
