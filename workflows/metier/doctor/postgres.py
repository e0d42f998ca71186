"""The journal's Postgres."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from metier.doctor import clock
from metier.doctor.case import Case, Role
from metier.doctor.examination import Part
from metier.doctor.finding import Finding, error, ok, warning
from metier_infra.database import migrations

if TYPE_CHECKING:
    from metier_infra.postgres_look import PostgresSeen

TESTED = 15
"""The oldest major version that `make test` runs on."""
POOLS: Mapping[Role, int] = {"orchestrator": 16, "agent": 8, "tools": 0}
"""The most connections that one process of a role holds; see `roles`."""
IDS = (
    "postgres.reachable",
    "postgres.version",
    "postgres.schema",
    "postgres.encoding",
    "postgres.connections",
    "postgres.writable",
    "postgres.durable",
    "postgres.clock",
)


def examine(case: Case) -> list[Finding]:
    """See `Part`."""
    from metier_infra.postgres_look import look

    url = case.config.journal.postgres_url
    seen = look(url.get_secret_value() if url else "", clock=case.clock)
    return findings(seen, case.asked.roles, newest=max(migrations()), before_install=case.before_install)


def findings(
    seen: PostgresSeen, roles: Collection[Role], *, newest: int, before_install: bool = False
) -> list[Finding]:
    """What to think of it; `newest` is the version of the schema that this code makes."""
    return [
        ok("postgres.reachable", "it lets us in"),
        _version(seen),
        _schema(seen, newest, before_install=before_install),
        _encoding(seen),
        _connections(seen, roles),
        _writable(seen),
        _durable(seen),
        clock.skew("postgres.clock", seen.skew_s, seen.unsure_s, "Postgres"),
    ]


def _version(seen: PostgresSeen) -> Finding:
    if seen.major < TESTED:
        return warning(
            "postgres.version", f"Postgres {seen.version}", f"nothing older than {TESTED} is tested: upgrade it"
        )
    return ok("postgres.version", f"Postgres {seen.version}")


def _schema(seen: PostgresSeen, newest: int, *, before_install: bool) -> Finding:
    name, version = "postgres.schema", max(seen.schema, default=0)
    has = f"the schema is at version {version}"
    oldest = max((since or made for made, since in seen.schema.items() if made > newest), default=0)
    if oldest > newest:
        return error(name, f"{has}, and needs code that knows {oldest}; this knows {newest}", "deploy a newer Métier")
    if version > newest:
        return ok(name, f"{has}, newer than {newest}, which this code makes; they go together")
    if version == newest:
        return ok(name, f"{has}, which this code makes")
    if before_install:
        return ok(name, f"{has}; `metier migrate` will bring it to {newest}")
    return error(name, f"{has}, and this code needs {newest}", "run `metier migrate`")


def _encoding(seen: PostgresSeen) -> Finding:
    if seen.encoding == "UTF8":
        return ok("postgres.encoding", "UTF8")
    return error(
        "postgres.encoding",
        f"the database is in {seen.encoding}, which cannot hold every text",
        "make one with ENCODING 'UTF8' TEMPLATE template0, and name that in METIER_POSTGRES_URL",
    )


def _connections(seen: PostgresSeen, roles: Collection[Role]) -> Finding:
    left, wanted = seen.connections - seen.taken, sum(POOLS[role] for role in roles)
    has = f"{left} of {seen.connections} connections are free"
    if left >= wanted:
        return ok("postgres.connections", has)
    return warning(
        "postgres.connections",
        f"{has}; one process each of {', '.join(sorted(roles))} may take {wanted}",
        "raise max_connections, or put fewer replicas on this server",
    )


def _writable(seen: PostgresSeen) -> Finding:
    name = "postgres.writable"
    if seen.standby:
        return error(name, "it follows another server, and takes no writes", "name the primary in METIER_POSTGRES_URL")
    if seen.unwritten:
        return error(
            name,
            seen.unwritten,
            "let this user write: `GRANT ALL ON SCHEMA public TO …`, or make it the schema's owner",
        )
    if seen.forbidden:
        return error(
            name,
            f"this user may not read and write {', '.join(seen.forbidden)}",
            "`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA … TO …`, or connect as their owner",
        )
    return ok(name, "a write was made, and undone")


def _durable(seen: PostgresSeen) -> Finding:
    if not seen.fsync:
        return error("postgres.durable", "fsync is off: a crash of the server can break the journal", "set fsync = on")
    if seen.commits == "off":
        return warning(
            "postgres.durable",
            "synchronous_commit is off: a crash of the server forgets what it had confirmed",
            "set synchronous_commit = on for this database",
        )
    return ok("postgres.durable", f"what is confirmed is on the disk (fsync on, synchronous_commit {seen.commits})")


def unneeded(case: Case) -> str:
    """Where nobody is asked."""
    if case.config.journal.postgres_url is not None:
        return ""
    return (
        "METIER_POSTGRES_URL is not set: see settings.needed" if case.distributed else "everything runs in one process"
    )


PART = Part(
    "postgres",
    IDS,
    examine,
    frozenset({"orchestrator", "agent"}),
    unneeded=unneeded,
    mend="start it, or correct METIER_POSTGRES_URL: host, port, user, password and database",
)
