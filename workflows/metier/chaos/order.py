"""P3, in full: what a consumer of one run's events may rely on, and what was told otherwise. Pure; `checks` counts what `broken` gives.

docs/explanation/delivery.md says the same in words: in one partition; one id, one event; its start first; each thing's beginning before its end; and after the
run's end nothing new but what a former holder had on its way. All of it is meant of a consumer that drops what bears an id that it has seen.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from metier.chaos.evidence import Seen
from metier_infra.events import DecisionMade, RunCancelled, RunFailed, RunStarted, RunSucceeded
from metier_infra.progress_events import (
    AgentAnswered,
    AgentAsked,
    NodeEnded,
    NodeStarted,
    RunParked,
    RunResumed,
    TextWritten,
    ToolAnswered,
    ToolCalled,
)

ENDS = frozenset(kind.TYPE for kind in (RunSucceeded, RunFailed, RunCancelled))
OF_RUN = frozenset(
    kind.TYPE for kind in (NodeStarted, NodeEnded, AgentAsked, AgentAnswered, RunParked, RunResumed, DecisionMade)
)
"""What the run's holder tells between its start and its end."""
OF_CALL = frozenset(kind.TYPE for kind in (ToolCalled, ToolAnswered, TextWritten))
"""What the holder of one of its calls tells meanwhile."""
LATE = (OF_RUN | OF_CALL) - {DecisionMade.TYPE}
"""Of these a former holder may have some on its way when the run ends."""
PAIRS: Mapping[str, tuple[str, str]] = {
    NodeEnded.TYPE: (NodeStarted.TYPE, "task"),
    AgentAnswered.TYPE: (AgentAsked.TYPE, "call_id"),
    ToolAnswered.TYPE: (ToolCalled.TYPE, "tool_call_id"),
}
"""What ends a thing, with what begins it, and what names it in both."""


@dataclass(frozen=True)
class Holders:
    """What had a former holder. `run`: the run was taken over; `calls`: those that were claimed more than once, or ended by another's word than their holder's."""

    run: bool = False
    calls: Collection[str] = ()

    def left(self, event: Seen, twice: bool) -> bool:
        """Whether a former holder may have told this after the end, which was told `twice` or not."""
        return self.run or twice or (event.type in OF_CALL and event.data.get("call_id") in self.calls)


def broken(told: Sequence[Seen], holders: Holders) -> Iterator[str]:
    """A sentence for each thing in which the events of one run, as they lie, are not what they must be."""
    if len({event.partition for event in told}) > 1:
        yield "in more than one partition"
    if len(firsts(told)) != len(different(told)):
        yield "one id for two events"
    yield from _begun(firsts(told))
    yield from _paired(firsts(told))
    twice = sum(event.type in ENDS for event in told) > 1
    for event in late(told):
        if event.type not in LATE or not holders.left(event, twice):
            yield f"{event.type} after the end"


def _begun(told: Sequence[Seen]) -> Iterator[str]:
    """Its start comes before whatever else its holder tells; a run that failed or was given up before it ran has none."""
    kinds = [event.type for event in told if event.type in OF_RUN | ENDS | {RunStarted.TYPE}]
    if RunStarted.TYPE in kinds[1:]:
        yield f"started after {kinds[0]}"
    elif not {*kinds} <= {RunStarted.TYPE, RunFailed.TYPE, RunCancelled.TYPE} and RunStarted.TYPE not in kinds:
        yield f"{kinds[0]}, and never started"


def _paired(told: Sequence[Seen]) -> Iterator[str]:
    """What ends a thing does not come before what begins it."""
    ended: set[tuple[str, object]] = set()
    for event in told:
        for end, (begin, name) in PAIRS.items():
            if event.type == end:
                ended.add((end, event.data.get(name)))
            elif event.type == begin and (end, event.data.get(name)) in ended:
                yield f"{end} of {event.data.get(name)} before {begin}"


def late(told: Sequence[Seen]) -> Sequence[Seen]:
    """What is new after the first terminal event, but for another end, which is counted as that."""
    new = firsts(told)
    end = next((place for place, event in enumerate(new) if event.type in ENDS), len(new))
    return [event for event in new[end + 1 :] if event.type not in ENDS]


def firsts(told: Sequence[Seen]) -> Sequence[Seen]:
    """The first of each id, in order: a consumer that knows an id already drops what bears it again."""
    found: dict[str, Seen] = {}
    for event in told:
        found.setdefault(event.id, event)
    return list(found.values())


def different(told: Sequence[Seen]) -> Sequence[Seen]:
    """Those of which no part is the same. What a call that failed had cost may become known later."""
    return list({json.dumps([one.id, one.type, _fixed(one)], sort_keys=True): one for one in told}.values())


def _fixed(event: Seen) -> Mapping[str, object]:
    failed = event.type == AgentAnswered.TYPE and not event.data.get("ok")
    return {name: value for name, value in event.data.items() if not (failed and name == "cost_usd")}
