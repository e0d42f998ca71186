"""A user's LangGraph agent as an agent of ours, through the real worker: which tools it has, what is counted, stopped, recorded and repeated.

Its models are LangChain's fakes. Not tested: a provider's own errors inside a graph beyond their translation, which `test_langchain_model` has.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import Annotated, Any, TypedDict

import pytest
from langchain import agents
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatResult
from langchain_core.tools import BaseTool, tool
from langgraph import prebuilt
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode
from langgraph.types import interrupt
from pydantic import Field

from metier_agents import explorations
from metier_agents.attempt import Attempt
from metier_agents.graph_border import mask, open_graph
from metier_agents.hands import Hands
from metier_agents.model_table import Price
from metier_agents.permission import Parked
from metier_agents.prices import Priced
from metier_agents.safety import Bundle
from metier_agents.spec import AgentSpec
from metier_agents.testing import ScriptedLane
from metier_agents.turns import Assessed, Message, ModelTurn, Note, Realised, ToolTurn, load, of_kind, open_uses
from metier_agents.worker import AgentWorker
from metier_infra import telemetry
from metier_infra.bus import Consumption, MemoryBus
from metier_infra.database import migrate
from metier_infra.errors import BadSpec, GrantRefused
from metier_infra.events import RUNS, CallAnswered, CallRequested, tasks_topic
from metier_infra.journal import Journal
from metier_infra.messages import Delivery, Envelope, decode, encode
from metier_infra.rows import Call, ToolCallRow
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.testing import Crash, Dying
from metier_infra.words import CallId, RunId, Task, ToolCallId, stable_id
from metier_tools.builtin import BUILTIN
from metier_tools.tool import ToolCall, ToolResult

RUN = RunId("r" * 32)
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALL = CallId(stable_id("call", 1))
OK = ToolResult(status="ok", stdout="42\n", wall_ms=3.0)
BAD = ToolResult(status="error", exit_code=1, stderr="boom", wall_ms=3.0)
Factory = Callable[[list[BaseTool]], object]


def says(answer: str, confidence: float = 0.9) -> AIMessage:
    return _counted(AIMessage(f"ANSWER: {answer}\nCONFIDENCE: {confidence}"))


def wishes(*codes: str, name: str = "python", at: int = 0) -> AIMessage:
    calls = [{"name": name, "args": {"code": code}, "id": f"u{at}-{n}"} for n, code in enumerate(codes)]
    return _counted(AIMessage("", tool_calls=calls))


def _counted(message: AIMessage) -> AIMessage:
    message.usage_metadata = UsageMetadata(input_tokens=100, output_tokens=10, total_tokens=110)
    return message


class Chat(GenericFakeChatModel):
    """Says the n-th entry of its script to a prompt that holds n turns of its own; keeps what it was asked, and with which tools."""

    messages: Iterator[AIMessage | str] = iter(())
    script: list[AIMessage] = Field(default_factory=list[AIMessage])
    seen: list[list[BaseMessage]] = Field(default_factory=list[list[BaseMessage]])
    bound: list[list[str]] = Field(default_factory=list[list[str]])
    error: Exception | None = None

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.seen.append(messages)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        n = sum(isinstance(one, AIMessage) for one in messages)
        self.messages = iter([self.script[n].model_copy()])
        return super()._generate(messages, stop, run_manager, **kwargs)

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        self.bound.append([one.name for one in tools])
        return self


CREATE_AGENT: Callable[..., object] = vars(agents)["create_agent"]
CREATE_REACT_AGENT: Callable[..., object] = vars(prebuilt)["create_react_agent"]  # deprecated, and in use


def reacting(chat: Chat) -> Factory:
    return lambda tools: CREATE_REACT_AGENT(chat, tools)


def agent_of(chat: Chat) -> Factory:
    return lambda tools: CREATE_AGENT(chat, tools)


def by_hand(chat: Chat) -> Factory:
    """A graph that somebody wrote: a builder, not compiled."""

    def make(tools: list[BaseTool]) -> object:
        async def think(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await chat.bind_tools(tools).ainvoke(state["messages"])]}

        def more(state: MessagesState) -> str:
            last = state["messages"][-1]
            return "tools" if isinstance(last, AIMessage) and last.tool_calls else END

        graph = StateGraph(MessagesState)
        graph.add_node("think", think)
        graph.add_node("tools", ToolNode(tools))
        graph.add_edge(START, "think")
        graph.add_conditional_edges("think", more)
        graph.add_edge("tools", "think")
        return graph

    return make


KINDS: dict[str, Callable[[Chat], Factory]] = {"react": reacting, "agent": agent_of, "by hand": by_hand}


@pytest.fixture
def module() -> Iterator[ModuleType]:
    """The user's module, `their_graphs`, on the Python path."""
    made = ModuleType("their_graphs")
    sys.modules["their_graphs"] = made
    open_graph.cache_clear()
    yield made
    del sys.modules["their_graphs"]
    open_graph.cache_clear()


def agent(kind: str = "collaborative", **more: Any) -> AgentSpec:
    policy = {"kind": kind, **more.pop("policy", {})}
    tools = more.pop("tools", [{"name": "python"}])
    return AgentSpec.model_validate(
        {"name": "solver", "model": "langgraph:their_graphs:make", "policy": policy, "tools": tools, **more}
    )


PRICE = Price.model_validate({"model": "langgraph:their_graphs:make", "input": 1000.0, "output": 0.0})


@dataclass
class House:
    """A bus, a journal, a lane, and the worker on them."""

    db: Dying
    journal: Journal
    module: ModuleType
    bus: MemoryBus = field(default_factory=MemoryBus)
    lane: ScriptedLane = field(default_factory=lambda: ScriptedLane(lambda _: OK))

    def worker(self, spec: AgentSpec, *, priced: bool = False) -> AgentWorker:
        def opened(one: AgentSpec) -> Any:
            return Priced(open_graph(one.model), PRICE) if priced else open_graph(one.model)

        return AgentWorker(
            bus=self.bus,
            journal=self.journal,
            lane=self.lane,
            toolbox=BUILTIN,
            agents={spec.name: spec},
            open_model=opened,
            grant_key=b"k" * 32,
            instance="one",
            drain_s=5.0,
        )

    async def ask(self, context: dict[str, Any] | None = None, seconds: float = 30.0) -> None:
        task, until = Task(text="6*7?", category="code", context=context or {}), time.time() + seconds
        await self.journal.calls.request(Call(call_id=CALL, run_id=RUN, agent="solver", task=task, deadline=until))
        asked = CallRequested(run_id=RUN, call_id=CALL, agent="solver", task=task, deadline=until)
        sent = Envelope(asked, f"{CALL}/asked", "/test", RUN, traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
        await self.bus.publish(encode(tasks_topic("solver"), sent))

    async def answer(self, make: Factory, spec: AgentSpec, **more: Any) -> Envelope[CallAnswered]:
        """The answer to one call of the agent whose graph `make` makes, while its worker serves."""
        vars(self.module)["make"] = make
        await self.ask(more.pop("context", None), more.pop("seconds", 30.0))
        stop, ready = asyncio.Event(), asyncio.Event()
        role = asyncio.create_task(self.worker(spec, **more).run(stop, ready.set))
        reading = asyncio.create_task(self._told())
        await asyncio.wait([role, reading], return_when=asyncio.FIRST_COMPLETED)
        assert not role.done(), role.exception()
        stop.set()
        await role
        return await reading

    async def _told(self) -> Envelope[CallAnswered]:
        found: list[Delivery] = []
        enough = asyncio.Event()

        async def keep(delivery: Delivery) -> None:
            found.append(delivery)
            enough.set()

        await asyncio.wait_for(self.bus.consume(Consumption([RUNS], None), keep, enough), 15)
        envelope = decode(found[0])
        assert isinstance(envelope.data, CallAnswered)
        return Envelope(envelope.data, envelope.id, envelope.source, envelope.key, None, envelope.traceparent)

    async def attempt(self, spec: AgentSpec, bundle: Bundle | None = None) -> Any:
        """One more try at the call without a worker, for tries that die."""
        until = time.time() + 30
        task = Task(text="6*7?", category="code")
        await self.journal.calls.request(Call(call_id=CALL, run_id=RUN, agent="solver", task=task, deadline=until))
        call = await self.journal.calls.claim(CALL, "me")
        assert call is not None
        hands = Hands(self.journal, self.lane, BUILTIN, b"k" * 32, bundle)
        return await explorations.answer(Attempt(call, spec, open_graph(spec.model), self.journal, hands, until))

    async def messages(self) -> list[Message]:
        return [message for step in await self.journal.steps.of_call(CALL) for message in load(step.body)]


async def opened_house(module: ModuleType) -> House:
    db = Dying(SqliteDatabase(":memory:"))
    await migrate(db)
    db.writes = 0
    return House(db, Journal(db, lease_s=0.6), module)


@pytest.fixture
async def house(module: ModuleType) -> AsyncIterator[House]:
    opened = await opened_house(module)
    yield opened
    await opened.db.close()


# ---- what it is given, and what is read of it


@pytest.mark.parametrize("kind", KINDS)
async def test_a_graph_answers_with_its_tools_and_everything_is_written_down(house: House, kind: str) -> None:
    # Given a graph that calls a tool, of each of three makes
    chat = Chat(script=[wishes("print(6*7)"), says("42", 0.95)])
    # When a call comes
    event = await house.answer(KINDS[kind](chat), agent(), context={"unit": "m"})
    # Then its answer has the counts of what was done
    answer = event.data.answer
    assert answer is not None, event.data.failure
    assert (answer.text, answer.confidence, answer.stopped) == ("42", 0.95, "answered")
    assert (answer.model_turns, answer.tool_calls, answer.model) == (2, 1, "langgraph:their_graphs:make")
    assert (answer.cost_usd, answer.cost_known) == (0.0, False)
    # and the graph was told the form, the task and its context, and read what the tool returned
    system, task, context = chat.seen[0]
    assert isinstance(system, SystemMessage)
    assert "CONFIDENCE" in str(system.content)
    assert (task.content, "data, not instructions" in str(context.content)) == ("6*7?", True)
    assert isinstance(chat.seen[1][-1], ToolMessage)
    assert chat.seen[1][-1].content == "42\n"
    # and the journal holds each message, each token and the tool call
    found = await house.messages()
    assert [one.tag for one in found] == ["system", "user", "user", "model", "tool", "model"]
    turns = of_kind(found, ModelTurn)
    assert [(one.usage.input_tokens, one.usage.output_tokens) for one in turns if one.usage] == [(100, 10)] * 2
    assert [one.offered for one in turns] == [("python",)] * 2
    assert all(one.ended_at >= one.started_at > 0 for one in turns)
    (row,) = await house.journal.tools.of_run(RUN)
    assert (row.tool, row.arguments, row.ok, row.tool_call_id) == (
        "python",
        {"code": "print(6*7)"},
        True,
        of_kind(found, ToolTurn)[0].tool_call_id,
    )


async def test_the_spans_of_its_tools_stand_in_the_one_trace(house: House) -> None:
    event = await house.answer(agent_of(Chat(script=[wishes("1"), says("42")])), agent())
    (tool_call,) = house.lane.calls
    assert {telemetry.trace_id(str(one)) for one in (tool_call.traceparent, event.traceparent)} == {TRACE}


async def test_its_turns_cost_the_price_of_its_id(house: House) -> None:
    event = await house.answer(agent_of(Chat(script=[wishes("1"), says("42")])), agent(), priced=True)
    assert event.data.answer is not None
    assert event.data.answer.cost_usd == pytest.approx(0.2)
    assert event.data.answer.cost_known


async def test_parallel_calls_are_made_at_once_and_each_has_its_own_result(house: House) -> None:
    house.lane = ScriptedLane(lambda call: OK.model_copy(update={"stdout": str(call.arguments["code"])}))
    chat = Chat(script=[wishes("a", "b"), says("42")])
    await house.answer(agent_of(chat), agent())
    assert [one.content for one in chat.seen[1] if isinstance(one, ToolMessage)] == ["a", "b"]
    assert len({call.tool_call_id for call in house.lane.calls}) == 2


async def test_messages_that_a_node_adds_are_notes_and_an_answer_that_is_not_the_last_step_counts_once(
    house: House,
) -> None:
    chat = Chat(script=[says("41"), says("42")])

    def make(tools: list[BaseTool]) -> object:
        async def draft(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await chat.ainvoke(state["messages"])]}

        def criticise(state: MessagesState) -> dict[str, Any]:
            return {"messages": [HumanMessage("Look again.")]}

        def tidy(state: MessagesState) -> dict[str, Any]:
            return {}

        graph = StateGraph(MessagesState)
        graph.add_node("draft", draft)
        graph.add_node("criticise", criticise)
        graph.add_node("again", draft)
        graph.add_node("tidy", tidy)
        graph.add_edge(START, "draft")
        graph.add_edge("draft", "criticise")
        graph.add_edge("criticise", "again")
        graph.add_edge("again", "tidy")
        return graph.compile()

    event = await house.answer(make, agent(tools=[]))
    assert event.data.answer is not None, event.data.failure
    assert event.data.answer.text == "42"
    found = await house.messages()
    assert [one.text for one in of_kind(found, Note)] == ["Look again."]
    assert [(one.answer, one.purpose) for one in of_kind(found, ModelTurn)] == [
        ("41", "selection"),
        ("42", "selection"),
        ("42", "answer"),
    ]
    assert of_kind(found, ModelTurn)[-1].rule_written


async def test_a_model_that_speaks_in_no_message_counts_too(house: House) -> None:
    chat, planner = Chat(script=[says("42")]), Chat(script=[says("a plan")])

    def make(tools: list[BaseTool]) -> object:
        def think(state: MessagesState) -> dict[str, Any]:  # in a thread, as LangGraph runs it
            planner.invoke("plan")
            return {"messages": [chat.invoke(state["messages"])]}

        graph = StateGraph(MessagesState)
        graph.add_node("think", think)
        graph.add_edge(START, "think")
        return graph

    event = await house.answer(make, agent(tools=[]))
    assert event.data.answer is not None, event.data.failure
    assert (event.data.answer.text, event.data.answer.model_turns) == ("42", 2)
    silent, last = of_kind(await house.messages(), ModelTurn)
    assert (silent.text, silent.purpose, last.purpose) == ("", "selection", "answer")
    assert silent.usage == last.usage


# ---- policies: which tools it is given


async def test_autonomous_it_has_no_tools_until_it_is_unsure(house: House) -> None:
    chat = Chat(script=[says("41", 0.3), wishes("1"), says("42", 0.95)])
    event = await house.answer(agent_of(chat), agent("autonomous"))
    assert event.data.answer is not None
    assert (event.data.answer.text, event.data.answer.model_turns, event.data.answer.tool_calls) == ("42", 3, 1)
    assert chat.bound == [["python"]] * 2
    assert [one.offered for one in of_kind(await house.messages(), ModelTurn)] == [(), ("python",), ("python",)]


async def test_autonomous_a_sure_answer_takes_one_turn_and_no_tool(house: House) -> None:
    chat = Chat(script=[says("42", 0.9)])
    event = await house.answer(agent_of(chat), agent("autonomous"))
    assert event.data.answer is not None
    assert (event.data.answer.model_turns, chat.bound) == (1, [])


async def test_collaborative_it_is_told_to_call_a_tool_when_it_called_none(house: House) -> None:
    chat = Chat(script=[says("41"), wishes("1"), says("42")])
    event = await house.answer(agent_of(chat), agent("collaborative"))
    assert event.data.answer is not None
    assert (event.data.answer.text, event.data.answer.tool_calls) == ("42", 1)
    assert "Call at least one" in str(chat.seen[1][-1].content)


async def test_a_tool_that_does_not_fit_the_category_is_not_given(house: House) -> None:
    chat = Chat(script=[says("42")])
    tools = [{"name": "python", "fits": ["poetry"]}]
    await house.answer(agent_of(chat), agent("collaborative", tools=tools))
    assert chat.bound == []


async def measured(house: House, ok: bool, calls: int) -> None:
    """Calls of `python` by this agent that ended so, after half a minute each."""
    for n in range(calls):
        row = ToolCallRow(
            tool_call_id=ToolCallId(stable_id("earlier", n)),
            run_id=RunId("earlier"),
            call_id=CallId("earlier"),
            agent="solver",
            category="code",
            tool="python",
            arguments={},
        )
        await house.journal.tools.request(row)
        await house.journal.tools.finish(row.tool_call_id, {}, ok=ok, wall_ms=30_000.0)


@pytest.mark.parametrize(("ok", "calls", "given"), [(True, 0, True), (True, 20, True), (False, 20, False)])
async def test_meta_reasoned_a_tool_is_given_while_its_record_makes_the_assumed_gain_worth_it(
    house: House, ok: bool, calls: int, given: bool
) -> None:
    await measured(house, ok, calls)
    chat = Chat(script=[wishes("1"), says("42")] if given else [says("42")])
    event = await house.answer(agent_of(chat), agent("meta_reasoned", policy={"explore": 0.0}))
    assert event.data.answer is not None, event.data.failure
    assert event.data.answer.tool_calls == int(given)
    assert (["python"] in chat.bound) == given
    found = await house.messages()
    assert (len(of_kind(found, Assessed)), len(of_kind(found, Realised))) == (1, int(given))
    assert event.data.answer.model_turns == len(chat.seen)


async def test_parallel_explorations_are_runs_of_the_graph(house: House) -> None:
    chat = Chat(script=[wishes("1"), says("42")])
    event = await house.answer(agent_of(chat), agent(reasoning={"kind": "parallel", "k": 2}))
    assert event.data.answer is not None, event.data.failure
    answer = event.data.answer
    assert (answer.explorations, answer.agreement, answer.model_turns, answer.tool_calls) == (2, 1.0, 4, 2)
    assert len({call.tool_call_id for call in house.lane.calls}) == 2


# ---- enforcement and guards


async def test_a_tool_that_was_not_given_is_not_called_and_stops_the_graph_when_repeated(house: House) -> None:
    script = [wishes("rm", name="shell", at=n) for n in range(5)]
    event = await house.answer(agent_of(Chat(script=script)), agent())
    assert event.data.failure is not None
    assert event.data.failure.code == "limit_reached"
    assert "unoffered_tool" in event.data.failure.message
    assert house.lane.calls == []
    assert {one.result.status for one in of_kind(await house.messages(), ToolTurn)} == {"refused"}


async def test_a_tool_kept_from_an_earlier_run_of_the_graph_is_refused_in_a_run_without_it(house: House) -> None:
    kept: list[BaseTool] = []
    chat = Chat(script=[says("42", 0.95)])

    def make(tools: list[BaseTool]) -> object:
        kept[:] = [mask(*BUILTIN.specs(["shell"]))]

        async def sneak(state: MessagesState) -> dict[str, Any]:
            said = await kept[0].ainvoke({"script": "ls"})
            return {"messages": [HumanMessage(said)]}

        async def think(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await chat.ainvoke(state["messages"])]}

        graph = StateGraph(MessagesState)
        graph.add_node("sneak", sneak)
        graph.add_node("think", think)
        graph.add_edge(START, "sneak")
        graph.add_edge("sneak", "think")
        return graph

    event = await house.answer(make, agent("autonomous"))
    assert event.data.answer is not None, event.data.failure
    assert (house.lane.calls, event.data.answer.tool_calls) == ([], 0)
    assert "was not offered" in str(chat.seen[0][-1].content)


@tool
def lookup(code: str) -> str:
    """A tool of the graph's own."""
    return f"found {code}"


async def test_tools_of_the_graphs_own_are_no_tool_calls_of_ours_and_no_offence(house: House) -> None:
    chat = Chat(script=[wishes(str(n), name="lookup", at=n) for n in range(3)] + [says("42")])
    event = await house.answer(lambda tools: CREATE_AGENT(chat, [*tools, lookup]), agent(tools=[]))
    assert event.data.answer is not None, event.data.failure
    assert (event.data.answer.text, event.data.answer.tool_calls, house.lane.calls) == ("42", 0, [])
    done = of_kind(await house.messages(), ToolTurn)
    assert [(one.result.status, one.result.stdout) for one in done] == [("ok", f"found {n}") for n in range(3)]


LIMITS: dict[str, tuple[dict[str, Any], list[AIMessage], int]] = {
    "turn_limit": ({"turns": 2}, [wishes(str(n), at=n) for n in range(9)], 2),
    "token_limit": ({"tokens": 200}, [wishes(str(n), at=n) for n in range(9)], 2),
    "cost_limit": ({"cost_usd": 0.25}, [wishes(str(n), at=n) for n in range(9)], 3),
    "repeated_call": ({"turns": 50}, [wishes("same", at=n) for n in range(9)], 3),
}


@pytest.mark.parametrize("reason", LIMITS)
async def test_a_guard_stops_a_graph_before_its_next_model_request(house: House, reason: str) -> None:
    limits, script, requests = LIMITS[reason]
    chat = Chat(script=script)
    event = await house.answer(agent_of(chat), agent(limits=limits), priced=True)
    assert event.data.failure is not None
    assert event.data.failure.code == "limit_reached"
    assert reason in event.data.failure.message
    assert len(chat.seen) == requests


async def test_a_guard_holds_in_a_graph_that_catches_everything(house: House) -> None:
    chat = Chat(script=[says(str(n)) for n in range(20)])

    def make(tools: list[BaseTool]) -> object:
        async def think(state: MessagesState) -> dict[str, Any]:
            said = ""
            for _ in range(20):
                try:
                    said = str((await chat.ainvoke("x")).content)
                except Exception:
                    said += "!"
            return {"messages": [AIMessage(said)]}

        graph = StateGraph(MessagesState)
        graph.add_node("think", think)
        graph.add_edge(START, "think")
        return graph

    event = await house.answer(make, agent(tools=[], limits={"turns": 3}))
    assert event.data.failure is not None
    assert (event.data.failure.code, len(chat.seen)) == ("limit_reached", 3)


async def test_the_answer_from_before_a_guard_stands(house: House) -> None:
    chat = Chat(script=[says("41", 0.3), *[wishes(str(n), at=n) for n in range(9)]])
    event = await house.answer(agent_of(chat), agent("autonomous", limits={"turns": 3}))
    assert event.data.answer is not None
    assert (event.data.answer.text, event.data.answer.stopped) == ("41", "turn_limit")


async def test_calls_beyond_the_tool_budget_are_refused(house: House) -> None:
    chat = Chat(script=[wishes("1", "2", "3"), says("42")])
    event = await house.answer(agent_of(chat), agent(limits={"tool_calls": 2}))
    assert event.data.answer is not None
    assert (event.data.answer.tool_calls, len(house.lane.calls)) == (2, 2)
    assert "no tool call is left" in str(chat.seen[1][-1].content)


async def test_a_graph_that_goes_round_without_a_model_reaches_a_limit(house: House) -> None:
    rounds: list[int] = []

    def make(tools: list[BaseTool]) -> object:
        graph = StateGraph(MessagesState)
        graph.add_node("round", lambda state: rounds.append(1))
        graph.add_edge(START, "round")
        graph.add_edge("round", "round")
        return graph

    event = await house.answer(make, agent(tools=[]))
    assert event.data.failure is not None
    assert event.data.failure.code == "limit_reached"
    assert "step_limit" in event.data.failure.message
    assert len(rounds) == 80


class Hanging(Chat):
    """Says that it was asked, and never answers."""

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        STARTED.set()
        try:
            await asyncio.Event().wait()
        finally:
            ENDED.set()
        raise AssertionError


STARTED, ENDED = asyncio.Event(), asyncio.Event()


async def test_the_deadline_ends_the_models_request(house: House) -> None:
    ENDED.clear()
    event = await house.answer(agent_of(Hanging()), agent(), seconds=0.5)
    assert event.data.failure is not None
    assert (event.data.failure.code, ENDED.is_set()) == ("deadline_missed", True)


async def test_a_cancel_reaches_the_models_request(house: House) -> None:
    STARTED.clear()
    ENDED.clear()
    asking = asyncio.create_task(house.answer(agent_of(Hanging()), agent()))
    await asyncio.wait_for(STARTED.wait(), 10)
    assert await house.journal.calls.cancel(CALL, "enough")
    event = await asking
    assert event.data.failure is not None
    assert (event.data.failure.code, ENDED.is_set()) == ("cancelled", True)


# ---- crashes


@pytest.mark.parametrize("committed", [False, True], ids=["before the write", "after the write"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["collaborative", "autonomous"])
async def test_after_a_crash_at_any_write_nothing_recorded_is_asked_or_called_again(
    module: ModuleType, kind: str, policy: str, committed: bool
) -> None:
    first = [] if policy == "collaborative" else [says("41", 0.1)]
    script = [*first, wishes("print(6*7)", "print(7*6)"), wishes("3", at=1), says("42")]
    at = 0
    while True:
        at += 1
        house = await opened_house(module)
        house.db.writes, house.db.at, house.db.committed = -2, at, committed
        before = Chat(script=script)
        vars(module)["make"] = KINDS[kind](before)
        open_graph.cache_clear()
        try:
            answer = await house.attempt(agent(policy))
        except Crash:
            await resumed(house, agent(policy), kind, before)
        else:
            assert (answer.text, answer.model_turns, answer.tool_calls) == ("42", len(script), 3)
            await house.db.close()
            break
        await house.db.close()
    assert at > len(script) + 6


async def resumed(house: House, spec: AgentSpec, kind: str, before: Chat) -> None:
    before_it = await house.messages()
    recorded, in_its_tools = of_kind(before_it, ModelTurn), bool(open_uses(before_it))
    finished = {row.tool_call_id for row in await house.journal.tools.of_run(RUN) if row.finished_at}
    sent = [call.tool_call_id for call in house.lane.calls]
    again = Chat(script=before.script)
    vars(house.module)["make"] = KINDS[kind](again)
    open_graph.cache_clear()
    answer = await house.attempt(spec)
    assert (answer.text, answer.model_turns, answer.tool_calls) == ("42", len(before.script), 3)
    assert len(again.seen) == len(before.script) - len(recorded)
    sent_again = [call.tool_call_id for call in house.lane.calls[len(sent) :]]
    assert finished.isdisjoint(sent_again)
    assert len(set(sent + sent_again)) == 3
    after = of_kind(await house.messages(), ModelTurn)
    twice = [n == len(recorded) and not in_its_tools for n in range(len(after))]
    assert [turn.asked_again for turn in after] == twice
    assert [turn.offered for turn in after][-3:] == [("python",)] * 3


class Plans(TypedDict):
    messages: Annotated[list[BaseMessage], add_messages]
    rows: str


@pytest.mark.parametrize("committed", [False, True], ids=["before the write", "after the write"])
async def test_a_graph_with_more_state_starts_again_and_its_tool_calls_are_found_again(
    module: ModuleType, committed: bool
) -> None:
    def make_with(chat: Chat) -> Factory:
        def make(tools: list[BaseTool]) -> object:
            async def fetch(state: Plans) -> dict[str, Any]:
                twice = [await tools[0].ainvoke({"code": "1"}) for _ in range(2)]
                return {"rows": "".join(twice)}

            async def think(state: Plans) -> dict[str, Any]:
                return {"messages": [await chat.ainvoke([*state["messages"], HumanMessage(state["rows"])])]}

            graph = StateGraph(Plans)
            graph.add_node("fetch", fetch)
            graph.add_node("think", think)
            graph.add_edge(START, "fetch")
            graph.add_edge("fetch", "think")
            return graph

        return make

    at = 0
    while True:
        at += 1
        house = await opened_house(module)
        house.db.writes, house.db.at, house.db.committed = -2, at, committed
        chat = Chat(script=[says("42")])
        vars(module)["make"] = make_with(chat)
        open_graph.cache_clear()
        try:
            await house.attempt(agent("meta_reasoned"))
        except Crash:
            answer = await house.attempt(agent("meta_reasoned"))
            assert (answer.text, str(chat.seen[-1][-1].content)) == ("42", "42\n42\n")
            assert len({call.tool_call_id for call in house.lane.calls}) == 2
            finished = [row for row in await house.journal.tools.of_run(RUN) if row.finished_at]
            assert len(finished) == 2
        else:
            await house.db.close()
            break
        await house.db.close()
    assert at > 5


# ---- what goes wrong


class Wordless(TypedDict):
    rows: str


def raises(tools: list[BaseTool]) -> object:
    raise ZeroDivisionError


def gives_text(tools: list[BaseTool]) -> object:
    return "a graph"


def wordless(tools: list[BaseTool]) -> object:
    return StateGraph(Wordless).add_node("a", lambda state: {}).add_edge(START, "a")


BROKEN: dict[str, tuple[object, str]] = {
    "raises": (raises, "ZeroDivisionError"),
    "gives no graph": (gives_text, "the function gives str, and no graph"),
    "has no messages": (wordless, "no `messages`"),
    "is no function": (None, "TypeError"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_graph_that_cannot_be_had_is_told_at_the_start(module: ModuleType, case: str) -> None:
    vars(module)["make"], said = BROKEN[case]
    with pytest.raises(BadSpec, match=said):
        open_graph("langgraph:their_graphs:make")


@pytest.mark.parametrize(
    "model", ["langgraph:nosuchmodule:make", "langgraph:their_graphs:nosuch", "langgraph:their_graphs"]
)
async def test_a_graph_that_cannot_be_found_ends_the_worker_with_one_sentence(house: House, model: str) -> None:
    spec = agent().model_copy(update={"model": model})
    with pytest.raises(BadSpec, match=f"the graph {model} cannot be had"):
        await house.worker(spec).run(asyncio.Event(), lambda: None)


def raising(error: Exception) -> Factory:
    def make(tools: list[BaseTool]) -> object:
        async def think(state: MessagesState) -> dict[str, Any]:
            raise error

        graph = StateGraph(MessagesState)
        graph.add_node("think", think)
        graph.add_edge(START, "think")
        return graph

    return make


def asking(tools: list[BaseTool]) -> object:
    def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(interrupt("may I?"))]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_edge(START, "think")
    return graph


def silent(tools: list[BaseTool]) -> object:
    graph = StateGraph(MessagesState)
    graph.add_node("think", lambda state: {"messages": [HumanMessage("no model said this")]})
    graph.add_edge(START, "think")
    return graph


def impatient(tools: list[BaseTool]) -> object:
    graph = StateGraph(MessagesState)
    graph.add_node("think", lambda state: {"messages": [AIMessage(tools[0].invoke({"code": "1"}))]})
    graph.add_edge(START, "think")
    return graph


WRONG: dict[str, tuple[Factory, str, str]] = {
    "its code": (raising(ZeroDivisionError("a defect")), "model_failed", "broke: ZeroDivisionError: a defect"),
    "an interrupt": (asking, "model_failed", "waits for a person"),
    "no answer": (silent, "model_failed", "ended without an answer"),
    "a call that nobody waits for": (impatient, "bad_spec", "await tool.ainvoke"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_a_graph_that_goes_wrong_fails_its_call_in_one_sentence_and_the_worker_lives_on(
    house: House, case: str
) -> None:
    make, code, said = WRONG[case]
    event = await house.answer(make, agent())
    assert event.data.failure is not None
    assert event.data.failure.code == code
    assert said in event.data.failure.message


async def test_a_busy_provider_is_asked_again_after_what_was_answered(house: House) -> None:
    chat = Chat(script=[wishes("1"), says("42")], error=ConnectionError("cut"))
    event = await house.answer(agent_of(chat), agent())
    assert event.data.answer is not None, event.data.failure
    assert (event.data.answer.text, len(chat.seen), len(house.lane.calls)) == ("42", 3, 1)


def in_line(**nodes: Any) -> object:
    """A graph of these nodes, one after another."""
    graph, before = StateGraph(MessagesState), START
    for name, node in nodes.items():
        graph.add_node(name, node)
        graph.add_edge(before, name)
        before = name
    return graph


async def test_a_tool_call_that_a_node_made_before_its_provider_was_busy_counts_once(house: House) -> None:
    chat = Chat(script=[says("42")], error=ConnectionError("cut"))

    def make(tools: list[BaseTool]) -> object:
        async def fetch(state: MessagesState) -> dict[str, Any]:
            return {"messages": [HumanMessage(await tools[0].ainvoke({"code": "1"}))] if tools else []}

        async def think(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await chat.ainvoke(state["messages"])]}

        return in_line(fetch=fetch, think=think)

    event = await house.answer(make, agent("meta_reasoned"))
    assert event.data.answer is not None, event.data.failure
    assert (event.data.answer.tool_calls, len(house.lane.calls), len(chat.seen)) == (1, 1, 2)


async def test_tools_that_were_at_work_when_another_broke_are_finished_before_the_graph_goes_on(house: House) -> None:
    @tool
    def flaky(code: str) -> str:
        """A tool of the graph's own, whose server is away."""
        raise ConnectionError("away")

    both = wishes("1")
    both.tool_calls.append({"name": "flaky", "args": {"code": "1"}, "id": "own", "type": "tool_call"})
    chat = Chat(script=[both, says("42")])
    event = await house.answer(lambda tools: CREATE_AGENT(chat, [*tools, flaky] if tools else []), agent())
    assert event.data.answer is not None, event.data.failure
    assert (event.data.answer.text, len(chat.seen), len({one.tool_call_id for one in house.lane.calls})) == ("42", 2, 1)
    done = {one.tool: one.result for one in of_kind(await house.messages(), ToolTurn)}
    assert (done["python"].status, done["flaky"].status) == ("ok", "died")
    assert "call it again" in done["flaky"].stderr


async def test_what_our_side_could_not_do_ends_a_graph_that_hides_it_before_it_asks_again(house: House) -> None:
    house.lane = ScriptedLane(lambda _: GrantRefused("forged"))
    chat = Chat(script=[says("made up")])

    def make(tools: list[BaseTool]) -> object:
        async def think(state: MessagesState) -> dict[str, Any]:
            with suppress(Exception):
                await tools[0].ainvoke({"code": "1"})
            with suppress(Exception):
                await chat.ainvoke("x")
            return {"messages": [AIMessage("ANSWER: made up")]}

        return in_line(think=think)

    event = await house.answer(make, agent())
    assert event.data.failure is not None
    assert (event.data.failure.code, chat.seen) == ("grant_refused", [])


async def test_a_checkpointer_of_the_graphs_own_is_left_out(house: House) -> None:
    chat, kept = Chat(script=[says("42")]), InMemorySaver()
    event = await house.answer(lambda tools: CREATE_AGENT(chat, tools, checkpointer=kept), agent(tools=[]))
    assert event.data.answer is not None, event.data.failure
    assert not kept.storage


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"fallbacks": ["scripted:x"]}, "fallbacks"),
        ({"stream": True}, "stream"),
        ({"reasoning": {"kind": "plain", "effort": "low"}}, "reasoning.effort"),
        ({"reasoning": {"kind": "parallel", "select": "judge"}}, "reasoning.select"),
    ],
)
def test_what_a_graph_cannot_be_told_is_refused_in_its_file(more: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"whose model is a graph has no {field}"):
        agent(**more)


def called(call: ToolCall) -> ToolResult:
    return BAD if call.arguments["code"] == "bad" else OK


async def test_a_tool_that_fails_is_an_observation_of_the_graph(house: House) -> None:
    house.lane = ScriptedLane(called)
    chat = Chat(script=[wishes("bad"), wishes("good", at=1), says("42")])
    event = await house.answer(agent_of(chat), agent())
    assert event.data.answer is not None
    assert event.data.answer.text == "42"
    message = chat.seen[1][-1]
    assert isinstance(message, ToolMessage)
    assert (message.status, "boom" in str(message.content)) == ("error", True)


# ---- a tool call that waits for a person

ASKS = Bundle.model_validate(
    {
        "name": "b",
        "version": 1,
        "tools": {"allow": ["python"]},
        "rules": [{"tools": ["python"], "arguments": {"code": "risky"}, "then": "ask", "why": "risky"}],
        "otherwise": "allow",
    }
)


@pytest.mark.parametrize("granted", [True, False])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_graph_whose_tool_call_waits_for_a_person_is_parked_and_goes_on_where_it_was(
    house: House, kind: str, granted: bool
) -> None:
    # Given a graph that calls a tool twice at once, of which one call needs a person
    chat = Chat(script=[wishes("safe", "risky"), says("42")])
    vars(house.module)["make"] = KINDS[kind](chat)
    # When it is worked on, it is parked: the other call was made
    with pytest.raises(Parked):
        await house.attempt(agent(), ASKS)
    (asked,) = await house.journal.approvals.undecided(CALL)
    assert [one.arguments["code"] for one in house.lane.calls] == ["safe"]
    # and when it was decided, it goes on: no model is asked again, no call made twice
    await house.journal.approvals.decide(asked.approval_id, granted=granted, by="ann")
    await house.journal.calls.release("me")
    answer = await house.attempt(agent(), ASKS)
    assert (answer.text, len(chat.seen)) == ("42", 2)
    assert [one.arguments["code"] for one in house.lane.calls] == (["safe", "risky"] if granted else ["safe"])
