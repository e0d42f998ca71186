"""What the doctor makes of what it sees: pure tables, one row for each way to be wrong. Not here: that it sees it; `test_examination` does that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic_settings import BaseSettings

from metier import configuration
from metier.cli_doctor import report
from metier.configuration import Config
from metier.doctor import clock, engine, files, grant_key, kafka, models, places, postgres, redis, settings, telemetry
from metier.doctor.case import ROLES, Asked, Case, asked
from metier.doctor.finding import Finding
from metier.doctor.parts import PARTS
from metier_agents.turns import ModelTurn, Usage
from metier_infra.errors import BadSettings
from metier_infra.kafka_acls import Access
from metier_infra.kafka_look import GroupSeen, KafkaSeen, TopicSeen
from metier_infra.kafka_topics import Drift
from metier_infra.postgres_look import PostgresSeen
from metier_infra.settings import KafkaSettings, S, load_what_fits
from metier_tools.redis_look import RedisSeen
from metier_tools.selftest import Finding as Limit

EVERY = frozenset({"READ", "WRITE", "DESCRIBE"})
KAFKA = KafkaSeen(
    "4.3", 3, [], {"metier.runs": TopicSeen(3, 3, 0, 2, EVERY)}, {"metier.g": GroupSeen(1, 5, EVERY)}, ahead_s=-2.0
)
NEEDS = [
    Access("orchestrator", "User:o", "topic", "metier.r", "prefixed", ["READ", "WRITE"]),
    Access("orchestrator", "User:o", "group", "metier.g", "literal", ["READ"]),
]
POSTGRES = PostgresSeen(
    "15.1", 15, "UTF8", 97, 10, False, True, "on", {1: None, 20: None, 21: 21}, "", [], skew_s=0.1, unsure_s=0.01
)
REDIS = RedisSeen("7.2.4", "valkey", "master", "noeviction", 100 << 20, 10 << 20, True, False, "", "", 0.1, 0.01)


def told(found: list[Finding]) -> dict[str, str]:
    """Level by id."""
    return {one.id: one.level for one in found}


def only(found: list[Finding], name: str) -> Finding:
    (one,) = [one for one in found if one.id == name]
    return one


def complains(one: Finding, level: str) -> bool:
    """An error or warning says what to do; nothing else does."""
    return one.level == level and bool(one.seen) and bool(one.do) == (level in {"error", "warning"})


def of_kafka(seen: KafkaSeen = KAFKA, *, replication: int = 3, before_install: bool = False) -> list[Finding]:
    return kafka.findings(seen, NEEDS, replication=replication, before_install=before_install)


def of_postgres(seen: PostgresSeen = POSTGRES, *, before_install: bool = False) -> list[Finding]:
    return postgres.findings(seen, frozenset({"orchestrator"}), newest=21, before_install=before_install)


def of_redis(seen: RedisSeen = REDIS, *, limits_here: bool = True) -> list[Finding]:
    return redis.findings(seen, limits_here=limits_here)


def test_where_all_is_well_everything_is_ok_and_each_id_is_told_of() -> None:
    for found, ids in ((of_kafka(), kafka.IDS), (of_postgres(), postgres.IDS), (of_redis(), redis.IDS)):
        assert told(found) == dict.fromkeys(ids, "ok")
        assert all(complains(one, "ok") for one in found)


def topic(**change: int | frozenset[str] | None) -> KafkaSeen:
    (seen,) = KAFKA.topics.values()
    return replace(KAFKA, topics={"metier.runs": replace(seen, **change)})


def group(**change: int | str | frozenset[str] | None) -> KafkaSeen:
    (seen,) = KAFKA.groups.values()
    return replace(KAFKA, groups={"metier.g": replace(seen, **change)})


MISSING = Drift("metier.a", "topic", None, "3 partitions", "`metier topics` does it", "mendable")
HIDDEN = Drift("metier.c", "retention.ms", None, "1", "let this user DESCRIBE_CONFIGS")
STRANGE = Drift("metier.b", "topic", "1 partitions", None, "delete it")


@pytest.mark.parametrize(
    ("seen", "name", "level", "says"),
    [
        (replace(KAFKA, version="2.2"), "kafka.version", "error", "Kafka 2.2"),
        (replace(KAFKA, version="2.3"), "kafka.version", "warning", "Kafka 2.3"),
        (replace(KAFKA, version="3.9"), "kafka.version", "warning", "Kafka 3.9"),
        (replace(KAFKA, version="4.0"), "kafka.version", "ok", "4.0"),
        (replace(KAFKA, version=""), "kafka.version", "warning", "Kafka"),
        (replace(KAFKA, brokers=2), "kafka.brokers", "error", "2 brokers, and topics of 3 replicas"),
        (replace(KAFKA, drift=[MISSING]), "kafka.topics", "error", "topic: none, declared 3 partitions"),
        (replace(KAFKA, drift=[STRANGE]), "kafka.topics", "warning", "declared by nobody"),
        (replace(KAFKA, drift=[HIDDEN, HIDDEN]), "kafka.topics", "skipped", "settings of 1 topics are not told"),
        (topic(leaderless=2), "kafka.in_sync", "error", "2 partitions have no leader"),
        (topic(min_insync=4), "kafka.in_sync", "error", "no record can ever be taken"),
        (topic(in_sync=1), "kafka.in_sync", "error", "no record is taken now"),
        (topic(in_sync=2), "kafka.in_sync", "warning", "2 of 3 replicas"),
        (topic(min_insync=3), "kafka.in_sync", "warning", "one broker away stops"),
        (topic(min_insync=1), "kafka.in_sync", "warning", "one broker alone"),
        (topic(min_insync=None), "kafka.in_sync", "ok", "safely"),
        (topic(replicas=1, in_sync=1, min_insync=1), "kafka.in_sync", "ok", "safely"),
        (topic(rights=frozenset({"READ"})), "kafka.access", "error", "topic metier.runs: WRITE is not allowed"),
        (topic(rights=None), "kafka.access", "ok", "allowed"),
        (group(rights=frozenset()), "kafka.access", "error", "group metier.g: READ is not allowed, and orchestrator"),
        (group(error="no coordinator"), "kafka.groups", "error", "no coordinator"),
        (group(members=0), "kafka.groups", "warning", "5 records wait"),
        (group(members=0, waiting=0), "kafka.groups", "ok", "0 members in 1 groups"),
        (replace(KAFKA, ahead_s=1.5), "kafka.clock", "warning", "1.5 s from now"),
        (replace(KAFKA, ahead_s=1.0), "kafka.clock", "ok", "0 s old"),
        (replace(KAFKA, ahead_s=None), "kafka.clock", "skipped", "no record"),
    ],
)
def test_what_is_wrong_with_kafka_is_told(seen: KafkaSeen, name: str, level: str, says: str) -> None:
    found = of_kafka(seen)
    one = only(found, name)
    assert complains(one, level)
    assert says in one.seen
    assert {other.level for other in found if other.id != name} == {"ok"}


def test_one_replica_is_for_an_evaluation_and_says_so() -> None:
    assert complains(only(of_kafka(replication=1), "kafka.brokers"), "warning")


def test_a_broker_that_tells_no_rights_at_all_is_not_judged_by_them() -> None:
    silent = replace(topic(rights=None), groups={})
    assert only(of_kafka(silent), "kafka.access").level == "skipped"


def test_every_topic_and_group_that_is_wrong_is_told_of_by_its_name() -> None:
    wrong = {name: TopicSeen(3, 1, 0, 2, frozenset()) for name in ("metier.r1", "metier.r2")}
    found = of_kafka(replace(KAFKA, topics=wrong, drift=[MISSING, STRANGE]))
    for name in ("kafka.in_sync", "kafka.access"):
        assert {one.of for one in found if one.id == name} == {"metier.r1", "metier.r2"}
    assert {one.of for one in found if one.id == "kafka.topics"} == {"metier.a", "metier.b"}


def test_before_an_installation_what_it_will_make_is_not_missed_and_all_else_is() -> None:
    found = of_kafka(replace(KAFKA, drift=[MISSING, STRANGE], brokers=1), before_install=True)
    assert [one.level for one in found if one.id == "kafka.topics"] == ["ok", "warning"]
    assert only(found, "kafka.brokers").level == "error"
    empty = of_postgres(replace(POSTGRES, schema={}, standby=True), before_install=True)
    assert only(empty, "postgres.schema").level == "ok"
    assert only(empty, "postgres.writable").level == "error"


@pytest.mark.parametrize(
    ("words", "topics"),
    [
        (("orchestrator",), {"metier.requests", "metier.outcomes", "metier.runs", "metier.agents.", "metier.events"}),
        (("agent:coder",), {"metier.agents.coder.tasks", "metier.runs", "metier.events"}),
        (("tools",), set[str]()),
    ],
)
def test_each_role_needs_access_to_what_it_reads_and_writes_and_to_nothing_else(
    words: tuple[str, ...], topics: set[str]
) -> None:
    needs = kafka.wanted_access(asked(words), ["coder", "reasoner"], "mine.")
    found = {one.name.removeprefix("mine.") for one in needs if one.resource == "topic"}
    assert found - {"metier.dead-letters"} == topics


@pytest.mark.parametrize(
    ("seen", "name", "level", "says"),
    [
        (replace(POSTGRES, major=14), "postgres.version", "warning", "15.1"),
        (replace(POSTGRES, schema={}), "postgres.schema", "error", "version 0, and this code needs 21"),
        (replace(POSTGRES, schema={20: None}), "postgres.schema", "error", "version 20"),
        (replace(POSTGRES, schema={21: 21, 22: 21}), "postgres.schema", "ok", "they go together"),
        (replace(POSTGRES, schema={21: 21, 22: None}), "postgres.schema", "error", "needs code that knows 22"),
        (replace(POSTGRES, schema={21: 21, 22: 22, 23: 21}), "postgres.schema", "error", "needs code that knows 22"),
        (replace(POSTGRES, encoding="LATIN1"), "postgres.encoding", "error", "LATIN1"),
        (replace(POSTGRES, taken=82), "postgres.connections", "warning", "15 of 97 connections"),
        (replace(POSTGRES, taken=81), "postgres.connections", "ok", "16 of 97"),
        (replace(POSTGRES, standby=True), "postgres.writable", "error", "follows another"),
        (replace(POSTGRES, unwritten="permission denied"), "postgres.writable", "error", "permission denied"),
        (replace(POSTGRES, forbidden=["runs", "calls"]), "postgres.writable", "error", "runs, calls"),
        (replace(POSTGRES, fsync=False), "postgres.durable", "error", "fsync is off"),
        (replace(POSTGRES, commits="off"), "postgres.durable", "warning", "synchronous_commit is off"),
        (replace(POSTGRES, commits="local"), "postgres.durable", "ok", "local"),
        (replace(POSTGRES, skew_s=-30.0), "postgres.clock", "error", "30.000 s behind"),
    ],
)
def test_what_is_wrong_with_postgres_is_told(seen: PostgresSeen, name: str, level: str, says: str) -> None:
    found = of_postgres(seen)
    assert complains(only(found, name), level)
    assert says in only(found, name).seen
    assert {other.level for other in found if other.id != name} == {"ok"}


@pytest.mark.parametrize(
    ("seen", "name", "level", "says"),
    [
        (replace(REDIS, version="5.0.14"), "redis.version", "error", "like Redis 5.0.14"),
        (replace(REDIS, version="6.0.0"), "redis.version", "warning", "like Redis 6.0.0"),
        (replace(REDIS, version="6.2.1"), "redis.version", "warning", "like Redis 6.2.1"),
        (replace(REDIS, version="7.0.15"), "redis.version", "ok", "7.0.15"),
        (replace(REDIS, role="slave"), "redis.writable", "error", "follows another"),
        (replace(REDIS, unwritten="OOM command not allowed"), "redis.writable", "error", "OOM"),
        (replace(REDIS, policy="allkeys-lru"), "redis.eviction", "error", "allkeys-lru"),
        (replace(REDIS, policy="volatile-ttl"), "redis.eviction", "error", "volatile-ttl"),
        (replace(REDIS, policy=""), "redis.eviction", "error", "is not told"),
        (replace(REDIS, log=False, snapshots=True), "redis.persistence", "ok", "snapshots"),
        (replace(REDIS, log=False, snapshots=False), "redis.persistence", "warning", "rate limits begin anew"),
        (replace(REDIS, log=False, snapshots=None), "redis.persistence", "ok", "does not tell"),
        (replace(REDIS, failing="rdb_last_bgsave_status err"), "redis.persistence", "error", "rdb_last_bgsave"),
        (replace(REDIS, used_bytes=80 << 20), "redis.memory", "ok", "80%"),
        (replace(REDIS, used_bytes=81 << 20), "redis.memory", "warning", "81 MiB of 100 MiB"),
        (replace(REDIS, used_bytes=100 << 20), "redis.memory", "error", "100%"),
        (replace(REDIS, limit_bytes=0), "redis.memory", "ok", "without a limit"),
        (replace(REDIS, skew_s=2.0), "redis.clock", "warning", "2.000 s ahead"),
    ],
)
def test_what_is_wrong_with_redis_is_told(seen: RedisSeen, name: str, level: str, says: str) -> None:
    found = of_redis(seen)
    assert complains(only(found, name), level)
    assert says in only(found, name).seen
    assert {other.level for other in found if other.id != name} == {"ok"}


def test_a_redis_that_forgets_is_well_where_no_rate_limit_is_kept_there() -> None:
    found = of_redis(replace(REDIS, log=False, snapshots=False), limits_here=False)
    assert only(found, "redis.persistence").level == "ok"


@pytest.mark.parametrize(
    ("skew_s", "unsure_s", "level"),
    [(1.0, 0.0, "ok"), (1.1, 0.0, "warning"), (-1.1, 0.0, "warning"), (1.1, 0.2, "ok"), (10.0, 0.0, "warning"), (-10.1, 0.0, "error"), (10.1, 0.2, "warning")],
)  # fmt: skip
def test_a_clock_is_judged_by_what_the_round_trip_cannot_explain(skew_s: float, unsure_s: float, level: str) -> None:
    assert clock.skew("x", skew_s, unsure_s, "it").level == level


@pytest.mark.parametrize(
    ("key", "level"),
    [
        ("0123456789abcdef" * 4, "ok"),
        ("0123456789abcdef0123456789abcde", "warning"),
        ("0123456789abcdef", "warning"),
        ("0123456789abcde", "error"),
        ("secret", "error"),
        ("a" * 64, "error"),
        ("0123456789abcdef" * 4 + "\n", "warning"),
    ],
)
def test_a_grant_key_that_can_be_guessed_is_told_and_never_shown(key: str, level: str) -> None:
    found = grant_key.strength(key)
    assert complains(found, level)
    assert key not in found.seen + found.do


@pytest.mark.parametrize(("same", "level"), [(True, "ok"), (False, "error"), (None, "skipped")])
def test_a_key_is_the_runners_or_not_or_nobody_can_tell(same: bool | None, level: str) -> None:
    assert complains(grant_key.shared(same), level)


def test_limits_that_an_engine_does_not_keep_are_told_with_what_was_seen() -> None:
    found = engine.limits([Limit("no network", True, "errno 101"), Limit("pids limit", False, "-1")])
    assert complains(found, "error")
    assert "pids limit (-1)" in found.seen
    assert "network" not in found.seen
    assert complains(engine.limits([Limit("no network", True, "")]), "ok")


@pytest.mark.parametrize(
    ("usage", "cost_usd", "level", "says"),
    [
        (Usage(input_tokens=9, output_tokens=1), 0.000012, "ok", "for 0.000012 USD (10 tokens)"),
        (Usage(input_tokens=9, output_tokens=1), None, "warning", "an unknown price (10 tokens)"),
        (None, None, "warning", "an unknown number of tokens"),
    ],
)
def test_a_model_that_answered_says_what_that_cost(
    usage: Usage | None, cost_usd: float | None, level: str, says: str
) -> None:
    found = models.answered("openai:gpt-x", ModelTurn(text="yes", usage=usage, cost_usd=cost_usd))
    assert complains(found, level)
    assert says in found.seen


def test_room_on_the_disk_and_rights_in_the_folder_are_judged() -> None:
    assert [places.room(size).level for size in (2 << 30, (1 << 30) - 1, (64 << 20) - 1)] == ["ok", "warning", "error"]
    assert complains(places.writable(Path("blobs"), Path("/"), may=False), "error")
    assert complains(places.writable(Path("blobs"), Path("/"), may=True), "ok")


@pytest.mark.parametrize(
    ("status", "level"), [(200, "ok"), (401, "ok"), (404, "warning"), (500, "warning"), ("refused", "warning")]
)
def test_a_collector_that_is_away_is_a_warning_and_never_an_error(status: int | str, level: str) -> None:
    found = telemetry.answered("http://user:hunter2@collector:4318/v1/traces", status)
    assert complains(found, level)
    assert (found.of, "hunter2" in found.seen) == ("http://collector:4318/v1/traces", False)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, []),
        ({"ENDPOINT": "http://c:4318/"}, ["http://c:4318/v1/traces", "http://c:4318/v1/metrics"]),
        ({"TRACES_ENDPOINT": "http://t/x"}, ["http://t/x"]),
        ({"ENDPOINT": "http://c", "METRICS_ENDPOINT": "http://m/y"}, ["http://c/v1/traces", "http://m/y"]),
    ],
)
def test_where_signals_go_is_read_as_opentelemetry_reads_it(environment: dict[str, str], found: list[str]) -> None:
    assert telemetry.endpoints({f"OTEL_EXPORTER_OTLP_{name}": value for name, value in environment.items()}) == found


def default(kind: type[S], /) -> S:
    """Settings as they are where nobody sets anything."""
    return kind(**{name: field.get_default(call_default_factory=True) for name, field in kind.model_fields.items()})


def config(**change: BaseSettings) -> Config:
    return replace(configuration.read(default), **change)


SET = {"METIER_KAFKA_BOOTSTRAP": "h:1", "METIER_POSTGRES_URL": "x", "METIER_REDIS_URL": "x", "METIER_GRANT_KEY": "x"}


def test_each_misspelt_name_is_told_with_the_nearest_one() -> None:
    found = settings.names({"METIER_KAFKA_BOOTSTRP": "x", "METIER_LEASES": "x", "METIER_MODEL_X": "x", "PATH": "x"})
    assert [complains(one, "error") for one in found] == [True, True]
    assert "did you mean METIER_KAFKA_BOOTSTRAP" in found[0].seen
    assert complains(settings.names(SET)[0], "ok")


def test_one_value_that_cannot_be_read_spoils_no_other_and_what_does_not_go_together_spoils_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("METIER_KAFKA_BOOTSTRAP", "h:1")
    monkeypatch.setenv("METIER_KAFKA_PARTITIONS", "many")
    found, wrong, together = load_what_fits(KafkaSettings)
    assert (found.bootstrap, found.partitions, len(wrong), together) == ("h:1", 6, 1, True)
    monkeypatch.setenv("METIER_KAFKA_PARTITIONS", "2")
    monkeypatch.setenv("METIER_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    found, wrong, together = load_what_fits(KafkaSettings)
    assert (found.bootstrap, len(wrong), together) == (None, 1, False)


def test_each_value_that_cannot_be_read_is_told() -> None:
    assert [one.seen for one in settings.values(["a: no number", "b: too small"])] == ["a: no number", "b: too small"]
    assert settings.values([])[0].level == "ok"


PLAIN = config()


@pytest.mark.parametrize(
    ("given", "environment", "level", "says"),
    [
        (PLAIN, SET, "ok", "nothing contradicts"),
        (
            config(journal=PLAIN.journal.model_copy(update={"postgres_url": SecretStr("x")})),
            {**SET, "METIER_SQLITE_PATH": "x"},
            "warning",
            "METIER_SQLITE_PATH and METIER_POSTGRES_URL",
        ),
        (config(sandbox=PLAIN.sandbox.model_copy(update={"pool": 9})), SET, "warning", "METIER_SANDBOX_POOL (9)"),
        (config(kafka=PLAIN.kafka.model_copy(update={"session_timeout_ms": 2999})), SET, "error", "2999"),
        (config(kafka=PLAIN.kafka.model_copy(update={"session_timeout_ms": 3000})), SET, "ok", "nothing"),
        (config(role=PLAIN.role.model_copy(update={"failpoints": "a=crash"})), SET, "warning", "METIER_FAILPOINTS"),
    ],
)
def test_settings_that_contradict_each_other_are_told(
    given: Config, environment: dict[str, str], level: str, says: str
) -> None:
    (found,) = settings.together(given, environment)
    assert complains(found, level)
    assert says in found.seen


@pytest.mark.parametrize(
    ("words", "unset", "missing"),
    [
        ((), "METIER_POSTGRES_URL", {"METIER_POSTGRES_URL": "agent, orchestrator"}),
        ((), "METIER_GRANT_KEY", {"METIER_GRANT_KEY": "agent, tools"}),
        (("tools",), "METIER_KAFKA_BOOTSTRAP", {}),
        (("tools",), "METIER_REDIS_URL", {"METIER_REDIS_URL": "tools"}),
        (("orchestrator",), "METIER_REDIS_URL", {}),
        (("orchestrator",), "METIER_KAFKA_BOOTSTRAP", {"METIER_KAFKA_BOOTSTRAP": "orchestrator"}),
        (("agent:coder",), "METIER_GRANT_KEY", {"METIER_GRANT_KEY": "agent"}),
    ],
)
def test_what_a_role_cannot_do_without_is_missed_for_that_role_alone(
    words: tuple[str, ...], unset: str, missing: dict[str, str]
) -> None:
    case = Case(PLAIN, environment={k: v for k, v in SET.items() if k != unset}, asked=asked(words))
    found = {one.seen.split()[0]: one for one in settings.needed(case) if one.level == "error"}
    assert {name: one.seen.partition("and ")[2].partition(" cannot")[0] for name, one in found.items()} == missing
    assert all(complains(one, "error") for one in found.values())


def test_one_process_needs_no_service_unless_a_role_is_named() -> None:
    assert settings.needed(Case(PLAIN, environment={}))[0].level == "ok"
    named = Case(PLAIN, environment={}, asked=asked(["orchestrator"]))
    assert {one.level for one in settings.needed(named)} == {"error"}


def test_roles_are_named_alone_or_together_and_wrong_words_are_refused() -> None:
    assert asked([]) == asked(["all"]) == Asked(ROLES)
    both = asked(["agent:coder", "agent:careful", "tools"])
    assert both == Asked(frozenset({"agent", "tools"}), frozenset({"coder", "careful"}), named=True)
    for wrong in ("api", "tools:x", "", "all:x"):
        with pytest.raises(BadSettings, match="there are orchestrator, agent"):
            asked([wrong])


def test_no_secret_of_the_environment_is_in_a_text_however_it_is_written_there() -> None:
    environment = {
        "METIER_POSTGRES_URL": "postgresql://u:p%40ssw0rd@h/d",
        "METIER_REDIS_URL": "redis://:hunter2@h:1/0",
        "OTHER_URL": "host=h password='letmein' user=u",
        "OPENAI_API_KEY": "sk-abcdef",
        "METIER_GRANT_KEY": "grantgrant",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer tok",
    }
    case = Case(PLAIN, environment=environment)
    said = " ".join([*environment.values(), "p@ssw0rd", repr("hunter2"), '"letmein"', "sk-abcdef"])
    clean = case.redacted(said)
    for secret in ("p%40ssw0rd", "p@ssw0rd", "hunter2", "letmein", "sk-abcdef", "grantgrant", "Bearer tok"):
        assert secret not in clean
    assert "postgresql://u:" in clean


def test_the_ids_that_machines_read_are_these_and_stay() -> None:
    ids = [name for part in PARTS for name in part.ids]
    assert len(ids) == len(set(ids))
    assert all(name.startswith(f"{part.name}.") for part in PARTS for name in part.ids)
    assert " ".join(sorted(ids)) == (
        "blobs.folder blobs.space engine.images engine.reachable engine.self_test files.agents files.prices files.schedules files.tenants "
        "files.tools files.workflows grant_key.shared grant_key.strength kafka.access kafka.brokers kafka.clock kafka.groups kafka.in_sync "
        "kafka.reachable kafka.topics kafka.version models.answered models.opened postgres.clock postgres.connections postgres.durable "
        "postgres.encoding postgres.reachable postgres.schema postgres.version postgres.writable redis.clock redis.eviction redis.memory "
        "redis.persistence redis.reachable redis.version redis.writable settings.names settings.needed settings.together settings.values "
        "telemetry.endpoint"
    )


def test_a_report_counts_and_has_the_same_fields_for_every_finding() -> None:
    found = [
        Finding("a.b", "error", "seen", "do", "of"),
        Finding("a.c", "warning", "seen"),
        Finding("a.d", "ok", "seen"),
    ]
    told_to_machines = report(found)
    assert told_to_machines["findings"] == [
        {"id": "a.b", "level": "error", "seen": "seen", "do": "do", "of": "of"},
        {"id": "a.c", "level": "warning", "seen": "seen", "do": "", "of": ""},
        {"id": "a.d", "level": "ok", "seen": "seen", "do": "", "of": ""},
    ]
    assert {name: told_to_machines[name] for name in ("ok", "errors", "warnings")} == {
        "ok": False,
        "errors": 1,
        "warnings": 1,
    }
    assert report(found[1:])["ok"] is True


def test_what_could_be_read_of_files_is_named() -> None:
    assert files.found("files.agents", ["a", "b"]).seen == "a, b"
    assert files.found("files.tenants", []).seen == "none are declared"
