"""LangChain's OpenAI chat model, as we need it: it tells a streamed refusal, and speaks to servers that are like OpenAI's as they expect.

`langchain_model` opens `openai:` and `openai-responses:` with it.
"""

from __future__ import annotations

import os
from typing import Any, cast
from urllib.parse import urlsplit

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_openai import ChatOpenAI


class OpenAIChat(ChatOpenAI):
    """A chat model of OpenAI, or of a server that is like it (`OPENAI_BASE_URL`)."""

    def _get_request_payload(
        self, input_: LanguageModelInput, *, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """A server that is like OpenAI's knows `max_tokens`, and may refuse what only OpenAI has."""
        payload = cast("dict[str, Any]", super()._get_request_payload(input_, stop=stop, **kwargs))
        if not self._own():
            payload.pop("prompt_cache_key", None)
            if "max_completion_tokens" in payload:
                payload["max_tokens"] = payload.pop("max_completion_tokens")
        return payload

    def _own(self) -> bool:
        """Whether OpenAI answers, perhaps behind a proxy: LangChain's list of its models knows this one, or the address is OpenAI's."""
        base = self.openai_api_base or os.environ.get("OPENAI_BASE_URL") or ""
        host = urlsplit(base).hostname or ""
        return bool(self.profile) or not base or host.endswith("api.openai.com")

    def _convert_chunk_to_generation_chunk(
        self,
        chunk: dict[str, Any],
        default_chunk_class: type[BaseMessageChunk],
        base_generation_info: dict[str, Any] | None,
    ) -> ChatGenerationChunk | None:
        """LangChain (langchain-openai 1.7.3) drops the words of a refusal from a stream of chat completions."""
        found = super()._convert_chunk_to_generation_chunk(chunk, default_chunk_class, base_generation_info)
        choices: list[dict[str, Any]] = chunk.get("choices") or [{}]
        delta: dict[str, Any] = choices[0].get("delta") or {}
        refusal = delta.get("refusal")
        if found is not None and refusal:
            found.message.additional_kwargs["refusal"] = refusal
        return found
