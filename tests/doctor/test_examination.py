"""The doctor at real services: all well, each broken in turn, all broken at once. Not here: what it makes of what it sees (`test_findings`)."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path

import httpx2
import psycopg
import pytest
import redis
from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from typer.testing import CliRunner, Result

from metier import compose
from metier.cli import app
from metier.configuration import configure
from metier.doctor.case import ROLES, asked
from metier.doctor.examination import Part, examine
from metier.doctor.finding import Finding, ok
from metier.doctor.parts import PARTS
from metier.doctor.settings import case as case_of
from metier_infra import kafka_topics
from metier_infra.database import migrations
from metier_infra.errors import BadSettings
from metier_infra.events import RUNS, tasks_topic
from metier_infra.settings import KafkaSettings, RoleSettings
from metier_tools.celery_app import Config
from metier_tools.execution import Holding
from metier_tools.redis_look import same_key
from metier_tools.serve import serve_with
from metier_tools.tool import ToolCall, ToolResult

from .conftest import KEY, Doctor, machine
from .kit import HUNG_S, Door, run

SECRETS = ("hunter2", "sk-doctor-secret", KEY)


def levels(found: Sequence[Finding]) -> set[str]:
    return {one.level for one in found}


def test_a_whole_installation_is_examined_by_the_command_and_all_is_well(
    installed: dict[str, str], doctor: Doctor
) -> None:
    doctor(installed, [])
    compose.topics(configure())
    code, out, _ = run("doctor", "--json", env=installed)
    told = machine(out)
    wrong = {name for name, found in told.items() if {one["level"] for one in found} & {"warning", "error"}}
    assert (code, wrong) == (0, {"kafka.brokers"})
    assert told.keys() == {name for part in PARTS for name in part.ids}
    assert {told[name][0]["level"] for name in ("engine.reachable", "engine.images", "engine.self_test")} == {"ok"}
    assert told["grant_key.shared"][0]["level"] == "skipped"


def command(*words: str) -> Result:
    """`metier doctor` in this process, on the environment as it is."""
    return CliRunner().invoke(app, ["doctor", *words])


def test_warnings_count_only_where_that_is_wanted_and_people_get_a_table(
    corner: dict[str, str], doctor: Doctor
) -> None:
    doctor(corner, [])
    shown = command("--only", "kafka", "--before-install")
    said = " ".join(shown.stdout.split())
    assert (shown.exit_code, "0 errors, 1 warning" in said, "will make it so" in said) == (0, True, True)
    assert command("--only", "kafka", "--before-install", "--strict").exit_code == 1
    assert command("--only", "kafka").exit_code == 1


def test_everything_that_is_broken_is_told_at_once_and_no_secret_with_it(tmp_path: Path) -> None:
    with Door() as shut, Door().mute() as silent, Door().mute() as mute:
        env = {
            "METIER_KAFKA_BOOTSTRAP": f"127.0.0.1:{shut.port}",
            "METIER_POSTGRES_URL": f"postgresql://u:hunter2@127.0.0.1:{silent.port}/d",
            "METIER_REDIS_URL": f"redis://:hunter2@127.0.0.1:{mute.port}/0",
            "METIER_GRANT_KEY": "short",
            "METIER_SANDBOX_IMAGE": "x",
            "METIER_SANDBOX_POOL": "many",
            "METIER_MODEL_CODER": "openai:gpt-x",
            "METIER_KAFKA_BOOTSTRP": "x",
            "METIER_SCHEDULES": str(tmp_path / "none.yaml"),
            "METIER_WORKFLOWS": "no_such_module",
            "DOCKER_HOST": f"unix://{tmp_path}/nothing.sock",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{shut.port}",
            "OPENAI_API_KEY": "",
            "ANTHROPIC_API_KEY": "sk-doctor-secret",
        }
        code, out, err = run("doctor", "--json", env=env)
    told = machine(out)
    assert code == 1
    assert {name for name, found in told.items() for one in found if one["level"] == "error"} == {
        "settings.names",
        "settings.values",
        "files.workflows",
        "files.schedules",
        "kafka.reachable",
        "postgres.reachable",
        "redis.reachable",
        "grant_key.strength",
        "engine.reachable",
        "models.opened",
    }
    assert told["telemetry.endpoint"][0]["level"] == "warning"
    assert all(one["do"] for found in told.values() for one in found if one["level"] in {"error", "warning"})
    assert told["kafka.topics"][0] == {
        "id": "kafka.topics",
        "level": "skipped",
        "seen": "see kafka.reachable",
        "do": "",
        "of": "",
    }
    assert not [secret for secret in SECRETS for text in (out, err) if secret in text]


def broken(*_: object) -> Sequence[Finding]:
    raise SystemExit("a module that ends the process")


def test_no_secret_that_a_service_repeats_is_told_on(doctor: Doctor) -> None:
    telling = Part("a", ("a.b",), lambda _: [Finding("a.b", "error", f"no {KEY}", f"set {KEY}", f"of {KEY}")], ROLES)
    doctor({"METIER_GRANT_KEY": KEY}, [])
    case = case_of(asked([]), before_install=False, models=False)
    assert examine(case, [telling], ["a"]) == [Finding("a.b", "error", "no [secret]", "set [secret]", "of [secret]")]


def test_what_hangs_or_breaks_hides_nothing_of_the_others(doctor: Doctor) -> None:
    hangs = threading.Event()

    def hang(_: object) -> Sequence[Finding]:
        hangs.wait()
        return []

    parts = [
        Part("hanging", ("hanging.first", "hanging.second"), hang, ROLES, within_s=0.05, mend="cut it off"),
        Part("broken", ("broken.first",), broken, ROLES, mend="x"),
        Part("well", ("well.first",), lambda _: [ok("well.first", "fine")], ROLES),
        Part("unwanted", ("unwanted.first",), hang, ROLES),
        Part("unneeded", ("unneeded.first",), hang, frozenset()),
    ]
    doctor({}, [])  # the environment is empty now
    case = case_of(asked([]), before_install=False, models=False)
    found = examine(case, parts, ["hanging", "broken", "well", "unneeded"])
    assert [(one.id, one.level) for one in found] == [
        ("hanging.first", "error"),
        ("hanging.second", "skipped"),
        ("broken.first", "error"),
        ("well.first", "ok"),
        ("unwanted.first", "skipped"),
        ("unneeded.first", "skipped"),
    ]
    assert (found[0].seen, found[0].do) == ("no answer within 0.05 s", "cut it off")
    assert "SystemExit: a module that ends the process" in found[2].seen
    assert (found[4].seen, found[5].seen) == ("not asked for", "not needed by agent, orchestrator, tools")
    hangs.set()


def test_what_a_module_prints_and_how_it_fails_spoils_no_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doctor: Doctor
) -> None:
    (tmp_path / "loud.py").write_text("print('I am here')\nraise SystemExit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    doctor({"METIER_WORKFLOWS": "loud"}, [])
    done = command("--only", "files", "--json")
    told = machine(done.stdout)
    assert (told["files.workflows"][0]["level"], told["files.agents"][0]["level"]) == ("error", "ok")
    assert (done.exit_code, "I am here" in done.stderr) == (1, True)


def test_topics_with_too_few_partitions_or_none_are_told_and_others_are_not(
    kafka: KafkaSettings, corner: dict[str, str], doctor: Doctor
) -> None:
    doctor(corner, [])
    config = configure()
    wanted = [one for one in compose.declared_topics(config, ["careful", "coder", "reasoner"]) if one.name != RUNS]
    short = [kafka_topics.Topic(one.name, 1, 1, one.retention_ms, one.max_message_bytes) for one in wanted[:1]]
    kafka_topics.apply(kafka, [*short, *wanted[1:]])
    told = doctor(corner, ["kafka"])
    assert {(one.of.removeprefix(kafka.prefix), one.level) for one in told["kafka.topics"]} == {
        (wanted[0].name, "error"),
        (RUNS, "error"),
    }
    assert {one.seen for one in told["kafka.topics"]} == {
        "partitions: 1, declared 2",
        "topic: none, declared 2 partitions",
    }


def test_records_that_wait_where_nobody_reads_are_told_and_so_is_a_producer_whose_clock_is_ahead(
    kafka: KafkaSettings, corner: dict[str, str], doctor: Doctor
) -> None:
    topic, group = kafka.prefix + tasks_topic("coder"), kafka.prefix + "metier.agents.coder"
    doctor(corner, [])
    compose.topics(configure())
    assert levels(doctor(corner, ["kafka"], role=["agent:coder"])["kafka.groups"]) == {"ok"}
    consumer = KafkaConsumer(bootstrap_servers=kafka.bootstrap, group_id=group, enable_auto_commit=False)
    consumer.commit({TopicPartition(topic, 0): OffsetAndMetadata(0, "", -1)})
    consumer.close()
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap)
    producer.send(topic, b"x", partition=0, timestamp_ms=int(time.time() * 1000) + 3_600_000).get(timeout=HUNG_S)
    producer.close()
    told = doctor(corner, ["kafka"], role=["agent:coder"])
    assert [(one.level, one.of, one.seen) for one in told["kafka.groups"]] == [
        ("warning", group, "1 records wait, and nobody is in the group")
    ]
    assert levels(told["kafka.clock"]) == {"warning"}


@pytest.mark.parametrize(("late_s", "level"), [(0.0, "ok"), (3600.0, "error"), (-3600.0, "error")])
def test_a_clock_that_goes_wrong_here_is_seen_at_postgres_and_redis(
    postgres_url: str, redis_server: str, doctor: Doctor, late_s: float, level: str
) -> None:
    env = {"METIER_POSTGRES_URL": postgres_url, "METIER_REDIS_URL": redis_server}
    told = doctor(env, ["postgres", "redis"], late_s=late_s)
    assert levels([*told["postgres.clock"], *told["redis.clock"]]) == {level}
    assert late_s == 0 or ("ahead of" in told["redis.clock"][0].seen) == (late_s > 0)


def seen_of(url: str, doctor: Doctor, *, before_install: bool = False) -> dict[str, Finding]:
    told = doctor({"METIER_POSTGRES_URL": url}, ["postgres"], before_install=before_install)
    return {name.removeprefix("postgres."): found[0] for name, found in told.items() if name.startswith("postgres.")}


def test_a_schema_that_is_missing_behind_or_ahead_is_told_and_nothing_that_was_tried_stays(
    empty_postgres_url: str, doctor: Doctor
) -> None:
    newest = max(migrations())
    assert seen_of(empty_postgres_url, doctor)["schema"].level == "error"
    first = seen_of(empty_postgres_url, doctor, before_install=True)
    assert (first["schema"].level, first["writable"].level) == ("ok", "ok")
    with psycopg.connect(empty_postgres_url, autocommit=True) as connection:
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert connection.execute(tables).fetchone() == (0,)
        connection.execute("CREATE TABLE metier_schema (version bigint PRIMARY KEY, at double precision NOT NULL)")
        connection.execute("INSERT INTO metier_schema VALUES (1, 0)")
        assert "version 1, and this code needs" in seen_of(empty_postgres_url, doctor)["schema"].seen
        connection.execute("ALTER TABLE metier_schema ADD COLUMN oldest bigint")
        connection.execute("INSERT INTO metier_schema VALUES (%s, 0, NULL)", (newest + 1,))
        assert "deploy a newer" in seen_of(empty_postgres_url, doctor)["schema"].do
        connection.execute("UPDATE metier_schema SET oldest = 1 WHERE version > 1")
        assert seen_of(empty_postgres_url, doctor)["schema"].level == "ok"
        assert connection.execute("SELECT count(*) FROM metier_schema WHERE version < 0").fetchone() == (0,)
        assert connection.execute(tables).fetchone() == (1,)


@pytest.fixture
def clerk(postgres_url: str) -> Iterator[str]:
    """A user who may connect, and nothing else."""
    name = sql.Identifier(f"{conninfo_to_dict(postgres_url)['dbname']}_clerk")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
        yield name.as_string().strip('"')
        connection.execute(sql.SQL("DROP OWNED BY {}").format(name))
        connection.execute(sql.SQL("DROP ROLE {}").format(name))


def test_a_user_who_may_not_write_is_told_what_and_one_who_may_is_well(
    postgres_url: str, clerk: str, doctor: Doctor
) -> None:
    url, user = make_conninfo(postgres_url, user=clerk), sql.Identifier(clerk)
    assert "permission denied" in seen_of(url, doctor)["writable"].seen
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON metier_schema TO {}").format(user))
        found = seen_of(url, doctor)["writable"]
        assert ("may not read and write" in found.seen, " runs" in found.seen) == (True, True)
        connection.execute(
            sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {}").format(user)
        )
        assert seen_of(url, doctor)["writable"].level == "ok"
        connection.execute(sql.SQL("REVOKE DELETE ON runs FROM {}").format(user))
        assert seen_of(url, doctor)["writable"].seen == "this user may not read and write runs"


def test_a_database_that_forgets_or_cannot_hold_every_text_is_told(postgres_url: str, doctor: Doctor) -> None:
    name = conninfo_to_dict(postgres_url)["dbname"]
    latin = sql.Identifier(f"{name}_latin")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(sql.Identifier(str(name))))
        assert seen_of(postgres_url, doctor)["durable"].level == "warning"
        connection.execute(sql.SQL("CREATE DATABASE {} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0").format(latin))
        found = seen_of(make_conninfo(postgres_url, dbname=f"{name}_latin"), doctor)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(latin))
    assert "LATIN1" in found["encoding"].seen


def test_a_database_that_is_not_there_is_told_by_its_server(postgres_url: str, doctor: Doctor) -> None:
    found = seen_of(make_conninfo(postgres_url, dbname="no_such_database"), doctor)
    assert (found["reachable"].level, "no_such_database" in found["reachable"].seen) == ("error", True)
    assert seen_of("no url", doctor)["reachable"].seen.startswith("METIER_POSTGRES_URL is not a Postgres URL")


def look_at(server: str, doctor: Doctor, **more: str) -> dict[str, Finding]:
    told = doctor({"METIER_REDIS_URL": server, **more}, ["redis"])
    return {name.removeprefix("redis."): found[0] for name, found in told.items() if name.startswith("redis.")}


def test_a_redis_that_throws_away_forgets_or_is_full_is_told(
    own_redis: redis.Redis, redis_server: str, doctor: Doctor
) -> None:
    assert {one.level for one in look_at(redis_server, doctor).values()} == {"ok"}
    own_redis.config_set("maxmemory-policy", "allkeys-lru")
    own_redis.config_set("appendonly", "no")
    own_redis.config_set("save", "")
    found = look_at(redis_server, doctor)
    assert {name for name, one in found.items() if one.level != "ok"} == {"eviction", "persistence"}
    assert (found["eviction"].level, found["persistence"].level) == ("error", "warning")
    assert look_at(redis_server, doctor, METIER_LIMITS_IN="journal")["persistence"].level == "ok"
    own_redis.config_set("save", "900 1")
    assert "snapshots" in look_at(redis_server, doctor)["persistence"].seen
    own_redis.config_set("maxmemory-policy", "noeviction")
    own_redis.config_set("maxmemory", "1")
    found = look_at(redis_server, doctor)
    assert {name for name, one in found.items() if one.level == "error"} == {"memory", "writable"}


def test_a_redis_that_follows_another_or_wants_another_password_is_told(
    own_redis: redis.Redis, redis_server: str, doctor: Doctor
) -> None:
    own_redis.replicaof("127.0.0.1", 1)
    assert "follows another" in look_at(redis_server, doctor)["writable"].seen
    own_redis.replicaof("NO", "ONE")
    own_redis.config_set("requirepass", "open sesame")
    found = look_at(redis_server.replace("redis://", "redis://:hunter2@"), doctor)
    assert (found["reachable"].level, "password" in found["reachable"].seen) == ("error", True)
    assert "hunter2" not in found["reachable"].seen
    assert look_at("no url", doctor)["reachable"].seen.startswith("METIER_REDIS_URL is not a Redis URL")


@contextlib.asynccontextmanager
async def runner(redis_url: str, folder: Path, ran: list[ToolCall]) -> AsyncGenerator[str]:
    """A tool runner with our key, on a namespace of its own."""

    def execute(call: ToolCall, _: Holding) -> ToolResult:
        ran.append(call)
        return ToolResult(status="ok")

    stop, namespace = asyncio.Event(), f"doctor-{time.time_ns()}"
    role = RoleSettings.model_validate({"ready_file": folder / "ready", "drain_s": 10})
    lane = Config(redis_url=redis_url, namespace=namespace)
    serving = asyncio.create_task(serve_with(execute, lane, KEY.encode(), role, stop, children=1))
    try:
        while not role.ready_file or not role.ready_file.exists():
            assert not serving.done(), "the runner ended"
            await asyncio.sleep(0.02)
        yield namespace
    finally:
        stop.set()
        await serving


async def test_a_runner_tells_whether_it_has_the_same_key_and_runs_nothing_for_it(
    redis_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doctor: Doctor
) -> None:
    ran: list[ToolCall] = []

    def asked_with(key: str, namespace: str) -> Finding:
        env = {"METIER_REDIS_URL": redis_server, "METIER_GRANT_KEY": key, "METIER_LANE_NAMESPACE": namespace}
        return doctor(env, ["grant_key"])["grant_key.shared"][0]

    monkeypatch.setattr("metier.doctor.grant_key.WAIT_S", 1.0)
    async with runner(redis_server, tmp_path, ran) as namespace:
        assert await asyncio.to_thread(same_key, redis_server, namespace, KEY.encode(), wait_s=HUNG_S) is True
        assert await asyncio.to_thread(same_key, redis_server, namespace, b"another", wait_s=HUNG_S) is False
        found = await asyncio.to_thread(asked_with, KEY[::-1], namespace)
    assert (found.level in {"error", "skipped"}, ran) == (True, [])  # a slow machine may not answer in time
    assert (await asyncio.to_thread(asked_with, KEY, namespace)).level == "skipped"


def test_an_engine_that_is_away_and_an_image_that_is_missing_are_told_apart(tmp_path: Path, doctor: Doctor) -> None:
    away = doctor({"DOCKER_HOST": f"unix://{tmp_path}/nothing.sock"}, ["engine"], role=["tools"])
    assert (levels(away["engine.reachable"]), levels(away["engine.self_test"])) == ({"error"}, {"skipped"})


def test_an_image_that_is_missing_is_told_by_its_name(doctor: Doctor) -> None:
    told = doctor({"METIER_SANDBOX_IMAGE": "no-such-image:1"}, ["engine"], role=["tools"])
    assert [(one.level, one.of) for one in told["engine.images"]] == [("error", "no-such-image:1")]
    assert (levels(told["engine.reachable"]), levels(told["engine.self_test"])) == ({"ok"}, {"skipped"})


def test_every_file_that_does_not_fit_is_told_and_an_agent_that_nobody_declared(tmp_path: Path, doctor: Doctor) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\nmodle: x\n")
    told = doctor({"METIER_AGENTS": str(tmp_path)}, ["files"])["files.agents"]
    assert [one.level for one in told] == ["error", "error"]
    assert all(
        f"{name}.yaml:2: modle: unknown field" in one.seen for name, one in zip(("one", "two"), told, strict=True)
    )
    told = doctor({}, ["files"], role=["agent:nobody"])
    assert (levels(told["files.agents"]), levels(told["files.workflows"])) == ({"error"}, {"skipped"})


def test_a_model_without_a_key_is_told_and_one_with_a_key_is_asked_when_that_is_wanted(
    aimock: str, monkeypatch: pytest.MonkeyPatch, doctor: Doctor
) -> None:
    chosen = {"METIER_MODEL_CODER": "openai:gpt-x", "METIER_MODEL_CAREFUL": "openai:gpt-x"}
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (found,) = [one for one in doctor(chosen, ["models"])["models.opened"] if one.of == "openai:gpt-x"]
    assert (found.level, "set OPENAI_API_KEY" in found.seen, "careful, coder" in found.do) == ("error", True, True)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-doctor-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{aimock}/v1")

    def answers(**flags: bool) -> Finding:
        (one,) = [one for one in doctor(chosen, ["models"], **flags)["models.answered"] if one.of == "openai:gpt-x"]
        return one

    assert answers().level == "skipped"
    assert httpx2.get(f"{aimock}/__aimock/journal").json() == []
    assert answers(models=True).level == "error"  # the server was told of no answer
    said = {"match": {}, "response": {"content": "yes"}}
    httpx2.post(f"{aimock}/__aimock/fixtures", json={"fixtures": [said]}).raise_for_status()
    found = answers(models=True)
    assert (found.level, "an unknown price" in found.seen, "sk-doctor-secret" in found.seen) == ("warning", True, False)


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes whatever is exported."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        del format, args


def test_a_collector_that_answers_is_told_from_one_that_says_nothing(
    monkeypatch: pytest.MonkeyPatch, doctor: Doctor
) -> None:
    monkeypatch.setattr("metier.doctor.telemetry.ANSWER_S", 0.2)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server, Door().mute() as mute:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{mute.port}/v1/traces",
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"http://127.0.0.1:{server.server_port}/v1/metrics",
        }
        silent = doctor(env, ["telemetry"])["telemetry.endpoint"][0]
        monkeypatch.setattr("metier.doctor.telemetry.ANSWER_S", HUNG_S)
        well = doctor(
            {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": env["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"]}, ["telemetry"]
        )
        server.shutdown()
    assert (silent.level, levels(well["telemetry.endpoint"])) == ("warning", {"ok"})


@pytest.mark.parametrize("words", [("--only", "kafak"), ("--skip", "kafak"), ("--role", "kafak")])
def test_a_part_or_a_role_that_is_none_is_refused_with_those_that_are(words: tuple[str, str], doctor: Doctor) -> None:
    doctor({}, [])
    error = command(*words).exception
    assert isinstance(error, BadSettings)
    assert ("kafak" in str(error), "there are" in str(error)) == (True, True)


def test_before_an_installation_the_folder_for_files_is_not_looked_at_here(doctor: Doctor) -> None:
    assert levels(doctor({}, ["blobs"])["blobs.folder"]) == {"ok"}
    assert levels(doctor({}, ["blobs"], before_install=True)["blobs.folder"]) == {"skipped"}


def test_parts_are_chosen_by_name(doctor: Doctor) -> None:
    doctor({}, [])
    done = command("--json", "--only", "settings,kafka", "--skip", "kafka")
    told = machine(done.stdout)
    assert (done.exit_code, {name for name, found in told.items() if found[0]["level"] != "skipped"}) == (
        0,
        {"settings.names", "settings.values", "settings.together", "settings.needed"},
    )
    assert told["kafka.reachable"][0]["seen"] == "not asked for"
