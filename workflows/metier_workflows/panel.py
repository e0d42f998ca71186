"""Several answers into one: pure functions. Called by workflows after a panel was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from metier_infra.words import Answer, Word

Key = Callable[[str], str]


class Synthesis(Word):
    """One answer out of several. `support` is the share of the weight behind it (0 to 1); dissent names who said what else."""

    text: str
    agreed: tuple[str, ...]
    support: float
    dissent: dict[str, str]


def plain(text: str) -> str:
    """The ordinary key of agreement: white space and case do not count."""
    return " ".join(text.split()).casefold()


def synthesise(answers: Sequence[Answer], weights: Mapping[str, float], key: Key = plain) -> Synthesis:
    """The answer with the most weight behind it. Answers agree when their keys are equal; an empty answer supports nothing.

    Args:
        answers: at least one.
        weights: by agent, such as its declared skill; an agent that is not named weighs 1.
        key: what makes two texts the same answer.
    """
    camps: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.text.strip():
            camps.setdefault(key(answer.text), []).append(answer)
    if not camps:
        return Synthesis(text="", agreed=(), support=0.0, dissent={})
    strength = {name: sum(weights.get(answer.agent, 1.0) for answer in camp) for name, camp in camps.items()}
    best = max(camps, key=lambda name: (strength[name], name))
    spoken = max(camps[best], key=lambda answer: (weights.get(answer.agent, 1.0), answer.agent))
    return Synthesis(
        text=spoken.text,
        agreed=tuple(sorted(answer.agent for answer in camps[best])),
        support=strength[best] / (sum(strength.values()) or 1.0),
        dissent={answer.agent: answer.text for name, camp in camps.items() if name != best for answer in camp},
    )
