"""What a replay says: a run beside the same run with something else in it. Pure; `replay` calls it, `cli_replay` shows it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

from pydantic import JsonValue

from metier.replay_record import Record
from metier_infra.decisions import Kept
from metier_infra.rows import Call, Run, ToolCallRow
from metier_infra.words import Word
from metier_tools.tool import digest_of

T = TypeVar("T")
Kind = Literal["decision", "call", "tool call", "end"]


class Difference(Word):
    """One thing that was so, and would be so; None: it was not there, or would not be. `about` says what it is of."""

    kind: Kind
    about: str
    before: str | None
    after: str | None


class Replayed(Word):
    """What would differ, and what could not be known. Costs are USD, as far as they are known, of all calls; `compared` counts what was looked at.

    `differs` is False where nothing that is known would differ.
    """

    run_id: str
    differs: bool
    differences: tuple[Difference, ...]
    unknown: tuple[str, ...]
    compared: Mapping[str, int]
    cost_before_usd: float
    cost_after_usd: float
    result_before: JsonValue
    result_after: JsonValue


def compared(before: Record, after: Record, given: Collection[str], unknown: Sequence[str]) -> Replayed:
    """Both records side by side. `given` are the calls that were answered from the record: what they did with tools, they did."""
    kept = [row for row in before.tools if row.call_id in given]
    end = _renamed(after.run, _names(before.decisions, after.decisions))
    found = (
        *_differences("decision", before.decisions, after.decisions, _decision_of, _decision),
        *_differences("call", before.calls, after.calls, _call_of, _answer),
        *_differences("tool call", before.tools, [*kept, *after.tools], _tool_of, _result),
        *_end(before.run, end),
    )
    return Replayed(
        run_id=before.run.run_id,
        differs=bool(found),
        differences=found,
        unknown=tuple(unknown),
        compared={"decisions": len(before.decisions), "calls": len(before.calls), "tool_calls": len(before.tools)},
        cost_before_usd=_cost(before.calls),
        cost_after_usd=_cost(after.calls),
        result_before=before.run.result,
        result_after=end.result,
    )


def _names(before: Sequence[Kept], after: Sequence[Kept]) -> Mapping[str, str]:
    """From the ids of the replay's decisions to those that they had: a result may name them."""
    then, now = _by_name(before, _decision_of), _by_name(after, _decision_of)
    return {
        new.decision_id: old.decision_id
        for about, made in now.items()
        for old, new in zip(then.get(about, []), made, strict=False)
    }


def _renamed(run: Run, names: Mapping[str, str]) -> Run:
    text = json.dumps(run.result)
    for new, old in names.items():
        text = text.replace(new, old)
    return run.model_copy(update={"result": json.loads(text)})


def _differences(
    kind: Kind, before: Iterable[T], after: Iterable[T], name: Callable[[T], str], said: Callable[[T], str]
) -> list[Difference]:
    """What is not the same in both; what is of one name is compared in its order."""
    then, now = _by_name(before, name), _by_name(after, name)
    found: list[Difference] = []
    for about in dict.fromkeys((*then, *now)):
        was, is_ = [said(one) for one in then.get(about, [])], [said(one) for one in now.get(about, [])]
        for n in range(max(len(was), len(is_))):
            one, other = _at(was, n), _at(is_, n)
            if one != other:
                found.append(Difference(kind=kind, about=about, before=one, after=other))
    return found


def _by_name(items: Iterable[T], name: Callable[[T], str]) -> Mapping[str, list[T]]:
    found: defaultdict[str, list[T]] = defaultdict(list)
    for item in items:
        found[name(item)].append(item)
    return found


def _at(said: Sequence[str], n: int) -> str | None:
    return said[n] if n < len(said) else None


def _decision_of(kept: Kept) -> str:
    return f"{kept.decision.category}: {kept.wanted.task.text}" if kept.wanted else kept.decision.category


def _decision(kept: Kept) -> str:
    made = kept.decision
    return f"{made.topology} of {', '.join(made.chosen)}"


def _call_of(call: Call) -> str:
    return f"{call.agent}: {call.task.text}"


def _answer(call: Call) -> str:
    if call.answer is not None:
        return call.answer.text
    return f"failed: {call.failure.code}" if call.failure else "no answer"


def _tool_of(row: ToolCallRow) -> str:
    return f"{row.tool} ({row.agent}, arguments {digest_of(row.arguments)[:8]})"


def _result(row: ToolCallRow) -> str:
    if row.result is None:
        return "no result"
    return f"{row.result.get('status')}: {row.result.get('stdout', '')}"


def _end(before: Run, after: Run) -> list[Difference]:
    was, is_ = _ended(before), _ended(after)
    return [Difference(kind="end", about=before.workflow, before=was, after=is_)] if was != is_ else []


def _ended(run: Run) -> str:
    if run.failure is not None:
        return f"failed: {run.failure.code}"
    return f"{run.status}: {run.result}" if run.result is not None else run.status


def _cost(calls: Iterable[Call]) -> float:
    return sum(call.answer.cost_usd for call in calls if call.answer)
