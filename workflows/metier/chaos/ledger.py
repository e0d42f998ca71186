"""The witness of `metier chaos`: a server that nothing harms, which writes down what was carried out and what was billed.

It is the model's server too, in OpenAI's form: a reply is written down as billed before it is sent. The roles reach it at a port of its own; the
`checks` read the book when all is over.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from metier.chaos import script

INPUT_TOKENS, OUTPUT_TOKENS = 100, 10
"""What each request is billed."""
THINKS_S = 0.03
"""How long the model takes; seconds."""
ACTS_S = 0.05
"""How long an effect takes, after it is written down; seconds."""


@dataclass(frozen=True)
class Effect:
    """The effect `key` was carried out, by a run whose token was `token`; `receipt` is told nobody else."""

    key: str
    token: str
    receipt: str


@dataclass(frozen=True)
class Bill:
    """A request about the call `key` was billed; the model was shown these receipts."""

    key: str
    token: str
    receipts: tuple[str, ...]


@dataclass
class Ledger:
    """The book, append-only, in memory and in a file."""

    path: Path
    effects: list[Effect] = field(default_factory=list[Effect])
    bills: list[Bill] = field(default_factory=list[Bill])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def carried_out(self, key: str, token: str) -> Effect:
        """Write an effect down, under a new receipt."""
        effect = Effect(key, token, f"receipt-{secrets.token_hex(8)}")
        self._write(self.effects, effect)
        return effect

    def billed(self, asked: script.Asked) -> None:
        """Write a bill down."""
        self._write(self.bills, Bill(asked.key, asked.token, asked.receipts))

    def _write(self, book: list[Any], entry: Effect | Bill) -> None:
        line = json.dumps({type(entry).__name__.lower(): vars(entry), "at": time.time()})
        with self.lock, self.path.open("a") as file:
            file.write(f"{line}\n")
            book.append(entry)


@contextmanager
def serving(ledger: Ledger) -> Generator[str]:
    """The server, at 127.0.0.1: where it listens, host:port."""

    class Handler(_Handler):
        book = ledger

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that died in the middle of its request: that is what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    book: Ledger

    def do_POST(self) -> None:
        """`/effects` and `/v1/chat/completions`."""
        body = self.rfile.read(int(self.headers["content-length"]))
        routes: Mapping[str, Callable[[Any], bytes]] = {"/effects": self._effect, "/v1/chat/completions": self._chat}
        found = routes.get(self.path)
        answer = found(json.loads(body)) if found else b""
        self.send_response(200 if answer else 400)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _effect(self, body: Mapping[str, str]) -> bytes:
        effect = self.book.carried_out(body["key"], body["token"])
        time.sleep(ACTS_S)
        return effect.receipt.encode()

    def _chat(self, body: Mapping[str, Any]) -> bytes:
        asked = script.read(body["messages"])
        if asked is None:
            return b""
        time.sleep(THINKS_S)
        self.book.billed(asked)
        return json.dumps(_completion(str(body["model"]), script.reply(asked))).encode()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the book tells all."""


def _completion(model: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
    ends = "tool_calls" if message.get("tool_calls") else "stop"
    usage = {
        "prompt_tokens": INPUT_TOKENS,
        "completion_tokens": OUTPUT_TOKENS,
        "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
    }
    choice = {"index": 0, "message": message, "finish_reason": ends}
    made = {
        "id": f"chat-{secrets.token_hex(8)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
    }
    return {**made, "choices": [choice], "usage": usage}
