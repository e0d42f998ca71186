"""`metier bench policies`: faults, figures, claims and plot as tables, and a small run over a lane that runs nothing.

Not here: the figures themselves. They are those of the command, on the real engine, and stand in docs/benchmarks.md.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from metier import bench_policies
from metier.bench_policies_lane import CLOCK_MS, FaultyLane, Liar, fate
from metier.bench_policies_plot import LOOKS, draw
from metier.bench_policies_report import Case, Cell, cell, claims, wilson
from metier.bench_policies_stand import POLICIES, Bench, Found, Plan, used_again
from metier_agents.comparing import literal, same
from metier_agents.recorded_model import code_of
from metier_agents.recordings import RecordedQuery, Recordings, read_recordings
from metier_agents.testing import ScriptedLane
from metier_infra.errors import BadSettings
from metier_infra.words import CallId, RunId, ToolCallId
from metier_tools.tool import ToolCall, ToolResult

PATH = Path(__file__).parent.parent / "workflows/metier/examples/data/zeroeval.jsonl.gz"
MODELS = ("gpt-4o-2024-08-06", "Meta-Llama-3-8B-Instruct")
LEVELS = (1.0, 0.5, 0.0)


@pytest.fixture(scope="module")
def recordings() -> Recordings:
    return read_recordings(PATH)


def runs(recordings: Recordings) -> ScriptedLane:
    """A lane that gives the right output of every program without running it."""
    gold = {code_of(query.text): query.gold for query in recordings.queries}
    return ScriptedLane(
        lambda call: ToolResult(status="ok", stdout=f"{gold[str(call.arguments['code'])]}\n", wall_ms=3.0)
    )


def plan(recordings: Recordings, seed: int = 7, queries: int = 8, warmup: int = 6) -> Plan:
    made = bench_policies.make_plan(recordings, seed, MODELS, queries, warmup)
    return replace(made, levels=LEVELS, mended=20)


def measured(recordings: Recordings, made: Plan) -> tuple[Found, ScriptedLane]:
    lane = runs(recordings)
    return asyncio.run(Bench(made, recordings, lane, b"k" * 32).run()), lane


@pytest.fixture(scope="module")
def small(recordings: Recordings) -> tuple[Found, ScriptedLane]:
    return measured(recordings, plan(recordings))


# ---- faults


@pytest.mark.parametrize("level", [1.0, 0.9, 0.5, 0.0])
def test_a_tool_does_its_work_in_the_declared_share_of_calls_and_the_faults_have_equal_shares(level: float) -> None:
    found = Counter(fate(7, f"q{n}", attempt, level) for n in range(1500) for attempt in range(2))
    assert found["right"] == pytest.approx(3000 * level, abs=100 if 0 < level < 1 else 0)
    for name in ("error", "timeout", "wrong"):
        assert found[name] == pytest.approx(1000 * (1 - level), abs=100 if level < 1 else 0)


def test_what_becomes_of_an_attempt_depends_on_seed_query_attempt_and_level_alone() -> None:
    def drawn(seed: int = 7, prefix: str = "q", attempt: int = 0, level: float = 0.5) -> list[str]:
        return [fate(seed, f"{prefix}{n}", attempt, level) for n in range(50)]

    assert drawn() == drawn()
    assert (
        len({tuple(one) for one in (drawn(), drawn(seed=8), drawn(prefix="p"), drawn(attempt=1), drawn(level=0.51))})
        == 5
    )


def test_a_wrong_output_is_never_right_and_looks_like_one(recordings: Recordings) -> None:
    queries = [query for query in recordings.queries if query.task == "crux"]
    liar, golds = Liar(queries), {query.gold for query in queries}
    kinds = Counter[bool]()
    for query in queries:
        output, right = liar.output(7, query, 0), literal(query.gold or "")
        assert not same(output, query.gold or "")
        assert output.strip() in golds
        told = literal(output)
        kinds[type(told and told[0]) is type(right and right[0])] += 1
    assert kinds[True] > 0.95 * len(queries)


def call(n: int, call_id: str = "c") -> ToolCall:
    said = {"arguments": {"code": "1"}, "deadline": 2e9, "timeout_s": 10.0, "grant": "", "digest": "", "tool": "python"}
    ids = {"tool_call_id": ToolCallId(f"t{n}"), "run_id": RunId("r"), "call_id": CallId(call_id)}
    return ToolCall.model_validate({**said, **ids})


async def test_the_lane_runs_what_goes_right_and_only_that_and_tells_a_timeout_without_waiting(
    recordings: Recordings,
) -> None:
    queries = [query for query in recordings.queries if query.task == "crux"]
    inner = ScriptedLane(lambda _: ToolResult(status="ok", stdout="ran", wall_ms=3.0))
    lane = FaultyLane(inner, 7, Liar(queries))
    told: list[ToolResult] = []
    for n, query in enumerate(queries[:60]):
        spent = lane.expect(CallId(f"c{n}"), query, 0.4)
        told += [await lane.call(call(2 * n + attempt, f"c{n}")) for attempt in range(2)]
        assert (spent.calls, spent.seconds) == (2, sum(one.wall_ms for one in told[-2:]) / 1000)
    ran = [one for one in told if one.stdout == "ran"]
    assert len(ran) == len(inner.calls) == len(lane.real_ms) == lane.fates["right"]
    assert {one.wall_ms for one in told if one.status == "timeout"} == {10_000.0}
    assert {one.wall_ms for one in told if one.status != "timeout"} == {CLOCK_MS}
    assert sum(lane.fates.values()) == 120
    assert lane.fates["wrong"] == sum(one.status == "ok" and one.stdout != "ran" for one in told) > 0


# ---- a small run


def test_a_run_has_every_cell_in_the_order_of_the_plan(small: tuple[Found, ScriptedLane]) -> None:
    found, _ = small
    wanted = [(model, policy, level) for model in MODELS for policy in POLICIES for level in LEVELS]
    assert [(one.model, one.policy, one.level) for one in found.cells] == wanted
    assert {one.n for one in found.cells} == {8}
    assert set(found.recovery) == set(MODELS)
    whole = [one for one in found.cells if one.policy == "collaborative" and one.level == 1]
    assert [(one.accuracy, one.tool_calls) for one in whole] == [(1.0, 1.0)] * 2
    alone = [one for one in found.cells if one.policy == "autonomous"]
    assert all(one.told is None and one.worth == one.looked == 0 for one in alone)
    learns = [one for one in found.cells if one.policy == "meta_reasoned" and one.level == 1]
    assert all(one.true is not None and one.true.n == one.n * one.worth for one in learns)


def test_the_same_seed_gives_the_same_figures_and_another_one_others(
    recordings: Recordings, small: tuple[Found, ScriptedLane]
) -> None:
    def document(made: Plan, found: Found, elapsed_s: float) -> dict[str, object]:
        told = json.loads(json.dumps(asdict(bench_policies.make_report(made, found, elapsed_s))))
        return {name: value for name, value in told.items() if name not in {"elapsed_s", "sandbox_ms"}}

    made, other = plan(recordings), plan(recordings, seed=8)
    first = document(made, small[0], 1.0)
    assert first == document(made, measured(recordings, made)[0], 2.0)
    assert first["cells"] != document(other, measured(recordings, other)[0], 1.0)["cells"]


def test_a_defect_in_one_cell_ends_the_bench(recordings: Recordings) -> None:
    def broken(_: ToolCall) -> ToolResult:
        raise ZeroDivisionError

    stand = Bench(plan(recordings), recordings, ScriptedLane(broken), b"k" * 32)
    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(asyncio.wait_for(stand.run(), 60))
    assert raised.group_contains(ZeroDivisionError)


def test_every_policy_meets_the_same_faults(recordings: Recordings) -> None:
    """Collaborative and meta-reasoned, both with a tool that they call at once, are told the same of every query."""
    made, seen = plan(recordings), dict[str, list[tuple[str, float]]]()

    class Listening(Bench):
        async def run(self) -> Found:
            for policy in ("collaborative", "meta_reasoned"):
                async with self._stand(MODELS[1], policy) as stand:
                    cases = await stand.ask(made.counted, 0.7)
                    seen[policy] = [(str(one.calls), one.tool_s) for one in cases]
            return self.found

    asyncio.run(Listening(made, recordings, runs(recordings), b"k" * 32).run())
    assert seen["collaborative"] == seen["meta_reasoned"]
    assert len(set(seen["collaborative"])) > 1


def test_no_agent_learns_what_is_right_but_by_running_the_code(recordings: Recordings) -> None:
    """The same run over recordings whose right answers and verdicts are changed asks and decides the same until a program has run."""
    made = plan(recordings)

    def changed(query: RecordedQuery) -> RecordedQuery:
        return replace(query, gold="'nobody would say this'") if not query.calibrates else query

    blind = Recordings(tuple(changed(query) for query in recordings.queries))
    lanes: list[Sequence[object]] = []
    for known in (recordings, blind):
        lane = runs(recordings)
        other = replace(made, counted=tuple(known.find(query.text) or query for query in made.counted), levels=(1.0,))
        found = asyncio.run(Bench(other, known, lane, b"k" * 32).run())
        decided = [(one.policy, one.worth, one.looked, one.tool_calls, one.cost_usd) for one in found.cells]
        lanes.append([decided, sorted(str(sent.arguments) for sent in lane.calls)])
        assert (known is blind) is all(one.accuracy == 0 for one in found.cells)
    assert lanes[0] == lanes[1]


def test_warm_up_and_what_counts_are_of_different_halves(recordings: Recordings) -> None:
    made = bench_policies.make_plan(recordings, 7, MODELS, 392, 200)
    assert (len(made.warmup), len(made.counted)) == (200, 392)
    assert all(query.calibrates for query in made.warmup)
    assert not any(query.calibrates for query in made.counted)
    assert {query.category for query in (*made.warmup, *made.counted)} == {"code_reasoning"}


@pytest.mark.parametrize("names", ["gpt-9", "", "gpt-4o-2024-08-06,nobody"])
def test_a_model_that_was_not_recorded_is_refused(names: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadSettings, match="nothing is recorded of"):
        bench_policies.command(models=names)


# ---- figures


def test_the_figures_of_a_cell() -> None:
    cases = [
        Case(True, 0.02, 1, 0.25, worth=True, values=(0.2, 0.1, 0.9), price=0.02),
        Case(False, 0.04, 2, 10.0, looked=True, values=(0.0, 0.0, -0.1), price=0.06),
        Case(True, 0.03, 0, 0.0, price=0.03),
        Case(True, 0.03, 0, 0.0, price=0.01),
    ]
    found = cell("m", "p", 0.5, cases)
    assert (found.n, found.accuracy, found.cost_usd, found.tool_calls) == (4, 0.75, pytest.approx(0.03), 0.75)
    assert (found.tool_p50_s, found.tool_mean_s, found.net) == (0.0, 2.5625, pytest.approx(0.72))
    assert (found.worth, found.looked) == (0.25, 0.25)
    assert found.told is not None
    assert found.true is not None
    assert (found.told.n, found.told.bias) == (2, pytest.approx(0.05))
    assert (found.true.n, found.true.bias) == (2, pytest.approx(-0.3))


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (1, 1, 0.2065, 1.0)],
)
def test_the_interval_is_wilsons(right: int, n: int, low: float, high: float) -> None:
    assert wilson(right, n) == pytest.approx((low, high), abs=1e-4)


def cells(*accuracies: tuple[float, float, float, float]) -> list[Cell]:
    base = cell("m", "p", 1.0, [Case(True, 0.0, 0, 0.0)])
    return [
        replace(base, policy=policy, level=level, accuracy=share)
        for level, *shares in accuracies
        for policy, share in zip(POLICIES, shares, strict=True)
    ]


@pytest.mark.parametrize(
    ("figures", "held"),
    [
        ((1.0, 0.6, 0.9, 0.9), [True, True]),
        ((1.0, 0.9, 0.9, 0.9), [False, True]),
        ((1.0, 0.6, 0.9, 0.88), [True, False]),
        ((0.0, 0.6, 0.5, 0.59), [True, True]),
        ((0.0, 0.5, 0.6, 0.6), [False, True]),
        ((0.5, 0.7, 0.6, 0.69), [True]),
        ((0.5, 0.7, 0.6, 0.689), [False]),
        ((0.5, 0.6, 0.7, 0.9), [True]),
    ],
)
def test_what_is_claimed_is_held_against_the_figures(
    figures: tuple[float, float, float, float], held: list[bool]
) -> None:
    assert [one.holds for one in claims(cells(figures))] == held


def test_a_report_is_good_only_when_every_claim_holds_and_every_mended_tool_came_back(
    recordings: Recordings, small: tuple[Found, ScriptedLane]
) -> None:
    made = plan(recordings)
    report = replace(
        bench_policies.make_report(made, small[0], 1.0), claims=claims(cells((1.0, 0.6, 0.9, 0.9))), recovery={"m": 3}
    )
    assert report.met
    assert not replace(report, recovery={"m": 3, "n": None}).met
    assert not replace(report, claims=claims(cells((1.0, 0.9, 0.6, 0.9)))).met


@pytest.mark.parametrize(
    ("worth", "after"),
    [
        ([True] * 10, 0),
        ([False, *[True] * 10], 1),
        ([True] * 9, None),
        ([*[True] * 9, False, *[True] * 11], 10),
        ([], None),
    ],
)
def test_a_mended_tool_is_used_again_from_the_first_of_ten_calls_in_a_row(worth: list[bool], after: int | None) -> None:
    assert used_again(worth) == after


def test_the_plot_is_svg_with_a_line_a_band_and_words_for_every_policy_of_every_model(
    small: tuple[Found, ScriptedLane],
) -> None:
    found = small[0].cells
    text = draw([*found[:-1], replace(found[-1], model="<Meta & co>")])
    root = ET.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    words = root.findtext(f"{space}desc") or ""
    assert all(f"{100 * one.accuracy:.1f} %" in words for one in found)
    assert root.attrib["role"] == "img"
    said = [one.text for one in root.iter(f"{space}text")]
    assert {*MODELS, *(look.name for look in LOOKS.values()), "<Meta & co>"} <= set(said)
    bands = [one for one in root.iter(f"{space}path") if one.attrib.get("fill-opacity")]
    assert len(bands) == len(MODELS) * len(POLICIES) + 1
    assert len({look.dashes for look in LOOKS.values()}) == len({look.mark for look in LOOKS.values()}) == 3
