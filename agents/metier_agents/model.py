"""The model port, and the scripted model that ships for users' tests.

The loop asks models through `Model`; `models` opens them. `recorded_model` and `langchain_model` are the other adapters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired, Protocol, TypedDict

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from metier_agents.policy import ToolChoice
from metier_agents.spec import Effort
from metier_agents.turns import History, ModelTurn, of_kind
from metier_infra.errors import BadSpec, MetierError, ModelFailed
from metier_tools.tool import ToolSpec


@dataclass(frozen=True)
class Options:
    """How a request is to be answered. A model that knows no such thing goes without.

    Attributes:
        output_tokens: the most that the reply may take; None: as the provider has it.
        effort: how hard the model is to think before it says anything.
        form: a JSON schema that the whole reply must fit; its `title` is its name.
        next_on_refusal: whether another model of the chain, where there is one, is to be asked when the first declines.
        on_text: called with each piece of the reply's text as it comes; it must not block.
    """

    output_tokens: int | None = None
    effort: Effort | None = None
    form: Mapping[str, Any] | None = None
    next_on_refusal: bool = False
    on_text: Callable[[str], None] | None = field(default=None, repr=False, compare=False)


PLAIN = Options()


class Asking(TypedDict):
    """What a layer hands on with the messages: the keywords of `Model.ask`."""

    tools: Sequence[ToolSpec]
    tool_choice: ToolChoice
    deadline: float
    options: NotRequired[Options]


class Model(Protocol):
    """A chat model.

    Contract: a reply names no tool unless `tools` were given; it raises only `ModelBusy`, `ModelFailed`s, and `AskOperator`s; cancelling
    `ask` cancels the request. `tool_choice` "required" is a wish that a model may not be able to keep: the policy checks. A refusal is a reply.
    """

    @property
    def name(self) -> str:
        """The model's id, as it stands in answers and spans."""
        ...

    async def ask(
        self,
        messages: History,
        *,
        tools: Sequence[ToolSpec],
        tool_choice: ToolChoice,
        deadline: float,
        options: Options = PLAIN,
    ) -> ModelTurn:
        """The model's next turn. `deadline` is seconds since the epoch."""
        ...


@dataclass(frozen=True)
class Asked:
    """One request that a scripted model got."""

    messages: History
    tools: tuple[str, ...]
    tool_choice: ToolChoice
    options: Options = PLAIN


class ScriptedModel:
    """Says what it is told to say: the n-th turn of a call gets the n-th entry, so a call that resumes after a crash goes on in the script.

    `errors` are raised first, one a request. `asked` holds every request that was made. Each request takes `takes_s` seconds.
    """

    def __init__(
        self,
        turns: Sequence[ModelTurn],
        *,
        name: str = "scripted",
        errors: Sequence[MetierError] = (),
        takes_s: float = 0.0,
    ) -> None:
        self._takes_s = takes_s
        self.name = name
        self.asked: list[Asked] = []
        self._turns = tuple(turns)
        self._errors = list(errors)

    async def ask(
        self,
        messages: History,
        *,
        tools: Sequence[ToolSpec],
        tool_choice: ToolChoice,
        deadline: float,
        options: Options = PLAIN,
    ) -> ModelTurn:
        """See `Model.ask`."""
        del deadline
        self.asked.append(Asked(tuple(messages), tuple(tool.name for tool in tools), tool_choice, options))
        if self._errors:
            raise self._errors.pop(0)
        n = len(of_kind(messages, ModelTurn))
        if n >= len(self._turns):
            raise ModelFailed(f"the script of {self.name} has {len(self._turns)} turns and was asked for one more")
        if self._takes_s:
            await asyncio.sleep(self._takes_s)
        turn = self._turns[n].model_copy(update={"model": self.name})
        if options.on_text is not None and turn.text:
            options.on_text(turn.text)
        return turn


class _Line(ModelTurn, extra="forbid"):
    takes_s: Annotated[float, Field(ge=0, le=60)] = 0.0


def read_script(path: Path) -> ScriptedModel:
    """A scripted model from a YAML list of turns (`text`, `uses`, `cost_usd`); the longest `takes_s` among them is what each request takes. Raises `BadSpec`."""
    try:
        turns = TypeAdapter(list[_Line]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise BadSpec(f"{path}: not a script of model turns: {_said(error)}") from error
    plain = [ModelTurn.model_validate(turn.model_dump(exclude={"takes_s"})) for turn in turns]
    return ScriptedModel(
        plain, name=f"scripted:{path.name}", takes_s=max((turn.takes_s for turn in turns), default=0.0)
    )


def _said(error: Exception) -> str:
    """What is wrong with a script: the first faulty turn and its field."""
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())[:200]
    first = error.errors(include_url=False, include_input=False)[0]
    if not first["loc"]:
        return "a list of turns, such as `- {text: hello}`, is expected"
    turn, *field = first["loc"]
    where = ": ".join(filter(None, (f"turn {int(turn) + 1}", ".".join(map(str, field)))))
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown field; there are {', '.join(_Line.model_fields)}"
    return f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}"
