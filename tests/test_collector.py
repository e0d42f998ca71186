"""A collector that is away: work goes on, memory stays bounded, one line says so, and one that it is back. And metrics that few runs show.

Not tested: how long OpenTelemetry's exporter tries each time (`OTEL_EXPORTER_OTLP_TIMEOUT`).
"""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from structlog.testing import capture_logs
from structlog.typing import EventDict

from metier import client, compose, compose_tools, configuration, roles
from metier_agents.recordings import read_recordings
from metier_infra import metrics, telemetry
from metier_tools.sandbox import Outcome

HUNG = 60
QUEUE = 2_048
KNOWN = read_recordings(compose.recordings_path()).queries[0]


class Collector(BaseHTTPRequestHandler):
    """Takes everything."""

    def do_POST(self) -> None:
        """See `BaseHTTPRequestHandler`."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a collector that is away; telemetry and metrics are exported there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
    telemetry.stop()
    metrics.stop()
    telemetry.start("tests", "one")
    metrics.start("tests", "one")
    yield port
    telemetry.stop()
    metrics.stop()


def said(logs: list[EventDict], action: str, what: str) -> EventDict:
    """The one line that says this of the collector, once it is there."""
    until, found = time.monotonic() + HUNG, list[EventDict]()
    while not found and time.monotonic() < until:
        time.sleep(0.02)
        found = [one for one in list(logs) if (one.get("action"), one.get("what")) == (action, what)]
    (line,) = found
    return line


async def test_a_run_ends_as_ever_while_the_collector_is_away_and_one_line_says_so_and_one_that_it_is_back(
    away: int,
) -> None:
    with capture_logs() as logs:
        lane = compose_tools.scripted_lane(lambda _: Outcome("ok", 0, "42\n"))
        async with roles.embedded(configuration.configure(), journal=":memory:", lane=lane) as system:
            asked = {"question": KNOWN.text}
            end = await client.publish_and_wait(system.bus, "specialists", asked, event_id=None, timeout_s=HUNG)
        assert end.TYPE == "io.metier.run.succeeded.v1"
        for what in ("spans", "metrics"):
            assert said(logs, "drop", what)["log_level"] == "warning"
        server = HTTPServer(("127.0.0.1", away), Collector)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with telemetry.span("after"):
            pass
        for what in ("spans", "metrics"):
            said(logs, "export", what)
            said(logs, "drop", what)
    telemetry.stop()
    metrics.stop()
    server.shutdown()
    server.server_close()


def test_spans_that_nobody_takes_do_not_fill_the_memory(away: int) -> None:
    del away
    before = _kept()
    for _ in range(8 * QUEUE):
        with telemetry.span("one of many"):
            pass
    assert _kept() - before <= 2 * QUEUE


def _kept() -> int:
    gc.collect()
    return sum(isinstance(one, ReadableSpan) for one in gc.get_objects())
