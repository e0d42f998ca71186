"""A provider's error as one of ours: what happens next, in one sentence that has no key in it.

`langchain_model` asks it for every exception of a request, or of opening a model.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Collection, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from langchain_core.exceptions import ContextOverflowError
from langchain_core.language_models import BaseChatModel
from pydantic import SecretStr

from metier_infra.errors import BadSettings, ContextTooLong, MetierError, ModelBusy, ModelFailed

BUSY = frozenset({408, 409, 425, 429})
"""Statuses after which the same request may be made again; besides all from 500."""
_BUSY_WORDS = re.compile(
    r"overloaded|rate_limit|server_error|api_error|timeout_error|unavailable|too many requests", re.IGNORECASE
)
"""How an error that came in the middle of a stream, hence without a status, says that the provider is busy."""
_SPENT = re.compile(r"insufficient_quota|billing|credit balance", re.IGNORECASE)
"""A limit that waiting does not lift, though OpenAI sends it as 429."""
_TOO_LONG = re.compile(
    r"context[_ ]length|maximum context|context[_ ]size|context window|prompt is too long|request_too_large",
    re.IGNORECASE,
)
"""Of OpenAI and vLLM; vLLM; llama.cpp; OpenAI in a stream; Anthropic, twice."""
_FILTERED = re.compile(r"content_filter|content_policy_violation")
"""The code by which Azure and OpenAI refuse a request for what it asks."""
_CUT = re.compile(r"Connect|Timeout|ReadError|RemoteProtocol|WriteError|IncompleteRead")
"""How the classes of failed connections are called; vendors share none."""


def translate(error: Exception, name: str, secrets: Collection[str] = ()) -> MetierError:
    """The error of ours that says what happens next. The vendor's is chained to it, unless it tells a secret."""
    ours = _translated(error, name, short(error, secrets))
    if not any(secret in text for text in _told(error) for secret in secrets):
        ours.__cause__ = error
    return ours


def _translated(error: Exception, name: str, said: str) -> MetierError:
    status = _status(error)
    if status in {401, 403}:
        return BadSettings(f"{name} refuses the key ({status}): check the provider's key in this role's environment")
    if isinstance(error, ContextOverflowError) or (status in {400, 413} and _TOO_LONG.search(_whole(error))):
        return ContextTooLong(f"the request is longer than {name} can read: {said}")
    busy = _busy(error, status)
    if busy:
        return ModelBusy(f"{name} {busy}: {said}", after_s=_retry_after(error))
    return ModelFailed(f"{name} {_failed(error, status)}: {said}")


def _busy(error: Exception, status: int | None) -> str:
    """How to say that the same request may be made again; "": it may not."""
    text = _whole(error)
    if _SPENT.search(text):
        return ""
    if status is not None and (status in BUSY or status >= 500):
        return f"is busy ({status})"
    if (status is None or status < 400) and _BUSY_WORDS.search(text):
        return "is busy"
    return "does not answer" if status is None and _cut(error) else ""


def _failed(error: Exception, status: int | None) -> str:
    odd = isinstance(error, LookupError | TypeError | AttributeError | ValueError | RecursionError)
    return "gave a reply that cannot be read" if odd and (status is None or status < 400) else "refused the request"


def filtered(error: Exception) -> bool:
    """Whether the provider's filter refused the request for what it asks: that is a reply, and not a failure."""
    return _status(error) in {400, 403} and bool(_FILTERED.search(_whole(error)))


def _whole(error: Exception) -> str:
    """All that the server said: of some errors the message leaves out the code."""
    return f"{error} {getattr(error, 'body', '')} {getattr(error, 'code', '')}"


def short(error: Exception, secrets: Collection[str] = ()) -> str:
    """What an error says, in one line of at most 200 characters, without secrets."""
    text = str(error) or type(error).__name__
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "…")
    line = " ".join(text.replace("\0", " ").encode(errors="replace").decode().split())
    return line if len(line) <= 200 else line[:199] + "…"


def secrets_of(chat: BaseChatModel) -> frozenset[str]:
    """The keys that a chat model holds."""
    held: Mapping[str, Any] = vars(chat)
    return frozenset(
        value.get_secret_value() for value in held.values() if isinstance(value, SecretStr) and value.get_secret_value()
    )


def _told(error: BaseException) -> Iterator[str]:
    """What a traceback of this error would tell."""
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield from (str(link), repr(link), *getattr(link, "__notes__", ()))
        link = link.__cause__ or link.__context__


def _status(error: Exception) -> int | None:
    """The HTTP status; Google's errors call it `code`, Mistral's have it at the response alone."""
    found = (
        getattr(error, "status_code", None),
        getattr(error, "code", None),
        getattr(_response(error), "status_code", None),
    )
    return next((one for one in found if isinstance(one, int)), None)


def _response(error: Exception) -> Any:
    return getattr(error, "response", None)


def _cut(error: Exception) -> bool:
    """Whether the connection failed; vendors share no class for it, but all of them name it so."""
    return isinstance(error, OSError) or any(_CUT.search(kind.__name__) for kind in type(error).__mro__)


def _retry_after(error: Exception) -> float | None:
    """The delay that the server wishes, in seconds: it says so in seconds or as a date (RFC 9110, 10.2.3)."""
    read: object = getattr(getattr(_response(error), "headers", None), "get", None)
    told = str(read("retry-after")) if callable(read) else ""
    try:
        after = float(told)
    except ValueError:
        after = _until(told)
    return max(0.0, after) if math.isfinite(after) else None


def _until(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, OverflowError):
        return math.nan
