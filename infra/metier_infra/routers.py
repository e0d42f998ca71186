"""The journal's routers: versions that were fitted, how they were judged, where they stand for each tenant, and every move. `journal` puts them beside its other parts.

`metier routers` writes versions and reports; the orchestrator's `promotion` moves them and reads those that stand. A version is never changed or deleted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, JsonValue

from metier_infra.database import Database, Row, Statement
from metier_infra.errors import FencedOff
from metier_infra.words import Word

Stage = Literal["fitted", "shadow", "canary", "promoted", "rolled_back"]
"""Where a version stands: nowhere yet, watched, on trial, deciding, taken out."""
EVERYONE = ""
"""In place of a tenant: all that have nothing of their own."""
_STANDS = (
    "INSERT INTO router_stages (tenant, body, generation) VALUES (:tenant, :body, 1)"
    " ON CONFLICT (tenant) DO UPDATE SET body = excluded.body, generation = router_stages.generation + 1"
    " WHERE router_stages.generation = :seen RETURNING generation"
)
_MOVED = (
    "INSERT INTO router_moves (move_id, generation, tenant, version, stage_before, stage, share, other, moved_by, note, forced, at)"
    " VALUES (:move_id, :generation, :tenant, :version, :stage_before, :stage, :share, :other, :by, :note, :forced, :now)"
)


class Verdict(Word):
    """What was found out about a version before it may decide. `figures` hold all that was measured; `why` is a sentence for a person."""

    verdict: Literal["better", "worse", "undecided", "unjudged"]
    why: str
    figures: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])

    @property
    def judged(self) -> bool:
        """Whether anything could be said at all."""
        return self.verdict != "unjudged"


class RouterVersion(Word):
    """A version without its body. `fitted_on` says on what: its `source`, how many rows, which agents. Times are seconds since the epoch."""

    version: str
    kind: str
    digest: str
    fitted_on: dict[str, JsonValue]
    fitted_by: str
    fitted_at: float = 0.0
    report: Verdict | None = None
    judged_at: float | None = None


class Stages(Word):
    """Where versions stand for one tenant, or for all. `before` are those that were promoted earlier, the last one last.

    `generation` counts the moves that led here.
    """

    promoted: str | None = None
    canary: str | None = None
    share: float = 0.0
    shadows: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    generation: int = Field(default=0, exclude=True)

    @property
    def standing(self) -> tuple[str, ...]:
        """All that is asked at all."""
        return tuple(one for one in (self.promoted, self.canary, *self.shadows) if one is not None)

    def of(self, version: str) -> Stage:
        """Where one stands."""
        if version in self.shadows:
            return "shadow"
        return "canary" if version == self.canary else "promoted" if version == self.promoted else "fitted"


class Move(Word):
    """That a version was moved: from where, to where, by whom and why. `at` is seconds since the epoch."""

    move_id: str
    tenant: str
    version: str
    stage_before: Stage
    stage: Stage
    share: float | None = None
    other: str | None = None
    by: str
    note: str = ""
    forced: bool = False
    at: float = 0.0


@dataclass(frozen=True)
class Fitted:
    """A version with its body."""

    known: RouterVersion
    body: bytes

    @property
    def whole(self) -> bool:
        """Whether the body is what was stored."""
        return digest_of(self.known.kind, self.body) == self.known.digest


def digest_of(kind: str, body: bytes) -> str:
    """64 hex characters that change with any change of what a version does."""
    return hashlib.sha256(kind.encode() + b"\0" + body).hexdigest()


class Routers:
    """See the module."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def keep(self, version: RouterVersion, body: bytes) -> RouterVersion:
        """Store a version unless it is stored; what is stored."""
        await self._db.write(
            Statement(
                "INSERT INTO routers (version, kind, digest, body, fitted_on, fitted_by, fitted_at)"
                " VALUES (:version, :kind, :digest, :body, :fitted_on, :fitted_by, :now) ON CONFLICT (version) DO NOTHING",
                {
                    **version.model_dump(include={"version", "kind", "digest", "fitted_by"}),
                    "fitted_on": json.dumps(version.fitted_on),
                    "body": body,
                },
            )
        )
        return next(one for one in await self.all() if one.version == version.version)

    async def judge(self, version: str, verdict: Verdict) -> None:
        """Keep what was found out about a version; the latest counts."""
        sql = "UPDATE routers SET report = :report, judged_at = :now WHERE version = :version"
        await self._db.write(Statement(sql, {"version": version, "report": verdict.model_dump_json()}))

    async def all(self) -> Sequence[RouterVersion]:
        """Every version, the newest first, without bodies."""
        rows = await self._db.read(
            "SELECT version, kind, digest, fitted_on, fitted_by, fitted_at, report, judged_at FROM routers"
            " ORDER BY fitted_at DESC, version"
        )
        return [_version_of(row) for row in rows]

    async def get(self, version: str) -> Fitted | None:
        """One version with its body."""
        rows = await self._db.read("SELECT * FROM routers WHERE version = :version", {"version": version})
        return Fitted(_version_of(rows[0]), bytes(rows[0]["body"])) if rows else None

    async def stages(self) -> Mapping[str, Stages]:
        """Where versions stand, by tenant; `EVERYONE` is one of them."""
        rows = await self._db.read("SELECT tenant, body, generation FROM router_stages")
        return {row["tenant"]: _stages_of(row) for row in rows}

    async def moves(self, version: str = "", *, limit: int = 100) -> Sequence[Move]:
        """What was moved, the newest first; of one version, or all."""
        rows = await self._db.read(
            "SELECT * FROM router_moves WHERE (:version = '' OR version = :version)"
            " ORDER BY at DESC, generation DESC LIMIT :limit",
            {"version": version, "limit": limit},
        )
        return [_move_of(row) for row in rows]

    async def moved(self, move_id: str) -> Move | None:
        """A move, if it was made."""
        rows = await self._db.read("SELECT * FROM router_moves WHERE move_id = :move_id", {"move_id": move_id})
        return _move_of(rows[0]) if rows else None

    async def move(self, move: Move, seen: Stages, after: Stages) -> bool:
        """Make a move, if the tenant's stages are still those that were seen; whether it was made."""
        fence = {"tenant": move.tenant, "body": after.model_dump_json(), "seen": seen.generation}
        made = move.model_dump(exclude={"at", "forced"})
        facts = {**made, "forced": int(move.forced), "generation": seen.generation + 1}
        try:
            await self._db.write(Statement(_STANDS, fence, must=True), Statement(_MOVED, facts))
        except FencedOff:
            return False
        return True


def _version_of(row: Row) -> RouterVersion:
    report = Verdict.model_validate_json(row["report"]) if row["report"] else None
    facts: dict[str, Any] = {**row, "fitted_on": json.loads(row["fitted_on"]), "report": report}
    return RouterVersion.model_validate(facts)


def _stages_of(row: Row) -> Stages:
    return Stages.model_validate({**json.loads(row["body"]), "generation": int(row["generation"])})


def _move_of(row: Row) -> Move:
    return Move.model_validate({**row, "by": row["moved_by"], "forced": bool(row["forced"])})
