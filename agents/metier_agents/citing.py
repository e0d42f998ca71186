"""Sources in the prompt, and answers held to them: pure functions over the message list.

The loop puts `sources_message` under the task and asks `complaint` before it takes an answer; `outcome` ends with `cite`. Retrieved text is
data: each source is one line of JSON between two lines that carry a random word, so nothing in it can begin a line, let alone end the
block; and which tools are bound is the policy's decision, which reads none of it.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from metier_agents import wording
from metier_agents.retriever import Source
from metier_agents.spec import AgentSpec, Strategy
from metier_agents.turns import History, ModelTurn, Note, User, of_kind
from metier_infra.words import Answer, Claim, Conflict, Word

LONGEST_REPLY = 100_000
LONGEST_QUOTE = 2_000
SHORTEST_QUOTE = 8
_WORD = re.compile(r"\w", re.ASCII)
_ENDS_INSIDE = re.compile(r"(?:\w|\d[.,])$", re.ASCII)
_BEGINS_INSIDE = re.compile(r"\w|[.,]\d", re.ASCII)
_BREAKS = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "\x7f\x85\u2028\u2029"})


class Cited(Word):
    """The block that a model writes. What is missing or of another type makes the whole block unreadable."""

    claims: tuple[Claim, ...]
    conflicts: tuple[Conflict, ...]
    unresolved: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """What of a reply stands, and one sentence for each thing that does not."""

    claims: tuple[Claim, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    unresolved: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing stands. To say only what is unresolved is an answer, unless claims were struck out beside it."""
        return not (self.claims or self.conflicts) and bool(self.wrong or not self.unresolved)


def sources_message(sources: Sequence[Source]) -> tuple[str, str]:
    """The block of sources, and the random word on its first and last line."""
    word = f"sources-{secrets.token_hex(16)}"
    lines = [
        json.dumps(source.model_dump(include={"id", "title", "text"}), ensure_ascii=False).translate(_BREAKS)
        for source in sources
    ]
    return "\n".join([f"<<<{word}", *lines, f"{word}>>>"]), word


def sources_of(history: History) -> tuple[Source, ...]:
    """The sources of a call that has some: its last `User` message is their block."""
    return tuple(Source.model_validate_json(line) for line in of_kind(history, User)[-1].text.split("\n")[1:-1])


def complaint(history: History, spec: AgentSpec) -> str | None:
    """What to tell the model once, when nothing of its answer stands; None when the answer is to be taken as it is."""
    if spec.retrieval is None or any(note.text.startswith(wording.CITE_AGAIN) for note in of_kind(history, Note)):
        return None
    checked = _checked(history, spec.retrieval.strategy)
    return wording.cite_again_text(checked.wrong) if checked.empty else None


def cite(answer: Answer, history: History, spec: AgentSpec) -> Answer:
    """The answer with what of it stands on sources. Where nothing does, its text says that it is unresolved."""
    if spec.retrieval is None:
        return answer
    strategy = spec.retrieval.strategy
    checked = _checked(history, strategy)
    stands = bool(checked.claims or (checked.conflicts and strategy == "synthesise"))
    open_ended = {} if stands else {"text": wording.UNRESOLVED, "confidence": None, "stopped": _stopped(answer)}
    return answer.model_copy(
        update={
            **open_ended,
            "claims": checked.claims,
            "conflicts": checked.conflicts,
            "unresolved": (*checked.unresolved, *checked.wrong),
        }
    )


def _stopped(answer: Answer) -> str:
    return "unresolved" if answer.stopped == "answered" else answer.stopped


def _checked(history: History, strategy: Strategy) -> Checked:
    replies = [turn for turn in of_kind(history, ModelTurn) if turn.purpose == "answer" and not turn.uses]
    return check(replies[-1].text, sources_of(history), strategy)


def check(reply: str, sources: Sequence[Source], strategy: Strategy) -> Checked:
    """What of a reply stands on `sources`. What is contested is no claim where the strategy is to acknowledge it."""
    cited = read_block(reply)
    if isinstance(cited, str):
        return Checked(wrong=(cited,))
    texts = {source.id: source.text for source in sources}
    judged = [_claim(claim, texts) for claim in cited.claims]
    fought = [_conflict(conflict, texts) for conflict in cited.conflicts]
    return _settled(
        Checked(
            tuple(one for one in judged if isinstance(one, Claim)),
            tuple(one for one in fought if isinstance(one, Conflict)),
            tuple(filter(None, map(_line, cited.unresolved))),
            tuple(one for one in [*judged, *fought] if isinstance(one, str)),
        ),
        strategy,
    )


def _settled(checked: Checked, strategy: Strategy) -> Checked:
    if strategy != "acknowledge":
        return checked
    contested = {(side.source, side.quote) for conflict in checked.conflicts for side in conflict.sides}
    return Checked(
        tuple(claim for claim in checked.claims if (claim.source, claim.quote) not in contested),
        checked.conflicts,
        tuple(dict.fromkeys([*checked.unresolved, *(conflict.about for conflict in checked.conflicts)])),
        checked.wrong,
    )


def read_block(reply: str) -> Cited | str:
    """The one block of a reply, or why it cannot be read."""
    lines = [line.rstrip() for line in reply.split("\n")]
    opened = [at for at, line in enumerate(lines) if line == "```json"]
    if len(reply) > LONGEST_REPLY or len(opened) != 1 or "```" not in lines[opened[0] :]:
        return f"a reply has one block between the lines ```json and ```, and at most {LONGEST_REPLY} characters"
    block = "\n".join(lines[opened[0] + 1 : lines.index("```", opened[0])])
    try:
        return Cited.model_validate_json(block, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return f"the block cannot be read: {'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg']}"


def _claim(claim: Claim, texts: dict[str, str]) -> Claim | str:
    """The claim, tidied, or why it does not stand."""
    if claim.source not in texts:
        return f"{_line(claim.text)}: there is no source {_line(claim.source)!r}"
    found = span(claim.quote, texts[claim.source])
    if not found or not claim.text.strip():
        return f"{_line(claim.text)}: the quote {_line(claim.quote)!r} is not in the source {claim.source}"
    return Claim(text=_line(claim.text), source=claim.source, quote=found)


def _conflict(conflict: Conflict, texts: dict[str, str]) -> Conflict | str:
    judged = [_claim(side, texts) for side in conflict.sides]
    sides = tuple(side for side in judged if isinstance(side, Claim))
    if len(sides) < len(judged) or len({side.source for side in sides}) < 2:
        return f"the conflict about {_line(conflict.about)}: it needs sides of two sources, each with a quote from it"
    return Conflict(about=_line(conflict.about), sides=sides)


def span(quote: str, text: str) -> str | None:
    """The quote, if `text` has it: the same characters, white space aside, from whole word to whole word. None: not there."""
    wanted, inside = " ".join(quote.split()), " ".join(text.split())
    if not SHORTEST_QUOTE <= len(wanted) <= LONGEST_QUOTE:
        return None
    places = re.finditer(re.escape(wanted), inside)
    return wanted if any(_whole(inside, place.start(), place.end()) for place in places) else None


def _whole(text: str, start: int, end: int) -> bool:
    """Whether the span cuts no word and no number: `5 million` is no quote from `15 million` or `1.5 million`."""
    cut_first = _WORD.match(text[start]) and _ENDS_INSIDE.search(text[max(0, start - 2) : start])
    cut_last = _WORD.match(text[end - 1]) and _BEGINS_INSIDE.match(text[end : end + 2])
    return not (cut_first or cut_last)


def _line(text: str) -> str:
    """Text of a model on one line, cut: it is shown and sent on."""
    plain = " ".join(text.split())
    return plain if len(plain) <= 500 else plain[:499] + "…"
