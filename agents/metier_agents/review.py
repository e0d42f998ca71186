"""Why an answer is not taken yet, and what becomes of one that is. Pure functions over the message list, asked by the loop.

What a model declines, what does not stand on its sources, what it should think over and what its safety bundle does not let out: each may be a
reason to ask once more. In the end the bundle lets an answer go, with what it strikes out, or holds it back.
"""

from __future__ import annotations

from metier_agents import wording
from metier_agents.citing import complaint
from metier_agents.outcome import conclude
from metier_agents.output_check import AskAgain, Masked, Withhold, check_output, on_refusal
from metier_agents.reasoning import reflect
from metier_agents.safety import Bundle
from metier_agents.spec import AgentSpec
from metier_agents.turns import History, ModelTurn, Note, of_kind
from metier_infra.errors import AnswerWithheld, ModelRefused
from metier_infra.words import Answer


def wanted(history: History, spec: AgentSpec, bundle: Bundle | None) -> str | None:
    """What to tell the model before it answers again; None when its answer is to be taken. Raises `ModelRefused`."""
    if declined(history):
        return _insist(history, spec, bundle)
    if cut(history) and not _told(history, wording.CUT):
        return wording.CUT
    return complaint(history, spec) or reflect(history, spec) or _mend(history, spec, bundle)


def declined(history: History) -> bool:
    """Whether the model, or its provider's filter, declined in its last turn."""
    return any(turn.refused for turn in of_kind(history, ModelTurn)[-1:])


def cut(history: History) -> bool:
    """Whether the model's last reply ended at its longest, so that its end, where the answer stands, may be missing."""
    return any(turn.cut for turn in of_kind(history, ModelTurn)[-1:])


def next_on_refusal(history: History, bundle: Bundle | None) -> bool:
    """Whether the next model of the chain is to be asked, should the one that is asked now decline."""
    if bundle is None:
        return False
    refusal = bundle.refusal
    insisted = refusal.then == "ask_again" and _told(history, wording.DECLINED) >= refusal.times
    return refusal.then == "next_model" or (insisted and refusal.after == "next_model")


def _insist(history: History, spec: AgentSpec, bundle: Bundle | None) -> str | None:
    match on_refusal(bundle, asked=_told(history, wording.DECLINED)):
        case AskAgain(note):
            return f"{wording.DECLINED} {note}"
        case "fail":
            raise ModelRefused(f"the model of {spec.name} declined the task, and its safety bundle makes that the end")
        case _:
            return None


def _mend(history: History, spec: AgentSpec, bundle: Bundle | None) -> str | None:
    found = check_output(bundle, conclude(history, spec), asked=_told(history, wording.MEND))
    return f"{wording.MEND} {found.note}" if isinstance(found, AskAgain) else None


def _told(history: History, begin: str) -> int:
    return sum(note.text.startswith(begin) for note in of_kind(history, Note))


def _ended(history: History) -> str:
    if declined(history):
        return "declined"
    return "cut" if cut(history) else "answered"


def released(history: History, spec: AgentSpec, bundle: Bundle | None, *, stopped: str = "answered") -> Answer:
    """The answer as it may leave the agent. Raises `AnswerWithheld`, and as `conclude` does."""
    answer = conclude(history, spec, stopped=_ended(history) if stopped == "answered" else stopped)
    found = check_output(bundle, answer, asked=bundle.asks if bundle else 0)
    if isinstance(found, Withhold):
        raise AnswerWithheld(f"the safety bundle held the answer of {spec.name} back: {found.why}")
    return found.answer if isinstance(found, Masked) else answer
