"""Router versions: where they may be moved, that moves are kept and told, what decides then; and that outcomes show where an agent has changed.

Over both databases. Not here: how versions are judged (`test_router_judging.py`), and the commands (`test_cli_routers.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from structlog.testing import capture_logs

from metier_infra import metrics
from metier_infra.bus import Consumption, MemoryBus
from metier_infra.errors import MoveRefused, RouterBroken
from metier_infra.events import EVENTS_TOPIC, Event, RequestRejected, RouterMoved, RouterMoveRequested
from metier_infra.journal import Journal
from metier_infra.messages import Delivery, Envelope, decode
from metier_infra.outcomes import Outcome
from metier_infra.routers import EVERYONE, Fitted, RouterVersion, Stages, Verdict, digest_of
from metier_infra.rows import Run
from metier_infra.words import Candidate, Decision, RunId
from metier_workflows.choosing import stored
from metier_workflows.choosing.drift import BASELINE
from metier_workflows.choosing.router import Asked, Choice, Option, Topology
from metier_workflows.drifting import Drifting
from metier_workflows.promotion import Promotion, moved, serving

HUNG = 40
Points = Callable[[], Mapping[str, list[Any]]]
DELIVERY = Delivery("metier.requests", 0, 0, None, b"")


@dataclass(frozen=True)
class Always:
    """A router that takes one agent, whatever is asked."""

    version: str
    agent: str

    def choose(self, asked: Asked, agents: Sequence[str], topologies: Collection[Topology]) -> Choice:
        """See `Router.choose`."""
        del asked, topologies
        options = tuple(Option(one, 0.5, float(one == self.agent)) for one in agents)
        return Choice("specialist", (self.agent,), (1.0,), options, "always")


def load(fitted: Fitted) -> Always:
    """Its body is the agent's name. Raises `RouterBroken`, and for one body what nobody expects."""
    if fitted.body == b"garbage":
        raise ZeroDivisionError
    return Always(fitted.known.version, fitted.body.decode())


@pytest.fixture
def points() -> Iterator[Points]:
    """What was counted in the test, by the metric's name."""
    reader = InMemoryMetricReader()
    metrics.stop()
    metrics.start("tests", "one", reader)

    def read() -> Mapping[str, list[Any]]:
        data = reader.get_metrics_data()
        scopes = [scope for one in (data.resource_metrics if data else ()) for scope in one.scope_metrics]
        return {one.name: list(one.data.data_points) for scope in scopes for one in scope.metrics}

    yield read
    metrics.stop()


async def fitted(journal: Journal, version: str, agent: str, verdict: str | None = "better") -> RouterVersion:
    """A version in the journal, judged so."""
    body = agent.encode()
    known = RouterVersion(
        version=version, kind="always", digest=digest_of("always", body), fitted_on={"rows": 3}, fitted_by="ann"
    )
    kept = await journal.routers.keep(known, body)
    if verdict:
        await journal.routers.judge(version, Verdict.model_validate({"verdict": verdict, "why": "the test says so"}))
    return kept


def asks(router: str, to: str, **more: object) -> RouterMoveRequested:
    return RouterMoveRequested.model_validate({"router": router, "to": to, "by": "ann", **more})


def known(verdict: str | None = "better") -> RouterVersion:
    report = Verdict.model_validate({"verdict": verdict, "why": "0.1 less"}) if verdict else None
    return RouterVersion(version="b", kind="k", digest="d", fitted_on={}, fitted_by="ann", report=report)


async def move(promotion: Promotion, name: str, said: RouterMoveRequested) -> None:
    await promotion.on_move(Envelope(said, name, "/test", said.router), DELIVERY)


async def told(bus: MemoryBus, n: int) -> list[Envelope[Event]]:
    """The first n events that were published."""
    stop, found = asyncio.Event(), list[Envelope[Event]]()

    async def take(delivery: Delivery) -> None:
        found.append(decode(delivery))
        if len(found) == n:
            stop.set()

    async with asyncio.timeout(HUNG):
        await bus.consume(Consumption([EVENTS_TOPIC], None), take, stop)
    return found


def agent_of(promotion: Promotion, tenant: str) -> str | None:
    router = promotion.serving(tenant).promoted
    return router.agent if isinstance(router, Always) else None


def test_a_version_goes_from_shadow_to_canary_to_promoted() -> None:
    stages = moved(Stages(promoted="a"), asks("b", "shadow"), known(None))
    assert stages == Stages(promoted="a", shadows=("b",))
    stages = moved(stages, asks("b", "canary", share=0.1), known(None))
    assert stages == Stages(promoted="a", canary="b", share=0.1)
    stages = moved(stages, asks("b", "promoted"), known())
    assert stages == Stages(promoted="b", before=("a",))


def test_a_version_that_is_rolled_back_gives_its_place_to_the_one_before() -> None:
    stages = Stages(promoted="c", before=("a", "b"))
    assert moved(stages, asks("c", "rolled_back"), known()) == Stages(promoted="b", before=("a",))
    assert moved(Stages(promoted="c"), asks("c", "rolled_back"), known()) == Stages()


def test_a_version_that_is_rolled_back_comes_back_only_by_its_own_promotion() -> None:
    # Given that a decided, then b, then a again
    stages = moved(Stages(promoted="b", before=("a",)), asks("a", "promoted"), known())
    assert stages == Stages(promoted="a", before=("b",))
    # When both are rolled back
    stages = moved(stages, asks("a", "rolled_back"), known())
    assert stages == Stages(promoted="b")
    # Then none decides
    assert moved(stages, asks("b", "rolled_back"), known()) == Stages()


def test_a_version_that_decided_earlier_can_be_rolled_back_so_that_nobody_goes_back_to_it() -> None:
    stages = moved(Stages(promoted="c", before=("a", "b")), asks("b", "rolled_back"), known())
    assert stages == Stages(promoted="c", before=("a",))
    tried = Stages(promoted="c", before=("a", "b"), canary="b", share=0.1)
    assert moved(tried, asks("b", "rolled_back"), known()) == Stages(promoted="c", before=("a",))


@pytest.mark.parametrize(
    ("stages", "said", "verdict", "why"),
    [
        (Stages(), asks("b", "promoted"), None, "was not judged"),
        (Stages(), asks("b", "promoted"), "unjudged", "was not judged"),
        (Stages(), asks("b", "promoted"), "worse", "significantly worse: 0.1 less"),
        (Stages(), asks("b", "promoted", force=True, note=" "), "worse", "says why"),
        (Stages(promoted="b"), asks("b", "promoted"), "better", "is promoted already"),
        (Stages(promoted="b"), asks("b", "shadow"), "better", "roll it back first"),
        (Stages(), asks("b", "canary"), "better", "needs a share"),
        (Stages(), asks("b", "canary", share=0.0), "better", "needs a share"),
        (Stages(canary="a", share=0.5), asks("b", "canary", share=0.1), "better", "a is on trial"),
        (Stages(), asks("b", "rolled_back"), "better", "stands nowhere"),
    ],
)
def test_a_version_may_not_stand_where_it_may_not(
    stages: Stages, said: RouterMoveRequested, verdict: str | None, why: str
) -> None:
    with pytest.raises(MoveRefused, match=why):
        moved(stages, said, known(verdict))


def test_whoever_forces_a_promotion_says_why() -> None:
    assert (
        moved(Stages(), asks("b", "promoted", force=True, note="the log is too short"), known("worse")).promoted == "b"
    )


def test_the_share_of_a_canary_can_be_changed() -> None:
    stages = Stages(canary="b", share=0.1)
    assert moved(stages, asks("b", "canary", share=0.5), known()).share == 0.5
    with pytest.raises(MoveRefused, match="already"):
        moved(stages, asks("b", "canary", share=0.1), known())


def test_a_tenant_has_its_own_versions_and_else_those_for_all() -> None:
    routers = {name: Always(name, name) for name in "abcde"}
    stages = {
        EVERYONE: Stages(promoted="a", canary="b", share=0.2, shadows=("c",)),
        "acme": Stages(promoted="d", shadows=("e", "a")),
        "umbrella": Stages(canary="e", share=0.5),
    }
    found = serving(stages, routers)
    assert (found["acme"].promoted, found["acme"].canary) == (routers["d"], None), "its own stands untried"
    assert found["acme"].shadows == (routers["e"], routers["a"], routers["c"])
    assert (found["umbrella"].promoted, found["umbrella"].canary) == (routers["a"], routers["e"])
    assert found[EVERYONE].canary == routers["b"]


async def test_a_move_is_kept_and_told_and_what_was_promoted_decides(journal: Journal) -> None:
    bus = MemoryBus()
    promotion = Promotion(bus, journal, load)
    await fitted(journal, "a", "coder")
    await fitted(journal, "b", "reasoner")
    await move(promotion, "1", asks("a", "promoted"))
    await move(promotion, "2", asks("b", "promoted", tenant="acme", note="only theirs"))
    await move(promotion, "3", asks("b", "promoted"))
    assert agent_of(promotion, "acme") == agent_of(promotion, "another") == "reasoner"
    events = [one.data for one in await told(bus, 3)]
    assert events == [
        RouterMoved(router="a", before="fitted", to="promoted", by="ann"),
        RouterMoved(router="b", before="fitted", to="promoted", tenant="acme", by="ann", note="only theirs"),
        RouterMoved(router="b", before="fitted", to="promoted", by="ann", other="a"),
    ]
    history = [(one.version, one.stage, one.tenant, one.other) for one in await journal.routers.moves()]
    assert sorted(history, key=str) == sorted(
        [("a", "promoted", "", None), ("b", "promoted", "acme", None), ("b", "promoted", "", "a")], key=str
    )
    await move(promotion, "4", asks("b", "rolled_back"))
    assert (agent_of(promotion, "another"), agent_of(promotion, "acme")) == ("coder", "reasoner")


async def test_the_same_request_twice_moves_once_and_tells_the_same(journal: Journal) -> None:
    bus = MemoryBus()
    promotion = Promotion(bus, journal, load)
    await fitted(journal, "a", "coder")
    for _ in range(2):
        await move(promotion, "1", asks("a", "shadow"))
    first, second = await told(bus, 2)
    assert (first.id, first.data) == (second.id, second.data)
    assert len(await journal.routers.moves()) == 1


async def test_moves_on_several_replicas_at_once_all_count(journal: Journal) -> None:
    replicas = [Promotion(MemoryBus(), journal, load) for _ in range(4)]
    for n in range(4):
        await fitted(journal, f"v{n}", "coder")
    await asyncio.gather(*(move(one, str(n), asks(f"v{n}", "shadow")) for n, one in enumerate(replicas)))
    stages = (await journal.routers.stages())[EVERYONE]
    assert sorted(stages.shadows) == ["v0", "v1", "v2", "v3"]
    assert stages.generation == 4


@pytest.mark.parametrize(
    ("router", "to", "code"), [("gone", "shadow", "unknown_router"), ("a", "promoted", "move_refused")]
)
async def test_what_cannot_be_done_is_told(journal: Journal, router: str, to: str, code: str) -> None:
    bus = MemoryBus()
    promotion = Promotion(bus, journal, load)
    await fitted(journal, "a", "coder", verdict=None)
    await move(promotion, "1", asks(router, to))
    (event,) = await told(bus, 1)
    assert isinstance(event.data, RequestRejected)
    assert (event.data.failure.code, event.data.request_id, event.data.run_id) == (code, "1", None)
    assert await journal.routers.moves() == []
    assert promotion.serving("default").promoted is None


async def test_a_version_that_cannot_be_loaded_is_told_and_left_out(journal: Journal) -> None:
    promotion = Promotion(MemoryBus(), journal, load)
    await fitted(journal, "sound", "coder")
    await fitted(journal, "broken", "garbage")
    await move(promotion, "1", asks("sound", "shadow"))
    with capture_logs() as logs:
        await move(promotion, "2", asks("broken", "promoted"))
        await promotion.refresh()
    found = promotion.serving("default")
    assert (found.promoted, [one.version for one in found.shadows]) == (None, ["sound"])
    assert [one["router"] for one in logs if one["event"] == "router cannot be loaded"] == ["broken"], "told once"


async def test_a_body_that_is_not_what_was_stored_is_not_loaded(journal: Journal) -> None:
    body = b"coder"
    lie = RouterVersion(
        version="a", kind="learned", digest=digest_of("learned", b"other"), fitted_on={}, fitted_by="ann"
    )
    await journal.routers.keep(lie, body)
    kept = await journal.routers.get("a")
    assert kept is not None
    with pytest.raises(RouterBroken, match="not what was stored"):
        stored.load(kept)
    promotion = Promotion(MemoryBus(), journal, load)
    await move(promotion, "1", asks("a", "shadow"))
    assert promotion.serving("default").shadows == ()


async def test_a_kind_that_is_not_known_here_is_broken(journal: Journal) -> None:
    await fitted(journal, "a", "coder")
    kept = await journal.routers.get("a")
    assert kept is not None
    with pytest.raises(RouterBroken, match="a kind that is not known here"):
        stored.load(kept)


async def test_a_version_is_kept_once_and_never_changed(journal: Journal) -> None:
    first = await fitted(journal, "a", "coder", verdict=None)
    second = await journal.routers.keep(first.model_copy(update={"fitted_by": "bob", "fitted_on": {"rows": 9}}), b"x")
    assert second == first
    kept = await journal.routers.get("a")
    assert kept is not None
    assert kept.body == b"coder"


async def outcome(journal: Journal, n: int, score: float, **more: str) -> None:
    """A run with a decision for the coder, and what was said of it."""
    run_id = RunId(f"run{n}")
    run = Run(
        run_id=run_id,
        source="/test",
        event_id=str(n),
        workflow="w",
        version=None,
        status="accepted",
        input={},
        traceparent="t",
    )
    await journal.runs.accept(run)
    options = (Candidate(agent="coder", score=0.5, propensity=1.0),)
    decision = Decision(
        category="code", chosen=("coder",), topology="specialist", reason="r", router="r", candidates=options
    )
    await journal.decisions.record(f"d{n}", run_id, decision)
    said = {"run_id": run_id, "score": score, "by": "ann", "event_id": f"o{n}", "said_at": float(n), **more}
    await journal.outcomes.record(Outcome.model_validate(said))


def alarms(logs: Sequence[MutableMapping[str, Any]]) -> list[tuple[str, str, str]]:
    return [(one["agent"], one["category"], one["way"]) for one in logs if one["event"] == "agent changed"]


async def test_outcomes_show_where_an_agent_became_worse_and_it_is_told_once(journal: Journal) -> None:
    drifting = Drifting(journal, page=7)
    await drifting.look()
    for n in range(BASELINE + 30):
        await outcome(journal, n, float(n < BASELINE))
    with capture_logs() as logs:
        await drifting.look()
        await drifting.look()
    assert alarms(logs) == [("coder", "code", "worse")]


async def test_drift_and_routers_that_cannot_be_loaded_show_in_the_metrics(journal: Journal, points: Points) -> None:
    drifting, promotion = Drifting(journal), Promotion(MemoryBus(), journal, load)
    await fitted(journal, "broken", "garbage")
    await move(promotion, "1", asks("broken", "shadow"))
    await drifting.look()
    for n in range(BASELINE + 1):
        await outcome(journal, n, float(n < BASELINE))
    await drifting.look()
    (evidence,) = points()[metrics.DRIFT.name]
    assert evidence.attributes == {metrics.AGENT_NAME: "coder", metrics.CATEGORY: "code"}
    assert 0 < evidence.value < 1
    for n in range(30):
        await outcome(journal, BASELINE + 1 + n, 0.0)
    await drifting.look()
    (alarm,) = points()[metrics.DRIFT_ALARMS.name]
    assert (alarm.value, alarm.attributes[metrics.WAY]) == (1, "worse")
    assert [one.value for one in points()[metrics.ROUTERS_BROKEN.name]] == [1]


async def test_what_was_said_before_it_began_makes_no_alarm(journal: Journal) -> None:
    for n in range(BASELINE + 30):
        await outcome(journal, n, float(n < BASELINE))
    with capture_logs() as logs:
        await Drifting(journal).look()
    assert alarms(logs) == []


async def test_only_what_somebody_judged_counts_for_drift(journal: Journal) -> None:
    await outcome(journal, 1, 1.0)
    await outcome(journal, 2, 0.0, kind="dissent", agent="coder")
    await outcome(journal, 3, 0.0, decision_id="another")
    assert [one.score for one in await journal.scores.since(0.0)] == [1.0]
