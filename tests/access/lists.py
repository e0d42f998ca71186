"""Access control lists on a real broker: made, seen by everybody, and taken away again."""

from __future__ import annotations

import time
from collections.abc import Iterable

from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    KafkaAdminClient,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)

from metier_infra.kafka_acls import Access

SEEN_S = 30.0


def entries(accesses: Iterable[Access]) -> list[ACL]:
    """One entry for each operation of each access."""
    return [_entry(one, operation) for one in accesses for operation in one.operations]


def _entry(one: Access, operation: str) -> ACL:
    kind, pattern = ResourceType[one.resource.upper()], ACLResourcePatternType[one.pattern.upper()]
    return ACL(one.principal, "*", ACLOperation[operation], ACLPermissionType.ALLOW, ResourcePattern(kind, one.name, pattern))  # fmt: skip


def add(admin: KafkaAdminClient, wanted: list[ACL]) -> None:
    """Make them, and wait until the broker has them."""
    assert not admin.create_acls(wanted)["failed"]
    _await(admin, wanted, there=True)


def remove(admin: KafkaAdminClient, unwanted: list[ACL]) -> None:
    """Take them away, and wait until they are gone."""
    admin.delete_acls([_filter(one) for one in unwanted])
    _await(admin, unwanted, there=False)


def _filter(one: ACL) -> ACLFilter:
    return ACLFilter(one.principal, one.host, one.operation, one.permission_type, one.resource_pattern)


def _await(admin: KafkaAdminClient, expected: list[ACL], *, there: bool) -> None:
    """The controller says that it is done before the broker goes by it."""
    everything = ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
    anybody = ACLFilter(None, None, ACLOperation.ANY, ACLPermissionType.ANY, everything)
    limit = time.monotonic() + SEEN_S
    while any((one in admin.describe_acls(anybody)[0]) is not there for one in expected):
        assert time.monotonic() < limit, f"the broker does not go by its lists within {SEEN_S:g} s"
        time.sleep(0.02)
