"""LangGraph's checkpoints in the journal: one transaction a superstep, only the channels that changed, fenced by the run's epoch.

The orchestrator gives one saver to each run it holds. A process that lost the run gets `FencedOff` and has written nothing.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_checkpoint_metadata,
    writes_sort_key,
)
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from metier_infra import metrics
from metier_infra.database import Database, Row, Statement
from metier_infra.failpoints import failpoint

_INSERT_VALUES = (
    "INSERT INTO channel_values (run_id, ns, channel, version, kind, body) VALUES ROWS ON CONFLICT DO NOTHING"
)
_INSERT_WRITES = (
    "INSERT INTO channel_writes (run_id, ns, checkpoint_id, task_id, path, idx, channel, kind, body) VALUES ROWS"
    " ON CONFLICT (run_id, ns, checkpoint_id, task_id, idx) DO "
)
_KEEP = "NOTHING"
_REPLACE = "UPDATE SET channel = excluded.channel, kind = excluded.kind, body = excluded.body"
_INSERT_CHECKPOINT = (
    "INSERT INTO checkpoints (run_id, ns, checkpoint_id, parent_id, kind, body, metadata)"
    " VALUES (:run_id, :ns, :checkpoint_id, :parent_id, :kind, :body, :metadata)"
    " ON CONFLICT (run_id, ns, checkpoint_id) DO UPDATE SET metadata = excluded.metadata, body = excluded.body"
)
_ROWS_AT_ONCE = 50
_TURNS = 8
"""Turns of the event loop that the writes of a node wait for the checkpoint of their superstep: LangGraph stores it in the next one or two."""


class Early:
    """The writes of a finished node, before they are stored."""

    def __init__(self, statements: Sequence[Statement]) -> None:
        self.statements = statements
        self._error: BaseException | None = None
        self._settled = asyncio.Event()

    def failed(self, error: BaseException) -> None:
        """They could not be stored."""
        self._error = error

    def settled(self) -> None:
        """It is known what became of them."""
        self._settled.set()

    async def stored(self) -> None:
        """Wait until they are stored. Raises what kept them from it."""
        await self._settled.wait()
        if self._error is not None:
            raise self._error


class JournalSaver(BaseCheckpointSaver[str]):
    """A checkpoint saver over the journal's database. LangGraph's `thread_id` is our `run_id`.

    `epoch` is the lease under which the run is held; None writes unfenced, for tools that own no run. Only types that LangGraph
    holds to be safe are read back; a state should be JSON-like.
    """

    def __init__(self, db: Database, epoch: int | None = None) -> None:
        super().__init__(serde=JsonPlusSerializer(allowed_msgpack_modules=None))
        self._db = db
        self._epoch = epoch
        self._early: list[Early] = []
        self._begun: list[CheckpointTuple | None] = []
        self._storing = asyncio.Lock()

    def get_next_version(self, current: str | None, channel: None) -> str:
        """A version that grows, and differs between forks of one checkpoint."""
        del channel
        number = 0 if current is None else int(current.split(".")[0])
        return f"{number + 1:032}.{secrets.token_hex(8)}"

    def _fence(self, run_id: str) -> list[Statement]:
        if self._epoch is None:
            return []
        sql = "UPDATE runs SET lost = 0 WHERE run_id = :run_id AND epoch = :epoch"
        return [Statement(sql, {"run_id": run_id, "epoch": self._epoch}, must=True)]

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint and the channels that changed in it. Raises `FencedOff`."""
        place = _place(config)
        values = checkpoint["channel_values"]
        kind, body = self.serde.dumps_typed({**checkpoint, "channel_values": {}})
        changed = [self._value(channel, str(version), values) for channel, version in new_versions.items()]
        row = {
            **place,
            "checkpoint_id": checkpoint["id"],
            "parent_id": get_checkpoint_id(config),
            "kind": kind,
            "body": body,
            "metadata": json.dumps(get_checkpoint_metadata(config, metadata)),
        }
        stored = _insert(_INSERT_VALUES, place, changed)
        await self._write(place["run_id"], *stored, Statement(_INSERT_CHECKPOINT, row))
        failpoint("checkpoint.stored")
        return _config(place, checkpoint["id"])

    async def _write(self, run_id: str, *statements: Statement) -> None:
        """Write under the fence, together with the writes of nodes that are not stored yet."""
        async with self._storing:
            early, self._early = self._early, []
            held = [statement for one in early for statement in one.statements]
            if not held and not statements:
                return
            try:
                with metrics.timed(metrics.CHECKPOINT_DURATION):
                    await self._db.write(*self._fence(run_id), *held, *statements)
            except BaseException as error:
                for one in early:
                    one.failed(error)
                raise
            finally:
                for one in early:
                    one.settled()

    def _value(self, channel: str, version: str, values: Mapping[str, Any]) -> Mapping[str, object]:
        kind, body = self.serde.dumps_typed(values[channel]) if channel in values else ("empty", b"")
        return {"channel": channel, "version": version, "kind": kind, "body": body}

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what one finished node wrote: with the checkpoint of its superstep, or at once where other nodes still run. Raises `FencedOff`."""
        place = _place(config)
        task = {**place, "checkpoint_id": get_checkpoint_id(config) or "", "task_id": task_id, "path": task_path}
        special = all(channel in WRITES_IDX_MAP for channel, _ in writes)
        rows = [
            {"idx": WRITES_IDX_MAP.get(channel, n), **self._typed(channel, value)}
            for n, (channel, value) in enumerate(writes)
        ]
        unique = list({row["idx"]: row for row in (rows if special else reversed(rows))}.values())
        early = Early(_insert(_INSERT_WRITES + (_REPLACE if special else _KEEP), task, unique))
        self._early.append(early)
        async with self._storing:  # the next checkpoint waits for it too, and may take these along
            pass
        for _ in range(_TURNS):
            await asyncio.sleep(0)
            if early not in self._early:
                return await early.stored()
        await self._write(place["run_id"])
        return await early.stored()

    def _typed(self, channel: str, value: object) -> dict[str, object]:
        kind, body = self.serde.dumps_typed(value)
        return {"channel": channel, "kind": kind, "body": body}

    async def begin(self, config: RunnableConfig, *, new: bool) -> CheckpointTuple | None:
        """Where the run stands: its newest checkpoint; None for a `new` one, which has none. LangGraph asks for it once more when it starts, and is given this."""
        begun = None if new else await self.aget_tuple(config)
        self._begun = [begun]
        return begun

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that `config` names, or the newest of its run and namespace."""
        place = _place(config)
        if self._begun and not place["ns"] and get_checkpoint_id(config) is None:
            return self._begun.pop()
        rows = await self._db.read(
            "SELECT * FROM checkpoints WHERE run_id = :run_id AND ns = :ns AND (:id = '' OR checkpoint_id = :id)"
            " ORDER BY checkpoint_id DESC LIMIT 1",
            {**place, "id": get_checkpoint_id(config) or ""},
        )
        return await self._tuple(rows[0]) if rows else None

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Checkpoints, newest first; `filter` compares metadata."""
        where = config["configurable"] if config and "configurable" in config else {}
        rows = await self._db.read(
            "SELECT * FROM checkpoints WHERE (:run_id = '' OR run_id = :run_id) AND (:any_ns = 1 OR ns = :ns)"
            " AND (:id = '' OR checkpoint_id = :id) AND (:before = '' OR checkpoint_id < :before) ORDER BY checkpoint_id DESC",
            {
                "run_id": where.get("thread_id", ""),
                "any_ns": int("checkpoint_ns" not in where),
                "ns": where.get("checkpoint_ns", ""),
                "id": where.get("checkpoint_id", ""),
                "before": (get_checkpoint_id(before) if before else None) or "",
            },
        )
        wanted = (filter or {}).items()
        matching = [row for row in rows if wanted <= json.loads(row["metadata"]).items()]
        for row in matching[:limit]:
            yield await self._tuple(row)

    async def _tuple(self, row: Row) -> CheckpointTuple:
        place = {"run_id": row["run_id"], "ns": row["ns"]}
        checkpoint: Checkpoint = self.serde.loads_typed((row["kind"], bytes(row["body"])))
        checkpoint["channel_values"] = await self._values(place, checkpoint["channel_versions"])
        return CheckpointTuple(
            _config(place, row["checkpoint_id"]),
            checkpoint,
            json.loads(row["metadata"]),
            _config(place, row["parent_id"]) if row["parent_id"] else None,
            await self._writes(place, row["checkpoint_id"]),
        )

    async def _values(self, place: Mapping[str, str], versions: ChannelVersions) -> dict[str, Any]:
        wanted = {(channel, str(version)) for channel, version in versions.items()}
        rows = await self._db.read(
            "SELECT * FROM channel_values WHERE run_id = :run_id AND ns = :ns AND kind <> 'empty'", place
        )
        live = [row for row in rows if (row["channel"], row["version"]) in wanted]
        return {row["channel"]: self.serde.loads_typed((row["kind"], bytes(row["body"]))) for row in live}

    async def _writes(self, place: Mapping[str, str], checkpoint_id: str) -> list[tuple[str, str, Any]]:
        rows = await self._db.read(
            "SELECT * FROM channel_writes WHERE run_id = :run_id AND ns = :ns AND checkpoint_id = :checkpoint_id",
            {**place, "checkpoint_id": checkpoint_id},
        )
        ordered = sorted(rows, key=lambda row: writes_sort_key(row["path"], row["task_id"], row["idx"]))
        return [
            (row["task_id"], row["channel"], self.serde.loads_typed((row["kind"], bytes(row["body"]))))
            for row in ordered
        ]

    async def adelete_thread(self, thread_id: str) -> None:
        """Forget every checkpoint of a run."""
        run = {"run_id": thread_id}
        await self._db.write(
            Statement("DELETE FROM checkpoints WHERE run_id = :run_id", run),
            Statement("DELETE FROM channel_values WHERE run_id = :run_id", run),
            Statement("DELETE FROM channel_writes WHERE run_id = :run_id", run),
        )


def _insert(sql: str, shared: Mapping[str, str], rows: Sequence[Mapping[str, object]]) -> list[Statement]:
    """`sql` with many rows at once, which share some columns."""
    parts = [rows[first : first + _ROWS_AT_ONCE] for first in range(0, len(rows), _ROWS_AT_ONCE)]
    return [
        Statement(_with_rows(sql, tuple(shared), tuple(part[0]), len(part)), {**shared, **_numbered(part)})
        for part in parts
    ]


def _numbered(rows: Sequence[Mapping[str, object]]) -> dict[str, object]:
    return {f"{name}_{n}": value for n, row in enumerate(rows) for name, value in row.items()}


@lru_cache(maxsize=512)
def _with_rows(sql: str, shared: Sequence[str], own: Sequence[str], n: int) -> str:
    rows = [", ".join([*(f":{name}" for name in shared), *(f":{name}_{row}" for name in own)]) for row in range(n)]
    return sql.replace("ROWS", ", ".join(f"({row})" for row in rows))


def _place(config: RunnableConfig) -> dict[str, str]:
    where = config.get("configurable", {})
    return {"run_id": where["thread_id"], "ns": where.get("checkpoint_ns", "")}


def _config(place: Mapping[str, str], checkpoint_id: str) -> RunnableConfig:
    return {
        "configurable": {"thread_id": place["run_id"], "checkpoint_ns": place["ns"], "checkpoint_id": checkpoint_id}
    }
