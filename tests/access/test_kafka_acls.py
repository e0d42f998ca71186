"""What `kafka-acls.yaml` gives each role is enough, is not too much, and keeps each role from what is not its own. On a real broker.

Not here: what a client is told that is not let in, in `test_kafka_access`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import yaml
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ACL, KafkaAdminClient
from kafka.errors import KafkaError
from psycopg import sql
from psycopg.conninfo import make_conninfo
from typer.testing import CliRunner

from metier.cli import app
from metier_infra import kafka_access, kafka_topics
from metier_infra.bus import Consumption
from metier_infra.errors import AskOperator, BadSettings, BusGone, BusRefused
from metier_infra.events import DEAD_LETTERS, EVENTS_TOPIC, OUTCOMES, REQUESTS, RUNS, tasks_topic
from metier_infra.kafka_acls import Access, accesses
from metier_infra.kafka_bus import KafkaBus
from metier_infra.kafka_topics import Topic
from metier_infra.messages import Delivery, Record

from . import lists
from .conftest import Secured
from .estate import ANSWER, Estate, new_estate, until

ECHO, OTHER = tasks_topic("echo"), tasks_topic("other")
ALL = (REQUESTS, RUNS, EVENTS_TOPIC, OUTCOMES, DEAD_LETTERS, ECHO, OTHER)
HUNG = 60


@pytest.fixture
def lesser_url(postgres_url: str) -> Iterator[str]:
    """The same database, for a user who may read and write rows and nothing else."""
    name = sql.Identifier(f"t_{secrets.token_hex(6)}")
    rights = ("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {}", "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {}")  # fmt: skip
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for statement in ("CREATE ROLE {} LOGIN", *rights):
            connection.execute(sql.SQL(statement).format(name))
        yield make_conninfo(postgres_url, user=name.as_string().strip('"'))
        for statement in ("DROP OWNED BY {}", "DROP ROLE {}"):
            connection.execute(sql.SQL(statement).format(name))


@pytest.fixture(scope="module")
def estate(secured: Secured, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Estate]:
    """Users, lists and topics, for all who leave them as they were; no role runs, and there is no journal."""
    with new_estate(secured, "", tmp_path_factory.mktemp("estate")) as made:
        kafka_topics.apply(made.settings("topics"), [Topic(name, 2, 1) for name in ALL])
        yield made


@pytest.fixture
def working(secured: Secured, lesser_url: str, tmp_path: Path) -> Iterator[Estate]:
    """The roles of a whole system, each a user of its own."""
    with new_estate(secured, lesser_url, tmp_path) as made:
        kafka_topics.apply(made.settings("topics"), [Topic(name, 2, 1) for name in ALL])
        made.start("tools", "tools")
        made.start("orchestrator", "orchestrator")
        made.start("agent-echo", "agent", "echo")
        for role in made.roles.values():
            role.ready()
        yield made


# ---- enough, and not too much: the roles that run


@pytest.mark.timeout(600)
def test_a_run_goes_through_with_these_lists_and_stands_still_loudly_without_any_one_entry(working: Estate) -> None:
    # When a backend asks, then a run goes through all of the system
    working.request("first")
    assert working.terminal("first")["result"] == ANSWER
    # And when any one entry is taken from a role, it says what is missing, and the run goes on once it is given again
    for role in ("orchestrator", "agent-echo"):
        assert working.of(role)
        for access in working.of(role):
            for entry in lists.entries([access]):
                _taken_and_given_again(working, role, access, entry)


def _taken_and_given_again(estate: Estate, role: str, access: Access, entry: ACL) -> None:
    name = f"{role}-{access.name}-{entry.operation.name}"
    before = len(estate.roles[role].said())
    lists.remove(estate.admin, [entry])
    estate.request(name)
    estate.produce(None, REQUESTS if role == "orchestrator" else ECHO, b"no event")
    until(lambda: _missed(estate.roles[role].said()[before:], access), f"{role} told that it misses {name}")
    lists.add(estate.admin, [entry])
    assert estate.terminal(name)["result"] == ANSWER, name
    assert estate.roles[role].process.poll() is None


def _missed(said: str, access: Access) -> bool:
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    wanted = f"use the {access.resource} {access.name}"
    loud = {("reconnect", "broker refuses", "error"), ("retry", "try again", "warning")}
    return any(
        wanted in line.get("error", "") and (line["action"], line["event"], line["level"]) in loud for line in lines
    )


# ---- the same for those that come and go


def write(estate: Estate, role: str, topic: str) -> None:
    """Publish a record as this role. Raises `BusRefused`."""
    asyncio.run(_write(KafkaBus(estate.settings(role), client="metier-tests"), topic))


async def _write(bus: KafkaBus, topic: str) -> None:
    try:
        await bus.publish(Record(topic, b"k", b"{}"))
    finally:
        await bus.close()


def read(estate: Estate, role: str, topic: str, group: str | None = None) -> None:
    """Read all that lies on a topic now, as this role. Raises `BusRefused`."""
    estate.produce(None, topic, b"the last")
    asyncio.run(_read(KafkaBus(estate.settings(role), client="metier-tests"), Consumption([topic], group)))


async def _read(bus: KafkaBus, what: Consumption) -> None:
    stop = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        if bytes(delivery.value) == b"the last":
            stop.set()

    try:
        async with asyncio.timeout(HUNG):
            await bus.consume(what, handle, stop)
    finally:
        await bus.close()


def make_topics(estate: Estate) -> None:
    """Make a topic, find it, let it grow, and set what drifted, as the role `topics`."""
    name = f"metier.agents.new{len(estate.made)}.tasks"
    estate.made.append(name)
    settings = estate.settings("topics")
    for topic in (Topic(name, 1, 1), Topic(name, 2, 1), Topic(name, 2, 1, retention_ms=30 * 86_400_000)):
        kafka_topics.apply(settings, [topic])
        _refuse_drift(estate, "topics", topic)


def _refuse_drift(estate: Estate, role: str, topic: Topic) -> None:
    """Look at a topic as this role. Raises `BadSettings` with what to do where it is not as it should be."""
    for one in kafka_topics.check(estate.settings(role), [topic]):
        if one.topic == estate.prefix + topic.name:
            raise BadSettings(f"{one.what}: {one.action}")


def operate(estate: Estate) -> None:
    """What a person does with commands: look at topics, read dead letters, ask for something."""
    _refuse_drift(estate, "operator", Topic(RUNS, 2, 1))
    read(estate, "operator", DEAD_LETTERS)
    write(estate, "operator", REQUESTS)
    see_lag(estate, "operator", REQUESTS, "metier.orchestrator.requests")


def see_lag(estate: Estate, role: str, topic: str, group: str) -> None:
    """How far a topic goes, and how far a group is with it. Raises `BusRefused`."""
    settings, name = estate.settings(role), estate.prefix + topic
    admin = kafka_access.opened(KafkaAdminClient, settings)
    consumer = kafka_access.opened(KafkaConsumer, settings, group_id=None)
    try:
        kafka_access.refuse_hidden(settings, [name])
        assert consumer.end_offsets([TopicPartition(name, 0)])
        admin.list_group_offsets(estate.prefix + group)
    except KafkaError as error:
        raise kafka_access.told(settings, error) from error
    finally:
        consumer.close(autocommit=False)
        admin.close()


WORK: Mapping[str, Callable[[Estate], None]] = {
    "publisher": lambda estate: (write(estate, "publisher", REQUESTS), write(estate, "publisher", OUTCOMES))[0],
    "reader": lambda estate: read(estate, "reader", EVENTS_TOPIC, "metier.backend.shop"),
    "topics": make_topics,
    "operator": operate,
    "scaler": lambda estate: see_lag(estate, "scaler", ECHO, "metier.agents.echo"),
}


@pytest.mark.parametrize("role", WORK)
def test_who_comes_and_goes_needs_each_entry_and_no_more(estate: Estate, role: str) -> None:
    WORK[role](estate)
    for entry in lists.entries(estate.of(role)):
        lists.remove(estate.admin, [entry])
        with pytest.raises(
            (BusRefused, AskOperator), match=r"use (the topic|the group|any topic)|let this user DESCRIBE_CONFIGS"
        ):
            WORK[role](estate)
        lists.add(estate.admin, [entry])
    WORK[role](estate)


def test_every_role_of_the_file_is_tested_here(estate: Estate) -> None:
    assert {one.role for one in estate.accesses} == {*WORK, "orchestrator", "agent-echo", "agent-other"}


def test_the_page_on_security_says_what_the_file_says() -> None:
    page = (Path(__file__).parents[2] / "docs/explanation/security.md").read_text()
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in page.splitlines() if row.startswith("| `")]
    told = {cells[0].split("`")[1]: cells[1:] for cells in rows if len(cells) == 5}
    declared = yaml.safe_load((Path(__file__).parents[2] / "infra/kafka-acls.yaml").read_text())["roles"]
    assert told.keys() == declared.keys()
    for role, parts in declared.items():
        read, written, groups, other = told[role]
        assert read.replace("`", "").split() == _with(parts["topics"], "READ"), role
        assert written.replace("`", "").split() == _with(parts["topics"], "WRITE"), role
        assert groups.replace("`", "").split() == _with(parts.get("groups", {}), "READ"), role
        rest = {one for kind in parts.values() for operations in kind.values() for one in operations} - {
            "READ",
            "WRITE",
        }
        assert set(other.partition(": ")[2].replace(",", "").split()) == rest, role


def _with(names: Mapping[str, Sequence[str]], operation: str) -> list[str]:
    return [name for name, operations in names.items() if operation in operations]


# ---- what is not one's own

READERS = {REQUESTS: {"orchestrator"}, RUNS: {"orchestrator"}, OUTCOMES: {"orchestrator"}, EVENTS_TOPIC: {"reader"},
           DEAD_LETTERS: set[str](), ECHO: {"agent-echo"}, OTHER: {"agent-other"}}  # fmt: skip
WRITERS = {REQUESTS: {"publisher"}, RUNS: {"orchestrator", "agent-echo", "agent-other"}, OUTCOMES: {"publisher"},
           EVENTS_TOPIC: {"orchestrator", "agent-echo", "agent-other"}, DEAD_LETTERS: {"orchestrator", "agent-echo", "agent-other"},
           ECHO: {"orchestrator"}, OTHER: {"orchestrator"}}  # fmt: skip
ROLES = ("orchestrator", "agent-echo", "agent-other", "publisher", "reader", "topics", "scaler", "tools")


@pytest.mark.parametrize("role", ROLES)
def test_a_role_reads_and_writes_what_is_its_own_and_nothing_else(estate: Estate, role: str) -> None:
    """The tool runner's user is known to the broker and has no list at all."""
    assert _may(read, estate, role) == {topic for topic in ALL if role in READERS[topic]}
    assert _may(write, estate, role) == {topic for topic in ALL if role in WRITERS[topic]}


def _may(do: Callable[[Estate, str, str], None], estate: Estate, role: str) -> set[str]:
    """The topics with which a role may do that."""
    with ThreadPoolExecutor(4) as pool:
        asked = {topic: pool.submit(do, estate, role, topic) for topic in ALL}
    refused = {topic for topic, one in asked.items() if isinstance(one.exception(), BusRefused)}
    for topic in asked.keys() - refused:
        asked[topic].result()
    return asked.keys() - refused


def test_a_group_is_its_roles_own(estate: Estate) -> None:
    for role, topic, group in (("agent-echo", ECHO, "metier.agents.other"), ("reader", EVENTS_TOPIC, "metier.orchestrator.runs")):  # fmt: skip
        with pytest.raises(BusRefused, match=f"use the group {estate.prefix}{group}"):
            read(estate, role, topic, group)


def test_only_the_role_topics_makes_topics(estate: Estate) -> None:
    for role in ("orchestrator", "agent-echo", "publisher", "operator"):
        with pytest.raises((BusGone, AskOperator)):
            kafka_topics.apply(estate.settings(role), [Topic("metier.agents.mine.tasks", 1, 1)])


# ---- the command


def test_the_command_prints_words_for_kafkas_own_tool_and_the_same_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METIER_KAFKA_PREFIX", "one.")
    lines = CliRunner().invoke(app, ["acls", "--role", "agent-coder", "--principal", "User:CN={role},O=a b"])
    words = [shlex.split(line) for line in lines.stdout.splitlines()]
    assert words[0][5:] == [
        "--add", "--allow-principal", "User:CN=agent-coder,O=a b", "--operation", "READ",
        "--topic", "one.metier.agents.coder.tasks", "--resource-pattern-type", "literal",
    ]  # fmt: skip
    told = json.loads(CliRunner().invoke(app, ["acls", "--json"]).stdout)
    ours = [one for one in told if one["role"] == "agent-coder"]
    assert [one["name"] for one in ours] == [line[line.index("--resource-pattern-type") - 1] for line in words]
    assert {one["role"] for one in told} >= {"orchestrator", "agent-careful", "agent-reasoner", "operator"}
    (tasks,) = [one for one in told if one["role"] == "orchestrator" and one["pattern"] == "prefixed" and one["resource"] == "topic"]  # fmt: skip
    assert (tasks["name"], tasks["operations"], tasks["principal"]) == ("one.metier.agents.", ["WRITE"], "User:metier-orchestrator")  # fmt: skip


def test_the_command_refuses_what_would_make_all_roles_one_and_a_role_that_is_not_there() -> None:
    one, none = (
        CliRunner().invoke(app, ["acls", "--principal", "User:me"]),
        CliRunner().invoke(app, ["acls", "--role", "x"]),
    )
    assert "all roles would come as one" in str(one.exception)
    assert "there is no role 'x'; there are: orchestrator, agent-careful" in str(none.exception)


def test_the_agents_own_names_make_their_roles() -> None:
    assert [one.role for one in accesses(["b", "a"]) if one.resource == "group"] == [
        "orchestrator", "agent-a", "agent-b", "reader", "operator", "scaler",
    ]  # fmt: skip
