"""Several answers into one: pure functions. Called by `choosers` for panels and cascades, and by authors who ask several agents themselves.

Who says the same is one camp. A key says what is the same: `exact`, `plain`, `numeric`, any function of yours from a text to a text, or `Near`, by an embedding.
An answer that a key breaks on, or gives no text for, agrees with no other. Of two camps of the same weight the one with whoever was to be asked first is the stronger.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from metier_infra.errors import BadSpec
from metier_infra.words import Answer, Word
from metier_workflows.evaluating.numbers import written

EPSILON = 1e-9
"""Shares of a weight are compared to within this: two of three thirds are two thirds."""
DIGITS = 9
"""Weights of camps that are the same to so many digits are the same."""
_UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
"""Characters that show nothing, to be left out."""


class Synthesis(Word):
    """One answer out of several. `support` is the share of the weight behind it (0 to 1); dissent names who said what else."""

    text: str
    agreed: tuple[str, ...]
    support: float
    dissent: dict[str, str]


def exact(text: str) -> str:
    """A key of agreement: every character counts, but for white space round the text."""
    return text.strip()


def plain(text: str) -> str:
    """The ordinary key of agreement: white space, case, what shows nothing (zero-width characters) and how Unicode composes a letter do not count."""
    shown = " ".join(text.translate(_UNSEEN).split())
    return unicodedata.normalize("NFC", shown.casefold())


def numeric(text: str) -> str:
    """A key of agreement: texts that are numbers agree by value, `1,000` with `1e3` and `1/2` with `0.5`; everything else as by `plain`.

    `evaluating.numbers` has the rules. Whole numbers agree to the last digit, others to nine. A unit or currency counts: `12 kg` is not `12 g`, nor `12`.
    """
    if (number := written(text)) is None:
        return plain(text)
    return plain(" ".join(number))


class Embed(Protocol):
    """What gives a text its place among others: a model of yours."""

    def __call__(self, text: str) -> Sequence[float]:
        """Numbers, as many for each text."""
        ...


@dataclass(frozen=True)
class Unkeyed:
    """In place of what a key makes of a text: why it makes nothing of it."""

    why: str


@dataclass(frozen=True)
class Near:
    """A key of agreement: texts agree whose embeddings have a cosine of `threshold` or more. It is called in the orchestrator, so it has to be quick.

    Raises `BadSpec` for a threshold that is no cosine.
    """

    embed: Embed
    threshold: float = 0.9

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise BadSpec(f"the threshold of Near is a cosine, -1 to 1, and not {self.threshold:g}")

    def names(self, texts: Sequence[str]) -> list[str | Unkeyed]:
        """For each text the first one, in order of the alphabet, that it is near to: it stands for the camp."""
        heads: dict[str, Sequence[float]] = {}
        found: dict[str, str | Unkeyed] = {}
        for text in sorted(set(texts)):
            place = self._place(text, heads.values())
            if isinstance(place, Unkeyed):
                found[text] = place
                continue
            near = [head for head, other in heads.items() if cosine(place, other) >= self.threshold]
            found[text] = near[0] if near else text
            if not near:
                heads[text] = place
        return [found[text] for text in texts]

    def _place(self, text: str, others: Collection[Sequence[float]]) -> Sequence[float] | Unkeyed:
        try:
            place = [float(one) for one in self.embed(text)]
        except Exception as error:  # a plug-in: whatever breaks in it, the other answers are there
            return Unkeyed(_why(error))
        if not all(map(math.isfinite, place)):
            return Unkeyed("its embedding is not finite")
        length = len(next(iter(others), place))
        if len(place) != length:
            return Unkeyed(f"its embedding has {len(place)} numbers where another has {length}")
        return place


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """How much two directions are one: 1, down to -1; 0 where one of them has none."""
    length = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / length if length else 0.0


Key = Callable[[str], str] | Near


def _names(key: Key, texts: Sequence[str]) -> list[str | Unkeyed]:
    return key.names(texts) if isinstance(key, Near) else [_name(key, text) for text in texts]


def _name(key: Callable[[str], str], text: str) -> str | Unkeyed:
    try:
        name = cast("object", key(text))
    except Exception as error:  # models say what no author thought of: that is no reason to lose the other answers
        return Unkeyed(_why(error))
    return name if isinstance(name, str) else Unkeyed(f"the key gave {type(name).__name__}, and no text")


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def unkeyed(answers: Sequence[Answer], key: Key) -> dict[str, str]:
    """The agents whose answers a key makes nothing of, and why not."""
    spoken = [one for one in answers if plain(one.text)]
    names = zip(spoken, _names(key, [one.text for one in spoken]), strict=True)
    return {
        one.agent: name.why for one, name in sorted(names, key=lambda pair: pair[0].agent) if isinstance(name, Unkeyed)
    }


@dataclass(frozen=True)
class Camp:
    """Who says the same: the one who counts most first, and what they weigh together."""

    answers: tuple[Answer, ...]
    weight: float

    @property
    def text(self) -> str:
        """In the words of the one who counts most."""
        return self.answers[0].text

    @property
    def agents(self) -> tuple[str, ...]:
        """Their names, sorted."""
        return tuple(sorted(answer.agent for answer in self.answers))


def camps(answers: Sequence[Answer], weights: Mapping[str, float], key: Key = plain) -> list[Camp]:
    """The camps, the strongest first; an empty answer belongs to none. An agent that is not among `weights` weighs 1, and comes after those that are."""

    def weight(answer: Answer) -> float:
        return weights.get(answer.agent, 1.0)

    spoken = sorted((one for one in answers if plain(one.text)), key=lambda one: (weight(one), one.agent), reverse=True)
    places = {name: place for place, name in enumerate(weights)}
    named: dict[tuple[str, str], list[Answer]] = {}
    for name, answer in zip(_names(key, [one.text for one in spoken]), spoken, strict=True):
        named.setdefault(("", answer.agent) if isinstance(name, Unkeyed) else (name, ""), []).append(answer)
    strength = {name: math.fsum(map(weight, camp)) for name, camp in named.items()}

    def rank(name: tuple[str, str]) -> tuple[float, int, str]:
        agents = [answer.agent for answer in named[name]]
        return -round(strength[name], DIGITS), min(places.get(one, len(places)) for one in agents), min(agents)

    return [Camp(tuple(named[name]), strength[name]) for name in sorted(named, key=rank)]


def tied(found: Sequence[Camp]) -> bool:
    """Whether another camp is as strong as the strongest."""
    return len(found) > 1 and round(found[0].weight, DIGITS) == round(found[1].weight, DIGITS)


def synthesise(answers: Sequence[Answer], weights: Mapping[str, float], key: Key = plain) -> Synthesis:
    """The answer with the most weight behind it. Answers agree when their keys are equal; an empty answer supports nothing.

    Args:
        answers: at least one.
        weights: by agent, such as its declared skill; an agent that is not named weighs 1.
        key: what makes two texts the same answer.
    """
    return spoken_for(camps(answers, weights, key))


def spoken_for(found: Sequence[Camp], at: int = 0) -> Synthesis:
    """What the camp at this place says; the strongest, where nothing is said. Everybody else dissents."""
    if not found:
        return Synthesis(text="", agreed=(), support=0.0, dissent={})
    winner, total = found[at], math.fsum(camp.weight for camp in found)
    others = [camp for camp in found if camp is not winner]
    return Synthesis(
        text=winner.text,
        agreed=winner.agents,
        support=winner.weight / (total or 1.0),
        dissent={answer.agent: answer.text for camp in others for answer in camp.answers},
    )


def backing(found: Sequence[Camp], weights: Mapping[str, float], at: int = 0) -> float:
    """The share of the weight of all who were chosen, whether they have answered or not, that stands behind a camp; 0 to 1."""
    total = math.fsum(weights.values())
    return found[at].weight / total if found and total else 0.0


def agree(answers: Sequence[Answer], weights: Mapping[str, float], enough: float, key: Key = plain) -> bool:
    """Whether so much of the weight of all who were chosen stands behind one answer that the others need not be asked."""
    return bool(answers) and backing(camps(answers, weights, key), weights) >= enough - EPSILON


def next_wave(
    left: Sequence[str], answers: Sequence[Answer], weights: Mapping[str, float], enough: float, key: Key = plain
) -> tuple[str, ...]:
    """Of a cascade's members that were not asked yet, the first ones without whom there cannot be enough agreement; all, where there cannot be with all.

    So they are asked at once and yet none in vain: one after the other, each of them would have been asked too.
    """
    found = camps(answers, weights, key)
    need = enough - backing(found, weights)
    total = math.fsum(weights.values()) or 1.0
    for n in range(1, len(left)):
        if math.fsum(weights[name] for name in left[:n]) / total >= need - EPSILON:
            return tuple(left[:n])
    return tuple(left)
