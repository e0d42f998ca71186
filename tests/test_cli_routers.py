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

from metier import client, compose_tools, configuration, roles
from metier.cli import app
from metier.configuration import Config
from metier_infra.bus import MemoryBus
from metier_infra.errors import BadSettings, MissingRouter
from metier_infra.socket_bus import serve_bus


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Config:
    """A folder of its own, and no service."""
    for name in ("METIER_KAFKA_BOOTSTRAP", "METIER_POSTGRES_URL", "METIER_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("METIER_SQLITE_PATH", str(tmp_path / "journal.db"))
    monkeypatch.chdir(tmp_path)
    return configuration.standalone(configuration.configure())


NAMES = ("--agents", "careful=big,reasoner=small")


def write_matrix(folder: Path, name: str, *, seed: int, strong: float = 0.9) -> Path:
    """300 questions; `big` answers `strong` of them, `small` half."""
    rng = np.random.default_rng(seed)
    ids = [f"{name}-{n}" for n in range(300)]
    right = rng.random((300, 2)) < [strong, 0.5]
    texts = [f"what is {n} and {n}?" for n in range(300)]
    asked = {"qid": ids, "task": ["t"] * 300, "category": ["maths"] * 300, "text": texts}
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
        assert (await told("roll-back", version))["move"]["stage"] == "rolled_back"
        (listed,) = await told("list")
    assert listed["stands"] == {}


async def test_a_version_that_is_worse_is_told_by_the_exit_code(config: Config, tmp_path: Path) -> None:
    del config
    one, other = write_matrix(tmp_path, "one", seed=1), write_matrix(tmp_path, "other", seed=2)
    version = (await told("fit", "--matrix", one, *NAMES))["version"]
    found = await metier("judge", version, "--matrix", other, "--agents", "careful=small,reasoner=big")
    assert found.exit_code == 1
    assert "is worse" in found.output
    assert version[:10] in (await metier("list")).output


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
