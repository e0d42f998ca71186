"""A LangGraph agent of the user's as an agent of ours: the loop of `loop`, in which each turn of thought is one run of the graph.

`explorations` starts it where an agent's model is `langgraph:module:function`. The policy decides as ever, but a graph binds its tools itself:
what is decided is which tools one run of it is given. In a run, each model turn and each tool call is in the journal before the graph's next
step, and counts against the call's limits; `graph_border` gives the tools and `graph_requests` keeps count of the models.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphRecursionError
from pydantic import ValidationError

from metier_agents import appraisal, record, turns
from metier_agents.attempt import Attempt
from metier_agents.graph_border import Built, Ear, Graphs, acting, open_graph
from metier_agents.graph_requests import Requests
from metier_agents.langchain_errors import short, translate
from metier_agents.langchain_prompt import render
from metier_agents.langchain_reply import fit
from metier_agents.loop import Loop
from metier_agents.patience import until
from metier_agents.permission import Parked
from metier_agents.policy import ToolChoice
from metier_agents.purse import Exhausted
from metier_agents.trail import Trail
from metier_agents.turns import History, Message, ModelTurn, Note, ToolTurn, ToolUse
from metier_infra.errors import BadSettings, ContextTooLong, MetierError, ModelBusy, ModelFailed
from metier_infra.words import stable_id
from metier_tools.tool import ToolResult, ToolSpec

GAIN = 0.5
"""What a tool is assumed to add where a policy weighs tools: of two answers that the graph would get wrong, one. A graph is not asked."""
STEPS_A_TURN = 10
"""Supersteps that a graph may take for each model turn that it is allowed."""
CUT_OFF = "the worker stopped while this tool of the graph's own was at work, and what came of it is not known; call it again if it is needed"


class GraphLoop(Loop):
    """One line of thought of a call whose thinking a graph does."""

    def __init__(self, attempt: Attempt, lane: int = 0) -> None:
        super().__init__(attempt, lane)
        self._graphs = open_graph(attempt.spec.model)

    async def _think(self, note: str | None, tools: Sequence[ToolSpec] = (), choice: ToolChoice = "none") -> None:
        """One run of the graph; one that a crash cut off goes on with the tools that it had."""
        del choice
        if cut := cut_off(self.history):
            tools = self._ours(cut)
        else:
            self.trail.add(*([Note(text=note)] if note else []))
        await GraphRun(self.trail, self._graphs, tools).run()

    async def _assess(self, tools: Sequence[ToolSpec]) -> None:
        """No model is asked: each tool is weighed with the gain that is assumed, against what was measured of it."""
        names = [tool.name for tool in tools]
        said = ModelTurn(text=json.dumps({name: {"gain": GAIN} for name in names}), rule_written=True)
        judged = await record.judged(self.attempt.journal, self.spec.name, self.call.task.category)
        found = await self._records(), judged, self.call.call_id
        await self.trail.record(*appraisal.assess(self.spec.policy, said, names, *found))

    async def _act(self) -> None:
        """After a crash: the tool calls that the graph was about to make, under the ids that they had."""
        turn = turns.of_kind(self.history, ModelTurn)[-1]
        await GraphRun(self.trail, self._graphs, self._ours(turn)).finish()

    def _ours(self, turn: ModelTurn) -> Sequence[ToolSpec]:
        """Of the tools that a turn was offered, those that are not the graph's own."""
        named = {tool.name for tool in self.spec.tools}
        return self._specs([name for name in turn.offered if name in named])


def cut_off(history: History) -> ModelTurn | None:
    """The last model turn, when it is no answer: the graph had not ended."""
    last = turns.of_kind(history, ModelTurn)[-1:]
    return last[0] if last and (last[0].purpose != "answer" or last[0].uses) else None


def told(history: History, *, as_calls: bool) -> list[BaseMessage]:
    """The messages that a graph starts with, numbered by their ids. What it did beside its messages is not among them."""
    wished = {use.id for turn in turns.of_kind(history, ModelTurn) for use in turn.uses}
    shown = [message for message in history if not isinstance(message, ToolTurn) or message.use_id in wished]
    messages = render(shown, as_calls=as_calls)
    for n, message in enumerate(messages):
        message.id = f"metier-{n}"
    return messages


class GraphRun:
    """One run of the graph with the tools that it is given: from the message list as it is to its next answer.

    `done` holds tool calls that ended and are not yet recorded.
    """

    def __init__(self, trail: Trail, graphs: Graphs, tools: Sequence[ToolSpec]) -> None:
        self.tools = tools
        self.done: list[ToolTurn] = []
        self._acts: set[asyncio.Future[list[ToolTurn]]] = set()
        self._trail, self._attempt, self._name = trail, trail.attempt, graphs.name
        self._built: Built = graphs.of(tools)
        self._answers = sum(cut_off([turn]) is None for turn in turns.of_kind(trail.history, ModelTurn))
        self._fresh()

    def _fresh(self) -> None:
        self._known: dict[str | int, BaseMessage] = {}
        self._by_itself: Counter[str] = Counter()
        self._last: Message | None = None
        self._requests = Requests(self._trail, self.tools, self._built.own, self._name)

    async def run(self) -> None:
        """Run it. Raises `Exhausted` when a guard stopped it, and what else went wrong as a `MetierError`."""
        wrong = await until(self._attempt.deadline, f"a run of {self._name}", self._try)
        if wrong is not None:
            raise wrong

    async def _try(self) -> Exhausted | MetierError | None:
        """What ended it, if anything did. Raises only a `ModelBusy`, after which it goes on from what is recorded."""
        self._fresh()
        await self.finish()
        within = acting.set(self.act)
        try:
            await self._stream()
        except Exception as error:  # the user's own code, and its providers'
            self._requests.ended_by = self._requests.ended_by or self._translated(error)
        finally:
            acting.reset(within)
            self._requests.close()
            self._trail.add(*self._requests.left_over(), *self._made_by_itself())
        if isinstance(self._requests.ended_by, ModelBusy):
            raise self._requests.ended_by
        return self._requests.ended_by

    async def finish(self) -> None:
        """Make the tool calls that the last turn wished for and of which nothing is recorded, under the ids that they had."""
        ours, made = {tool.name for tool in self.tools}, {one.use_id for one in self.done}
        uses = [use for use in turns.open_uses(self._trail.history) if use.id not in made]
        own = [use for use in uses if use.tool in self._built.own and use.tool not in ours]
        await asyncio.gather(*(self.act(use.tool, use.arguments, use.id) for use in uses if use not in own))
        died = ToolResult(status="died", stderr=CUT_OFF)
        found = [*self.done, *(ToolTurn(use_id=use.id, tool=use.tool, result=died) for use in own)]
        if found:
            self.done = []
            await self._trail.record(*found)

    async def _stream(self) -> None:
        """Record each state of the graph before its next step begins; the state after which no step begins is its end."""
        messages = told(self._trail.history, as_calls=bool(self.tools))
        self._known = {_key(message): message for message in messages}
        state: Any = None
        ear = Ear(self._requests.begin, self._requests.end, self._requests.fail)
        limit = STEPS_A_TURN * self._attempt.spec.limits.turns
        config = RunnableConfig(callbacks=[ear], recursion_limit=limit, run_name=self._name)
        async for mode, found in self._built.graph.astream(
            {"messages": messages}, config, stream_mode=["values", "tasks"]
        ):
            if mode == "values":
                state = found
            elif state is not None:
                await self._observe(state)
                state = None
        await self._observe(state or {}, ended=True)

    async def _observe(self, state: Mapping[str, Any], *, ended: bool = False) -> None:
        """Record what a step added to the messages, and what was heard meanwhile."""
        if self._requests.ended_by is not None:
            raise self._requests.ended_by
        if "__interrupt__" in state:
            raise ModelFailed(
                f"{self._name} waits for a person (interrupt), which a graph cannot do here: let its tools be approved instead"
            )
        new = [message for message in state.get("messages", ()) if _key(message) not in self._known]
        self._known |= {_key(message): message for message in new}
        found = [self._read(message) for message in new]
        self._last = found[-1] if found else self._last
        if ended:
            found = self._ending(found)
        beside: list[Message] = [*self._requests.left_over()]
        if turns.of_kind([*beside, *found], ModelTurn):
            beside += self._made_by_itself()
        if beside or found:
            await self._trail.record(*beside, *found)

    def _ending(self, found: list[Message]) -> list[Message]:
        """The last step's messages, of which the last is the answer; one that stood already before the last step is told again."""
        last = self._last
        if not isinstance(last, ModelTurn) or last.uses or not last.text:
            raise ModelFailed(
                f"{self._name} ended without an answer: its last message is none of a model without tool calls"
            )
        if found:
            return [*found[:-1], last.model_copy(update={"purpose": "answer"})]
        again = {"purpose": "answer", "usage": None, "cost_usd": 0.0, "rule_written": True}
        return [last.model_copy(update=again)]

    def _read(self, message: BaseMessage) -> Message:
        """A message of the graph in our words."""
        if isinstance(message, AIMessage):
            return self._requests.turn_of(message)
        if isinstance(message, ToolMessage):
            return self._result(message)
        return Note(text=fit(str(message.text)))

    def _result(self, message: ToolMessage) -> ToolTurn:
        """What came of a tool use: of ours what was recorded, of others what the graph says."""
        made = next((one for one in self.done if one.use_id == message.tool_call_id), None)
        if made is not None:
            self.done.remove(made)
            return made
        tool, said = message.name or "unnamed", fit(str(message.text))
        if tool in self._built.own and message.status == "success":
            result = ToolResult(status="ok", stdout=said)
        else:
            result = ToolResult(status="error" if tool in self._built.own else "refused", stderr=said)
        return ToolTurn(use_id=message.tool_call_id, tool=tool, result=result)

    def _made_by_itself(self) -> list[ToolTurn]:
        """Tool calls that no model wished for. They are recorded with the next model turn, which says what tools there were; the journal has them before."""
        found = [one for one in self.done if one.use_id.startswith(_BY_ITSELF)]
        self.done = [one for one in self.done if one not in found]
        return found

    # ---- tools

    async def act(self, tool: str, arguments: Mapping[str, Any], use_id: str | None) -> ToolResult:
        """Carry a tool use out, under an id that is the same after a crash. What our side could not do ends the run, whatever the graph does."""
        use, number = self._wished(tool, arguments, use_id)
        attempt, offered = self._attempt, tuple(one.name for one in self.tools)
        try:
            with attempt.purse.calling(1) as left:
                turn = ModelTurn(uses=(use,), offered=offered)
                work = attempt.hands.act(attempt.call, turn, number, left=left, deadline=attempt.deadline)
                (done,) = await self._parked_last(asyncio.ensure_future(work))
        except MetierError as error:
            self._requests.ended_by = self._requests.ended_by or error
            raise
        if done not in (*turns.of_kind(self._trail.history, ToolTurn), *self.done):
            attempt.purse.settle_calls([done])
            self.done.append(done)
        return done.result

    async def _parked_last(self, work: asyncio.Future[list[ToolTurn]]) -> list[ToolTurn]:
        """What came of it. When it waits for a person, LangGraph ends what runs beside it: that is let end first, so that it is recorded."""
        self._acts.add(work)
        try:
            return await work
        except Parked:
            if beside := self._acts - {work}:
                await asyncio.wait(beside)
            raise
        finally:
            self._acts.discard(work)

    def _wished(self, tool: str, arguments: Mapping[str, Any], use_id: str | None) -> tuple[ToolUse, int]:
        """The use, and a number for its id: of one that a recorded turn wished for its place, else which one it is of those that are the same."""
        lane = self._trail.lane
        for n, turn in enumerate(turns.of_kind(self._trail.history, ModelTurn)):
            for index, use in enumerate(turn.uses):
                if use.id == use_id and use.tool == tool and use.arguments == arguments:
                    return use, _number("wished", lane, n, index)
        same = f"{tool} {json.dumps(arguments, sort_keys=True, default=str)}"
        self._by_itself[same] += 1
        number = _number("by itself", lane, self._answers, same, self._by_itself[same])
        return _use(use_id or f"{_BY_ITSELF}{number}", tool, arguments), number

    # ---- errors

    def _translated(self, error: Exception) -> Exhausted | MetierError:
        if isinstance(error, Exhausted | MetierError):
            return error
        if isinstance(error, GraphRecursionError):
            return Exhausted("step_limit")
        secrets = frozenset(text for name, text in os.environ.items() if name.endswith(("_KEY", "_TOKEN")) and text)
        ours = translate(error, self._name, secrets)
        if isinstance(ours, ModelBusy | BadSettings | ContextTooLong):
            return ours
        return ModelFailed(f"{self._name} broke: {type(error).__name__}: {short(error, secrets)}")


_BY_ITSELF = "by-itself-"


def _use(use_id: str, tool: str, arguments: Mapping[str, Any]) -> ToolUse:
    try:
        return ToolUse(id=use_id, tool=tool, arguments=dict(arguments))
    except ValidationError:
        return ToolUse(id=use_id, tool=tool, problem="not JSON")


def _number(*parts: str | int) -> int:
    return int(stable_id(*parts)[:15], 16)


def _key(message: BaseMessage) -> str | int:
    """What tells a message from others: its id; where the graph gives none, that it is this one."""
    return message.id or id(message)
