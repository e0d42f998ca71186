"""A bare server on 127.0.0.1, and what OpenAI chat completions, OpenAI Responses and Anthropic messages look like on the wire.

The shapes are the providers' own, as their references give them; whole, and as a stream of server-sent events.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

KEY = "sk-this-key-must-never-be-told"
Shape = dict[str, Any]


class Server:
    """Answers every request with `reply`, as it stands; `hold`: and then says nothing more."""

    def __init__(self, reply: bytes, *, hold: bool) -> None:
        self.reply = reply
        self.hold = hold
        self.bodies: list[Shape] = []
        self.asked = asyncio.Event()
        self.left = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].split()[0])
        self.bodies.append(json.loads(await reader.readexactly(length)))
        writer.write(self.reply)
        await writer.drain()
        self.asked.set()
        if self.hold:
            await reader.read()
            self.left.set()
        writer.close()


@asynccontextmanager
async def serving(patch: pytest.MonkeyPatch, reply: bytes, *, hold: bool = False) -> AsyncGenerator[Server]:
    """A server that answers so, as every provider that the environment names."""
    one = Server(reply, hold=hold)
    async with await asyncio.start_server(one.serve, "127.0.0.1", 0) as listener:
        address = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        patch.setenv("OPENAI_BASE_URL", f"{address}/v1")
        patch.setenv("ANTHROPIC_BASE_URL", address)
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setenv("ANTHROPIC_API_KEY", KEY)
        yield one


def http(status: int, body: bytes, kind: str = "application/json", *headers: str) -> bytes:
    """An HTTP response that ends with its connection."""
    lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", "connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def whole(body: Any) -> bytes:
    """A reply in one piece."""
    return http(200, json.dumps(body).encode())


def stream(events: Sequence[Any], *, done: bool = False) -> bytes:
    """Server-sent events; each has its type beside its data where it has one. `done`: the last word of chat completions."""
    frames = [(f"event: {one['type']}\n" if "type" in one else "") + f"data: {json.dumps(one)}\n\n" for one in events]
    return http(200, ("".join(frames) + ("data: [DONE]\n\n" if done else "")).encode(), "text/event-stream")


def chat(message: Shape, end: str = "stop", usage: Any = None) -> bytes:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": end}
    return whole(
        {"id": "1", "object": "chat.completion", "created": 1, "model": "gpt-5", "choices": [choice], "usage": usage}
    )


def chat_stream(deltas: Sequence[Shape], end: str | None = "stop", usage: Any = None) -> bytes:
    """A chat completion in pieces; `end` None: it breaks off."""
    base = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5"}
    said = [{**base, "choices": [{"index": 0, "delta": one, "finish_reason": None}]} for one in deltas]
    last: list[Shape] = [{**base, "choices": [{"index": 0, "delta": {}, "finish_reason": end}]}] if end else []
    return stream([*said, *last, *([{**base, "choices": [], "usage": usage}] if usage else [])], done=end is not None)


def response(output: Any, usage: Any = None, **more: Any) -> Shape:
    """The body of a response."""
    fixed = {"id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-5", "status": "completed"}
    rest: Shape = {"error": None, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": usage}
    return {**fixed, **rest, "output": output, **more}


def said(*parts: Shape) -> Shape:
    """The item of a response in which the model speaks."""
    return {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": list(parts)}


def output_text(text: str) -> Shape:
    """A part of such an item."""
    return {"type": "output_text", "text": text, "annotations": []}


def response_stream(events: Sequence[Shape], last: Shape | None) -> bytes:
    """A response in pieces; `last` None: it breaks off."""
    first = {"type": "response.created", "response": response([])}
    end = [{"type": f"response.{last['status']}", "response": last}] if last else []
    return stream([{**one, "sequence_number": n} for n, one in enumerate([first, *events, *end])])


def message(content: Any, stop: str = "end_turn", usage: Any = None, **more: Any) -> bytes:
    """A message of Anthropic's."""
    counted = usage or {"input_tokens": 1, "output_tokens": 1}
    fixed = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-opus-4-7", "stop_sequence": None}
    return whole({**fixed, "content": content, "stop_reason": stop, "usage": counted, **more})


def message_stream(
    blocks: Sequence[tuple[Shape, Shape]],
    stop: str | None = "end_turn",
    usage: Any = None,
    **more: Any,
) -> bytes:
    """A message of Anthropic's in pieces, one delta a block; `stop` None: it breaks off."""
    counted = usage or {"input_tokens": 1, "output_tokens": 1}
    start: Shape = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-4-7",
        "content": [],
        "stop_reason": None,
    }
    events: list[Shape] = [{"type": "message_start", "message": {**start, "usage": counted}}]
    for n, (block, delta) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": n, "content_block": block})
        events.append({"type": "content_block_delta", "index": n, "delta": delta})
        events.append({"type": "content_block_stop", "index": n})
    if stop:
        events.append(
            {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None, **more}, "usage": counted}
        )
        events.append({"type": "message_stop"})
    return stream(events)


TEXT_BLOCK = ({"type": "text", "text": ""}, {"type": "text_delta", "text": "forty-two"})
TEXT_EVENTS: list[Shape] = [
    {
        "type": "response.output_text.delta",
        "item_id": "msg_1",
        "output_index": 0,
        "content_index": 0,
        "delta": "forty-two",
        "logprobs": [],
    }
]
HELLO = {
    "chat": chat({"content": "forty-two"}),
    "responses": whole(response([said(output_text("forty-two"))])),
    "messages": message([{"type": "text", "text": "forty-two"}]),
}
