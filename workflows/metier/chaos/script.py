"""What the scripted model says to a request: it follows from the messages alone, however often it is asked. Pure; the `ledger`'s server speaks it.

A task reads `VERB KEY TOKEN`. `say` is answered at once; `effect` and `code` by the receipt that their tool gave, which is asked for first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TASK = re.compile(r"^(?P<verb>say|effect|code) (?P<key>\S+) (?P<token>[0-9a-f]+)")
_RECEIPT = re.compile(r"receipt-[0-9a-f]+")
_PROGRAM = "import os\nprint('receipt-' + os.urandom(8).hex())"


@dataclass(frozen=True)
class Asked:
    """What a request is about: the call's key, its run's token, and the receipts that the model is shown."""

    verb: str
    key: str
    token: str
    receipts: tuple[str, ...]


def read(messages: Sequence[Mapping[str, Any]]) -> Asked | None:
    """What a chat request asks; None where it is none of ours."""
    texts = [str(message.get("content") or "") for message in messages]
    task = next((found for text in texts if (found := _TASK.match(text))), None)
    if task is None:
        return None
    return Asked(task["verb"], task["key"], task["token"], tuple(_receipts(texts)))


def _receipts(texts: Iterable[str]) -> list[str]:
    """The different receipts, in order."""
    return list(dict.fromkeys(receipt for text in texts for receipt in _RECEIPT.findall(text)))


def reply(asked: Asked) -> Mapping[str, Any]:
    """The assistant's message, in OpenAI's form."""
    if asked.verb == "say":
        return _said(f"said-{asked.token}")
    if asked.receipts:
        return _said(asked.receipts[0])
    return (
        _use("effect", {"key": asked.key, "token": asked.token})
        if asked.verb == "effect"
        else _use("python", {"code": _PROGRAM})
    )


def _said(text: str) -> Mapping[str, Any]:
    return {"role": "assistant", "content": f"ANSWER: {text}\nCONFIDENCE: 1.0"}


def _use(name: str, arguments: Mapping[str, str]) -> Mapping[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "use1", "type": "function", "function": function}],
    }
