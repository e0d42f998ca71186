"""A real Prometheus beside a real system: it scrapes the roles, evaluates the chart's rules as they are, and a fault makes an alert fire.

The rules' windows are not shortened: what fires here has no `for`. The others are judged by promtool alone.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from .promtool import RULES, program
from .scraped import System, until

FAILED = 'sum(metier_runs_ended_total{gen_ai_workflow_name="metier.eval", metier_run_state="failed"})'
Alert = Mapping[str, Any]


class Prometheus:
    """A Prometheus server on a port of its own."""

    def __init__(self, folder: Path, targets: Sequence[str]) -> None:
        here = {"job_name": "roles", "static_configs": [{"targets": targets, "labels": {"namespace": "tests"}}]}
        pace = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"}
        whole = {"global": pace, "rule_files": list(map(str, RULES)), "scrape_configs": [here]}
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(whole))
        self._log = folder / "prometheus.log"
        words = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
        with self._log.open("ab") as log:
            command = [program("prometheus"), *words, "--web.listen-address=127.0.0.1:0"]
            self._process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(self._listens, self.tail)

    def _listens(self) -> bool:
        assert self._process.poll() is None, self.tail()
        return self._url() is not None

    def _url(self) -> str | None:
        found = re.search(r'msg="Listening on" address=(\S+)', self._log.read_text())
        return f"http://{found[1]}" if found else None

    def get(self, path: str, **parameters: str) -> Any:
        return (
            httpx2.get(f"{self._url()}/api/v1/{path}", params=parameters, timeout=30).raise_for_status().json()["data"]
        )

    def value(self, query: str) -> float:
        """Of a query that gives one figure; 0: none yet."""
        return sum(float(one["value"][1]) for one in self.get("query", query=query)["result"])

    def firing(self) -> Sequence[Alert]:
        return [one for one in self.get("alerts")["alerts"] if one["state"] == "firing"]

    def tail(self) -> str:
        return self._log.read_text()[-3000:]

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def prometheus(system: System, tmp_path_factory: pytest.TempPathFactory) -> Generator[Prometheus]:
    """One that has scraped every role."""
    folder = tmp_path_factory.mktemp("prometheus")
    found = Prometheus(folder, [role.url().removeprefix("http://") for role in system.roles.values()])
    try:
        until(lambda: found.value("sum(up)") == len(system.roles), found.tail)
        yield found
    finally:
        found.end()


def fail(system: System, prometheus: Prometheus, names: Sequence[str], known: int) -> None:
    """Ask for runs that fail, and wait until Prometheus knows of so many in all."""
    for name in names:
        system.ask(name, "metier.eval", {"pair": {"agent": "nobody", "text": "?"}})
    system.await_ends(*names)
    until(lambda: prometheus.value(FAILED) == known, lambda: str(prometheus.get("query", query=FAILED)))


def test_prometheus_takes_the_rules_and_evaluates_each_without_an_error(prometheus: Prometheus) -> None:
    def groups() -> Sequence[Mapping[str, Any]]:
        found: Sequence[Mapping[str, Any]] = prometheus.get("rules")["groups"]
        return found

    until(lambda: all(rule["health"] == "ok" for group in groups() for rule in group["rules"]), lambda: str(groups()))

    assert {Path(group["file"]).name for group in groups()} == {path.name for path in RULES}


def test_a_record_that_nobody_can_read_and_runs_that_fail_make_their_alerts_fire(
    system: System, prometheus: Prometheus
) -> None:
    system.publish(b"nor is this one")
    fail(system, prometheus, ["first"], 1)
    assert "MetierRunsFailing" not in {one["labels"]["alertname"] for one in prometheus.firing()}

    fail(system, prometheus, [f"again-{number}" for number in range(6)], 7)

    def fired() -> Mapping[str, Alert]:
        return {f"{one['labels']['alertname']} {one['labels'].get('window', '')}": one for one in prometheus.firing()}

    until(lambda: {"MetierRunsFailing 1h", "MetierDeadLetters "} <= fired().keys(), lambda: str(prometheus.firing()))
    failing, buried = fired()["MetierRunsFailing 1h"], fired()["MetierDeadLetters "]
    assert failing["labels"]["severity"] == "critical"
    assert failing["annotations"]["summary"] == "Runs of the workflow metier.eval fail."
    assert "% of the runs of metier.eval in tests" in failing["annotations"]["description"]
    assert buried["labels"]["metier_reason"] == "undecodable"
    assert buried["annotations"]["summary"] == "Records of metier.requests went to the dead letters."
    for one in (failing, buried):
        assert one["annotations"]["runbook_url"].endswith(f"#{one['labels']['alertname'].lower()}")
        assert not re.search(r"\{\{|<no value>|<error", " ".join(one["annotations"].values()))
