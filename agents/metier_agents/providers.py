"""What differs between the providers of models: the extra and the key that each needs, and how it is told what a request wishes.

`langchain_model` opens models and makes requests by this table. It imports no vendor. What a provider does not know is left out, with a debug line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import JsonValue

Form = Literal["body", "response_format", "format", "json_schema"]


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One provider, as LangChain has it.

    Attributes:
        extra: the extra of `metier` that installs its package.
        key: the environment variable of its key; "": it has none.
        form: by which argument LangChain takes the schema of a reply; None: by none that goes with tools and streams.
        efforts: what its models take as effort where LangChain's list of models knows that they think but not how hard; empty: nothing.
        caching: how it is told what to keep of a prompt: by marks in it, or by a key for all requests with the same beginning.
        unforced: beginnings of the names of models that refuse to be made to call a tool.
    """

    extra: str = ""
    key: str = ""
    form: Form | None = None
    efforts: tuple[str, ...] = ()
    caching: Literal["marks", "key"] | None = None
    unforced: tuple[str, ...] = ()


OPENAI = Provider(extra="openai", key="OPENAI_API_KEY", form="body", efforts=("low", "medium", "high"), caching="key")
ANTHROPIC = Provider(
    extra="anthropic",
    key="ANTHROPIC_API_KEY",
    form="response_format",
    caching="marks",
    # as `_supports_forced_tool_choice` of langchain-anthropic 1.7.7 has it
    unforced=("claude-fable-5-1", "claude-opus-5-5", "claude-sonnet-5-5"),
)
BY_ID: Mapping[str, Provider] = {
    "openai": OPENAI,
    "openai-responses": OPENAI,
    "anthropic": ANTHROPIC,
    "google_genai": Provider(extra="google-genai", key="GOOGLE_API_KEY", form="json_schema"),
    "groq": Provider(extra="groq", key="GROQ_API_KEY", form="response_format"),
    "mistralai": Provider(extra="mistralai", key="MISTRAL_API_KEY", form="response_format"),
    "ollama": Provider(extra="ollama", form="format"),
}
"""What stands before the colon of a model's id; `openai-responses` is ours, the others are LangChain's."""

_BY_PACKAGE = {f"langchain_{name.replace('-', '_')}": one for name, one in BY_ID.items() if "-" not in name}
_OTHER = Provider()
_RANKS = ("minimal", "low", "medium", "high", "xhigh", "max")


def of_id(model: str) -> Provider:
    """The provider that a model's id names; one that knows nothing, where it is not in the table."""
    return BY_ID.get(model.partition(":")[0], _OTHER) if ":" in model else _OTHER


def of_class(kind: type) -> Provider:
    """The provider of a chat model's class: that of the first package in its ancestry that is a provider's."""
    packages = (one.__module__.partition(".")[0] for one in kind.__mro__)
    first = next((name for name in packages if name.startswith("langchain_") and name != "langchain_core"), "")
    return _BY_PACKAGE.get(first, _OTHER)


def effort(wished: str, profile: Mapping[str, Any], provider: Provider) -> str | None:
    """The effort to ask for: of those that the model takes, the one nearest to what is wished; None: it takes none.

    `profile` is what LangChain's list of models says of this one; empty: it does not know it.
    """
    levels: Sequence[str] = profile.get("reasoning_effort_levels") or provider.efforts
    known = [one for one in levels if one in _RANKS]
    if not known or not profile.get("reasoning_output", True):
        return None
    return min(known, key=lambda one: abs(_RANKS.index(one) - _RANKS.index(wished)))


def form(schema: Mapping[str, Any], how: Form) -> dict[str, Any]:
    """The arguments by which a provider is told what form the reply must have."""
    named = {"name": _name(schema), "schema": dict(schema), "strict": strict(dict(schema))}
    wished = {"type": "json_schema", "json_schema": named}
    match how:
        case "body":
            return {"extra_body": {"response_format": wished}}
        case "response_format":
            return {"response_format": wished}
        case "format":
            return {"format": dict(schema)}
        case "json_schema":
            return {"response_mime_type": "application/json", "response_json_schema": dict(schema)}


def _name(schema: Mapping[str, Any]) -> str:
    title = "".join(one if one.isascii() and one.isalnum() else "_" for one in str(schema.get("title") or "reply"))
    return title[:64]


def strict(schema: JsonValue) -> bool:
    """Whether a provider can hold a reply to this schema to the letter: each object in it names all that it has, and needs all of it.

    The rule is OpenAI's, for Structured Outputs (platform.openai.com/docs/guides/structured-outputs).
    """
    match schema:
        case list():
            return all(map(strict, schema))
        case dict():
            return _closed(schema) and all(map(strict, schema.values()))
        case _:
            return True


def _closed(schema: Mapping[str, Any]) -> bool:
    if schema.get("type") != "object":
        return True
    return schema.get("additionalProperties") is False and set(schema.get("required", ())) == set(
        schema.get("properties", ())
    )
