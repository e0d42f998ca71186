"""The four services as frozen specs: what to run, on which ports, when it is ready, how it ends.

Called by `stack`; `lifecycle` starts and stops what is described here, knowing nothing of Kafka or Postgres.
The commands hand on to `install` for programs, the ready checks to `ready` and `engine`.
"""

import base64
import os
import pwd
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals
from string import Template

import engine
import install
import process
import ready
from state import State

DATABASE = "metier"
STATE_VARIABLE = "METIER_LOCAL_STATE"
"""Tells a command that `stack run` runs whose services it has, and us that they end with it: `metier chaos` restarts them."""
VARIABLES = {
    "kafka": "METIER_KAFKA_BOOTSTRAP",
    "postgres": "METIER_POSTGRES_URL",
    "redis": "METIER_REDIS_URL",
    "docker": "DOCKER_HOST",
}
"""The environment variable that names each service: set beforehand, that service is used and none is started."""

_RECIPE = Path(__file__).parent / "kafka"
_BRIEF = ["-XX:TieredStopAtLevel=1"]
"""For a broker that is there for one command: what the JVM's second compiler gives back in an hour, it takes in the first minutes."""


def _nothing() -> None:
    """Stand for a step that most services do not need."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """One process to keep running, and all that the generic code must know of it."""

    name: str
    url: str
    """What its environment variable is set to; also shown to people."""
    command: Callable[[], Sequence[str]]
    """Installs and prepares what is missing, then says what to run."""
    ready: Callable[[], bool]
    pidfile: Path
    log: Path
    ports: tuple[int, ...] = ()
    user: str | None = None
    folder: Path = Path("/")
    environment: Mapping[str, str] | None = None
    stop_signal: Signals = SIGTERM
    grace: float = 15.0
    """Seconds from the stop signal to SIGKILL."""
    patience: float = 60.0
    """Seconds from the start to ready."""
    before_stop: Callable[[], None] = field(default=_nothing)
    after_stop: Callable[[], None] = field(default=_nothing)


def every(state: State) -> dict[str, Service]:
    """Describe all four services of a stack."""
    return {one.name: one for one in (kafka(state), postgres(state), redis(state), docker(state))}


def elsewhere(service: Service, environment: Mapping[str, str]) -> str | None:
    """Return the address to use instead of one of our services, if there is one.

    A variable that names our own service, as a shell that read our env file has it, is no reason not to start it.
    """
    given = environment.get(VARIABLES[service.name])
    if given and given != service.url:
        return given
    if service.name == "docker" and not process.running(service.pidfile):
        return engine.find()
    return None


def kafka(state: State) -> Service:
    """Describe a Kafka broker and controller in one process."""
    port = state.ports()["kafka"]
    return Service(
        name="kafka",
        url=f"127.0.0.1:{port}",
        ports=(port, port + 1),
        command=lambda: _kafka_command(state.folder("kafka"), port, _BRIEF if STATE_VARIABLE in os.environ else []),
        ready=partial(ready.kafka, port),
        pidfile=state.pidfile("kafka"),
        log=state.log("kafka"),
    )


def _kafka_command(home: Path, port: int, compiling: Sequence[str]) -> list[str]:
    settings = home / "server.properties"
    template = Template((_RECIPE / "server.properties").read_text().split("\n", 1)[1])
    settings.write_text(template.substitute(port=port, controller=port + 1, data=home / "data"))
    java = [install.java(), "-XX:+UseSerialGC", "-XX:-UsePerfData", *compiling]
    java += [f"-Dlog4j2.configurationFile={_RECIPE / 'log4j2.properties'}", "-cp", f"{install.kafka_jars()}/*"]
    if not (home / "data/meta.properties").exists():
        cluster = base64.urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
        tool = ["kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", cluster, "-c", str(settings)]
        process.run([*java, *tool])
    return [*java[:1], "-Xms128m", "-Xmx512m", *java[1:], "kafka.Kafka", str(settings)]


def postgres(state: State) -> Service:
    """Describe a Postgres server that trusts the role `postgres` from this machine."""
    port, user = state.ports()["postgres"], _postgres_user()
    home = state.data_for_other_user("postgres") if user else state.folder("postgres")
    return Service(
        name="postgres",
        url=f"postgresql://postgres@127.0.0.1:{port}/{DATABASE}",
        ports=(port,),
        command=lambda: _postgres_command(home, port, user),
        ready=partial(ready.postgres, port, DATABASE),
        pidfile=state.pidfile("postgres"),
        log=state.log("postgres"),
        user=user,
        stop_signal=SIGINT,  # a "fast" shutdown: it does not wait for clients to leave
    )


def _postgres_user() -> str | None:
    """Postgres refuses to run as root: choose who runs it then."""
    if os.geteuid() != 0:
        return None
    return "postgres" if any(one.pw_name == "postgres" for one in pwd.getpwall()) else "nobody"


def _postgres_command(home: Path, port: int, user: str | None) -> list[str]:
    programs, data = install.postgres_folder(), home / "data"
    home.chmod(0o700)
    if user:
        shutil.chown(home, user)
    if not data.exists():
        _make_cluster(programs, home, user)
    process.settle(data / "postmaster.pid")
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        "fsync": "on",
        "max_connections": 200,
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    return [str(programs / "postgres"), "-D", str(data), *options]


def _make_cluster(programs: Path, home: Path, user: str | None) -> None:
    """Make the data folder with our database in it, aside, so that it is there whole or not at all."""
    half = home / "half"
    shutil.rmtree(half, ignore_errors=True)
    made = ["-D", str(half)]
    settings = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale"]
    process.run([str(programs / "initdb"), *made, *settings], user=user)
    words = f"CREATE DATABASE {DATABASE}\n"
    process.run([str(programs / "postgres"), "--single", *made, "postgres"], user=user, words=words)
    half.rename(home / "data")


def redis(state: State) -> Service:
    """Describe a server of the Redis protocol that keeps its data over a crash."""
    port, home = state.ports()["redis"], state.folder("redis")
    settings = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(home), "--appendonly", "yes", "--save", ""]
    return Service(
        name="redis",
        url=f"redis://127.0.0.1:{port}/0",
        ports=(port,),
        command=lambda: [install.redis_server(), *settings],
        ready=partial(ready.redis, port),
        pidfile=state.pidfile("redis"),
        log=state.log("redis"),
    )


def docker(state: State) -> Service:
    """Describe a private container engine, for sandboxes without a network, that leaves the machine's network alone."""
    sockets, data = state.sockets, state.folder("docker")
    host = f"unix://{sockets}/docker.sock"
    private = engine.Engine(host)
    return Service(
        name="docker",
        url=host,
        command=lambda: _docker_command(sockets, data, host),
        ready=private.answers,
        pidfile=state.pidfile("docker"),
        log=state.log("docker"),
        before_stop=private.kill_containers,
        after_stop=partial(engine.sweep, sockets / "exec", data),
    )


def _docker_command(sockets: Path, data: Path, host: str) -> list[str]:
    program, own = install.dockerd(), sockets / "dockerd.pid"
    engine.sweep(sockets / "exec", data)  # a killed engine's containers: the new one would be 10 s ending them
    process.settle(sockets / "exec/containerd/containerd.pid")
    for stale in (own, sockets / "docker.sock"):
        stale.unlink(missing_ok=True)
    places = {"data-root": data, "exec-root": sockets / "exec", "pidfile": own, "host": host, "log-level": "warn"}
    options = [f"--{name}={value}" for name, value in places.items()]
    network = [f"--{name}=false" for name in ("iptables", "ip6tables", "ip-forward", "ip-masq")]
    return [program, *options, "--bridge=none", *network]
