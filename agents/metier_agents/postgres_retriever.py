"""Rows of a table in the journal's Postgres as sources, ranked by its full text search. `retrieval` opens it.

It speaks through the journal's `Database`, so that the vendor stays where it is. An index that serves it:
`CREATE INDEX ON articles USING gin (to_tsvector('english', text))`.
"""

from __future__ import annotations

from metier_agents.retriever import Source
from metier_agents.spec import Postgres
from metier_infra.database import Database
from metier_infra.errors import BadSpec, MetierError, SchemaBehind

_IS_POSTGRES = "SELECT '1' = 1 AS yes"
"""True in Postgres, where a bare literal takes the type of what it is compared with, and 0 in SQLite, where text is never a number."""


class PostgresRetriever:
    """See `Retriever`. Any word of the query may match; rows with more of them, and rarer forms together, rank first."""

    def __init__(self, db: Database, origin: Postgres) -> None:
        self._db = db
        self._table = origin.table
        self._sql = _search(origin)

    async def find(self, query: str, k: int) -> tuple[Source, ...]:
        """See `Retriever.find`. Raises `BadSpec` when the table is not there or not as declared."""
        if not (await self._db.read(_IS_POSTGRES))[0]["yes"]:
            raise BadSpec("sources of kind postgres need the journal in Postgres: set METIER_POSTGRES_URL")
        try:
            rows = await self._db.read(self._sql, {"query": query.replace("\0", " "), "k": k})
        except SchemaBehind as error:
            raise BadSpec(f"there is no table {self._table} in the journal's database") from error
        except MetierError:
            raise
        except Exception as error:  # the vendor's own: a column or a language that is not there
            raise BadSpec(f"the table {self._table} cannot be searched: {' '.join(str(error).split())}") from error
        return tuple(Source.model_validate(row) for row in rows)


def _search(origin: Postgres) -> str:
    """The statement. Names come from the agent file, whose patterns let nothing through that SQL could take for more than a name."""
    table = ".".join(f'"{part}"' for part in origin.table.split("."))
    vector = f"to_tsvector('{origin.language}', \"{origin.text}\")"
    wanted = f"CAST(replace(CAST(plainto_tsquery('{origin.language}', :query) AS text), '&', '|') AS tsquery)"
    parts = (
        f'SELECT CAST("{origin.id}" AS text) AS id, coalesce(CAST("{origin.title}" AS text), \'\') AS title,',
        f'"{origin.text}" AS text, ts_rank({vector}, wanted) AS score',
        f"FROM {table}, {wanted} AS wanted WHERE {vector} @@ wanted ORDER BY score DESC, 1 LIMIT :k",
    )
    return " ".join(parts)
