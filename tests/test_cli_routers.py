"""`metier routers`: a version is fitted, judged, watched, tried, promoted and rolled back, by commands to a system that runs in this process.

Not here: the rules of moves (`test_routers.py`) and of judging (`test_router_judging.py`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner, Result

from metier import client, compose, compose_tools, configuration, roles
from metier.cli import app
from metier.configuration import Config
from metier_infra.bus import MemoryBus
from metier_infra.errors import BadSettings, MissingRouter
from metier_infra.journal import Journal
from metier_infra.outcomes import Outcome
from metier_infra.rows import Run
from metier_infra.socket_bus import serve_bus
from metier_infra.words import AgentCard, RunId, Task, Wanted
from metier_workflows.choosing import stored
from metier_workflows.choosing.router import Router, Serving, Standing
from metier_workflows.deciding import Deciding
from metier_workflows.routing import seed_of


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Config:
    """A folder of its own, and no service."""
    for name in ("METIER_KAFKA_BOOTSTRAP", "METIER_POSTGRES_URL", "METIER_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("METIER_SQLITE_PATH", str(tmp_path / "journal.db"))
    monkeypatch.chdir(tmp_path)
    return configuration.standalone(configuration.configure())


NAMES = ("--agents", "careful=big,reasoner=small")


def write_matrix(folder: Path, name: str, *, seed: int, strong: float = 0.9, rows: int = 300) -> Path:
    """So many questions; `big` answers `strong` of them, `small` half."""
    rng = np.random.default_rng(seed)
    ids = [f"{name}-{n}" for n in range(rows)]
    right = rng.random((rows, 2)) < [strong, 0.5]
    texts = [f"what is {n} and {n}?" for n in range(rows)]
    asked = {"qid": ids, "task": ["t"] * rows, "category": ["maths"] * rows, "text": texts}
    scores = {f"s__{model}": right[:, at].astype(float) for at, model in enumerate(("big", "small"))}
    for kind, columns in (("q", asked), ("o", {"qid": ids, **scores})):
        table = cast("Any", pa).table(columns)
        parquet.write_table(table, folder / f"{name}_{kind}.parquet")
    return folder / name


async def metier(*words: str | Path) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, ["routers", *map(str, words)])


async def told(*words: str | Path) -> Any:
    """What a command says as JSON."""
    found = await metier(*words, "--json")
    assert found.exit_code == 0, f"{found.output} {found.exception!r}"
    return json.loads(found.stdout)


@asynccontextmanager
async def dev(config: Config) -> AsyncGenerator[None]:
    """What `metier dev` runs. As long as it does, no other process writes to its journal."""
    bus = MemoryBus()
    lane = compose_tools.scripted_lane()
    async with roles.embedded(config, lane=lane, bus=bus), serve_bus(bus, client.dev_socket(config)):
        yield


async def test_a_version_goes_all_the_way_by_commands(config: Config, tmp_path: Path) -> None:
    one, other = write_matrix(tmp_path, "one", seed=1), write_matrix(tmp_path, "other", seed=2)
    # Given a version that was fitted and not judged
    fitted = await told("fit", "--matrix", one, *NAMES, "--by", "ann")
    version = fitted["version"]
    assert fitted["fitted_on"]["rows"] == 300
    assert fitted["fitted_on"]["agents"] == ["careful", "reasoner"]
    # Then it cannot be promoted
    async with dev(config):
        refused = await metier("promote", version)
    assert refused.exit_code == 1
    assert "move_refused" in refused.output
    # When it is judged, on other rows than those that it was fitted on
    assert (await told("judge", version, "--matrix", one, *NAMES))["report"]["verdict"] == "unjudged"
    assert (await told("judge", version[:12], "--matrix", other, *NAMES))["report"]["verdict"] == "undecided"
    # Then it goes from stage to stage
    async with dev(config):
        assert (await told("shadow", version))["move"]["stage"] == "shadow"
        assert (await told("canary", version, "--share", "0.25"))["move"]["share"] == 0.25
        assert (await told("promote", version, "--note", "as good"))["state"] == "moved"
        (listed,) = await told("list")
        assert listed["stands"] == {"": "promoted"}
        assert [move["stage"] for move in (await told("show", version))["moves"]] == ["promoted", "canary", "shadow"]
        assert "promoted to rolled_back; no version decides now" in (await metier("roll-back", version)).output
        (listed,) = await told("list")
    assert listed["stands"] == {}


async def test_a_version_that_is_worse_is_told_by_the_exit_code(config: Config, tmp_path: Path) -> None:
    one, other = write_matrix(tmp_path, "one", seed=1), write_matrix(tmp_path, "other", seed=2)
    version = (await told("fit", "--matrix", one, *NAMES))["version"]
    found = await metier("judge", version, "--matrix", other, "--agents", "careful=small,reasoner=big")
    assert found.exit_code == 1
    assert "is worse" in found.output
    assert version[:10] in (await metier("list")).output
    # When it is judged once more without that matrix, by a log of nothing
    found = await metier("judge", version, "--json")
    # Then the verdict stands, with what it is of and of when, and what stood before is told too
    assert found.exit_code == 1
    report = json.loads(found.stdout)["report"]
    assert report["verdict"] == json.loads(found.stdout)["before"]["verdict"] == "worse"
    assert "on the eval set other against the best single agent, as it was judged on 20" in report["why"]
    async with dev(config):
        refused = await metier("promote", version)
    assert (refused.exit_code, "is significantly worse" in refused.output) == (1, True)
    # and a matrix that tells otherwise takes its place
    shown = (await metier("judge", version, "--matrix", other, "--agents", "careful=big,reasoner=small")).output
    assert "is undecided (it was worse): " in shown


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (("fit",), BadSettings, "one of --from-outcomes, --eval-set and --matrix"),
        (("fit", "--from-outcomes"), BadSettings, "no outcome that somebody judged is known yet"),
        (("fit", "--matrix", "m/x", "--agents", "a"), BadSettings, "--agents names columns so"),
        (("judge", "none"), MissingRouter, "no router versions begin with 'none'"),
        (("show", "none"), MissingRouter, "no router versions begin with 'none'"),
    ],
)
async def test_what_is_wrong_is_said(config: Config, words: tuple[str, ...], error: type[Exception], said: str) -> None:
    async with dev(config):
        pass
    found = await metier(*words)
    assert isinstance(found.exception, error)
    assert said in str(found.exception)


async def test_who_fits_on_few_rows_is_told_what_comes_of_it(config: Config, tmp_path: Path) -> None:
    del config
    write_matrix(tmp_path, "few", seed=1, rows=20)
    said = (await metier("fit", "--matrix", tmp_path / "few")).output
    assert "fitted on 20 rows of few (fewer than 120, so that it asks the best single agent); " in said
    assert "fewer" not in (await metier("fit", "--matrix", write_matrix(tmp_path, "many", seed=1))).output


async def test_off_policy_tells_how_often_its_intervals_hold(tmp_path: Path) -> None:
    write_matrix(tmp_path, "one", seed=1)
    words = ["eval", "off-policy", "--data", str(tmp_path), "--name", "one", "--trials", "5", "--decisions", "300"]
    found = await asyncio.to_thread(CliRunner().invoke, app, [*words, "--json"])
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert len(document["cells"]) == 15
    assert set(document["coverage"]) == {"ips", "snips", "doubly_robust", "gain"}
    assert all(share >= 0.8 for share in document["coverage"].values())
    shown = await asyncio.to_thread(CliRunner().invoke, app, words)
    assert "best single" in shown.output


async def test_two_versions_that_stood_side_by_side_are_judged_by_the_log_of_both(
    config: Config, tmp_path: Path
) -> None:
    # Given two versions, one of which asks the better agent, and a log of 160 decisions that went to either by a coin
    one = write_matrix(tmp_path, "one", seed=1)
    better = (await told("fit", "--matrix", one, *NAMES))["version"]
    worse = (await told("fit", "--matrix", one, "--agents", "careful=small,reasoner=big"))["version"]
    journal = await compose.open_journal(config, size=1)
    try:
        await log_of(journal, better, worse)
    finally:
        await journal.db.close()
    # When each is judged by it
    found = [(await metier("judge", version, "--json")).stdout for version in (better, worse)]
    # Then it is told which one is better, though neither ever chose whom the other one chose
    reports = [json.loads(said)["report"] for said in found]
    assert [report["verdict"] for report in reports] == ["better", "worse"]
    assert [report["figures"]["log"]["passed_over"] for report in reports] == [0, 0]


async def log_of(journal: Journal, better: str, worse: str) -> None:
    """What both decided, the worse one on trial for half of the tasks, and that the careful agent is right nine times of ten and the other one never."""
    routers: list[Router] = []
    for version in (better, worse):
        fitted = await journal.routers.get(version)
        assert fitted is not None
        routers.append(stored.load(fitted))
    deciding = Deciding(Standing(Serving(promoted=routers[0], canary=routers[1], share=0.5)))
    cards = {name: AgentCard(name=name, model="", policy="") for name in ("careful", "reasoner")}
    for n in range(160):
        name = f"r{n}"
        run = Run(run_id=RunId(name), source="/s", event_id=name, workflow="w", version=None, status="accepted", input={}, traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")  # fmt: skip
        await journal.runs.accept(run)
        wanted = Wanted(task=Task(text=f"what is {n} and {n}?", category="maths"))
        made = await deciding.decide(wanted, cards, tenant="default", seed=seed_of(name))
        await journal.decisions.record(name, run.run_id, made, ("t", "w", 0), wanted)
        right = made.chosen == ("careful",) and n % 10 > 0
        await journal.outcomes.record(Outcome(run_id=name, score=float(right), by="ann", event_id=name, said_at=1.0))
