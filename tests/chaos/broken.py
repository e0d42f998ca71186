"""`metier` with one of its mechanisms taken out: what test_mechanisms starts in its place, to see the checks of `metier chaos` go red.

Started as `python broken.py MECHANISM ROLE…`. The product has no such switch; here its parts are replaced before it starts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from metier_infra.failpoints import failpoint


def put(place: type, name: str, other: object) -> None:
    """Put another thing in the place of a method."""
    setattr(place, name, other)


def dedup() -> None:
    """A request that comes again starts a run again."""
    import secrets

    from metier_infra.runs import Runs

    accept = Runs.accept

    async def always(self: Runs, run: Any, *beside: Any, **named: Any) -> Any:
        stored, new = await accept(self, run, *beside, **named)
        if new:
            return stored, new
        other = secrets.token_hex(16)
        return await accept(self, run.model_copy(update={"run_id": other, "event_id": other}), *beside, **named)

    put(Runs, "accept", always)


def deaf() -> None:
    """A process that lost its runs does not hear of it. No promise rests on that it does: it is fenced off."""
    from metier_workflows.holdings import Holdings

    def ignore(self: Holdings, partitions: Collection[int]) -> None:
        del self, partitions

    put(Holdings, "moved", ignore)


def fencing() -> None:
    """A process that lost its run writes to it all the same."""
    deaf()
    from metier_infra.database import Statement
    from metier_infra.postgres_journal import PostgresDatabase

    write = PostgresDatabase.write

    def unfenced(statement: Statement) -> Statement:
        sql = statement.sql.replace(" AND epoch = :epoch", "").replace(
            " AND status = 'running' RETURNING", " RETURNING"
        )
        return replace(statement, sql=sql, must=False)

    async def careless(self: PostgresDatabase, *statements: Statement) -> Sequence[Any]:
        return await write(self, *map(unfenced, statements))

    put(PostgresDatabase, "write", careless)


def sync_durability() -> None:
    """A graph is written down when it ends, and not after each superstep."""
    from langgraph.pregel import Pregel

    astream: Callable[..., Any] = vars(Pregel)["astream"]

    def late(self: Any, *arguments: Any, **named: Any) -> Any:
        return astream(self, *arguments, **{**named, "durability": "exit"})

    put(Pregel, "astream", late)


def outbox() -> None:
    """What is to be sent is noted as sent first: a crash between, and nobody sends it."""
    from metier_workflows.execution import Execution

    announce: Callable[..., Any] = vars(Execution)["announce"]

    async def hopeful(self: Any, run: Any, *more: Any) -> None:
        await self._journal.runs.announced(run.run_id)
        failpoint("run.told")
        await announce(self, run, *more)

    put(Execution, "announce", hopeful)


def offset_tracking() -> None:
    """What was fetched is committed, whether it was handled or not."""
    from metier_infra.offsets import Offsets

    put(Offsets, "committable", property(lambda self: self._highest + 1))


MECHANISMS: Mapping[str, Callable[[], None]] = {
    one.__name__: one for one in (dedup, deaf, fencing, sync_durability, outbox, offset_tracking)
}


if __name__ == "__main__":
    mechanism, sys.argv[1:] = sys.argv[1], sys.argv[2:]
    MECHANISMS[mechanism]()
    from metier.cli import main

    main()
