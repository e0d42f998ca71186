"""Metrics as Prometheus reads them, through OpenTelemetry's exporter. `roles` opens it where `METIER_HTTP_PORT` is set; `health` gives it out."""

from __future__ import annotations

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import MetricReader
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from metier_infra.metrics import Metric

_UNITS = {"s": "_seconds", "USD": "_USD"}


class Prometheus:
    """A `reader` for `metrics.start`, and what it reads."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.reader: MetricReader = PrometheusMetricReader(
            disable_target_info=True, scope_info_enabled=False, registry=self._registry
        )

    def exposition(self) -> str:
        """All metrics now, in Prometheus' text format. For one thread at a time."""
        return generate_latest(self._registry).decode()


def name_of(metric: Metric) -> str:
    """What Prometheus calls it; of a histogram it has `_bucket`, `_sum` and `_count` after it."""
    return metric.name.replace(".", "_") + _UNITS.get(metric.unit, "") + ("_total" if metric.kind == "counter" else "")
