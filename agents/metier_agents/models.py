"""Finds the model for an id. `compose` opens each agent's model with it, once, before the worker starts."""

from __future__ import annotations

from pathlib import Path

from metier_agents.model import Model, read_script
from metier_infra.errors import BadSpec


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
    from metier_agents.langchain_model import open_chat_model

    return open_chat_model(model, timeout_s=timeout_s)


def _recorded(model: str, recordings: Path | None) -> Model:
    from metier_agents.recorded_model import RecordedModel
    from metier_agents.recordings import read_recordings

    if recordings is None:
        raise BadSpec(f"recorded:{model} needs a file of recordings, and none was given")
    return RecordedModel(read_recordings(recordings), model)
