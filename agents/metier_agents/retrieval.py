"""Where an agent's sources come from: which retriever it has, and the search that opens a call.

The loop calls `find_sources` once a call, before the first turn; `sources_message` writes what it found into the prompt and `citing`
checks answers against it. `retriever` is the port; `bm25_retriever`, `postgres_retriever` and `langchain_retriever` are its adapters.
"""

from __future__ import annotations

from typing import assert_never

from metier_agents.retriever import Retriever, Source
from metier_agents.spec import Files, LangChain, Origin, Postgres, Retrieval
from metier_infra.database import Database

LONGEST_TEXT = 8_000
LONGEST_NAME = 200


def open_retriever(origin: Origin, db: Database) -> Retriever:
    """The retriever of an agent; `db` is the journal's database. Raises `MissingPackage` or `BadSpec`."""
    match origin:
        case Files():
            from metier_agents.bm25_retriever import Bm25Retriever

            return Bm25Retriever(origin.folder, origin.pattern)
        case Postgres():
            from metier_agents.postgres_retriever import PostgresRetriever

            return PostgresRetriever(db, origin)
        case LangChain():
            from metier_agents.langchain_retriever import open_langchain_retriever

            return open_langchain_retriever(origin.factory)
        case _:
            assert_never(origin)


async def find_sources(retrieval: Retrieval, db: Database, query: str) -> tuple[Source, ...]:
    """What the agent may answer from: the best source alone where it is the authority, else all that were found. Raises as `Retriever`."""
    found = await open_retriever(retrieval.origin, db).find(query, retrieval.k)
    shown = found[:1] if retrieval.strategy == "authoritative" else found[: retrieval.k]
    return _apart([_plain(source) for source in shown])


def _plain(source: Source) -> Source:
    """The source as it can be stored and shown: no NUL, no broken character, not longer than a prompt can take."""
    return Source(
        id=_name(source.id),
        title=_name(source.title),
        text=_text(source.text)[:LONGEST_TEXT],
        score=source.score,
    )


def _name(text: str) -> str:
    """On one line: names are repeated to the model outside the block of sources."""
    return " ".join(_text(text).split())[:LONGEST_NAME]


def _text(text: str) -> str:
    return text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")


def _apart(sources: list[Source]) -> tuple[Source, ...]:
    """The sources with ids that differ: a quote must name one."""
    seen: dict[str, Source] = {}
    for source in sources:
        number, name = 1, source.id
        while name in seen:
            number += 1
            name = f"{source.id}~{number}"
        seen[name] = source.model_copy(update={"id": name})
    return tuple(seen.values())
