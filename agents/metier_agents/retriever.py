"""The retriever port and its one word, a source.

`retrieval` opens the adapters and searches with them; `citing` shows sources to a model and holds its answer to them.
"""

from __future__ import annotations

from typing import Protocol

from metier_infra.words import Word


class Source(Word):
    """A text that a retriever found. `id` names it among the found; `score` is higher for the better, in the retriever's own unit."""

    id: str
    title: str
    text: str
    score: float = 0.0


class Retriever(Protocol):
    """Finds sources for a question.

    Contract: at most `k`, the best first, none that has nothing to do with the query; nothing found is no error. It raises only `RetryLater`s
    (it may be tried again) and `AskOperator`s. Any query is safe: it is text, and never a language of its own.
    """

    async def find(self, query: str, k: int) -> tuple[Source, ...]:
        """The best sources for `query`."""
        ...
