"""What the chart makes of the dashboards, the rules and the scraping: the files themselves, and only where the cluster can take them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from .kit import CHART, named, of_kind, rendered, template

DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
RULES = sorted((CHART / "alerts").glob("*.yaml"))
MONITORED = "monitoring"
DOCS = "https://example.com/metier/docs/"


def test_each_dashboard_is_a_config_map_that_the_sidecar_finds_and_holds_the_file() -> None:
    found = [one for one in of_kind(rendered(MONITORED), "ConfigMap") if "-dashboard-" in one["metadata"]["name"]]

    held = {name: text for one in found for name, text in one["data"].items()}
    assert {one["metadata"]["labels"]["grafana_dashboard"] for one in found} == {"1"}
    assert {name: json.loads(text) for name, text in held.items()} == {
        path.name: json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS
    }
    assert len({one["metadata"]["name"] for one in found}) == len(DASHBOARDS)


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_each_rule_file_is_a_prometheus_rule_whose_links_lead_where_the_values_say(path: Path) -> None:
    one = named(rendered(MONITORED), "PrometheusRule", f"rel-metier-{path.stem}")

    text = path.read_text(encoding="utf-8").replace("runbook_url: docs/", f"runbook_url: {DOCS}")
    assert one["spec"] == yaml.safe_load(text)
    assert one["metadata"]["labels"]["release"] == "prometheus"


def test_a_pod_monitor_selects_every_pod_that_has_the_port_http() -> None:
    (one,) = of_kind(rendered(MONITORED), "PodMonitor")
    roles = of_kind(rendered(MONITORED), "Deployment")

    for role in roles:
        pod = role["spec"]["template"]
        ports = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
        assert one["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        assert {end["port"] for end in one["spec"]["podMetricsEndpoints"]} <= ports
    assert len(roles) >= 3


def test_a_service_monitor_comes_with_a_service_over_the_same_pods() -> None:
    found = rendered(MONITORED, "--set", "metrics.podMonitor.enabled=false,metrics.serviceMonitor.enabled=true")

    (monitor,) = of_kind(found, "ServiceMonitor")
    service = named(found, "Service", "rel-metier-metrics")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["spec"]["clusterIP"] == "None"
    assert of_kind(found, "PodMonitor") == []
    for role in of_kind(found, "Deployment"):
        assert service["spec"]["selector"].items() <= role["spec"]["template"]["metadata"]["labels"].items()


def test_nothing_of_it_is_there_unless_it_is_asked_for() -> None:
    found = rendered("minimal")

    assert of_kind(found, "PodMonitor", "ServiceMonitor", "PrometheusRule") == []
    assert not [one for one in found if "dashboard" in one["metadata"]["name"]]


@pytest.mark.parametrize("what", ["podMonitor", "serviceMonitor", "prometheusRule"])
def test_a_cluster_without_the_operator_is_told_so(what: str) -> None:
    done = template("minimal", "--set", f"metrics.{what}.enabled=true", apis=())

    assert done.returncode != 0
    assert f"metrics.{what}.enabled is true, and the cluster has no monitoring.coreos.com/v1. Install" in done.stderr


def test_dashboards_need_no_operator() -> None:
    assert template("minimal", "--set", "metrics.dashboards.enabled=true", apis=()).returncode == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("metrics.podMonitor.enabled=true,metrics.serviceMonitor.enabled=true", "each pod would be scraped twice"),
        ("metrics.podMonitor.intervall=1m", "intervall"),
        ("metrics.podMonitor.interval=often", "interval"),
        ("metrics.prometheusRule.runbooks=https://example.com/without-a-slash", "runbooks"),
        (
            "metrics.podMonitor.enabled=true,metrics.podMonitor.interval=1m,metrics.podMonitor.scrapeTimeout=61s",
            "metrics.podMonitor.scrapeTimeout is 61s, longer than interval=1m. Set scrapeTimeout to at most that",
        ),
    ],
    ids=["both", "misspelt", "interval", "runbooks", "patience"],
)
def test_values_that_make_no_sense_are_refused(words: str, sentence: str) -> None:
    done = template("minimal", "--set", words)

    assert done.returncode != 0
    assert sentence in done.stderr
