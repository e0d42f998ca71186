"""Which orchestrator serves which version of which workflow. `journal` puts it beside its other parts.

Each orchestrator says so with its leases; `metier_workflows.versions` asks before it gives a run up, `metier workflows list` shows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metier_infra.database import Database, Statement

FORGOTTEN_S = 7 * 86_400
"""After so long a silence, nothing is known any more of what a replica served; seconds."""


@dataclass(frozen=True)
class Version:
    """One version of a workflow; `newest` is the one that new runs take."""

    workflow: str
    version: str
    newest: bool


@dataclass(frozen=True)
class Served:
    """That an instance served a version, and how many seconds ago it last said so."""

    instance: str
    version: Version
    ago_s: float


class Serving:
    """See the module."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def tell(self, instance: str, versions: Iterable[Version]) -> None:
        """This instance serves these now."""
        sql = (
            "INSERT INTO serving (instance, workflow, version, newest, seen_at) VALUES (:instance, :workflow, :version, :newest, :now)"
            " ON CONFLICT (instance, workflow, version) DO UPDATE SET newest = excluded.newest, seen_at = excluded.seen_at"
        )
        told = [
            {"instance": instance, "workflow": one.workflow, "version": one.version, "newest": int(one.newest)}
            for one in versions
        ]
        await self._db.write(
            *(Statement(sql, one) for one in told),
            Statement("DELETE FROM serving WHERE seen_at < :now - :forgotten_s", {"forgotten_s": FORGOTTEN_S}),
        )

    async def all(self) -> Sequence[Served]:
        """All that is known, in order."""
        rows = await self._db.read(
            "SELECT serving.*, :now - seen_at AS ago_s FROM serving ORDER BY workflow, version, instance"
        )
        return [
            Served(
                row["instance"], Version(row["workflow"], row["version"], bool(row["newest"])), max(0.0, row["ago_s"])
            )
            for row in rows
        ]

    async def open_runs(self) -> Sequence[tuple[str, str | None, int]]:
        """Workflow, version (None: not chosen yet) and how many runs of it have not ended."""
        rows = await self._db.read(
            "SELECT workflow, version, count(*) AS n FROM runs WHERE status IN ('accepted', 'running', 'parked')"
            " GROUP BY workflow, version ORDER BY workflow, version"
        )
        return [(row["workflow"], row["version"], int(row["n"])) for row in rows]
