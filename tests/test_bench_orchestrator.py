"""`metier bench orchestrator`: how a peer's figures and ratios are made, what processes used, a filled journal, and one small run over the real services.

Not here: how fast anything is.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from metier.bench_orchestrator import figures, port, ratios
from metier.bench_orchestrator_cpu import cpu_s, listener
from metier.bench_orchestrator_fill import fill
from metier.bench_telemetry import report, ways
from metier_infra.database import Database
from metier_infra.postgres_journal import PostgresDatabase

FIGURES = {"w1_p50_ms": 10.0, "w1_steps_per_s": 100.0, "w2_p50_ms": 50.0, "cpu_s_per_1000_steps": 4.0}


def test_ratios_are_above_one_where_this_is_better_whichever_way_a_figure_runs() -> None:
    peer = {"w1_p50_ms": 60.0, "w1_steps_per_s": 50.0, "w2_p50_ms": 25.0, "cpu_s_per_1000_steps": 8.0}
    assert ratios({"distributed": FIGURES, "dbos": peer}) == {
        "dbos": {"w1_p50_ms": 6.0, "w1_steps_per_s": 2.0, "w2_p50_ms": 0.5, "cpu_s_per_1000_steps": 2.0}
    }


def test_a_peers_latencies_become_the_figures_that_ours_are_compared_with() -> None:
    told = {"w1_ms": [3.0, 1.0, 2.0], "w2_ms": [9.0], "w1_steps_per_s": 5.0, "lost": 0, "repeated": 1, "cpu_s_per_1000_steps": 2.0}  # fmt: skip
    found = figures(told)
    assert (found["w1_p50_ms"], found["w1_p99_ms"], found["w2_p50_ms"], found["repeated"]) == (2.0, 3.0, 9.0, 1)


@pytest.mark.parametrize(
    ("url", "wanted"),
    [("127.0.0.1:9092,other:9", 9092), ("postgresql://postgres@127.0.0.1:5433/metier", 5433), (None, 0), ("host", 0)],
)
def test_the_port_of_a_service_is_found_in_its_address(url: str | None, wanted: int) -> None:
    assert port(url) == wanted


def test_what_a_process_and_those_under_it_used_counts_also_when_they_ended() -> None:
    before = cpu_s([os.getpid()])
    burn = "import time\nwhile time.process_time() < 0.4: pass"  # each of four counters may hold back a tick of 10 ms
    subprocess.run([sys.executable, "-c", burn], check=True, timeout=120)
    assert cpu_s([os.getpid()]) - before >= 0.3


def test_the_process_that_listens_on_a_port_is_found() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        assert listener(port) is None
        one.listen()
        assert listener(port) == os.getpid()
    assert listener(port) is None


async def test_a_filled_journal_has_ended_runs_with_all_that_belongs_to_them(database: Database) -> None:
    await fill(database, 7)
    for table, wanted in (("runs", 7), ("calls", 35), ("steps", 35), ("checkpoints", 35), ("channel_values", 35)):
        rows = await database.read(f"SELECT count(*) AS n FROM {table}")
        assert rows[0]["n"] == wanted, table
    rows = await database.read("SELECT count(*) AS n FROM runs WHERE announced = 1 AND finished_at IS NOT NULL")
    assert rows[0]["n"] == 7


HOT = {
    "the newest checkpoint of a run": "SELECT * FROM checkpoints WHERE run_id = 'old-7' AND ns = '' ORDER BY checkpoint_id DESC LIMIT 1",
    "the values of a run": "SELECT * FROM channel_values WHERE run_id = 'old-7' AND ns = '' AND kind <> 'empty'",
    "the writes of a checkpoint": "SELECT * FROM channel_writes WHERE run_id = 'old-7' AND ns = '' AND checkpoint_id = 'c'",
    "a call": "SELECT * FROM calls WHERE call_id = 'old-7-0'",
    "the calls of a run": "SELECT DISTINCT stamp FROM calls WHERE run_id = 'old-7' AND stamp IS NOT NULL",
    "the steps of a call": "SELECT * FROM steps WHERE call_id = 'old-7-0' ORDER BY n",
    "a run's lease": "SELECT * FROM runs WHERE run_id = 'old-7' AND epoch = 1",
    "a request that came before": "SELECT * FROM runs WHERE source = '/old' AND event_id = 'old-7'",
    "what a replica holds": "SELECT run_id FROM runs WHERE owner = 'me'",
    "what a worker holds": "SELECT call_id FROM calls WHERE holder = 'me' AND answered_at IS NULL",
    "runs that need somebody": "SELECT * FROM runs WHERE announced = 0 AND lease_until < 5",
}


async def test_no_query_of_a_step_reads_a_whole_table_of_a_long_journal(postgres_url: str) -> None:
    db = await PostgresDatabase(postgres_url, 1).open()
    await fill(db, 5000)
    for what, sql in HOT.items():
        plan = "\n".join(str(row["QUERY PLAN"]) for row in await db.read(f"EXPLAIN {sql}"))
        assert "Seq Scan" not in plan, f"{what}: {plan}"
    await db.close()


@pytest.mark.timeout(400)
def test_a_small_run_measures_every_load_and_both_peers_and_loses_nothing() -> None:
    words = [sys.executable, "-m", "metier", "bench", "orchestrator", "--quick", "--json", "--filled", "50"]
    words += ["--idle", "10", "--burst", "20", "--many", "20", "--fans", "10"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=380)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["not_measured"] == {}
    for way in ("embedded", "distributed", "celery", "dbos"):
        figures = found[way]
        assert (figures["lost"], figures["repeated"]) == (0, 0), way
        assert all(figures[name] > 0 for name in FIGURES), way
    assert found["distributed"]["w3_s"] > 0.6
    assert found["ratios"].keys() == {"celery", "dbos"}
    assert found["filled"]["runs"] == 50


def test_what_telemetry_costs_is_told_against_a_system_without_it() -> None:
    found = report({"off": 2.0, "tracing": 2.5}, 1000)
    assert found == {"cpu_s_per_1000_steps": {"off": 2.0, "tracing": 2.5}, "ratio": {"off": 1.0, "tracing": 1.25}}
    first, *others = ways("http://127.0.0.1:1").values()
    assert not any(first.values())
    assert all(other["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] == "http://127.0.0.1:1/v1/traces" for other in others)


@pytest.mark.timeout(400)
def test_what_telemetry_costs_is_measured_over_the_real_services() -> None:
    words = [sys.executable, "-m", "metier", "bench", "telemetry", "--burst", "4", "--rounds", "1", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=380)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["ratio"].keys() == found["cpu_s_per_1000_steps"].keys() == ways("").keys()
