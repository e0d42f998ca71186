"""Any LangChain retriever as a source of sources. `retrieval` opens it; it imports nothing but the user's factory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Protocol

from metier_agents.retriever import Source
from metier_infra.errors import BadSpec, MetierError, RetryLater


class Document(Protocol):
    """What a LangChain retriever finds: `langchain_core.documents.Document` has these."""

    @property
    def id(self) -> str | None:
        """Its id, where the store has one."""
        ...

    @property
    def page_content(self) -> str:
        """Its text."""
        ...

    @property
    def metadata(self) -> dict[str, object]:
        """What else is known of it: `source`, `title` and `score` are read."""
        ...


class Finder(Protocol):
    """What is used of a LangChain retriever (`langchain_core.retrievers.BaseRetriever`)."""

    async def ainvoke(self, input: str) -> Sequence[Document]:
        """The documents for a query, best first."""
        ...


class LangChainRetriever:
    """See `Retriever`. `name` is how errors call it. The rank is the vendor's, and what it finds is cut at `k`."""

    def __init__(self, finder: Finder, name: str) -> None:
        self._finder = finder
        self._name = name

    async def find(self, query: str, k: int) -> tuple[Source, ...]:
        """See `Retriever.find`."""
        try:
            found = await self._finder.ainvoke(query)
            return tuple(_source(document, rank) for rank, document in enumerate(found[:k], 1))
        except MetierError:
            raise
        except Exception as error:  # every vendor has its own tree; none of them passes
            raise _translate(error, self._name) from error


def _source(document: Document, rank: int) -> Source:
    known = document.metadata
    name = str(document.id or known.get("source") or f"document {rank}")
    score = known.get("score")
    return Source(
        id=name,
        title=str(known.get("title") or name),
        text=document.page_content,
        score=float(score) if isinstance(score, int | float) else 1 / rank,
    )


def _translate(error: Exception, name: str) -> MetierError:
    """A cut connection may heal; anything else is for whoever wrote the factory."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    if isinstance(error, OSError) or "Timeout" in names or "Connect" in names:
        return RetryLater(f"the retriever {name} does not answer: {said}")
    return BadSpec(f"the retriever {name} broke: {said}")


@lru_cache(maxsize=32)
def open_langchain_retriever(factory: str) -> LangChainRetriever:
    """The retriever that `factory` (module:function) makes; made once in a process. Raises `BadSpec`."""
    module, _, function = factory.partition(":")
    try:
        made = getattr(import_module(module), function)()
    except Exception as error:  # the user's own code
        raise BadSpec(f"the retriever {factory} cannot be made: {type(error).__name__}: {error}") from error
    if not callable(getattr(made, "ainvoke", None)):
        raise BadSpec(f"the retriever {factory} cannot be made: {type(made).__name__} is no LangChain retriever")
    return LangChainRetriever(made, factory)
