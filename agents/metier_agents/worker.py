"""The role `metier agent NAME…`: calls in, answers out.

`service` hands it each record of its agents' topics; it claims the call in the journal, runs the loop, records the answer, and sends
the recorded winner to `metier.runs`. A call may come twice, and a worker may die at any point: the claim, the recorded steps and the
first recorded answer make that harmless.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog

from metier_agents import explorations, measuring, parking
from metier_agents.attempt import Attempt, Estimate, free
from metier_agents.hands import Hands
from metier_agents.model import Model
from metier_agents.permission import Parked
from metier_agents.retrieval import open_retriever
from metier_agents.safety import Bundle
from metier_agents.spec import AgentSpec, without_tools
from metier_agents.stamp import stamp
from metier_agents.telling import Teller
from metier_infra import metrics, service, telemetry
from metier_infra.bus import Bus, Consumption
from metier_infra.errors import (
    BadSpec,
    Cancelled,
    FencedOff,
    Held,
    MetierError,
    RetryLater,
    TooLarge,
    UnknownCall,
    UnknownEvent,
)
from metier_infra.events import RUNS, CallAnswered, CallRequested, Event, tasks_group, tasks_topic
from metier_infra.failpoints import failpoint
from metier_infra.journal import Journal
from metier_infra.messages import LARGEST, Delivery, Envelope
from metier_infra.outgoing import LAST_S, Level, Outgoing
from metier_infra.rows import Call
from metier_infra.words import Answer, CallId, Failure
from metier_tools.lane import ToolLane
from metier_tools.toolbox import Toolbox

log = structlog.get_logger()

CANCEL_S = 0.5
"""How often the journal is asked, while calls are in hand, whether one was given up; seconds."""


@dataclass(frozen=True)
class _GivenUp:
    """Goes with the cancel of a call's work, to tell it from the end of the role."""

    reason: str


@dataclass(frozen=True)
class Way:
    """One way to answer an agent's calls: as it is declared, or on its cheapest model alone."""

    spec: AgentSpec
    model: Model
    estimate: Estimate


class AgentWorker:
    """Serves the calls to `agents`.

    Args:
        bus: where calls come from and answers go.
        journal: claims, steps, tool calls and answers.
        lane: carries tool calls.
        toolbox: the specs of the tools that agents name.
        agents: by name; each has its topic and its consumer group.
        open_model: the model of a spec; called once an agent, at the start.
        grant_key: signs each tool call's grant.
        bundles: the safety bundle of each agent that has one, by the agent's name.
        estimate: what a request of an agent may come to; None: nothing is set aside.
        thrifty: the agent on its cheapest model, for calls of runs that save; None: as it is.
        instance: this process's name; one that survives a restart takes its own calls up at once.
        concurrency: calls in hand at one time, per agent.
        level: how much is told of a call while it is worked on.
        drain_s: how long calls in hand may take to end after `stop`; seconds.
    """

    def __init__(
        self,
        *,
        bus: Bus,
        journal: Journal,
        lane: ToolLane,
        toolbox: Toolbox,
        agents: Mapping[str, AgentSpec],
        open_model: Callable[[AgentSpec], Model],
        grant_key: bytes,
        instance: str,
        bundles: Mapping[str, Bundle] | None = None,
        estimate: Callable[[AgentSpec], Estimate] | None = None,
        thrifty: Callable[[AgentSpec], AgentSpec] | None = None,
        concurrency: int = 16,
        level: Level = "all",
        drain_s: float = 25.0,
    ) -> None:
        self._bus = bus
        self._journal = journal
        self._hands = Hands(journal, lane, toolbox, grant_key)
        self._agents = dict(agents)
        self._open_model = open_model
        self._holder = f"{instance}/{'+'.join(sorted(agents))}"
        self._concurrency = concurrency
        self._drain_s = drain_s
        self._level: Level = level
        self._bundles = dict(bundles or {})
        self._stamps = {name: stamp(spec, self._bundles.get(name)) for name, spec in agents.items()}
        self._estimate: Callable[[AgentSpec], Estimate] = estimate or (lambda _: free)
        self._thrift: Callable[[AgentSpec], AgentSpec] = thrifty or (lambda spec: spec)
        self._ways: dict[str, Way] = {}
        self._savings: dict[str, Way] = {}
        self._in_hand: set[CallId] = set()
        self._working: dict[CallId, asyncio.Task[Answer]] = {}

    async def run(self, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Serve until `stop`, then end what is in hand. `ready` is called once, when every agent's topic is assigned.

        Raises:
            AskOperator: a model or a tool of an agent cannot be had.
        """
        for spec in [*self._agents.values()]:
            self._equip(spec)
        await self._journal.calls.release(self._holder)
        serving = self._start_serving(stop, ready)
        others = [
            asyncio.create_task(self._renew()),
            asyncio.create_task(self._give_up()),
            asyncio.create_task(stop.wait()),
        ]
        try:
            await asyncio.wait([*serving, *others], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(serving, timeout=self._drain_s if stop.is_set() else 0)
        finally:
            await _end([*serving, *others])
            await self._journal.calls.release(self._holder)
        _raise_first([*serving, *others[:2]])

    def _equip(self, spec: AgentSpec) -> None:
        """Open the agent's model, and make sure that its sources and tools exist; those that are disabled it does not get."""
        disabled = {tool.name: self._fitness(spec, tool.name) for tool in spec.tools}
        for name, reason in disabled.items():
            if reason:
                log.warning("tool disabled", action="go_without", agent=spec.name, tool=name, reason=reason)
        fit = self._agents[spec.name] = without_tools(spec, {name for name, reason in disabled.items() if reason})
        way = self._ways[spec.name] = Way(fit, self._open_model(spec), self._estimate(spec))
        saving = self._thrift(fit)
        same = saving.model == fit.model and not fit.fallbacks
        self._savings[spec.name] = way if same else Way(saving, self._open_model(saving), self._estimate(saving))
        if spec.retrieval is not None:
            open_retriever(spec.retrieval.origin, self._journal.db)

    def _fitness(self, spec: AgentSpec, tool: str) -> str:
        if tool not in self._hands.toolbox:
            raise BadSpec(
                f"the agent {spec.name} names a tool {tool!r}, which does not exist; there are {', '.join(self._hands.toolbox.names)} "
                "(the tools of an MCP server exist once they are approved: `metier tools approve`)"
            )
        return self._hands.toolbox.disabled(tool)

    def _start_serving(self, stop: asyncio.Event, ready: Callable[[], None]) -> list[asyncio.Task[None]]:
        waiting = set(self._agents)

        def assigned(agent: str) -> None:
            if waiting == {agent}:
                ready()
            waiting.discard(agent)

        return [
            asyncio.create_task(
                service.serve(
                    self._bus, self._consumption(agent, partial(assigned, agent)), {CallRequested: self._handle}, stop
                )
            )
            for agent in self._agents
        ]

    def _consumption(self, agent: str, ready: Callable[[], None]) -> Consumption:
        return Consumption([tasks_topic(agent)], tasks_group(agent), concurrency=self._concurrency, ready=ready)

    async def _renew(self) -> None:
        """Keep the claims of the calls in hand alive."""
        while True:
            await asyncio.sleep(self._journal.lease_s / 3)
            try:
                await self._journal.calls.renew(self._holder)
            except RetryLater as error:
                log.warning("claims not renewed", action="renew again", reason=error.code, error=str(error))

    async def _give_up(self) -> None:
        """End the work on calls that somebody gave up: the model's request and the tool calls end with it."""
        while True:
            await asyncio.sleep(CANCEL_S)
            if not self._working:
                continue
            try:
                given_up = await self._journal.calls.given_up(self._holder)
            except RetryLater as error:
                log.warning("cancels not read", action="read again", reason=error.code, error=str(error))
                continue
            for call_id, why in given_up.items():
                if call_id in self._working:
                    self._working[call_id].cancel(_GivenUp(why))

    async def _handle(self, envelope: Envelope[Event], delivery: Delivery) -> None:
        asked = envelope.data
        if not isinstance(asked, CallRequested) or asked.agent not in self._agents:
            raise UnknownEvent(f"the call on {delivery.topic} is for an agent that does not live there")
        if asked.call_id in self._in_hand:
            raise Held(f"this worker is already at call {asked.call_id}")
        self._in_hand.add(asked.call_id)
        try:
            call = await self._claim(asked.call_id, asked.agent)
            with service.processing(envelope, delivery):
                worked = call if call.answered_at or call.parked_at else await self._answer(call)
                if worked.answered_at is not None:
                    failpoint("call.answered")
                    await service.send(self._bus, RUNS, _reply(worked))
                else:
                    await parking.tell(self._bus, self._journal, worked)
        finally:
            self._in_hand.discard(asked.call_id)

    async def _claim(self, call_id: CallId, agent: str) -> Call:
        """The call, claimed, or already answered, or as it waits for a person. Raises `Held` or `UnknownCall`."""
        claimed = await self._journal.calls.claim(call_id, self._holder, self._stamps[agent])
        if claimed is not None:
            failpoint("call.claimed")
            return claimed
        stored = await self._journal.calls.get(call_id)
        if stored is None:
            raise UnknownCall(f"call {call_id} is not in the journal")
        metrics.add(metrics.DUPLICATES, 1, {metrics.REASON: "call"})
        if stored.answered_at is None and stored.parked_at is None:
            raise Held(f"call {call_id} is held by {stored.holder}")
        return stored

    async def _answer(self, call: Call) -> Call:
        """Work on the call and record what came of it; the recorded winner, or the call as it waits for a person."""
        attempt = self._attempt(call)
        spec = attempt.spec
        with (
            telemetry.span(telemetry.invoke_agent(spec.name), attributes=_attributes(call, spec)) as span,
            measuring.attempt(spec.name) as measured,
        ):
            failure: Failure | None = None
            try:
                answer = _fitting(await self._work(attempt))
                span.set({telemetry.COST_USD: answer.cost_usd})
                measured.answered(answer)
                return await self._journal.calls.answer(call.call_id, answer=answer, took=attempt.purse.took)
            except Parked:
                return await self._journal.calls.park(call.call_id, self._holder, attempt.purse.took)
            except RetryLater:
                raise
            except FencedOff as error:
                raise Held(f"call {call.call_id} was taken over while this worker was away") from error
            except MetierError as error:
                failure = Failure(code=error.code, message=str(error))
            except (Exception, SystemExit) as error:  # whatever broke, the call ends typed and the worker lives on
                failure = Failure(code="agent_broken", message=f"the agent {spec.name} broke: {_short(error)}")
                log.exception("agent broke", action="fail the call", call_id=call.call_id, agent=spec.name)
            span.fail(failure.code)
            measured.failed = failure.code
            log.warning("call failed", action="record the failure", call_id=call.call_id, **failure.model_dump())
            return await self._journal.calls.answer(call.call_id, failure=failure, took=attempt.purse.took)

    async def _work(self, attempt: Attempt) -> Answer:
        """The answer of a call, unless it is given up. Raises `Cancelled` then, and as `explorations.answer` does."""
        call = attempt.call
        if call.cancelled is not None:
            await attempt.recall()
            raise Cancelled(f"the call was cancelled: {call.cancelled}")
        work = self._working[call.call_id] = asyncio.create_task(explorations.answer(attempt))
        patience_s = LAST_S
        try:
            return await work
        except asyncio.CancelledError as error:
            patience_s = 0
            why = error.args[0] if error.args else None
            if isinstance(why, _GivenUp):
                raise Cancelled(f"the call was cancelled: {why.reason}") from error
            raise
        finally:
            del self._working[call.call_id]
            work.cancel()
            await attempt.hands.drain(patience_s)

    def _attempt(self, call: Call) -> Attempt:
        saving = call.allowance is not None and call.allowance.economy
        way = (self._savings if saving else self._ways)[call.agent]
        spec = way.spec
        deadline = min(call.deadline, (call.claimed_at or time.time()) + call.parked_s + spec.limits.timeout_s)
        stamp, bundle = self._stamps[spec.name], self._bundles.get(spec.name)
        unchecked = bundle is None or not bundle.output
        outgoing = Outgoing(self._bus, self._level)
        return Attempt(
            call=call,
            spec=spec,
            model=way.model,
            journal=self._journal,
            hands=replace(self._hands, bundle=bundle, stamp=stamp, outgoing=outgoing),
            deadline=deadline,
            stamp=stamp,
            estimate=way.estimate,
            teller=Teller(outgoing, call, stamp) if spec.stream and unchecked else None,
        )


def _fitting(answer: Answer) -> Answer:
    """The answer, if an event can carry it, in the form that it has there. Raises `TooLarge`."""
    size = len(json.dumps(answer.model_dump(mode="json")))
    if size > LARGEST:
        raise TooLarge(f"the answer takes {size} bytes; an event carries {LARGEST}")
    return answer


def _reply(call: Call) -> Envelope[CallAnswered]:
    told = call.model_dump(include={"run_id", "call_id", "answer", "failure", "stamp"})
    return Envelope(
        CallAnswered.model_validate(told),
        id=f"{call.call_id}/answered",
        source=f"/metier/agents/{call.agent}",
        key=call.run_id,
    )


def _attributes(call: Call, spec: AgentSpec) -> dict[str, telemetry.Value | None]:
    return {
        telemetry.OPERATION: "invoke_agent",
        telemetry.AGENT_NAME: spec.name,
        **telemetry.stamped(call.stamp),
        telemetry.POLICY: spec.policy.kind,
        telemetry.CONVERSATION_ID: call.run_id,
        telemetry.RUN_ID: call.run_id,
        telemetry.CALL_ID: call.call_id,
        telemetry.ATTEMPT: call.attempt,
    }


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)


def _raise_first(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Raise what ended a task, unless it was our own cancel."""
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
