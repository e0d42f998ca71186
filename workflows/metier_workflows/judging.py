"""One answer out of several that differ, by an agent: a judge says which is right, or a writer makes one of all. `choosers` calls it.

What the agents answered goes to it as the task's context: data, fenced off from the instructions, without the names of who said it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import JsonValue

from metier_infra.words import Answer, Task
from metier_workflows.panel import Camp

How = Literal["judge", "synthesis"]
JUDGE = (
    "Several answered the question in the context, and not the same. Which of the answers is right? "
    "Solve it yourself first. The answer to give is the number of the right one and nothing else."
)
WRITER = (
    "Several answered the question in the context. Write one answer to it out of theirs: keep what they agree on, check what they do not, "
    "and say what stays open. The answer to give is that text and nothing else."
)
LONGEST = 20_000
"""So many characters of each answer are shown."""
_NUMBER = re.compile(r"\d+")


def put(how: How, question: Task, camps: Sequence[Camp]) -> Task:
    """What the judge or writer is asked, the same for the same answers."""
    shown: list[JsonValue] = [{"number": n, "answer": camp.text[:LONGEST]} for n, camp in enumerate(camps, 1)]
    context: dict[str, JsonValue] = {"question": question.text, "answers": shown}
    if question.context:
        context["about"] = question.context
    return Task(text=JUDGE if how == "judge" else WRITER, category=question.category, context=context)


def verdict(answer: Answer, camps: Sequence[Camp]) -> int | None:
    """The place of the camp that a judge names; None where it names none, or several."""
    named = {int(number) for number in _NUMBER.findall(answer.text[:100])}
    at = named.pop() - 1 if len(named) == 1 else -1
    return at if 0 <= at < len(camps) else None
