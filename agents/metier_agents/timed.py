"""A request that takes too long is given up as if the model were busy, so that it is made again, or another model is asked.

`models` puts `Timed` next to each model that is asked over the network, inside the other layers: what waits for its turn takes no such time.
"""

from __future__ import annotations

import asyncio
from typing import Unpack

from metier_agents.model import Asking, Model
from metier_agents.turns import History, ModelTurn
from metier_infra.errors import ModelBusy


class Timed:
    """A layer round a model that bounds each request to `limit_s` seconds."""

    def __init__(self, inner: Model, limit_s: float) -> None:
        self.name = inner.name
        self.inner = inner
        self._limit_s = limit_s

    async def ask(self, messages: History, **asked: Unpack[Asking]) -> ModelTurn:
        """See `Model.ask`. Raises `ModelBusy` when there is no reply in time."""
        try:
            async with asyncio.timeout(self._limit_s):
                return await self.inner.ask(messages, **asked)
        except TimeoutError as error:
            raise ModelBusy(f"{self.name} gave no reply within {self._limit_s:g} s", maybe_billed=True) from error
