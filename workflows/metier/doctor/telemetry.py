"""Where spans and metrics go. A collector that is away harms no run, so that nothing here is an error."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from urllib.parse import urlsplit

from metier.doctor.case import ROLES, Case
from metier.doctor.examination import Part
from metier.doctor.finding import Finding, ok, skipped, warning

SIGNALS = {"TRACES": "/v1/traces", "METRICS": "/v1/metrics"}
ANSWER_S = 5.0
NAME = "telemetry.endpoint"


def examine(case: Case) -> list[Finding]:
    """See `Part`."""
    return [answered(url, _status(url)) for url in endpoints(case.environment)] or [
        skipped(NAME, "OTEL_EXPORTER_OTLP_ENDPOINT is not set: nothing is exported")
    ]


def endpoints(environment: Mapping[str, str]) -> list[str]:
    """Where each signal goes, as OpenTelemetry reads the environment: the signal's own address as it is, else the common one with a path."""
    common = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").rstrip("/")
    own = {one: environment.get(f"OTEL_EXPORTER_OTLP_{one}_ENDPOINT", "") for one in SIGNALS}
    return [own[one] or common + path for one, path in SIGNALS.items() if own[one] or common]


def _status(url: str) -> int | str:
    """What the collector says to a request without anything in it, which is a valid one; or why it says nothing."""
    place = urlsplit(url)
    kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(place.hostname or "", place.port, timeout=ANSWER_S)
        connection.request("POST", place.path, b"", {"Content-Type": "application/x-protobuf"})
        return connection.getresponse().status
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__


def answered(url: str, status: int | str) -> Finding:
    """What to think of its answer."""
    place = urlsplit(url)
    where = f"{place.scheme}://{place.hostname}:{place.port or ''}{place.path}"
    if isinstance(status, str):
        return warning(
            NAME, f"no collector answers: {status}", "start it, or correct OTEL_EXPORTER_OTLP_ENDPOINT", of=where
        )
    if status in (401, 403):
        return ok(NAME, f"it answers {status}: it wants OTEL_EXPORTER_OTLP_HEADERS, which this does not show", of=where)
    if status >= 400:
        return warning(
            NAME,
            f"it answers {status}, and is no collector of OTLP over HTTP",
            "name one: its port is 4318, as a rule",
            of=where,
        )
    return ok(NAME, "it takes what is exported", of=where)


PART = Part("telemetry", (NAME,), examine, ROLES, mend="see whether OTEL_EXPORTER_OTLP_ENDPOINT names a collector")
