"""OTLP exporters that say once when the collector is away, and once when it is back. `telemetry` and `metrics` open them where anything is exported.

Work goes on meanwhile: spans wait in a queue of `OTEL_BSP_MAX_QUEUE_SIZE` (2,048), of which the oldest go; metrics are sums that the next export tells.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

log = structlog.get_logger()


class Heard:
    """Whether the collector took what it was given last, told when that changes."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._takes = True

    def now(self, *, takes: bool) -> None:
        """It took it, or not."""
        if takes == self._takes:
            return
        self._takes = takes
        if takes:
            log.info("the collector is back", action="export", what=self._what)
        else:
            log.warning("the collector does not take what is exported; work goes on", action="drop", what=self._what)


class Spans(OTLPSpanExporter):
    """OpenTelemetry's exporter of spans."""

    def __init__(self) -> None:
        super().__init__()
        self._heard = Heard("spans")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter.export`."""
        result = super().export(spans)
        self._heard.now(takes=result is SpanExportResult.SUCCESS)
        return result


class Metrics(OTLPMetricExporter):
    """OpenTelemetry's exporter of metrics."""

    def __init__(self) -> None:
        super().__init__()
        self._heard = Heard("metrics")

    def export(
        self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **kwargs: object
    ) -> MetricExportResult:
        """See `MetricExporter.export`."""
        result = super().export(metrics_data, timeout_millis, **kwargs)
        self._heard.now(takes=result is MetricExportResult.SUCCESS)
        return result
