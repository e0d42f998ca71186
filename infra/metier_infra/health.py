"""What a role answers over HTTP: `/livez`, `/readyz` and `/metrics`. `roles` opens it where `METIER_HTTP_PORT` is set.

`health_http` carries the answers, from a thread of its own: a loop that is blocked is told of, and blocks nothing here. No answer asks another service.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from metier_infra.standing import Standing

STILL_S = 10.0
"""A loop that has not turned for so long hangs; seconds. Importing a graph's libraries takes a second or two."""
RENDER_EVERY_S = 1.0
"""The metrics are written at most so often, whoever asks; seconds."""
PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Reply:
    """What goes back."""

    status: int
    body: str
    kind: str = PLAIN


Answer = Callable[[bool], Reply]
"""Answers a path. True: the client would rather have JSON."""


class Health:
    """The answers. `exposition` gives all metrics as Prometheus reads them; `still_s` is how long a loop may stand still, in seconds."""

    def __init__(self, standing: Standing, exposition: Callable[[], str], still_s: float = STILL_S) -> None:
        self._standing, self._exposition, self._still_s = standing, exposition, still_s
        self._written, self._written_at = "", float("-inf")

    def answer(self, path: str, *, as_json: bool) -> Reply:
        """The answer for a path, which may be any text."""
        answers: dict[str, Answer] = {"/livez": self._livez, "/readyz": self._readyz, "/metrics": self._metrics}
        found = answers.get(path)
        return found(as_json) if found else Reply(404, f"there is {', '.join(answers)}\n")

    def _livez(self, as_json: bool) -> Reply:
        still_s = self._standing.still_s
        live = still_s <= self._still_s
        why = "" if live else f"the event loop has not turned for {still_s:.0f} s"
        if as_json:
            return _json(live, {"live": live, "why": why, "still_s": round(still_s, 3)})
        return Reply(200 if live else 503, f"{why or 'live'}\n")

    def _readyz(self, as_json: bool) -> Reply:
        state, why = self._standing.state, self._standing.why
        ready = state == "ready"
        if as_json:
            return _json(ready, {"ready": ready, "state": state, "why": why})
        return Reply(200 if ready else 503, "ready\n" if ready else f"{state}: {why}\n")

    def _metrics(self, as_json: bool) -> Reply:
        del as_json
        if time.monotonic() - self._written_at >= RENDER_EVERY_S:
            self._written, self._written_at = self._exposition(), time.monotonic()
        return Reply(200, self._written, "text/plain; version=0.0.4; charset=utf-8")


def _json(good: bool, body: object) -> Reply:
    return Reply(200 if good else 503, json.dumps(body) + "\n", "application/json")
