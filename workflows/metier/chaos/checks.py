"""Whether the delivery promises held, judged from outside: from events, journal, ledger and dead letters. Pure.

Each check gives one sentence for each thing that it found wrong; `harness` counts them. docs/explanation/delivery.md says what the promises are.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from metier.chaos import order
from metier.chaos.evidence import Evidence, Seen
from metier.chaos.ledger import INPUT_TOKENS, OUTPUT_TOKENS, Bill, Effect
from metier.chaos.order import ENDS, Holders, different
from metier.chaos.workload import PARTS
from metier.client import run_id_of

USD_PER_MILLION = 1.0
"""What the scripted model's tokens cost."""
TURN_USD = (INPUT_TOKENS + OUTPUT_TOKENS) * USD_PER_MILLION / 1e6


class Findings:
    """The evidence, sorted by run and by call."""

    def __init__(self, evidence: Evidence, source: str) -> None:
        self.evidence = evidence
        self.names = {str(run_id_of(source, request.name)): request for request in evidence.requests}
        self.rows = {str(row["run_id"]): row for row in evidence.runs}

    @cached_property
    def told(self) -> Mapping[str, Sequence[Seen]]:
        """What was published about each run, in order."""
        found: dict[str, list[Seen]] = defaultdict(list)
        for event in self.evidence.events:
            found[event.run_id].append(event)
        return found

    def ends(self, run_id: str) -> Sequence[Seen]:
        """The different terminal events of a run."""
        return different([event for event in self.told.get(run_id, ()) if event.type in ENDS])

    @cached_property
    def keys(self) -> Mapping[str, str]:
        """The key of each call."""
        return {str(row["call_id"]): _key(json.loads(row["task"])["text"]) for row in self.evidence.calls}

    @cached_property
    def calls(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """The calls of each run."""
        found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in self.evidence.calls:
            found[str(row["run_id"])].append(row)
        return found

    @cached_property
    def turns(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """The model's turns that the journal has, by the call's key."""
        found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in self.evidence.steps:
            messages = json.loads(row["body"]).get("messages", ())
            found[self.keys[str(row["call_id"])]] += [one for one in messages if one.get("tag") == "model"]
        return found

    @cached_property
    def effects(self) -> Mapping[str, Sequence[Effect]]:
        """What was carried out, by key."""
        found: dict[str, list[Effect]] = defaultdict(list)
        for effect in self.evidence.effects:
            found[effect.key].append(effect)
        return found

    @cached_property
    def bills(self) -> Mapping[str, Sequence[Bill]]:
        """What was billed, by the call's key."""
        found: dict[str, list[Bill]] = defaultdict(list)
        for bill in self.evidence.bills:
            found[bill.key].append(bill)
        return found


def _key(text: str) -> str:
    """A task reads `VERB KEY TOKEN`."""
    return text.split()[1]


def lost(found: Findings) -> Iterator[str]:
    """P1 and P6: a request without its right end, a good record among the dead letters, a bad one that is not there."""
    for run_id, request in found.names.items():
        row, ends = found.rows.get(run_id), found.ends(run_id)
        if row is None:
            yield f"{request.name}: acknowledged, and there is no run"
        elif row["status"] != "succeeded" and row["status"] in {"failed", "cancelled"}:
            yield f"{request.name}: {row['status']}, {row['failure']}"
        elif row["status"] == "succeeded" and not ends:
            yield f"{request.name}: ended, and no event told it"
    buried = [value for value, _ in found.evidence.dead]
    poison = [request.poison for request in found.evidence.requests if request.poison]
    yield from (
        f"{value!r}: cannot be read, and is not among the dead letters" for value in poison if value not in buried
    )
    good = [(value, why) for value, why in found.evidence.dead if value not in poison]
    yield from (f"{value[:80]!r}: buried, {why}" for value, why in good)


def stuck(found: Findings) -> Iterator[str]:
    """P1: what did not end though everything was well again."""
    for run_id, request in found.names.items():
        row = found.rows.get(run_id)
        if row is not None and row["status"] not in {"succeeded", "failed", "cancelled"}:
            yield f"{request.name}: {row['status']}, {_held(row)}"
    for row in found.evidence.calls:
        run = found.rows.get(str(row["run_id"]))
        if row["answered_at"] is None and run is not None and run["status"] == "succeeded":
            yield f"{found.keys[str(row['call_id'])]}: its run ended, and nobody answered it (attempt {row['attempt']})"


def _held(row: Mapping[str, Any]) -> str:
    return f"epoch {row['epoch']}, owner {row['owner']}, its lease has {row['left_s']:.0f} s left"


def doubled_terminal(found: Findings) -> Iterator[str]:
    """P1: more than one end, and runs that nobody asked for."""
    for run_id in sorted({*found.names, *found.rows, *found.told}):
        ends = found.ends(run_id)
        if run_id not in found.names and (run_id in found.rows or ends):
            yield f"{run_id}: a run that nobody asked for"
        elif len(ends) > 1:
            yield f"{found.names[run_id].name}: ended {len(ends)} times, {[one.type for one in ends]}"


def doubled_results(found: Findings) -> Iterator[str]:
    """P2: a call or tool call of which two results were used, or whose used result is not the recorded one."""
    good = Counter(found.keys[str(row["call_id"])] for row in found.evidence.tool_calls if row["ok"])
    for key in sorted({*found.effects, *found.bills}):
        tokens = {effect.token for effect in found.effects.get(key, ())} | {
            bill.token for bill in found.bills.get(key, ())
        }
        receipts = {receipt for bill in found.bills.get(key, ()) for receipt in bill.receipts}
        if len(tokens) > 1:
            yield f"{key}: asked by {len(tokens)} histories of its run"
        elif len(receipts) > 1:
            yield f"{key}: its agent saw {len(receipts)} results of one tool call"
        elif good[key] > 1:
            yield f"{key}: {good[key]} tool calls were recorded"
    for run_id, request in found.names.items():
        ends = [end for end in found.ends(run_id) if "result" in end.data]
        yield from (f"{request.name}: {why}" for end in ends for why in _wrong(found, request.workflow, end))


def _wrong(found: Findings, workflow: str, end: Seen) -> Iterator[str]:
    """Why a run's result cannot have come of what was done."""
    result = end.data["result"]
    key, token, told = result["key"], result["token"], [line.split(" ", 1) for line in result["told"]]
    if sorted(part for part, _ in told) != sorted(PARTS[workflow]):
        yield f"told {[part for part, _ in told]}"
    for part, text in told:
        bills, effects = found.bills.get(f"{key}/{part}", ()), found.effects.get(f"{key}/{part}", ())
        seen = {receipt for bill in bills for receipt in bill.receipts}
        if {bill.token for bill in bills} != {token}:
            yield f"{part} was asked under another token than the run ended with"
        if text.startswith("receipt-") and (
            text not in seen or (effects and text not in {one.receipt for one in effects})
        ):
            yield f"{part} ended with a receipt that nobody gave"


def order_violations(found: Findings) -> Iterator[str]:
    """P3: see `order`."""
    for run_id, request in found.names.items():
        told = found.told.get(run_id, ())
        yield from (f"{request.name}: {why}" for why in order.broken(told, _holders(found, run_id)))


def _holders(found: Findings, run_id: str) -> Holders:
    """What of a run had a former holder, by the journal."""
    row = found.rows.get(run_id, {})
    ended_well = row.get("status") == "succeeded"
    left = [one for one in found.calls.get(run_id, ()) if not ended_well or _left(one)]
    return Holders(run=row.get("epoch", 0) > 1, calls={str(one["call_id"]) for one in left})


def _left(call: Mapping[str, Any]) -> bool:
    """Whether somebody may be at a call still though it has ended: a former holder, or one who was not waited for."""
    unwaited = call["cancelled"] is not None or "deadline_missed" in str(call["failure"])
    return call["attempt"] > 1 or unwaited


def spend_unaccounted(found: Findings) -> Iterator[str]:
    """P4: a bill without a recorded turn or a mark that it may exist, a turn without a bill, a sum that is not that of its turns."""
    for key in sorted({*found.bills, *found.turns}):
        billed, turns = len(found.bills.get(key, ())), found.turns.get(key, ())
        if billed < len(turns):
            yield f"{key}: {len(turns)} turns recorded, {billed} billed"
        elif billed > len(turns) and not _marked(found, key):
            yield f"{key}: {billed} billed, {len(turns)} turns recorded and none marked as asked again"
    for run_id, request in found.names.items():
        row = found.rows.get(run_id)
        if row is not None and row["status"] == "succeeded":
            yield from _sum(found, request.name, float(row["cost_usd"]))


def _marked(found: Findings, key: str) -> bool:
    """Whether a call says that more of it may be billed than has an answer: by a turn that was asked again, or, where no other turn came, by what it counts."""
    turns = found.turns.get(key, ())
    told = sum(_tokens(turn.get("usage")) for turn in turns)
    counted = sum(int(row.get("tokens") or 0) for row in found.evidence.calls if found.keys[str(row["call_id"])] == key)
    return any(turn.get("asked_again") for turn in turns) or counted > told


def _tokens(usage: Mapping[str, int] | None) -> int:
    return usage["input_tokens"] + usage["output_tokens"] if usage else 0


def _sum(found: Findings, name: str, cost_usd: float) -> Iterator[str]:
    turns = [
        turn for part in {key for key in found.turns if key.rpartition("/")[0] == name} for turn in found.turns[part]
    ]
    if abs(cost_usd - TURN_USD * len(turns)) > TURN_USD / 2 and not any(turn.get("asked_again") for turn in turns):
        yield f"{name}: cost {cost_usd:.6f} USD, its turns {TURN_USD * len(turns):.6f}"


def sandboxes_leaked(found: Findings) -> Iterator[str]:
    """P5: containers that outlived whoever held them."""
    yield from found.evidence.leaked


def recovered_late(found: Findings) -> Iterator[str]:
    """P7: what a dead process held, with which nobody went on within the bound. See `recovery`."""
    yield from found.evidence.late


CHECKS: Mapping[str, Callable[[Findings], Iterator[str]]] = {
    check.__name__: check
    for check in (
        lost, doubled_results, doubled_terminal, order_violations, spend_unaccounted, sandboxes_leaked, stuck,
        recovered_late,
    )
}  # fmt: skip
"""By the name under which each is counted."""


def judge(evidence: Evidence, source: str) -> Mapping[str, Sequence[str]]:
    """What each check found wrong. `source` is the CloudEvents source of the requests."""
    found = Findings(evidence, source)
    return {name: list(check(found)) for name, check in CHECKS.items()}


def executions_per_effect(evidence: Evidence) -> float:
    """How often an effect was carried out, on average: at least once."""
    keys = {effect.key for effect in evidence.effects}
    return round(len(evidence.effects) / len(keys), 4) if keys else 0.0


def told_late(evidence: Evidence) -> int:
    """Of how many runs a former holder told something after the end, as `order` lets it."""
    return sum(1 for told in Findings(evidence, "").told.values() if order.late(told))
