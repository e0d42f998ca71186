"""Finds the model for an id, and puts round each agent's models what makes them fit for work.

`compose` opens every agent's model here, once, before the worker starts. From the inside out, a model that is asked over the network is

    `Timed`     given up when it takes too long
    `Guarded`   not asked while it is away (`breaker`)
    `Limited`   asked when its turn has come (`rate`)
    `Priced`    told what its reply cost (`prices`)

and then a link of a `Chain` where the agent has fallbacks. Recorded and scripted models have no limit and no breaker.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from metier_agents.breaker import Fuse, Guarded
from metier_agents.buckets import Buckets
from metier_agents.fallback import Chain
from metier_agents.model import Model, read_script
from metier_agents.model_table import Known, Limit
from metier_agents.prices import Priced, unpriced
from metier_agents.rate import Gate, Limited, bucket_name
from metier_agents.spec import AgentSpec
from metier_agents.timed import Timed
from metier_infra.errors import BadSpec

LOCAL = ("recorded", "scripted", "langgraph")
"""Kinds of models that no provider serves."""


def open_model(model: str, *, recordings: Path | None = None, timeout_s: float = 120.0) -> Model:
    """The model with this id: `recorded:<model>`, `scripted:<file>`, or any id that LangChain's `init_chat_model` takes.

    Raises:
        BadSpec: no such recording, script or provider.
        MissingPackage: the provider's package is not installed.
        BadSettings: the provider's key is missing.
    """
    kind, _, rest = model.partition(":")
    if kind == "scripted":
        return read_script(Path(rest))
    if kind == "recorded":
        return _recorded(rest, recordings)
    if kind == "langgraph":
        from metier_agents.graph_border import open_graph

        return open_graph(model)
    from metier_agents.langchain_model import open_chat_model

    return open_chat_model(model, timeout_s=timeout_s)


def _recorded(model: str, recordings: Path | None) -> Model:
    from metier_agents.recorded_model import RecordedModel
    from metier_agents.recordings import read_recordings

    if recordings is None:
        raise BadSpec(f"recorded:{model} needs a file of recordings, and none was given")
    return RecordedModel(read_recordings(recordings), model)


class Opener(Protocol):
    """Opens the model of an id, as `open_model`."""

    def __call__(self, model: str, *, timeout_s: float) -> Model:
        """The model."""
        ...


@dataclass
class Shop:
    """Opens models, with what they share in this process: a gate for each bucket, a circuit for each model.

    Attributes:
        known: prices, limits, and when to stop asking.
        buckets: where rate limits are kept.
        open: opens the model of an id.
    """

    known: Known
    buckets: Buckets
    open: Opener = open_model
    _gates: dict[str, Gate] = field(default_factory=dict[str, Gate])
    _fuses: dict[str, Fuse] = field(default_factory=dict[str, Fuse])

    def model_of(self, spec: AgentSpec) -> Model:
        """The agent's model, with its fallbacks behind it.

        Raises:
            AskOperator: as `open_model`, of any model of the chain; and where a limit on money could not be kept.
        """
        self._refuse_unpriced(spec)
        ids = (spec.model, *spec.fallbacks)
        links = [self._link(spec, one, last=at == len(ids) - 1) for at, one in enumerate(ids)]
        return Chain(links, self.known.patience) if len(links) > 1 else links[0]

    def _refuse_unpriced(self, spec: AgentSpec) -> None:
        if strange := unpriced(spec, self.known):
            raise BadSpec(
                f"the agent {spec.name} has a limit on money (limits.cost_usd), which cannot be kept: there is no price for {', '.join(strange)}; "
                "write it into a file named by METIER_MODELS (0 for a model of your own), or take the limit away"
            )

    def _link(self, spec: AgentSpec, model: str, *, last: bool) -> Model:
        raw = self.open(model, timeout_s=spec.limits.request_s)
        if model.partition(":")[0] in LOCAL:
            return Priced(raw, self.known.price(model))
        guarded: Model = Guarded(Timed(raw, spec.limits.request_s), self._fuse(model))
        if limit := self.known.limit(model):
            longest_s = None if last else self.known.patience.wait_s
            guarded = Limited(guarded, self._gate(limit, model, _key_of(raw)), longest_s=longest_s)
        return Priced(guarded, self.known.price(model))

    def _fuse(self, model: str) -> Fuse:
        return self._fuses.setdefault(model, Fuse(self.known.breaker))

    def _gate(self, limit: Limit, model: str, key: str) -> Gate:
        name = bucket_name(limit, model.partition(":")[0], key)
        return self._gates.setdefault(name, Gate(self.buckets, name, limit))


def _key_of(model: Model) -> str:
    """The key with which the model's provider is asked; empty where there is none."""
    from metier_agents.langchain_errors import secrets_of
    from metier_agents.langchain_model import LangChainModel

    return "\n".join(sorted(secrets_of(model.chat))) if isinstance(model, LangChainModel) else ""
