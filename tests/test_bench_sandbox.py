"""`metier bench sandbox`: how figures are made and judged, as tables, and one short run on the real engine. Not here: how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from metier.bench_figures import (
    RATIOS,
    TARGETS,
    Memory,
    Report,
    Sense,
    Spread,
    judge,
    met,
    quantile,
    rate,
    ratios,
    report,
    spread,
)
from metier.bench_sandbox import ANSWER, PYTHON, Way, by_programs, strict_run, turn
from metier_infra.errors import EngineGone
from metier_infra.settings import SandboxSettings
from metier_tools.limits import SCRATCH, Place, host
from metier_tools.profile import STRICT

GOOD = {name: 0.0 if sense == "<=" else 1e6 for name, (sense, _) in TARGETS.items()}
"""Figures that keep every bound."""


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7.0], 50, 7.0),
        ([7.0], 99, 7.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([4.0, 3.0, 2.0, 1.0], 50, 2.0),
        ([float(number) for number in range(1, 101)], 95, 95.0),
        ([float(number) for number in range(1, 101)], 99, 99.0),
        ([float(number) for number in range(1, 21)], 99, 20.0),
    ],
)
def test_a_quantile_is_the_smallest_value_that_so_many_do_not_exceed(
    values: list[float], percent: int, expected: float
) -> None:
    assert quantile(values, percent) == expected


def test_a_spread_is_in_milliseconds_and_says_of_how_many_calls() -> None:
    assert spread([0.001] * 90 + [0.002] * 8 + [0.5] * 2) == Spread(1.0, 2.0, 500.0, 100)


def test_a_rate_is_of_all_bursts_together() -> None:
    assert rate(200, [0.5, 1.5]) == 200.0


def test_ratios_are_of_medians_and_missing_where_a_way_is() -> None:
    spreads = {"warm": Spread(2.0, 9.0, 9.0, 9), "docker_exec": Spread(50.0, 60.0, 70.0, 9)}
    found = ratios(spreads)
    assert found["warm_to_docker_exec"] == 0.04
    assert {name for name, value in found.items() if value is None} == RATIOS.keys() - {"warm_to_docker_exec"}


@pytest.mark.parametrize(
    ("value", "sense", "bound", "expected"),
    [
        (0.9, "<=", 1.0, True),
        (1.0, "<=", 1.0, True),
        (1.1, "<=", 1.0, False),
        (299.9, ">=", 300.0, False),
        (300.0, ">=", 300.0, True),
        (300.1, ">=", 300.0, True),
        (None, "<=", 1.0, None),
    ],
)
def test_a_bound_is_kept_on_its_right_side(
    value: float | None, sense: Sense, bound: float, expected: bool | None
) -> None:
    assert met(value, sense, bound) is expected


def judged(**change: float | None) -> Report:
    return Report({}, {}, {}, {}, None, 0.0, None, judge({**GOOD, **change}), {})


def test_a_report_is_good_when_every_target_is() -> None:
    assert judged().met


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("missing", [True, False], ids=["not measured", "not met"])
def test_one_target_that_is_missed_or_not_measured_spoils_a_report(name: str, missing: bool) -> None:
    bad = 0.0 if TARGETS[name][0] == ">=" else 1e6
    assert not judged(**{name: None if missing else bad}).met


@pytest.mark.parametrize("memory", [None, Memory(None, None, None, 6.0)], ids=["not there", "not ours"])
def test_what_the_host_does_not_show_is_said_and_not_judged(memory: Memory | None) -> None:
    found = report({}, {"pooled": Spread(5.0, 6.0, 7.0, 4)}, {}, memory, [0.1, 0.9, 0.2], [], {"docker_run": "no"})
    verdicts = {target.name: target.met for target in found.targets if target.met is not None}
    assert verdicts == {"pooled_p50_ms": True, "close_s": True}
    assert found.close_s == 0.2
    assert found.not_measured.keys() == {"docker_run", "memory"}


def test_a_way_that_gives_a_wrong_answer_is_not_timed_but_refused() -> None:
    with pytest.raises(EngineGone, match="docker run printed 'no such image'"):
        turn("docker_run", Way(lambda: "no such image", 1))


def test_a_turn_times_each_of_its_calls() -> None:
    answers = iter([ANSWER] * 5)
    assert len(turn("warm", Way(lambda: next(answers), 3))) == 3
    assert list(answers) == [ANSWER] * 2


def test_docker_run_has_the_limits_that_our_containers_have() -> None:
    settings = SandboxSettings.model_validate({"runtime": "runsc", "cgroup_parent": "/sandboxes"})
    words, ours = strict_run("image", settings), host(STRICT, Place("runsc", "/sandboxes"))
    flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    assert (ours["Runtime"], ours["CgroupParent"]) == (flags["runtime"], flags["cgroup-parent"])
    assert ours["Tmpfs"] == {SCRATCH: flags["tmpfs"].removeprefix(f"{SCRATCH}:")}
    numbers = (ours["PidsLimit"], ours["Memory"], ours["MemorySwap"], ours["NanoCpus"])
    assert numbers == (
        int(flags["pids-limit"]),
        int(flags["memory"]),
        int(flags["memory-swap"]),
        float(flags["cpus"]) * 1e9,
    )
    given = dict(word.removeprefix("--ulimit=").split("=") for word in words if word.startswith("--ulimit="))
    assert ours["Ulimits"] == [{"Name": name, "Soft": int(most), "Hard": int(most)} for name, most in given.items()]
    profile = next(word.partition("seccomp=")[2] for word in words if "seccomp=" in word)
    assert Path(profile).is_file()
    assert {"--rm", "--read-only", "--cap-drop=ALL", "--network=none", "--ipc=none", "--security-opt=no-new-privileges:true"} <= set(words)  # fmt: skip
    assert [f"{flags['entrypoint']}", *words[-4:]] == [*PYTHON]


def test_a_program_that_this_host_lacks_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ways, missing = by_programs("image", SandboxSettings.model_validate({}))
    assert missing == {"docker_run": "there is no program 'docker' on this host"}
    assert set(ways) == {"subprocess"}


def test_one_round_measures_every_way_on_the_real_engine_and_judges_every_target() -> None:
    words = [sys.executable, "-m", "metier", "bench", "sandbox", "--rounds", "1", "--json", "--check"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=150)
    found = json.loads(done.stdout or "{}")
    assert found, done.stderr
    counts = {name: way["n"] for name, way in found["ways"].items()}
    assert counts == {
        "warm": 20, "pooled": 4, "cold": 1, "cold_and_gone": 1, "docker_exec": 4, "docker_run": 1, "subprocess": 8,
    }  # fmt: skip
    assert all(0 < way["p50_ms"] <= way["p95_ms"] <= way["p99_ms"] for way in found["ways"].values())
    assert all(rate > 0 for rate in found["rates"].values())
    assert found["ratios"].keys() == RATIOS.keys()
    assert found["not_measured"] == {}
    assert {target["name"] for target in found["targets"]} == TARGETS.keys()
    assert all(target["value"] > 0 for target in found["targets"])
    assert found["memory"].keys() == {"pss_mb", "private_mb", "shim_pss_mb", "cgroup_mb"}
    assert found["machine"].keys() == {"cpus", "load", "kernel", "cgroup", "engine", "image"}
    assert done.returncode == (0 if all(target["met"] for target in found["targets"]) else 1)
