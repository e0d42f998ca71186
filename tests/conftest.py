"""What every test may ask for: a broker's corner, a database, a journal and a bus of its own, each gone after the test.

Kafka and Postgres are real, where the environment says (`make test` starts them). Where it says nothing, the test fails.
"""

from __future__ import annotations

import io
import os
import secrets
import signal
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from importlib.metadata import Distribution, distribution
from pathlib import Path

import httpx2
import psycopg
import pytest
import structlog
from kafka.admin import KafkaAdminClient
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from packaging.requirements import Requirement
from psycopg import sql
from psycopg.conninfo import make_conninfo

from metier_infra import kafka_topics, telemetry
from metier_infra.bus import Bus, MemoryBus
from metier_infra.database import Database, migrate
from metier_infra.events import DEAD_LETTERS, EVENTS_TOPIC, OUTCOMES, REQUESTS, RUNS, tasks_topic
from metier_infra.journal import Journal
from metier_infra.kafka_bus import KafkaBus
from metier_infra.postgres_journal import PostgresDatabase
from metier_infra.settings import KafkaSettings, load
from metier_infra.socket_bus import SocketBus, serve_bus
from metier_infra.sqlite_journal import SqliteDatabase

TOPICS = (REQUESTS, RUNS, EVENTS_TOPIC, OUTCOMES, DEAD_LETTERS, tasks_topic("helper"))
"""What the `bus` and `topics` fixtures have: the system's topics, with one agent called `helper`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the chart come last, and may wait: `make test` builds their programs beside all others, which takes minutes where it was never done."""
    for item in filter(_of_the_chart, items):
        item.add_marker(pytest.mark.timeout(900))
    items.sort(key=_of_the_chart)


def _of_the_chart(item: pytest.Item) -> bool:
    return item.path.parent.name in {"chart", "kube"}


@pytest.fixture(autouse=True)
def own_logs() -> Iterator[None]:
    """What a test makes of the logs ends with it: a command run in this process binds them to a stream that is closed afterwards."""
    yield
    structlog.reset_defaults()


def _service(variable: str) -> str:
    place = os.environ.get(variable)
    if not place:
        pytest.fail(f"{variable} is not set: these tests need the real service; run them with `make test`")
    return place


@pytest.fixture
def kafka() -> Iterator[KafkaSettings]:
    """A corner of the real broker: a prefix that no other test has. Topics made under it are deleted afterwards."""
    corner = {"bootstrap": _service("METIER_KAFKA_BOOTSTRAP"), "prefix": f"t-{secrets.token_hex(6)}."}
    settings = load(KafkaSettings).model_copy(update=corner)
    yield settings
    admin = KafkaAdminClient(bootstrap_servers=settings.bootstrap, client_id="metier-tests")
    ours = [name for topic in admin.describe_topics() if (name := str(topic["name"])).startswith(settings.prefix)]
    if ours:
        admin.delete_topics(ours)
    admin.close()


@pytest.fixture
def topics(kafka: KafkaSettings) -> KafkaSettings:
    """The same corner, with the system's topics in it, two partitions each."""
    kafka_topics.apply(kafka, [kafka_topics.Topic(name, 2, 1) for name in TOPICS])
    return kafka


@pytest.fixture
def empty_postgres_url() -> Iterator[str]:
    """A new, empty database on the real server."""
    server, name = _service("METIER_POSTGRES_URL"), sql.Identifier(f"t_{secrets.token_hex(6)}")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
        yield make_conninfo(server, dbname=name.as_string().strip('"'))
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture
async def postgres_url(empty_postgres_url: str) -> str:
    """A new database with the journal's schema."""
    db = await PostgresDatabase(empty_postgres_url, size=1).open()
    await migrate(db)
    await db.close()
    return empty_postgres_url


@pytest.fixture(params=["sqlite", "postgres"])
async def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """An open database without a schema."""
    if request.param == "sqlite":
        db: Database = SqliteDatabase(tmp_path / "journal.db")
    else:
        db = await PostgresDatabase(str(request.getfixturevalue("empty_postgres_url"))).open()
    yield db
    await db.close()


@pytest.fixture
async def database(empty_database: Database) -> Database:
    """An open database with the journal's schema."""
    await migrate(empty_database)
    return empty_database


@pytest.fixture
def journal(database: Database) -> Journal:
    """A journal whose leases outlast any test."""
    return Journal(database, lease_s=600)


@pytest.fixture(params=["memory", "socket", "kafka"])
async def bus(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bus]:
    """A bus with the system's topics."""
    async with AsyncExitStack() as after:
        if request.param == "memory":
            bus: Bus = MemoryBus()
        elif request.param == "socket":
            await after.enter_async_context(serve_bus(MemoryBus(), tmp_path / "bus.sock"))
            bus = SocketBus(tmp_path / "bus.sock")
        else:
            bus = KafkaBus(request.getfixturevalue("topics"), client="metier-tests")
        after.push_async_callback(bus.close)
        yield bus


@pytest.fixture(scope="session")
def aimock_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the public mock server of providers' wire formats: one process for all tests."""
    program, empty = Path(__file__).parents[1] / "infra/local/aimock.py", tmp_path_factory.mktemp("aimock")
    words = [sys.executable, str(program), "--port", "0", "--fixtures", str(empty)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        found = next((line for line in server.stdout if "listening on" in line), "")
        assert found, "the mock server did not start"
        yield found.split()[-1]
        server.kill()


@pytest.fixture
def aimock(aimock_server: str) -> str:
    """The same address, with nothing left of other tests: no fixtures, an empty journal."""
    httpx2.post(f"{aimock_server}/__aimock/reset").raise_for_status()
    return aimock_server


@pytest.fixture(scope="session")
def contract_tools() -> tuple[str, Path]:
    """A Node, and a folder of packages: AsyncAPI's own parser, a validator of JSON Schema, a Kafka client."""
    program = Path(__file__).parents[1] / "infra/local/contract_tools.py"
    told = subprocess.run([sys.executable, str(program)], stdout=subprocess.PIPE, text=True, check=True)
    node, packages = told.stdout.split("\n")[:2]
    return node, Path(packages)


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Every span that ends during the test."""
    exporter = InMemorySpanExporter()
    telemetry.stop()
    telemetry.start("tests", "one", exporter)
    yield exporter
    telemetry.stop()


def _with_what_it_needs(wanted: Requirement, found: dict[str, Distribution]) -> None:
    one = distribution(wanted.name)
    if one.name not in found:
        found[one.name] = one
        for needed in map(Requirement, one.requires or ()):
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                _with_what_it_needs(needed, found)


def _image(lines: str, files: Mapping[str, Path]) -> str:
    """An image of the sandbox image and more, by the classic builder: it needs no registry and no network."""
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        text = f"FROM {_service('METIER_SANDBOX_IMAGE')}\n{lines}\nUSER 65534:65534\n".encode()
        head = tarfile.TarInfo("Dockerfile")
        head.size = len(text)
        archive.addfile(head, io.BytesIO(text))
        for place, path in files.items():
            archive.add(path, place, recursive=False)
    tag = f"metier-test:{secrets.token_hex(6)}"
    words = ["docker", "build", "--quiet", "--network", "none", "--tag", tag, "-"]
    classic = os.environ | {"DOCKER_BUILDKIT": "0"}
    subprocess.run(words, input=context.getvalue(), check=True, capture_output=True, env=classic)
    return tag


@pytest.fixture(scope="session")
def mcp_image() -> Iterator[str]:
    """The sandbox image with the MCP SDK in `/opt/site`: this environment's own files of it."""
    found: dict[str, Distribution] = {}
    _with_what_it_needs(Requirement("mcp"), found)
    files = {
        f"site/{file}": Path(str(one.locate_file(file)))
        for one in found.values()
        for file in one.files or ()
        if ".." not in file.parts and "__pycache__" not in file.parts
    }
    tag = _image("COPY site /opt/site", {place: path for place, path in files.items() if path.is_file()})
    yield tag
    subprocess.run(["docker", "rmi", "--force", tag], check=True, capture_output=True)


@pytest.fixture(scope="session")
def bare_image() -> Iterator[str]:
    """The sandbox image without any Python."""
    tag = _image("USER 0\nRUN rm -f /usr/bin/python*", {})
    yield tag
    subprocess.run(["docker", "rmi", "--force", tag], check=True, capture_output=True)


@pytest.fixture
def logs_aside() -> None:
    """Log lines of roles in other threads go to standard error, and not between what a command prints."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


@pytest.fixture
def heeded() -> Iterator[None]:
    """SIGHUP and SIGINT do what they do, also where the tests run under `nohup` or in the background: what they start inherits that one is ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
