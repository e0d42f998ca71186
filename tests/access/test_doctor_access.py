"""`metier doctor` as a role that may do just what it needs: all is well; and what is taken from it is told. Not here: what a role needs, in `test_kafka_acls`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from pydantic_settings import BaseSettings

from metier import compose, configuration
from metier.doctor import kafka
from metier.doctor.case import Case, asked
from metier.doctor.finding import Finding
from metier_infra import kafka_topics
from metier_infra.kafka_acls import Access, accesses
from metier_infra.settings import KafkaSettings, S

from . import lists
from .conftest import Secured

AGENTS = ("careful", "coder", "reasoner")


def as_shipped(kind: type[S], /) -> S:
    return kind(**{name: field.get_default(call_default_factory=True) for name, field in kind.model_fields.items()})


def examined(settings: BaseSettings, role: str) -> dict[str, list[Finding]]:
    """What the doctor finds of Kafka for a role, by id."""
    config = replace(configuration.read(as_shipped), kafka=settings)
    told: dict[str, list[Finding]] = {}
    for one in kafka.examine(Case(config, environment={}, asked=asked([role]))):
        told.setdefault(one.id, []).append(one)
    return told


def rights(settings: KafkaSettings, role: str, user: str) -> Sequence[Access]:
    return [one for one in accesses(AGENTS, prefix=settings.prefix, principal=f"User:{user}") if one.role == role]


@pytest.mark.parametrize(("role", "named"), [("orchestrator", "orchestrator"), ("agent-coder", "agent:coder")])
def test_a_role_with_its_own_rights_and_no_more_is_well_and_one_that_lost_any_is_told_which(
    secured: Secured, corner: Callable[..., KafkaSettings], role: str, named: str
) -> None:
    user = f"doctor-{role}"
    secured.know(user)
    settings, admin = corner(user, user), secured.admin()
    kafka_topics.apply(corner(), compose.declared_topics(configuration.read(as_shipped), AGENTS))
    wanted = rights(settings, role, user)
    lists.add(admin, lists.entries(wanted))
    told = examined(settings, named)
    assert {one.level for one in told["kafka.access"]} == {"ok"}
    assert [one.seen for one in told["kafka.groups"] if one.level != "ok"] == []
    wrong = {name for name, found in told.items() for one in found if one.level in {"error", "warning"}}
    assert wrong == {"kafka.brokers"}  # there is one
    # When it may write its run's topic no more
    runs = [replace(one, operations=["WRITE"]) for one in wanted if one.name.endswith("metier.runs")]
    lists.remove(admin, lists.entries(runs))
    seen = replace(runs[0], operations=["DESCRIBE"])
    lists.add(admin, lists.entries([seen]))
    told = examined(settings, named)
    assert [(one.level, one.of) for one in told["kafka.access"]] == [("error", runs[0].name)]
    assert "WRITE is not allowed" in told["kafka.access"][0].seen
    admin.close()
