"""What becomes of an answer, and of a refusal, under a safety bundle. Pure: the loop asks before it takes an answer.

Details are struck out first, and everything is checked in what is left: so the order of the checks does not matter, and what could not be
struck out is still found. An answer is all that leaves the agent: its text, its claims with their quotes, its conflicts and open questions.
A check reads text by its form; it does not understand it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from metier_agents import details
from metier_agents.patterns import found
from metier_agents.safety import Bundle, Check, Claims, Detail, Longest, MustMatch, MustNotMatch, NoDetails
from metier_infra.words import Answer, Claim, Conflict

LONGEST = 2_000_000
"""Characters of an answer that is checked at all."""


@dataclass(frozen=True)
class Pass:
    """The answer may be given as it is."""


@dataclass(frozen=True)
class AskAgain:
    """The model is to answer again, and is told this."""

    note: str


@dataclass(frozen=True)
class Withhold:
    """The answer is held back. The sentence shows nothing of it."""

    why: str


@dataclass(frozen=True)
class Masked:
    """The answer may be given as it is here."""

    answer: Answer


def check_output(bundle: Bundle | None, answer: Answer, *, asked: int = 0) -> Pass | AskAgain | Withhold | Masked:
    """What becomes of an answer. `asked`: how often the model was asked again in this call, for whichever check."""
    if bundle is None or not bundle.output:
        return Pass()
    if sum(map(len, _every(answer))) > LONGEST:
        return Withhold(f"the answer is longer than {LONGEST} characters, and is not checked")
    left = _struck_out(answer, bundle.output)
    failed = [check for check in bundle.output if not _holds(check, left)]
    if any(check.then != "ask_again" for check in failed) or (failed and asked >= bundle.asks):
        return Withhold(_said(failed))
    if failed:
        return AskAgain(_said(failed))
    return Masked(left) if left != answer else Pass()


def _said(failed: Iterable[Check]) -> str:
    return " ".join(sorted({check.say or _default(check) for check in failed}))


def _default(check: Check) -> str:
    """Nothing of the answer, nor the pattern, which may itself be what nobody is to read."""
    match check:
        case MustNotMatch():
            return "The answer holds what must not be in it."
        case MustMatch():
            return "The answer lacks what must be in it."
        case Longest():
            return f"The answer must be at most {check.characters} characters long."
        case NoDetails():
            return f"The answer must hold none of these: {', '.join(sorted(check.of))}."
        case Claims():
            return f"The answer must stand on at least {check.at_least} claims with quotes from sources."


def _holds(check: Check, answer: Answer) -> bool:
    match check:
        case MustNotMatch():
            return not any(found(check.pattern, text) for text in _every(answer))
        case MustMatch():
            return any(found(check.pattern, text) for text in (answer.text, *(claim.text for claim in answer.claims)))
        case Longest():
            return sum(map(len, _every(answer))) <= check.characters
        case NoDetails():
            return not any(details.has(text, check.of) for text in _every(answer))
        case Claims():
            return len(answer.claims) >= check.at_least or (not answer.claims and bool(answer.unresolved))


def _every(answer: Answer) -> Iterator[str]:
    """Every text of an answer that a model or a source wrote."""
    yield answer.text
    yield from answer.unresolved
    for claim in (*answer.claims, *(side for conflict in answer.conflicts for side in conflict.sides)):
        yield from (claim.text, claim.source, claim.quote)
    yield from (conflict.about for conflict in answer.conflicts)


def _struck_out(answer: Answer, checks: Iterable[Check]) -> Answer:
    masking = [check for check in checks if isinstance(check, MustNotMatch | NoDetails) and check.then == "mask"]
    kinds: set[Detail] = {kind for check in masking if isinstance(check, NoDetails) for kind in check.of}
    patterns = sorted({check.pattern for check in masking if isinstance(check, MustNotMatch)})
    return _each(answer, lambda text: _without(details.masked(text, kinds), patterns))


def _without(text: str, patterns: list[str]) -> str:
    """The text with every word struck out in which a pattern is found."""

    def word(match: re.Match[str]) -> str:
        return "[withheld]" if any(found(pattern, match[0]) for pattern in patterns) else match[0]

    return re.sub(r"\S+", word, text) if any(found(pattern, text) for pattern in patterns) else text


def _each(answer: Answer, change: Callable[[str], str]) -> Answer:
    """The answer with every text changed; what names a source stays, for it is looked up by it."""

    def claim(one: Claim) -> Claim:
        return one.model_copy(update={"text": change(one.text), "quote": change(one.quote)})

    def conflict(one: Conflict) -> Conflict:
        return one.model_copy(update={"about": change(one.about), "sides": tuple(map(claim, one.sides))})

    return answer.model_copy(
        update={
            "text": change(answer.text),
            "claims": tuple(map(claim, answer.claims)),
            "conflicts": tuple(map(conflict, answer.conflicts)),
            "unresolved": tuple(map(change, answer.unresolved)),
        }
    )


def on_refusal(bundle: Bundle | None, *, asked: int = 0) -> AskAgain | Literal["take", "next_model", "fail"]:
    """What is done when a model declines to answer. `asked`: how often it was asked again after declining."""
    if bundle is None:
        return "take"
    if bundle.refusal.then != "ask_again":
        return bundle.refusal.then
    return AskAgain(bundle.refusal.say or _WITHIN) if asked < bundle.refusal.times else bundle.refusal.after


_WITHIN = (
    "The task is within what you are allowed to do here. Do it as far as you can, and say what you leave out and why."
)
