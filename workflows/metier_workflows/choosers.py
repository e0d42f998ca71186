"""The nodes that an author puts in a graph: `route`, `cascade` and `panel`. Each is a node as it stands, and can be asked inside another one.

    graph.add_node("solve", route("coder", "careful", category=classify, default="careful", into="solved"))
    verdict = await panel("coder", "careful", quorum=0.6, judge="careful").ask(text)

One decision chooses the agents and how they are asked (`deciding`); `asking` asks them; `panel` and `judging` make one answer of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, Unpack, cast, get_args

from pydantic import Field, JsonValue

from metier_infra.errors import BadInput, BadSpec, CallFailed, DeadlineMissed, LimitReached, WorkflowBroken
from metier_infra.words import AgentCard, Answer, Decision, Named, Task, Wanted
from metier_workflows import judging
from metier_workflows.asking import Votes, code_of, collect
from metier_workflows.choosing.router import Topology
from metier_workflows.node import DEFAULT_TIMEOUT_S, Cap, Chosen, here
from metier_workflows.panel import EPSILON, Key, Near, Synthesis, plain, spoken_for, tied, unkeyed

Otherwise = Literal["best", "default", "fail"]
Read = Callable[[Any], Any]
TWO_THIRDS = 2 / 3


class Verdict(Synthesis):
    """What came of asking: the answer, who is behind it, and who said what else.

    `quorum` tells whether as much of the weight stands behind it as was wanted, and more than behind any other, or a judge or writer settled it; `by` what made it: the `vote`, a `judge`, a
    `synthesis`, or the `default` agent that was asked in the end. `failed` has the code of each failure, by agent, `uncompared` why the key of agreement made nothing of an answer;
    outcomes can be reported of the `decision_id`.
    """

    by: Literal["vote", "judge", "synthesis", "default"] = "vote"
    quorum: bool = True
    topology: Topology = "specialist"
    failed: dict[str, str] = Field(default_factory=dict[str, str])
    uncompared: dict[str, str] = Field(default_factory=dict[str, str])
    decision_id: str = ""


@dataclass(frozen=True)
class Rule:
    """Whom the author names for some tasks. What is None holds for all; what is said of several things holds where all of it does."""

    agents: tuple[str, ...]
    category: Collection[str] | None = None
    tenant: Collection[str] | None = None
    when: Callable[[str], bool] | None = None
    topology: Literal["cascade", "panel"] | None = None
    why: str = "a rule"

    def fits(self, text: str, category: str, tenant: str) -> bool:
        """Whether the rule is for this task."""
        of = self.category is None or category in self.category
        return of and (self.tenant is None or tenant in self.tenant) and (self.when is None or self.when(text))


def rule(
    *agents: str,
    category: str | Collection[str] | None = None,
    tenant: str | Collection[str] | None = None,
    when: Callable[[str], bool] | None = None,
    topology: Literal["cascade", "panel"] | None = None,
    why: str = "a rule",
) -> Rule:
    """Ask these `agents` for tasks of a category, of a tenant, or whose text fits `when`; several of them as a panel, unless a cascade is wanted. `why` is told.

    Raises `BadSpec` where it names nobody.
    """
    if not agents:
        raise BadSpec(f'the rule {why!r} names no agent: rule("coder", category="code"), say')
    return Rule(agents, _set(category), _set(tenant), when, topology, why)


def _set(names: str | Collection[str] | None) -> Collection[str] | None:
    return frozenset([names] if isinstance(names, str) else names) if names is not None else None


class Options(TypedDict, total=False):
    """What an author may say of a node that chooses.

    Attributes:
        question: the field of the state that holds the question, or a function of the state. Default: `question`.
        category: the field that holds what kind of task it is, or a function of the question. Default: `category`, and where there is none, `general`.
        into: the field that takes the verdict, as JSON, or a function from the verdict to what the node changes of the state. Default: `answer`.
        rules: the first that fits names who is asked. They go before any router.
        override: the field in which the input may name an agent, or several; that goes before the rules. Default: none.
        default: who is asked where a router knows too little. Default: who declares the most skill.
        key: what makes two texts the same answer. Default: `plain`.
        enough: so much of the weight behind one answer, and the others are not waited for or asked; not less than the quorum. A router may say otherwise. Default: two thirds.
        quorum: so much of the weight of all who were chosen has to stand behind the answer, 0 to 1, and more than behind any other. Default: a half.
        otherwise: where it does not: take the `best` there is, ask the `default`, or `fail`; in the last two cases no router stops before the quorum. Default: `best`.
        judge: an agent that says which answer is right, where not enough agree.
        synthesis: an agent that then writes one answer of all.
        timeout_s: how long an answer is waited for; seconds. Default: 300.
        cap_usd: what all calls may take together, in USD; fewer are asked where a router thinks that it will not do, and nothing is asked beyond it.
    """

    question: str | Read
    category: str | Callable[[str], str]
    into: str | Callable[[Verdict], Mapping[str, Any]]
    rules: Sequence[Rule]
    override: str | None
    default: str | Sequence[str]
    key: Key
    enough: float
    quorum: float
    otherwise: Otherwise
    judge: str | None
    synthesis: str | None
    timeout_s: float
    cap_usd: float | None


def route(*agents: str, **options: Unpack[Options]) -> Chooser:
    """A node that asks whom the decision says, alone, one after the other or at once. Among `agents`, or all that there are; see `Options`."""
    return _chooser(agents, ("specialist", "cascade", "panel"), options)


def cascade(*agents: str, **options: Unpack[Options]) -> Chooser:
    """A node that asks `agents` one after the other until enough agree; those without whom there cannot be enough at once. See `Options`."""
    return _chooser(agents, ("cascade",), options)


def panel(*agents: str, **options: Unpack[Options]) -> Chooser:
    """A node that asks `agents` at once and gives up those who are not needed any more once enough agree. See `Options`."""
    return _chooser(agents, ("panel",), options)


def _chooser(agents: tuple[str, ...], topologies: tuple[Topology, ...], options: Options) -> Chooser:
    """Raises `BadSpec` for options that do not go together."""
    default = options.get("default", ())
    given = {**options, "default": (default,) if isinstance(default, str) else tuple(default)}
    made = Chooser(agents=agents, topologies=topologies, **cast("Any", given))
    if fault := next(_faults(made), None):
        raise BadSpec(fault)
    return made


def _faults(made: Chooser) -> Iterator[str]:
    """What does not go together, in sentences."""
    if made.judge and made.synthesis:
        yield "a judge says which answer is right, a synthesis writes another: name one of the two"
    if made.otherwise not in get_args(Otherwise):
        yield f"otherwise is one of {', '.join(get_args(Otherwise))}, and not {made.otherwise!r}"
    if made.otherwise == "default" and not made.default:
        yield 'otherwise="default" needs a default to ask'
    if not callable(cast("object", made.key)) and not isinstance(made.key, Near):
        yield f"key is a function such as metier.numeric, or metier.Near(…), and not {made.key!r}"
    for name, share in {"enough": made.enough, "quorum": made.quorum}.items():
        if not 0 <= share <= 1:
            yield f"{name} is a share of the weight, 0 to 1, and not {share:g}"
    if made.cap_usd is not None and not 0 < made.cap_usd < math.inf:
        yield f"cap_usd is an amount of USD, and not {made.cap_usd:g}"
    if not 0 < made.timeout_s < math.inf:
        yield f"timeout_s is a time in seconds, above 0, and not {made.timeout_s:g}"


@dataclass(frozen=True, kw_only=True)
class Chooser:
    """A node of a graph that asks one or several agents, as one decision says; see `Options` for its parts."""

    agents: tuple[str, ...]
    topologies: tuple[Topology, ...]
    question: str | Read = "question"
    category: str | Callable[[str], str] = "category"
    into: str | Callable[[Verdict], Mapping[str, Any]] = "answer"
    rules: Sequence[Rule] = ()
    override: str | None = None
    default: tuple[str, ...] = ()
    key: Key = plain
    enough: float = TWO_THIRDS
    quorum: float = 0.5
    otherwise: Otherwise = "best"
    judge: str | None = None
    synthesis: str | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    cap_usd: float | None = None

    async def __call__(self, state: Any) -> dict[str, Any]:
        """The node: what it changes of the graph's state."""
        text = _text(state, self.question)
        category = _field(state, self.category) if isinstance(self.category, str) else self.category(text)
        verdict = await self.ask(text, category=str(category or "general"), override=_overriding(state, self.override))
        return {self.into: verdict.model_dump(mode="json")} if isinstance(self.into, str) else dict(self.into(verdict))

    async def ask(
        self,
        text: str,
        *,
        category: str = "general",
        context: Mapping[str, JsonValue] | None = None,
        override: Sequence[str] = (),
    ) -> Verdict:
        """Decide, ask and make one answer of what was answered, inside a node; durably: after a crash nothing is decided or asked anew.

        Args:
            text: the question as the models shall see it.
            category: what kind of task it is.
            context: JSON to hand to the agents beside the question.
            override: ask these, whatever else holds.

        Raises:
            CallFailed: not as many agree as the quorum wants, and `otherwise` is "fail" (reason `no_quorum`); or nobody answered (the reason of the first).
            WorkflowBroken: the author names an agent that is not there.
            DeadlineMissed: nobody answered in time.
            LimitReached: a limit of the run, or the cap, left too little for anybody to answer.
            BadInput: no agent is called as the input wants.
        """
        desk, place = here()
        self._check(desk.cards())
        task = Task(text=text, category=category, context=dict(context or {}))
        chosen = await desk.choose(place, self._wanted(task, tuple(override), desk.tenant))
        chosen = replace(chosen, decision=self._settling(chosen.decision))
        within = Cap(f"decision:{chosen.decision_id}", self.cap_usd) if self.cap_usd is not None else None
        asked = _Asked(self, task, chosen, lambda name, what: desk.ask(place, name, what, self.timeout_s, within))
        votes = await collect(chosen.decision, lambda name: asked.ask(name, task), self.key)
        verdict = await asked.verdict(votes)
        if len(votes.answers) > 1 and verdict.quorum and verdict.by != "default":
            await desk.voted(chosen, {name: float(name in verdict.agreed) for name in votes.answers})
        return verdict

    def _check(self, cards: Mapping[str, AgentCard]) -> None:
        """Whoever settles a vote is there: that it is not would show only once votes differ, and all have been paid for. Raises `WorkflowBroken`."""
        for role, name in (("judge", self.judge), ("synthesis", self.synthesis)):
            if name is not None and name not in cards:
                raise WorkflowBroken(
                    f"no agent is called {name!r}, which is the {role} of this node; there are: {', '.join(sorted(cards))}"
                )

    def _settling(self, decision: Decision) -> Decision:
        """As it is followed: where a quorum has to be, those who are needed for one are waited for, whatever a router thinks."""
        enough = decision.enough if self.otherwise == "best" else max(decision.enough, self.quorum)
        return decision.model_copy(update={"enough": enough})

    def _wanted(self, task: Task, override: tuple[str, ...], tenant: str) -> Wanted:
        named = Named(by="override", agents=override, why="the input asks for it") if override else None
        ruled = next((one for one in self.rules if one.fits(task.text, task.category, tenant)), None)
        if named is None and ruled is not None:
            named = Named(by="rule", agents=ruled.agents, why=ruled.why, topology=ruled.topology)
        return Wanted(
            task=task,
            among=self.agents,
            topologies=self.topologies,
            named=named,
            default=self.default,
            enough=max(self.enough, self.quorum),
            cap_usd=self.cap_usd,
        )


@dataclass(frozen=True)
class _Asked:
    """A chooser at work on one task."""

    chooser: Chooser
    task: Task
    chosen: Chosen
    ask: Callable[[str, Task], Coroutine[Any, Any, Answer]]

    async def verdict(self, votes: Votes) -> Verdict:
        """One answer of what was answered."""
        settled = await self._settled(votes)
        if settled.quorum or self.chooser.otherwise == "best":
            if not votes.camps:
                raise votes.missed or CallFailed("every answer was empty", reason="no_quorum")
            return settled
        if self.chooser.otherwise == "default":
            return await self._default(votes, settled)
        failed = "".join(f"; {name}: {code}" for name, code in votes.failed.items())
        beside = ", and as much behind another" if tied(votes.camps) else ""
        told = f"{votes.backing():.0%} of the weight stand behind one answer{beside}, which is no quorum{failed}"
        raise CallFailed(told, reason="no_quorum")

    async def _settled(self, votes: Votes) -> Verdict:
        """What the vote says, or a judge or writer where that does not settle it."""
        chooser, voted = self.chooser, self._voted(votes)
        who = chooser.judge or chooser.synthesis
        if who is None or len(votes.camps) <= 1 or votes.agree(self.chosen.decision.enough):
            return voted
        how: judging.How = "judge" if chooser.judge else "synthesis"
        try:
            answer = await self.ask(who, judging.put(how, self.task, votes.camps))
        except (CallFailed, DeadlineMissed, LimitReached) as error:
            return voted.model_copy(update={"failed": voted.failed | {who: code_of(error)}})
        at = judging.verdict(answer, votes.camps) if how == "judge" else 0
        if at is None:
            return voted
        text = {"text": answer.text} if how == "synthesis" else {}
        return self._voted(votes, at).model_copy(update={"by": how, "quorum": True, **text})

    def _voted(self, votes: Votes, at: int = 0) -> Verdict:
        found, quorum = votes.camps, self.chooser.quorum
        return Verdict(
            **spoken_for(found, at).model_dump(),
            quorum=bool(found) and votes.backing(at) >= quorum - EPSILON and not (quorum and tied(found)),
            topology=self.chosen.decision.topology,
            failed=votes.failed,
            uncompared=unkeyed([*votes.answers.values()], votes.key),
            decision_id=self.chosen.decision_id,
        )

    async def _default(self, votes: Votes, settled: Verdict) -> Verdict:
        """The default agent's answer, which it may have given already; everybody who said something else dissents."""
        name = self.chooser.default[0]
        answer = votes.answers.get(name) or await self.ask(name, self.task)
        if not answer.text.strip() and votes.camps:  # it supports nothing: what the others said is better than that
            return settled
        at = next((at for at, camp in enumerate(votes.camps) if name in camp.agents), None)
        if at is not None:
            return self._voted(votes, at).model_copy(update={"text": answer.text, "quorum": False, "by": "default"})
        said = {one.agent: one.text for one in votes.answers.values() if one.text.strip()}
        told = {"text": answer.text, "agreed": (name,), "support": 0.0, "dissent": said, "by": "default"}
        return settled.model_copy(update=told)


def _field(state: Any, name: str) -> Any:
    """What a state holds, whichever of LangGraph's kinds it is; None where it does not."""
    return cast("Mapping[str, Any]", state).get(name) if isinstance(state, Mapping) else getattr(state, name, None)


def _text(state: Any, question: str | Read) -> str:
    text = _field(state, question) if isinstance(question, str) else question(state)
    if not isinstance(text, str) or not text.strip():
        where = f"the state's {question!r}" if isinstance(question, str) else "what its question gives"
        what = "empty" if isinstance(text, str) else f"{type(text).__name__}, and no text"
        raise WorkflowBroken(f"a node that chooses has no question to ask: {where} is {what}")
    return text


def _overriding(state: Any, name: str | None) -> tuple[str, ...]:
    """The agents that the input names. Raises `BadInput`."""
    said = _field(state, name) if name else None
    if not said:
        return ()
    agents = [said] if isinstance(said, str) else said
    if not isinstance(agents, list | tuple) or not all(isinstance(one, str) for one in cast("list[object]", agents)):
        raise BadInput(f"the input's {name!r} names no agent: it has to be a name, or a list of names")
    return tuple(cast("list[str]", agents))
