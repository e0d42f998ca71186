"""The pipeline that carries the journal's writes to Postgres: what is prepared, how values go in and out, and what is left when it breaks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

import psycopg
import pytest
import pytest_asyncio
from psycopg import AsyncConnection, errors

from metier_infra.database import Statement
from metier_infra.postgres_pipeline import LONGEST_PREPARED, PREPARED_AT_MOST, PREPARED_FROM, Pipeline, named, numbered

_TABLE = "CREATE TABLE things (id bigint PRIMARY KEY, weight double precision, name text, body bytea)"
_INSERT = "INSERT INTO things (id, weight, name, body) VALUES (:id, :weight, :name, :body) RETURNING *"
_PREPARED = Statement("SELECT statement FROM pg_prepared_statements")


@pytest_asyncio.fixture
async def pipeline(empty_postgres_url: str) -> AsyncGenerator[Pipeline]:
    one = Pipeline(await AsyncConnection.connect(empty_postgres_url, autocommit=True))
    await one.run([Statement(_TABLE)])
    yield one
    await one.close()


def thing(number: int, **values: object) -> Statement:
    return Statement(_INSERT, {"id": number, "weight": None, "name": None, "body": None, **values})


def test_a_parameter_has_one_place_however_often_it_is_named_and_now_has_none() -> None:
    sql = "UPDATE runs SET at = :now, a = :a, b = :b WHERE c = :a"
    text, names = numbered(sql)
    assert names == ("a", "b")
    assert text.startswith("UPDATE runs SET at = extract(")
    assert text.endswith(", a = $1, b = $2 WHERE c = $1")
    assert named(sql).endswith(b", a = %(a)s, b = %(b)s WHERE c = %(a)s")


async def test_values_come_back_as_they_went_in(pipeline: Pipeline) -> None:
    body = bytes(range(256))
    given = {"weight": 0.1 + 0.2, "name": "Grüße\n%s :now $1", "body": body}
    rows, nothing = await pipeline.run([thing(1 << 40, **given), thing(-1)])
    assert rows == [{"id": 1 << 40, **given}]
    assert nothing == [{"id": -1, "weight": None, "name": None, "body": None}]


async def test_each_statement_has_its_own_rows(pipeline: Pipeline) -> None:
    found = await pipeline.run(
        [
            thing(1),
            Statement("UPDATE things SET name = 'a'"),
            Statement("SELECT name FROM things WHERE id > :id", {"id": 1}),
            Statement("SELECT id, name FROM things WHERE id = :id", {"id": 1}),
        ]
    )
    assert [len(rows) for rows in found] == [1, 0, 0, 1]
    assert found[3] == [{"id": 1, "name": "a"}]


async def test_what_comes_often_is_prepared_and_what_carries_many_rows_is_not(pipeline: Pipeline) -> None:
    for number in range(PREPARED_FROM - 1):
        await pipeline.run([thing(number)])
    assert await pipeline.run([_PREPARED]) == [[]]
    long = f"SELECT 1 AS one WHERE 1 = 1 {'AND 1 = 1 ' * LONGEST_PREPARED}"
    for number in range(100, 103 + PREPARED_FROM):
        await pipeline.run([thing(number), Statement(long)])
    (rows,) = await pipeline.run([_PREPARED])
    assert [row["statement"] for row in rows] == [numbered(_INSERT)[0]]


async def test_no_more_than_so_many_are_prepared_and_the_others_work_all_the_same(pipeline: Pipeline) -> None:
    for number in range(PREPARED_AT_MOST + 3):
        for _ in range(PREPARED_FROM + 1):
            assert await pipeline.run([Statement(f"SELECT {number} AS one")]) == [[{"one": number}]]
    (rows,) = await pipeline.run([_PREPARED])
    assert len(rows) == PREPARED_AT_MOST


async def test_a_group_that_is_larger_than_the_line_holds_arrives(pipeline: Pipeline) -> None:
    body = bytes(4 << 20)
    found = await pipeline.run([thing(number, body=body) for number in range(4)])
    assert [len(rows[0]["body"]) for rows in found] == [4 << 20] * 4


async def test_of_a_group_that_breaks_nothing_is_left(pipeline: Pipeline, empty_postgres_url: str) -> None:
    with pytest.raises(errors.UniqueViolation, match="things_pkey"):
        await pipeline.run([thing(1), thing(2), thing(1), thing(3)])
    with psycopg.connect(empty_postgres_url) as other:
        assert other.execute("SELECT count(*) FROM things").fetchone() == (0,)


async def test_of_a_group_with_a_value_that_cannot_be_sent_nothing_is_left(
    pipeline: Pipeline, empty_postgres_url: str
) -> None:
    with pytest.raises(psycopg.DataError, match="NUL"):
        await pipeline.run([thing(1), thing(2, name="a\0b"), thing(3)])
    await pipeline.close()
    with psycopg.connect(empty_postgres_url) as other:
        assert other.execute("SELECT count(*) FROM things").fetchone() == (0,)


async def test_a_fence_that_touches_no_row_undoes_its_group(pipeline: Pipeline, empty_postgres_url: str) -> None:
    with pytest.raises(errors.DivisionByZero):
        await pipeline.run([thing(1), Statement("UPDATE things SET name = 'b' WHERE id = 7", must=True)])
    with psycopg.connect(empty_postgres_url) as other:
        assert other.execute("SELECT count(*) FROM things").fetchone() == (0,)


async def test_who_waits_hears_that_the_server_ended_the_connection(
    pipeline: Pipeline, empty_postgres_url: str
) -> None:
    waiting = asyncio.create_task(pipeline.run([Statement("SELECT pg_sleep(60)")]))
    await asyncio.to_thread(_end_the_sleeper, empty_postgres_url)
    with pytest.raises((errors.AdminShutdown, psycopg.OperationalError)):
        await asyncio.wait_for(waiting, 30)


def _end_the_sleeper(url: str) -> None:
    ended = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query ~ 'pg_sleep.60' AND pid <> pg_backend_pid()"
    )
    with psycopg.connect(url, autocommit=True) as other:
        while not other.execute(ended).fetchall():
            time.sleep(0.01)
