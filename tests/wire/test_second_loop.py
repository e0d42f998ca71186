"""A process that starts an event loop after another, as a script with two `asyncio.run` does. Anthropic's client, which LangChain shares, is not among these:
its first request there fails as `ModelBusy`, which is made again.
"""

from __future__ import annotations

import asyncio
import time

import httpx2
import pytest

from metier_agents.models import open_model
from metier_agents.turns import User


async def ask(model: str) -> str:
    asked = open_model(model, timeout_s=20).ask(
        [User(text="What is 6 x 7?")], tools=(), tool_choice="none", deadline=time.time() + 20
    )
    return (await asked).text


@pytest.mark.parametrize("model", ["openai:gpt-5", "openai-responses:gpt-5", "openai:a-local-model"])
def test_a_model_answers_in_a_second_event_loop_of_the_process_too(
    aimock: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{aimock}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    fixture = {"match": {"endpoint": "chat"}, "response": {"content": "42"}}
    httpx2.post(f"{aimock}/__aimock/fixtures", json={"fixtures": [fixture]}).raise_for_status()
    assert [asyncio.run(ask(model)) for _ in range(2)] == ["42", "42"]
