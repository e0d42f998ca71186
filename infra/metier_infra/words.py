"""The words of which events and rows are made: ids, tasks, answers, stamps, decisions. All frozen.

`events` and `rows` are built of them; every package may use them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal, NewType

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints

RunId = NewType("RunId", str)
CallId = NewType("CallId", str)
ToolCallId = NewType("ToolCallId", str)
Slot = tuple[str, str, int]
"""Where in a run something is asked or decided: the node's task, a digest of what, and how often it was there before. With the run's id it makes the id."""


def stable_id(*parts: str | int) -> str:
    """32 hex characters that depend on the parts alone: the same work has the same id after any crash."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def source_below(run_id: RunId) -> str:
    """The source of the requests by which a run starts others."""
    return f"/metier/runs/{run_id}"


class Word(BaseModel):
    """A frozen value that travels or is stored; unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


LONGEST_MESSAGE = 4_000
"""Characters of a failure's message: it is made of what others wrote."""


def _sayable(text: str) -> str:
    """As much of it as is kept, and as JSON can carry it: a lone surrogate would make an event that nobody can read."""
    kept = text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 1] + "…"
    return kept.encode(errors="backslashreplace").decode()


class Failure(Word):
    """Why something ended badly: `code` from the error tree, and a sentence for a person."""

    code: str
    message: Annotated[str, AfterValidator(_sayable)]


class Task(Word):
    """What an agent is asked. `text` is the question; `context` is JSON that the agent may show to its model.

    `category` is what the workflow believes the task to be; records of tools and models are kept by it.
    """

    text: str
    category: str = "general"
    context: dict[str, JsonValue] = {}


class Claim(Word):
    """Something that an answer says, and the exact words of the source (its id) on which it stands."""

    text: str
    source: str
    quote: str


class Conflict(Word):
    """What sources contradict each other about: a side is what one of them says."""

    about: str
    sides: tuple[Claim, ...]


class Answer(Word):
    """What an agent answered: the comparable `text`, how sure it is (0 to 1, or None), and what it took.

    Money is USD; where `cost_known` is false, some price was not known and `cost_usd` is a lower bound. `model_turns` and `tool_calls`
    are counts; `stopped` says why the loop ended. Of several `explorations`, `agreement` is the share that gave this answer, and `selected_by` says what chose it. An agent that answers from sources says its `claims`, the `conflicts` between sources,
    and what stays `unresolved`; every quote was found in its source.
    """

    text: str
    agent: str
    model: str
    policy: str
    confidence: float | None = None
    stopped: str = "answered"
    model_turns: int = 0
    tool_calls: int = 0
    cost_usd: float = 0.0
    cost_known: bool = True
    explorations: int = 1
    agreement: float | None = None
    selected_by: str = ""
    claims: tuple[Claim, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    unresolved: tuple[str, ...] = ()


class Stamp(Word):
    """Under what an agent acts: its `digest` changes with any change of its behaviour; `safety` is NAME@VERSION of its bundle, or empty.

    `safety_digest` changes with any change of the bundle. It stands on every event that concerns the agent.
    """

    agent: str
    digest: str
    safety: str = ""
    safety_digest: str = ""


class Spent(Word):
    """What a call or a run took: USD, tokens that models read and wrote, tool calls that were really made, and seconds."""

    usd: float = 0.0
    tokens: int = 0
    tool_calls: int = 0
    time_s: float = 0.0


class Allowance(Word):
    """What one call may take at the most; it is set aside for the call before that is sent. None: no limit.

    `cut` names what of it (`usd`, `tokens`, `tool_calls`, `time`) is less than the call would have had without the limits of others. `economy`: the agent's cheapest model
    answers, in place of the one that it names.
    """

    usd: float | None = None
    tokens: int | None = None
    tool_calls: int | None = None
    cut: tuple[str, ...] = ()
    economy: bool = False


class AgentCard(Word):
    """What a workflow may know of an agent: skills are what it says it is good at, 0 to 1 by category; `takes` is what one call takes at the most.

    `priced`: what its models charge is known, so that a limit on money can be kept. `reasoning` and `retrieval` are the kinds of them that it has.
    """

    name: str
    model: str
    policy: str
    skills: dict[str, float] = {}
    takes: Allowance = Allowance()
    priced: bool = True
    stamp: Stamp | None = None
    reasoning: str = ""
    retrieval: str = ""


class Candidate(Word):
    """One agent that a decision weighed: its score (higher is better), the chance with which it would be chosen first (0 to 1), and what it may cost in USD.

    `policy`, `reasoning`, `retrieval` and, in the stamp, `safety` are what is chosen together with the agent. `skill` is what it declares in the category; None in
    decisions from before that was kept.
    """

    agent: str
    score: float
    propensity: float
    stamp: Stamp | None = None
    cost_usd: float | None = None
    policy: str = ""
    reasoning: str = ""
    retrieval: str = ""
    skill: float | None = None


class Shadow(Word):
    """What a router version that is only watched would have chosen."""

    router: str
    topology: Literal["specialist", "cascade", "panel"]
    chosen: tuple[str, ...]


class Decision(Word):
    """A routing choice: who could have been asked, who was and in which order, why, and by which router version.

    `by` says what decided: an `override` or another `rule` of the author, the `learned` router, or the `default` where that knew too little. `seed` is where the
    randomness came from; `weights` are of the votes of the `chosen`; so much of the weight as `enough` behind one answer, and the others are not asked. A `canary` is a version under trial.
    `share` of the tasks went to the version on trial then, 0 where none was, and `other` is the version that did not decide this one.
    `paid`: the run's limits paid for so many of those who would have been chosen; None: for all.
    """

    category: str
    chosen: tuple[str, ...]
    topology: Literal["specialist", "cascade", "panel"]
    reason: str
    router: str
    candidates: tuple[Candidate, ...]
    by: Literal["override", "rule", "learned", "default"] = "rule"
    tenant: str = "default"
    seed: int = 0
    weights: tuple[float, ...] = ()
    enough: float = 1.0
    canary: bool = False
    share: float = 0.0
    other: str = ""
    shadows: tuple[Shadow, ...] = ()
    paid: int | None = None


class Named(Word):
    """Whom the input itself (`override`), or a rule of the author, names: nobody else is weighed. `why` is a sentence for a person."""

    by: Literal["override", "rule"]
    agents: tuple[str, ...]
    why: str
    topology: Literal["cascade", "panel"] | None = None


class Wanted(Word):
    """What a node wants decided: for which task, among whom (empty: all agents), in which ways; and everything else that the choice depends on beside the router.

    `named` ends the choice before it begins; `default` are asked where the router knows too little; `enough` holds for whom no router weighed; `cap_usd` is what all calls may take together.
    It is kept beside the decision, so that this can be made again.
    """

    task: Task
    among: tuple[str, ...] = ()
    topologies: tuple[Literal["specialist", "cascade", "panel"], ...] = ("specialist", "cascade", "panel")
    named: Named | None = None
    default: tuple[str, ...] = ()
    enough: float = 1.0
    cap_usd: float | None = None


Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*$")]
"""A name that others chose: short, and without control characters."""
Remark = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00]*$")]
"""A few sentences of others."""


MOST_COUNTED = 10**15
"""A limit on a count that is larger says the same: sums of several such still fit the journal's 64 bits."""


def _countable(limit: int) -> int:
    return min(limit, MOST_COUNTED)


class Limits(Word):
    """What a run may take at the most: USD, model tokens (in and out), tool calls, and seconds from its acceptance on (the time that it is parked for a person aside).

    None: no limit. `at_limit` says what happens where a call cannot have what it may need: `stop` gives it what is left; `smaller` also asks the cheapest
    of the agent's models in place of the one that it names; `fewer` asks fewer members of a panel. Once nothing is left, the run ends with the reason and
    what it has so far. Where no tool call is left, agents go without tools.
    """

    usd: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    tokens: Annotated[int, Field(ge=0), AfterValidator(_countable)] | None = None
    tool_calls: Annotated[int, Field(ge=0), AfterValidator(_countable)] | None = None
    time_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    at_limit: Literal["stop", "smaller", "fewer"] = "stop"
