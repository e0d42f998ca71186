"""What a system that works shows to Prometheus: every metric that is declared, under its declared labels; and nothing else is named in a dashboard or a rule."""

from __future__ import annotations

from itertools import chain

from metier_infra.metrics import METRICS
from metier_infra.prometheus import name_of

from . import promql
from .scraped import System, scraped

OF_PROMETHEUS = {"namespace", "pod", "instance"}
"""Labels that whoever scrapes adds: those of the Prometheus operator."""
ENDINGS = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


def declared() -> dict[str, set[str]]:
    """The samples that Métier and Prometheus itself make, each with the labels that it may have."""
    found = {"ALERTS": {"alertname", "alertstate"}}
    for one in METRICS:
        labels = {label.replace(".", "_") for label in one.labels}
        found |= {f"{name_of(one)}{ending}": labels | {"le"} for ending in ENDINGS[one.kind]}
    return found


def test_a_system_that_works_shows_every_metric_under_its_declared_labels(system: System) -> None:
    may_have = declared()

    for name, labels in scraped(system).items():
        if name.startswith(("metier_", "gen_ai_", "messaging_")):
            assert labels <= may_have[name], name


def test_dashboards_and_rules_name_only_what_a_system_shows_by_labels_that_it_may_have(system: System) -> None:
    shown, may_have = scraped(system).keys() | {"ALERTS"} | promql.recorded(), declared()
    everything = set(chain(*may_have.values())) | OF_PROMETHEUS

    for place, text in chain(promql.of_boards(), promql.of_rules()):
        for metric, labels in promql.named(text).items():
            assert metric in shown, f"{place} names {metric}, and nothing shows it"
            known = may_have.get(metric, everything) | OF_PROMETHEUS
            assert labels <= known, f"{place}: {metric} has no {labels - known}"
        assert promql.grouped(text) <= everything, place
