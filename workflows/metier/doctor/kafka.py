"""The broker: that it is there, that the topics are as declared and safe, that the roles may use them, and that somebody reads them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from metier import compose
from metier.doctor import clock
from metier.doctor.case import Asked, Case
from metier.doctor.examination import Part
from metier.doctor.finding import Finding, error, ok, skipped, warning
from metier_infra.errors import MetierError
from metier_infra.events import READERS, tasks_group, tasks_topic
from metier_infra.kafka_acls import Access, accesses

if TYPE_CHECKING:
    from metier_infra.kafka_look import GroupSeen, KafkaSeen, TopicSeen
    from metier_infra.kafka_topics import Drift, Topic

NEEDED = (2, 3)
"""What is used began with it: members of a group that keep their name over a restart (KIP-345), and rights that the broker tells (KIP-430). Headers and idempotence are older."""
TESTED = (4, 0)
"""`make test` runs on 4.4. Since 4.0 a broker speaks the same oldest protocols (KIP-896); what came before is not tried."""
IDS = (
    "kafka.reachable",
    "kafka.version",
    "kafka.brokers",
    "kafka.topics",
    "kafka.in_sync",
    "kafka.access",
    "kafka.groups",
    "kafka.clock",
)


def examine(case: Case) -> list[Finding]:
    """See `Part`."""
    from metier_infra.kafka_look import look

    agents = _agents(case)
    needs = wanted_access(case.asked, agents, case.config.kafka.prefix)
    topics = _visible(compose.declared_topics(case.config, agents), case, needs)
    seen = look(case.config.kafka, topics, _groups(case.asked, agents), clock=case.clock)
    return findings(seen, needs, replication=case.config.kafka.replication, before_install=case.before_install)


def _agents(case: Case) -> list[str]:
    """Those that are declared, as far as their files can be read: `files.agents` tells of the others."""
    try:
        return sorted(compose.agent_specs(case.config))
    except MetierError:
        return sorted(case.asked.agents)


def _served(asked: Asked, agents: Iterable[str]) -> list[str]:
    return [name for name in agents if "agent" in asked.roles and (not asked.agents or name in asked.agents)]


def wanted_access(asked: Asked, agents: Sequence[str], prefix: str) -> list[Access]:
    """What the roles that are asked for must be allowed."""
    roles = {f"agent-{name}" for name in _served(asked, agents)} | (asked.roles & {"orchestrator"})
    return [one for one in accesses(agents, prefix=prefix) if one.role in roles]


def _visible(topics: Sequence[Topic], case: Case, needs: Sequence[Access]) -> list[Topic]:
    """A role of which the broker knows nothing more is told nothing of the others' topics."""
    if not case.asked.named:
        return list(topics)
    prefix = case.config.kafka.prefix
    return [topic for topic in topics if any(_is_of(one, "topic", prefix + topic.name) for one in needs)]


def _groups(asked: Asked, agents: Sequence[str]) -> dict[str, str]:
    own = {group: topic for topic, group in READERS.items() if "orchestrator" in asked.roles}
    return {**own, **{tasks_group(name): tasks_topic(name) for name in _served(asked, agents)}}


def findings(
    seen: KafkaSeen, needs: Sequence[Access], *, replication: int, before_install: bool = False
) -> list[Finding]:
    """What to think of it. `needs`: what the roles must be allowed; `replication`: of the topics that are made."""
    return [
        ok("kafka.reachable", "it lets us in"),
        _version(seen),
        _brokers(seen, replication),
        *_topics(seen.drift, before_install=before_install),
        *(
            _all_well(
                "kafka.in_sync",
                map(_in_sync, seen.topics, seen.topics.values()),
                "every topic that is there can be written safely",
            )
        ),
        *access(seen, needs),
        *_all_well("kafka.groups", map(_group, seen.groups, seen.groups.values()), _members(seen.groups)),
        _clock(seen.ahead_s),
    ]


def _all_well(name: str, found: Iterable[Finding | None], well: str) -> list[Finding]:
    """What is not well; else that all is."""
    return [one for one in found if one is not None] or [ok(name, well)]


def _version(seen: KafkaSeen) -> Finding:
    version = tuple(int(part) for part in seen.version.split(".") if part.isdigit())
    if version and version < NEEDED:
        why = "replicas keep their partitions over a restart by a name (group.instance.id), which began with it"
        return error("kafka.version", f"Kafka {seen.version}", f"upgrade it to {NEEDED[0]}.{NEEDED[1]} or newer: {why}")
    if version < TESTED:
        return warning(
            "kafka.version",
            f"Kafka {seen.version}",
            f"nothing older than {TESTED[0]}.{TESTED[1]} is tested: upgrade it",
        )
    return ok("kafka.version", f"Kafka {seen.version} or newer")


def _brokers(seen: KafkaSeen, replication: int) -> Finding:
    name, has = (
        "kafka.brokers",
        f"{seen.brokers} broker{'s' * (seen.brokers != 1)}, and topics of {replication} replica{'s' * (replication != 1)}",
    )
    if replication > seen.brokers:
        return error(name, has, f"start more brokers, or set METIER_KAFKA_REPLICATION to {seen.brokers} at the most")
    if replication == 1:
        return warning(
            name,
            f"{has}: what a broker loses is lost",
            "for more than an evaluation, have three brokers and set METIER_KAFKA_REPLICATION=3 before `metier topics`",
        )
    return ok(name, has)


def _topics(drift: Sequence[Drift], *, before_install: bool) -> list[Finding]:
    hidden = {one.topic for one in drift if _is_hidden(one)}
    told = [_drifted(one, before_install=before_install) for one in drift if not _is_hidden(one)]
    if hidden:
        why = f"the settings of {len(hidden)} topics are not told to this user (DESCRIBE_CONFIGS): `metier topics --check` is for one who may"
        told.append(skipped("kafka.topics", why))
    return told or [ok("kafka.topics", "every topic is as declared")]


def _is_hidden(one: Drift) -> bool:
    return one.found is None and one.state == "left"


def _drifted(one: Drift, *, before_install: bool) -> Finding:
    """What `metier topics` would mend stops work or loses it; what it leaves to a person does not."""
    seen = f"{one.what}: {one.found or 'none'}, declared {one.declared or 'by nobody'}"
    if one.state != "mendable":
        return warning("kafka.topics", seen, one.action, of=one.topic)
    if before_install:
        return ok("kafka.topics", f"{seen}; `metier topics` will make it so", of=one.topic)
    return error("kafka.topics", seen, "run `metier topics`", of=one.topic)


def _in_sync(topic: str, seen: TopicSeen) -> Finding | None:
    """A record is taken once `min_insync` replicas have it: too few of them, and it may be lost; too many, and none is taken."""
    least = seen.min_insync
    has = f"{seen.in_sync} of {seen.replicas} replicas are in sync, min.insync.replicas {least or 'is not told'}"
    found = _stopped(seen, has) or _weak(seen, has)
    return replace(found, of=topic) if found else None


def _stopped(seen: TopicSeen, has: str) -> Finding | None:
    name, least = "kafka.in_sync", seen.min_insync or 0
    if seen.leaderless:
        return error(name, f"{seen.leaderless} partitions have no leader", "bring back the brokers that hold them")
    if least > seen.replicas:
        return error(
            name, f"{has}: no record can ever be taken", f"set min.insync.replicas to {max(seen.replicas - 1, 1)}"
        )
    if seen.in_sync < least:
        return error(name, f"{has}: no record is taken now", "bring back the brokers that are away")
    return None


def _weak(seen: TopicSeen, has: str) -> Finding | None:
    name, least = "kafka.in_sync", seen.min_insync
    if seen.in_sync < seen.replicas:
        return warning(name, has, "bring back the brokers that are away")
    if seen.replicas > 1 and least == seen.replicas:
        return warning(
            name, f"{has}: one broker away stops the topic", f"set min.insync.replicas to {seen.replicas - 1}"
        )
    if seen.replicas > 1 and least == 1:
        return warning(
            name, f"{has}: a record may lie on one broker alone", f"set min.insync.replicas to {seen.replicas - 1}"
        )
    return None


def access(seen: KafkaSeen, needs: Sequence[Access]) -> list[Finding]:
    """What the broker does not allow that the roles need. Where it has no authorizer, it allows all."""
    told = [one.rights for one in seen.topics.values()] + [one.rights for one in seen.groups.values()]
    if all(rights is None for rights in told):
        return [skipped("kafka.access", "the broker tells of no topic or group what this client may do with it")]
    return _all_well("kafka.access", _denied(seen, needs), "what the roles need is allowed")


def _denied(seen: KafkaSeen, needs: Sequence[Access]) -> Iterator[Finding]:
    of_topics = [("topic", name, one.rights) for name, one in seen.topics.items()]
    of_groups = [("group", name, one.rights) for name, one in seen.groups.items()]
    for kind, name, rights in (*of_topics, *of_groups):
        wanted = _wanted(needs, kind, name)
        if rights is not None and (missing := sorted(wanted.keys() - rights)):
            roles = sorted({role for operation in missing for role in wanted[operation]})
            seen_text = f"{kind} {name}: {', '.join(missing)} is not allowed, and {', '.join(roles)} needs it"
            yield error("kafka.access", seen_text, "`metier acls` prints what each role needs", of=name)


def _wanted(needs: Sequence[Access], kind: str, name: str) -> Mapping[str, Collection[str]]:
    """Operation to the roles that need it."""
    found: dict[str, set[str]] = {}
    for one in needs:
        if _is_of(one, kind, name):
            for operation in one.operations:
                found.setdefault(operation, set()).add(one.role)
    return found


def _is_of(one: Access, kind: str, name: str) -> bool:
    return one.resource == kind and (name.startswith(one.name) if one.pattern == "prefixed" else name == one.name)


def _group(name: str, seen: GroupSeen) -> Finding | None:
    if seen.error:
        return error(
            "kafka.groups",
            f"the broker tells nothing of the group: {seen.error}",
            "let this user READ the group; on one broker, see offsets.topic.replication.factor",
            of=name,
        )
    if seen.waiting and not seen.members:
        return warning(
            "kafka.groups",
            f"{seen.waiting} records wait, and nobody is in the group",
            "start the role that reads them",
            of=name,
        )
    return None


def _members(groups: Mapping[str, GroupSeen]) -> str:
    return f"{sum(one.members for one in groups.values())} members in {len(groups)} groups, and nothing waits where nobody reads"


def _clock(ahead_s: float | None) -> Finding:
    if ahead_s is None:
        return skipped("kafka.clock", "there is no record yet, whose time could be compared")
    return clock.ahead("kafka.clock", ahead_s)


def unneeded(case: Case) -> str:
    """Where nobody is asked."""
    if "KafkaSettings" in case.unread:
        return "its settings cannot be used: see settings.values"
    if case.config.kafka.bootstrap:
        return ""
    return (
        "METIER_KAFKA_BOOTSTRAP is not set: see settings.needed"
        if case.distributed
        else "everything runs in one process"
    )


PART = Part(
    "kafka",
    IDS,
    examine,
    frozenset({"orchestrator", "agent"}),
    unneeded=unneeded,
    mend="start it, or correct METIER_KAFKA_BOOTSTRAP and what METIER_KAFKA_… says of who comes",
)
