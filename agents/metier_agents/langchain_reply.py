"""What a provider says, read as a model turn: with bounds, because whoever answers at that address may say anything.

`langchain_model` reads each reply with it; what was sent instead of a reply is for `langchain_errors`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from langchain_core.messages import AIMessage, AIMessageChunk
from pydantic import JsonValue, TypeAdapter, ValidationError

from metier_agents.turns import ModelTurn, ToolUse, Usage

LONGEST = 1_000_000
"""Characters that are kept of a reply's text, and of the arguments of one use of a tool."""
MOST_USES = 64
LONGEST_NAME = 200

CUT = frozenset({"length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"})
"""Why replies end at their longest: OpenAI, Groq and Ollama; Anthropic and Google; Responses; Mistral; Anthropic again."""
DECLINED = frozenset({"refusal", "content_filter", "safety", "prohibited_content", "blocklist", "spii"})
"""Why replies end declined: Anthropic; OpenAI and Azure; the others are Google's."""
_ENDS = ("finish_reason", "stop_reason", "done_reason", "status")
_UNFIT = re.compile("[\0\ud800-\udfff]")

_arguments: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])


def fit(text: str, most: int = LONGEST) -> str:
    """The text without what UTF-8 or a database cannot hold, its beginning."""
    return _UNFIT.sub("\ufffd", text[:most])


def read_reply(reply: AIMessage, name: str, turn: int) -> ModelTurn:
    """The reply as a model turn; `turn` numbers tool uses to which the provider gave no id."""
    why = frozenset(_why(reply.response_metadata))
    said, refusal = fit(str(reply.text)), _refusal(reply)
    refused = bool(refusal) or not why.isdisjoint(DECLINED)
    return ModelTurn(
        text=fit(said + refusal) or (_explanation(reply) if refused else ""),
        uses=tuple(_use(raw, f"{turn}-{index}") for index, raw in enumerate(_uses(reply)))[:MOST_USES],
        model=name,
        usage=_usage(reply),
        refused=refused,
        cut=not why.isdisjoint(CUT) or len(str(reply.text)) > LONGEST,
    )


def ended(reply: AIMessage) -> bool:
    """Whether a streamed reply came to its end. Only of OpenAI and Anthropic is it known that they say so."""
    metadata = reply.response_metadata
    return metadata.get("model_provider") not in {"openai", "anthropic"} or any(metadata.get(one) for one in _ENDS)


def _why(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Why the reply ended, in small letters."""
    for key in _ENDS:
        if metadata.get(key):
            yield str(metadata[key]).lower()
    if metadata.get("status") == "incomplete":
        yield _part(metadata, "incomplete_details", "reason") or "max_output_tokens"


def _part(metadata: Mapping[str, Any], outer: str, inner: str) -> str:
    found: Any = metadata.get(outer)
    return str(cast("dict[str, Any]", found).get(inner) or "") if isinstance(found, dict) else ""


def _refusal(reply: AIMessage) -> str:
    """What a refusal says: of chat completions beside the text, of Responses in parts of its own."""
    beside = reply.additional_kwargs.get("refusal")
    blocks = [block for block in reply.content if isinstance(block, dict) and block.get("type") == "refusal"]
    return "".join(str(one) for one in (beside, *(block.get("refusal") for block in blocks)) if one)


def _explanation(reply: AIMessage) -> str:
    """What Anthropic says of a refusal without words."""
    return fit(_part(reply.response_metadata, "stop_details", "explanation"))


def _usage(reply: AIMessage) -> Usage | None:
    """What was counted; None: nothing, for a request that was free of tokens there never is.

    OpenAI's dearer and cheaper service tiers write their name before a detail's.
    """
    told = reply.usage_metadata
    if told is None or told["input_tokens"] <= 0 or told["output_tokens"] < 0:
        return None
    read, thought = told.get("input_token_details") or {}, told.get("output_token_details") or {}
    return Usage(
        input_tokens=told["input_tokens"],
        output_tokens=told["output_tokens"],
        cached_tokens=_detail(read, "cache_read"),
        cache_written_tokens=_detail(read, "cache_creation") + _detail(read, "_input_tokens"),
        reasoning_tokens=_detail(thought, "reasoning"),
    )


def _detail(details: Mapping[str, Any], name: str) -> int:
    return sum(count for key, count in details.items() if key.endswith(name) and isinstance(count, int))


def _uses(reply: AIMessage) -> Iterator[tuple[str | None, str | None, Any]]:
    """Id, name and arguments of each tool use, as they came.

    LangChain completes what is torn in a stream; a command that ends half-way must not run, so what was sent is read again.
    """
    if isinstance(reply, AIMessageChunk):
        for piece in reply.tool_call_chunks:
            yield piece["id"], piece["name"], piece["args"] or "{}"
        return
    for call in reply.tool_calls:
        yield call["id"], call["name"], call["args"]
    for bad in reply.invalid_tool_calls:
        yield bad["id"], bad["name"], bad["args"] or ""


def _use(raw: tuple[str | None, str | None, Any], number: str) -> ToolUse:
    given_id, given_name, given = raw
    arguments, problem = _read(given)
    return ToolUse(
        id=fit(given_id or f"{'bad' if problem else 'use'}-{number}", LONGEST_NAME),
        tool=fit(given_name or "unnamed", LONGEST_NAME),
        arguments=arguments,
        problem=problem,
    )


def _read(given: Any) -> tuple[dict[str, JsonValue], str | None]:
    """The arguments, or what is wrong with them."""
    try:
        text = given if isinstance(given, str) else json.dumps(given, allow_nan=False)
        if len(text) > LONGEST:
            return {}, f"longer than {LONGEST} characters"
        read = json.loads(text, parse_constant=_refuse, strict=False)
    except (ValueError, TypeError, RecursionError) as error:
        return {}, f"not JSON: {fit(str(error), LONGEST_NAME)}"
    try:
        arguments = _arguments.validate_python(read)
    except ValidationError:
        return {}, "not a JSON object"
    if any(_UNFIT.search(word) for word in _words(arguments)):
        return {}, "characters that are no text: NUL, or half of a pair"
    return arguments, None


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _words(value: JsonValue) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            yield from value
            for one in value.values():
                yield from _words(one)
        case list():
            for one in value:
                yield from _words(one)
        case _:
            return


def salvage(error: ValidationError, name: str, turn: int) -> ModelTurn | None:
    """What is left of a reply that LangChain could not build, because the arguments of a tool use are no JSON object: that use, and nothing else."""
    bad = sorted(
        {str(one["loc"][1]) for one in error.errors() if one["loc"][:1] == ("tool_calls",) and len(one["loc"]) > 1}
    )
    uses = tuple(ToolUse(id=f"bad-{turn}-{one}", tool="unnamed", problem="not a JSON object") for one in bad)
    return ModelTurn(uses=uses[:MOST_USES], model=name) if uses else None
