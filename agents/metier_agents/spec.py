"""What an agent is, as its author declares it in YAML, and how a folder of such files is read.

`compose` calls `load_agents`; the worker and the loop read the specs, the router reads `skills`. Errors name file, line and field.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal, LiteralString

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from metier_infra import declared
from metier_infra.declared import Declared
from metier_infra.errors import BadSpec
from metier_infra.rows import HALF_LIFE

Share = Annotated[float, Field(ge=0, le=1)]


class _Policy(Declared):
    tries: int = Field(2, ge=1, description="a tool that failed this often in one call is not offered again in it")


class Autonomous(_Policy):
    """Answer alone; tools are offered only when the model is less sure than `threshold`, and withdrawn after each use."""

    kind: Literal["autonomous"]
    threshold: Share = Field(0.8, description="confidence from which the model's own answer is taken")


class Collaborative(_Policy):
    """Tools from the first turn, which must call one when any fits; results are cross-checked before the answer."""

    kind: Literal["collaborative"]


class MetaReasoned(_Policy):
    """The model assesses each tool; only tools whose expected value is positive are offered.

    Value is counted in right answers: 1 is one right answer more.
    """

    kind: Literal["meta_reasoned"]
    price_per_second: float = Field(0.002, ge=0, description="what a second of waiting costs, in right answers")
    price_per_usd: float = Field(1.0, ge=0, description="what a US dollar costs, in right answers")
    assumed_s: float = Field(2.0, ge=0, description="a tool call's time before any was measured; seconds")
    assumed_usd: float = Field(0.0, ge=0, description="a tool call's own price before any was measured; US dollars")
    prior_ok: float = Field(1.6, gt=0, description="successes believed before any was measured (Beta prior)")
    prior_failed: float = Field(0.4, gt=0, description="failures believed before any was measured (Beta prior)")
    prior_worth: float = Field(
        2.0, gt=0, description="gain believed to have come true as predicted before any did; in right answers"
    )
    half_life: float = Field(
        HALF_LIFE, gt=0, allow_inf_nan=False, description="calls after which what was measured counts half"
    )
    explore: Share = Field(
        0.05,
        description="share of calls in which a tool that is not worth it is offered all the same, to see whether that still holds; 0: never",
    )


Policy = Annotated[Autonomous | Collaborative | MetaReasoned, Field(discriminator="kind")]


class ToolRef(Declared):
    """A tool that the agent may be offered. `fits`: the categories it is good for; empty means all."""

    name: str = Field(min_length=1)
    fits: frozenset[str] = frozenset()

    def fitting(self, category: str) -> bool:
        """Whether the tool suits tasks of this category."""
        return not self.fits or category in self.fits


Count = Annotated[int, Field(ge=1, le=50)]


def _must(pattern: str, sentence: LiteralString) -> AfterValidator:
    """Refuses text that does not match, in words of its own."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise PydanticCustomError("must", sentence)
        return text

    return AfterValidator(check)


_SQL = "[a-z_][a-z0-9_]{0,62}"
SqlName = Annotated[str, _must(_SQL, "must be a plain SQL name: lower-case letters, digits and underscores")]
Table = Annotated[str, _must(rf"{_SQL}(\.{_SQL})?", "must be a plain SQL name, or two with a dot between")]
Factory = Annotated[str, _must(r"[\w.]+:\w+", "must be module:function")]


class Files(Declared):
    """Sources are the text files of a folder, found by BM25 (the extra `retrieval`); long files are cut into passages."""

    kind: Literal["files"] = Field(description="where sources come from")
    folder: Path = Field(description="relative to where the role is started")
    pattern: str = Field(
        "**/*", min_length=1, description="which files, as a glob; hidden and binary ones are left out"
    )


class Postgres(Declared):
    """Sources are the rows of a table in the journal's Postgres, found by its full text search."""

    kind: Literal["postgres"] = Field(description="where sources come from")
    table: Table = Field(description="with or without a schema")
    id: SqlName = Field("id", description="the column that names a row")
    title: SqlName = Field("title", description="the column with its title")
    text: SqlName = Field("text", description="the column that is searched and quoted")
    language: SqlName = Field("english", description="a text search configuration of the server")


class LangChain(Declared):
    """Sources are what any LangChain retriever finds. It is code of yours, and runs in the agent worker."""

    kind: Literal["langchain"] = Field(description="where sources come from")
    factory: Factory = Field(description="module:function that makes the retriever")


Origin = Annotated[Files | Postgres | LangChain, Field(discriminator="kind")]
Strategy = Literal["synthesise", "authoritative", "acknowledge"]


class Retrieval(Declared):
    """Answer from sources alone, with a quote for every claim. A claim whose quote is not in its source is struck out."""

    model_config = ConfigDict(serialize_by_alias=True)

    strategy: Strategy = Field(
        description="all sources, with their conflicts named; the best one alone; or what is contested or missing is left open"
    )
    origin: Origin = Field(alias="from", description="where sources come from")
    k: Count = Field(5, description="sources that are looked up, at most")


Effort = Literal["minimal", "low", "medium", "high"]


class _Reasoning(Declared):
    effort: Effort | None = Field(
        None, description="how hard the model itself is to think, where its provider has such a setting"
    )


class Plain(_Reasoning):
    """One line of thought: what the model answers is the answer."""

    kind: Literal["plain"]


class Deep(_Reasoning):
    """The model reflects on its answer until it says the same again, or the budget ends."""

    kind: Literal["deep"]
    rounds: int = Field(2, ge=1, le=10, description="reflections, at most")


class Parallel(_Reasoning):
    """Independent explorations of one task, then one answer chosen among theirs; all under the limits of the one call."""

    kind: Literal["parallel"]
    k: int = Field(3, ge=2, le=16, description="explorations")
    select: Literal["vote", "verifier", "judge"] = Field(
        "vote",
        description="the answer given most often; the one that a check of each finds likeliest right; the one that a judge of all prefers",
    )


Reasoning = Annotated[Plain | Deep | Parallel, Field(discriminator="kind")]


class Limits(Declared):
    """Where one call ends at the latest, all its explorations together. None: no such limit.

    What a model request may come to is set aside before it is sent and settled by what the provider counted.
    """

    turns: int = Field(8, ge=1, description="model requests; of one exploration, where there are several")
    tool_calls: int = Field(6, ge=0, description="tool calls that are really made")
    tokens: int | None = Field(None, gt=0, description="tokens read and written by the model's turns")
    output_tokens: int = Field(4096, ge=1, description="tokens that one turn may write")
    cost_usd: float | None = Field(
        None, gt=0, description="cost of the model's turns; USD; needs a model of known price"
    )
    request_s: float = Field(
        60.0, gt=0, description="what one model request may take before it is given up and made again; seconds"
    )
    timeout_s: float = Field(120.0, gt=0, description="from the first claim of the call; seconds")


class AgentSpec(Declared):
    """An agent: model, policy, tools, limits, and what it says it is good at."""

    name: str = Field(pattern=r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", description="a DNS label; names topic and group")
    model: str = Field(
        min_length=1,
        description="recorded:<model>, scripted:<file>, langgraph:<module>:<function>, or any init_chat_model id",
    )
    fallbacks: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="models to ask in this order when the one before is away, overloaded or refuses for good"
    )
    policy: Policy
    tools: tuple[ToolRef, ...] = ()
    skills: dict[str, Share] = Field(default_factory=dict[str, Share])
    reasoning: Reasoning = Field(default_factory=lambda: Plain.model_validate({"kind": "plain"}))
    retrieval: Retrieval | None = Field(
        None, description="which sources it answers from; none: from what the model knows"
    )
    safety: (
        Annotated[str, _must(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?(@[1-9][0-9]*)?", "must be NAME or NAME@VERSION")] | None
    ) = Field(None, description="the safety bundle that holds for it: NAME, its newest version, or NAME@VERSION")
    stream: bool = Field(
        default=False, description="whether what the model writes is sent to `metier.events` as it comes"
    )
    limits: Limits = Field(default_factory=lambda: Limits.model_validate({}))
    description: str = ""

    @model_validator(mode="after")
    def _fit_for_a_graph(self) -> AgentSpec:
        """A graph asks its models itself: what Métier would tell them, or ask of them, it cannot have."""
        reasoning = self.reasoning
        judged = isinstance(reasoning, Parallel) and reasoning.select != "vote"
        cannot = {
            "fallbacks": bool(self.fallbacks),
            "stream": self.stream,
            "reasoning.effort": reasoning.effort is not None,
            "reasoning.select": judged,
        }
        if self.model.startswith("langgraph:"):
            for named in (name for name, wanted in cannot.items() if wanted):
                raise PydanticCustomError("graph", "an agent whose model is a graph has no {field}", {"field": named})
        return self

    @property
    def digest(self) -> str:
        """Twelve hex characters that change with any change of the agent's behaviour."""
        behaviour = self.model_dump(mode="json", exclude={"description"})
        for tool in behaviour["tools"]:
            tool["fits"].sort()
        return hashlib.sha256(json.dumps(behaviour, sort_keys=True).encode()).hexdigest()[:12]


def with_model(spec: AgentSpec, model: str) -> AgentSpec:
    """The same agent on another model."""
    return AgentSpec.model_validate({**spec.model_dump(), "model": model})


def without_tools(spec: AgentSpec, names: Collection[str]) -> AgentSpec:
    """The same agent without these tools."""
    return (
        spec.model_copy(update={"tools": tuple(tool for tool in spec.tools if tool.name not in names)})
        if names
        else spec
    )


def load_agents(folder: Path) -> dict[str, AgentSpec]:
    """Every agent declared in `folder/*.yaml`, by name.

    Raises:
        BadSpec: no file, a file that does not fit, or two agents of one name.
    """
    found: dict[str, AgentSpec] = {}
    for path in sorted(folder.glob("*.yaml")):
        spec = load_agent(path)
        if spec.name in found:
            raise BadSpec(f"{path}: an agent named {spec.name} is already declared in {folder}")
        found[spec.name] = spec
    if not found:
        raise BadSpec(f"{folder}: no agent files (*.yaml) there")
    return found


def load_agent(path: Path) -> AgentSpec:
    """The agent declared in one file. Raises `BadSpec` with file, line and field."""
    return declared.load(path, AgentSpec, parts=_PARTS, sentences=_SENTENCES)


_PARTS: Mapping[str, type[Declared]] = {
    "autonomous": Autonomous,
    "collaborative": Collaborative,
    "meta_reasoned": MetaReasoned,
    "tools": ToolRef,
    "limits": Limits,
    "reasoning": Plain,
    "plain": Plain,
    "deep": Deep,
    "parallel": Parallel,
    "retrieval": Retrieval,
    "files": Files,
    "postgres": Postgres,
    "langchain": LangChain,
}
_SENTENCES: Mapping[str, str] = {
    "model_type": "expected an agent's fields, such as name, model and policy",
    "string_pattern_mismatch": "must be lower-case letters, digits and hyphens, at most 63, and begin with a letter",
}
