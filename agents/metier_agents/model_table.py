"""What is known of models that are asked over the network: prices, rate limits, and when to stop asking one.

`models` reads it once, when it opens models: the file that ships, `models.yaml`, with the user's own before it. Errors name file, line and field.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from metier_infra import declared
from metier_infra.declared import Declared

Pattern = Annotated[str, Field(min_length=1, description="a model's id as agents name it; * stands for any characters")]
Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Price(Declared):
    """What a model charges: US dollars for a million tokens. 0 is a price: that of a model of your own."""

    model: Pattern
    input: Usd = Field(description="tokens that the model reads")
    cached_input: Usd | None = Field(
        None, description="those of them that came from the provider's cache; none: as input"
    )
    cache_write: Usd | None = Field(
        None, description="those of them that were put into the provider's cache; none: as input"
    )
    output: Usd = Field(description="tokens that the model writes or thinks")


class Prices(Declared):
    """A dated list of prices. The first entry that fits a model holds."""

    as_of: dt.date = Field(description="the day on which the prices were looked up")
    source: str = Field(min_length=1, description="where")
    usd_per_million: tuple[Price, ...]


class Limit(Declared):
    """How fast models may be asked: by all workers together, all models that `model` fits, under one key of one provider."""

    model: Pattern
    requests_per_minute: float | None = Field(None, gt=0, allow_inf_nan=False, description="none: any number")
    tokens_per_minute: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="read and written; none: any number"
    )
    burst_s: float = Field(
        60.0,
        gt=0,
        allow_inf_nan=False,
        description="how many seconds' worth may be used at one go, after a pause; seconds",
    )

    @model_validator(mode="after")
    def _limits_something(self) -> Limit:
        if self.requests_per_minute is None and self.tokens_per_minute is None:
            raise PydanticCustomError("no_limit", "needs requests_per_minute, tokens_per_minute or both")
        return self


class Breaker(Declared):
    """When a model is not asked for a while because it is away."""

    failures: int = Field(
        5, ge=1, description="tries in a row that found the model busy or away, after which none is made"
    )
    cool_down_s: float = Field(30.0, gt=0, allow_inf_nan=False, description="until one request tries it again; seconds")


class Patience(Declared):
    """When a chain of fallbacks goes on to its next model. The last model is as patient as the call."""

    tries: int = Field(2, ge=1, description="of one model for one reply, while it is busy")
    wait_s: float = Field(
        5.0, ge=0, allow_inf_nan=False, description="what a model may ask to wait before it is tried; seconds"
    )


class ModelTable(Declared):
    """A file about models. What is left out is as in the file that ships."""

    prices: Prices | None = None
    limits: tuple[Limit, ...] = ()
    breaker: Breaker | None = None
    patience: Patience | None = None


class _Matching(Protocol):
    @property
    def model(self) -> str: ...


E = TypeVar("E", bound=_Matching)
_PARTS: Mapping[str, type[Declared]] = {
    "usd_per_million": Price,
    "prices": Prices,
    "limits": Limit,
    "breaker": Breaker,
    "patience": Patience,
}
_SENTENCES: Mapping[str, str] = {"model_type": "expected the fields prices, limits, breaker or patience"}


class Known:
    """Tables on top of each other; the first that says something holds."""

    def __init__(self, *tables: ModelTable) -> None:
        self._prices = [price for table in tables if table.prices for price in table.prices.usd_per_million]
        self._limits = [limit for table in tables for limit in table.limits]
        self.breaker = next((table.breaker for table in tables if table.breaker), Breaker.model_validate({}))
        self.patience = next((table.patience for table in tables if table.patience), Patience.model_validate({}))

    def price(self, model: str) -> Price | None:
        """The model's price; None: unknown."""
        return _first(self._prices, model)

    def limit(self, model: str) -> Limit | None:
        """The rate limit that the model falls under; None: none is declared."""
        return _first(self._limits, model)


def _first(entries: Iterable[E], model: str) -> E | None:
    return next((entry for entry in entries if fnmatchcase(model, entry.model)), None)


def read_known(path: Path | None = None) -> Known:
    """What ships, with what the file `path` says before it. Raises `BadSpec` with file, line and field."""
    own = [read_table(path)] if path else []
    return Known(*own, read_table(Path(str(resources.files("metier_agents") / "models.yaml"))))


def read_table(path: Path) -> ModelTable:
    """What one file says. Raises `BadSpec` with file, line and field."""
    return declared.load(path, ModelTable, parts=_PARTS, sentences=_SENTENCES)
