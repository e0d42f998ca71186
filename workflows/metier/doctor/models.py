"""The models that agents ask: whether each can be opened with the key that is there; and, where that is wanted, whether it answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from metier import compose
from metier.doctor.case import Case
from metier.doctor.examination import Part
from metier.doctor.finding import Finding, error, ok, skipped, warning
from metier_infra.errors import MetierError

if TYPE_CHECKING:
    from metier_agents.model import Model
    from metier_agents.model_table import Known
    from metier_agents.spec import AgentSpec
    from metier_agents.turns import ModelTurn

OUTPUT_TOKENS = 16
"""The least that every provider takes for a limit: OpenAI's Responses refuse a smaller one."""
ANSWER_S = 30.0
"""How long a model may take to say one word; seconds."""
QUESTION = "Answer with the one word: yes"


def examine(case: Case) -> list[Finding]:
    """See `Part`."""
    specs = [one for name, one in sorted(_specs(case).items()) if not case.asked.agents or name in case.asked.agents]
    ids = list(dict.fromkeys(one for spec in specs for one in (spec.model, *spec.fallbacks)))
    return asyncio.run(_looked(case, ids, specs))


def _specs(case: Case) -> dict[str, AgentSpec]:
    try:
        return compose.agent_specs(case.config)
    except MetierError:
        return {}


async def _looked(case: Case, ids: Sequence[str], specs: Sequence[AgentSpec]) -> list[Finding]:
    """All models at the same time."""
    from metier_agents.model_table import read_known

    known = read_known(case.config.models.models)
    looks = [_model(one, _agents_of(one, specs), known, ask=case.models) for one in ids]
    found = [one for pair in await asyncio.gather(*looks) for one in pair]
    return found or [skipped("models.opened", "no agent's file can be read: see files.agents")]


def _agents_of(model: str, specs: Iterable[AgentSpec]) -> str:
    return ", ".join(spec.name for spec in specs if model in (spec.model, *spec.fallbacks))


async def _model(name: str, agents: str, known: Known, *, ask: bool) -> list[Finding]:
    from metier_agents.models import LOCAL, open_model

    opened = ok("models.opened", f"for {agents}", of=name)
    try:
        model = open_model(name, recordings=compose.recordings_path(), timeout_s=ANSWER_S)
    except MetierError as wrong:
        return [error("models.opened", str(wrong), f"set what it names where {agents} runs", of=name)]
    if name.partition(":")[0] in LOCAL:
        return [opened, skipped("models.answered", "it is asked over no network, and has no key", of=name)]
    if not ask:
        return [opened, skipped("models.answered", "`--models` asks each model for a word", of=name)]
    return [opened, await _asked(model, known)]


async def _asked(model: Model, known: Known) -> Finding:
    """What comes of asking it for a word."""
    from metier_agents.model import Options
    from metier_agents.prices import Priced
    from metier_agents.timed import Timed
    from metier_agents.turns import User

    asked = Priced(Timed(model, ANSWER_S), known.price(model.name))
    words, deadline = [User(text=QUESTION)], time.time() + ANSWER_S
    try:
        turn = await asked.ask(
            words, tools=(), tool_choice="none", deadline=deadline, options=Options(output_tokens=OUTPUT_TOKENS)
        )
    except MetierError as wrong:
        return error(
            "models.answered", str(wrong), "see whether its key is valid, and may use this model", of=model.name
        )
    return answered(model.name, turn)


def answered(name: str, turn: ModelTurn) -> Finding:
    """What to think of its answer, and what that cost."""
    tokens = turn.usage.input_tokens + turn.usage.output_tokens if turn.usage else None
    cost = "an unknown price" if turn.cost_usd is None else f"{turn.cost_usd:.6f} USD"
    seen = f"it answered, for {cost} ({'an unknown number of' if tokens is None else tokens} tokens)"
    if turn.cost_usd is None:
        return warning(
            "models.answered", seen, "write its price into the file of METIER_MODELS: limits on money need it", of=name
        )
    return ok("models.answered", seen, of=name)


PART = Part(
    "models",
    ("models.opened", "models.answered"),
    examine,
    frozenset({"agent"}),
    within_s=2 * ANSWER_S,
    mend="see whether the provider can be reached from here",
)
