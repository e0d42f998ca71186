"""`infra/compose.yaml`, as Docker Compose itself reads it: who is shut in how, who knows which secret, who sees whom.

Not here: starting it, which needs a registry; the roles run from their images in test_role_images.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from metier import reference_cli
from metier_infra.settings import FREE_PREFIXES, known_names

REPOSITORY = Path(__file__).parents[2]
FILE = REPOSITORY / "infra" / "compose.yaml"
EXAMPLE = REPOSITORY / "infra" / "compose" / "env.example"
COMPOSE = Path(sys.executable).with_name("docker-compose")
SECRETS = {name: f"secret-{name}" for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "GRANT_KEY", "GRAFANA_PASSWORD")}
AGENTS = {path.stem for path in (REPOSITORY / "workflows/metier/examples/agents").glob("*.yaml")}
ROLES = AGENTS | {"orchestrator", "tools"}
ONCE = {"migrate", "topics", "sandbox"}
STORES = {"kafka", "postgres", "redis"}
MUTE = {"collector", "jaeger"}
"""Their images hold one program alone: nothing there could ask whether it is well."""
Services = Mapping[str, dict[str, Any]]


def compose(*words: str, values: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the real program; it reads no file of the machine but those named."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **values}
    command = [COMPOSE, "--file", FILE, "--env-file", "/dev/null", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """The file with every profile, with all that is filled in or inherited in its place."""
    done = compose("--profile", "*", "config", values=SECRETS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return dict(yaml.safe_load(done.stdout))


@pytest.fixture(scope="module")
def services(whole: Mapping[str, Any]) -> Services:
    return dict(whole["services"])


def environment(service: Mapping[str, Any]) -> dict[str, str]:
    return {name: text or "" for name, text in service.get("environment", {}).items()}


def mounts(service: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Where its volumes (`volume`) or the machine's files (`bind`) are mounted, by what they are."""
    return {one["source"]: one["target"] for one in service.get("volumes", ()) if one["type"] == kind}


def config(name: str) -> Any:
    return yaml.safe_load((FILE.parent / "compose" / name).read_text())


def test_the_whole_system_is_there_and_a_profile_adds_what_it_should() -> None:
    def names(*profiles: str) -> set[str]:
        words = [word for profile in profiles for word in ("--profile", profile)]
        return set(compose(*words, "config", "--services", values=SECRETS).stdout.split())

    assert names() == ROLES | STORES | {"migrate", "topics", "collector"}
    assert names("engine") - names() == {"engine", "sandbox"}
    assert names("observability") - names() == {"jaeger", "prometheus", "grafana"}


@pytest.mark.parametrize("missing", sorted(SECRETS))
@pytest.mark.parametrize("left", ["empty", "unset"])
def test_a_secret_that_nobody_set_is_refused_by_name(missing: str, left: str) -> None:
    values = SECRETS | {missing: ""} if left == "empty" else {n: t for n, t in SECRETS.items() if n != missing}

    done = compose("config", "--quiet", values=values)

    assert done.returncode != 0
    assert missing in done.stderr
    assert "env.example" in done.stderr


def test_the_example_names_every_value_and_gives_no_secret_away(whole: Mapping[str, Any]) -> None:
    named = dict(line.split("=", 1) for line in EXAMPLE.read_text().splitlines() if line and not line.startswith("#"))
    read = set(re.findall(r"\$\{(\w+)", FILE.read_text()))

    assert set(named) == read
    assert {name for name in SECRETS if named[name]} == set()


def test_everything_but_the_engine_is_shut_in(services: Services) -> None:
    for name in services.keys() - {"engine"}:
        one = services[name]
        assert one.get("read_only"), name
        assert one.get("cap_drop") == ["ALL"], name
        assert one.get("security_opt") == ["no-new-privileges:true"], name
        assert not one.keys() & {"cap_add", "privileged", "pid", "ipc", "devices", "userns_mode"}, name
        assert one.get("network_mode", "none") == "none", name


def test_everything_has_limits_a_healthcheck_and_a_way_to_come_back(services: Services) -> None:
    for name, one in services.items():
        assert one["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}, name
        assert one["restart"] == ("on-failure:5" if name in ONCE else "unless-stopped"), name
    watched = {name for name, one in services.items() if one.get("healthcheck", {"disable": True}).get("test")}
    assert watched == services.keys() - ONCE - MUTE


def test_only_the_engine_is_privileged_only_when_asked_for_and_only_the_tool_runner_sees_it(services: Services) -> None:
    assert {name for name, one in services.items() if one.get("privileged")} == {"engine"}
    assert services["engine"]["profiles"] == ["engine"]
    assert {name for name, one in services.items() if "engine-socket" in mounts(one, "volume")} == {
        "engine", "sandbox", "tools",
    }  # fmt: skip
    beside = [set(one.get("networks", ())) & set(services["engine"]["networks"]) for one in services.values()]
    assert sum(map(bool, beside)) == 1
    assert {name for name, one in services.items() if "DOCKER_HOST" in environment(one)} == {"tools"}
    socket = environment(services["tools"])["DOCKER_HOST"].removeprefix("unix://")
    assert f"--host=unix://{socket}" in services["engine"]["command"]
    assert str(Path(socket).parent) == mounts(services["tools"], "volume")["engine-socket"]
    assert services["tools"]["group_add"] == [
        word.removeprefix("--group=") for word in services["engine"]["command"] if word.startswith("--group=")
    ]
    assert environment(services["tools"])["TMPDIR"] == mounts(services["engine"], "volume")["doors"]


def test_the_folder_of_the_tool_runner_s_doors_is_its_own(whole: Mapping[str, Any]) -> None:
    recipe = (REPOSITORY / "infra/images/runtime/Dockerfile").read_text()
    *_, user = re.findall(r"^USER (\d+):0$", recipe, re.MULTILINE)

    assert f"uid={user}" in whole["volumes"]["doors"]["driver_opts"]["o"].split(",")


def test_nothing_of_the_machine_is_mounted_but_files_of_ours_to_be_read(services: Services) -> None:
    for name, one in services.items():
        for source in mounts(one, "bind"):
            assert Path(source).exists(), (name, source)
            assert Path(source).is_relative_to(REPOSITORY), (name, source)
        assert all(each.get("read_only") for each in one.get("volumes", ()) if each["type"] == "bind"), name
    text = FILE.read_text()
    assert "docker.sock" not in text


def test_what_grafana_and_prometheus_show_is_the_chart_s(services: Services) -> None:
    chart = REPOSITORY / "helm" / "metier"
    (provider,) = config("grafana/dashboards.yaml")["providers"]

    assert provider["options"]["path"] == mounts(services["grafana"], "bind")[str(chart / "dashboards")]
    assert config("prometheus.yaml")["rule_files"] == [
        f"{mounts(services['prometheus'], 'bind')[str(chart / 'alerts')]}/*.yaml"
    ]


def test_every_image_is_pinned_ours_to_the_project_s_version_and_stores_to_the_chart_s(services: Services) -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    values = yaml.safe_load((REPOSITORY / "helm/metier/values.yaml").read_text())
    images = {name: str(one["image"]) for name, one in services.items()}

    assert {name: image for name, image in images.items() if not re.search(r":v?\d+\.\d+(\.\d+)?[a-z-]*$", image)} == {}
    ours = {"orchestrator": {"orchestrator", "migrate", "topics"}, "agent": AGENTS, "tools": {"tools"}}
    for image, names in ours.items():
        assert {images[name] for name in names} == {f"metier/{image}:{version}"}
    assert environment(services["tools"])["METIER_SANDBOX_IMAGE"] == f"metier/sandbox:{version}"
    assert f"--tag=metier/sandbox:{version}" in services["sandbox"]["command"]
    assert images["engine"] == values["toolRunner"]["engine"]["dockerImage"]
    assert {name: images[name] for name in STORES} == {name: values[name]["bundled"]["image"] for name in STORES}


def test_no_service_has_a_setting_that_metier_does_not_read(services: Services) -> None:
    found = {name for one in services.values() for name in environment(one) if name.startswith("METIER_")}

    assert {name for name in found if name not in known_names() and not name.startswith(FREE_PREFIXES)} == set()


def test_every_service_knows_the_secrets_it_needs_and_no_other(services: Services) -> None:
    def who(secret: str) -> set[str]:
        return {name for name, one in services.items() if SECRETS[secret] in yaml.safe_dump(one)}

    assert who("POSTGRES_PASSWORD") == AGENTS | {"orchestrator", "migrate", "postgres"}
    assert who("REDIS_PASSWORD") == AGENTS | {"tools", "redis"}
    assert who("GRANT_KEY") == AGENTS | {"tools"}
    assert who("GRAFANA_PASSWORD") == {"grafana"}
    raw = yaml.safe_load(FILE.read_text())["services"]
    assert {name for name, one in raw.items() if "env_file" in one} == AGENTS


def test_a_role_is_ready_when_it_says_so_and_has_its_drain_s_time(services: Services) -> None:
    for name in ROLES:
        one, settings = services[name], environment(services[name])
        assert f"http://127.0.0.1:{settings['METIER_HTTP_PORT']}/readyz" in one["healthcheck"]["test"][-1]
        assert settings["METIER_HTTP_HOST"] == "0.0.0.0"
        grace = re.fullmatch(r"(?:(\d+)m)?(\d+)s", one["stop_grace_period"])
        assert grace
        assert 60 * int(grace[1] or 0) + int(grace[2]) >= int(settings["METIER_DRAIN_S"]) + 30
        assert one["init"]


def test_every_role_s_command_is_one_that_metier_has(services: Services) -> None:
    known = {name for name, _ in reference_cli.commands()}

    assert {name: services[name]["command"][0] for name in AGENTS} == dict.fromkeys(AGENTS, "agent")
    assert {name: services[name]["command"][1:] for name in AGENTS} == {name: [name] for name in AGENTS}
    for name in ROLES | {"migrate", "topics"}:
        assert f"metier {services[name]['command'][0]}" in known


def test_roles_wait_for_tables_and_topics_and_whoever_makes_those_for_its_store(services: Services) -> None:
    waits = {
        name: {on: how["condition"] for on, how in one.get("depends_on", {}).items()} for name, one in services.items()
    }

    for name in AGENTS | {"orchestrator"}:
        assert waits[name].items() >= dict.fromkeys(("migrate", "topics"), "service_completed_successfully").items()
    assert waits["migrate"] == {"postgres": "service_healthy"}
    assert waits["topics"] == {"kafka": "service_healthy"}
    assert waits["tools"] == {
        "redis": "service_healthy", "engine": "service_healthy", "sandbox": "service_completed_successfully",
    }  # fmt: skip


def test_stores_and_the_orchestrator_cannot_leave_and_only_screens_are_published(whole: Mapping[str, Any]) -> None:
    services: Services = whole["services"]
    inside = {name for name, network in whole["networks"].items() if (network or {}).get("internal")}

    assert {"control", "tracing"} == inside
    for name in STORES | {"migrate", "topics", "orchestrator"}:
        assert set(services[name]["networks"]) <= inside, name
    for name in STORES:
        assert set(services[name]["networks"]) == {"control"}
    assert {name for name, one in services.items() if "control" in one.get("networks", ())} == STORES | ROLES | {
        "migrate", "topics",
    }  # fmt: skip
    published = {name: [port["host_ip"] for port in one["ports"]] for name, one in services.items() if "ports" in one}
    assert published == {name: ["127.0.0.1"] for name in ("jaeger", "prometheus", "grafana")}


def test_whoever_asks_shares_a_network_with_whom_it_asks(services: Services) -> None:
    asked = [
        *((name, "collector") for name in ROLES),
        *((name, "kafka") for name in AGENTS | {"orchestrator", "topics"}),
        *((name, "postgres") for name in AGENTS | {"orchestrator", "migrate"}),
        *((name, "redis") for name in AGENTS | {"tools"}),
        *(("prometheus", name) for name in ROLES | {"collector"}),
        *(("grafana", name) for name in ("prometheus", "jaeger")),
        ("collector", "jaeger"),
    ]

    assert [
        pair for pair in asked if not services[pair[0]]["networks"].keys() & services[pair[1]]["networks"].keys()
    ] == []


def test_what_the_collector_is_told_fits_together_and_fits_the_roles(services: Services) -> None:
    told = config("collector.yaml")
    pipelines = told["service"]["pipelines"].values()

    for kind in ("receivers", "processors", "exporters"):
        assert set(told[kind]) == {name for pipeline in pipelines for name in pipeline[kind]}
    assert all(pipeline["processors"][0] == "memory_limiter" for pipeline in pipelines)
    port = urlsplit(f"//{told['receivers']['otlp']['protocols']['http']['endpoint']}").port
    for name in ROLES:
        address = urlsplit(environment(services[name])["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
        assert (address.hostname, address.port, address.path) == ("collector", port, "/v1/traces")
    read = set(re.findall(r"\$\{env:(\w+)\}", (FILE.parent / "compose/collector.yaml").read_text()))
    assert read == environment(services["collector"]).keys()
    assert urlsplit(environment(services["collector"])["TRACES_ENDPOINT"]).hostname in services


def test_prometheus_takes_its_settings_and_asks_every_role(services: Services, tmp_path: Path) -> None:
    told = config("prometheus.yaml")
    roles, others = told["scrape_configs"]
    (found,) = roles["dns_sd_configs"]
    assert set(found["names"]) == ROLES
    assert {environment(services[name])["METIER_HTTP_PORT"] for name in ROLES} == {str(found["port"])}
    metrics = config("collector.yaml")["service"]["telemetry"]["metrics"]["readers"][0]["pull"]["exporter"][
        "prometheus"
    ]
    assert others["static_configs"][0]["targets"] == [f"collector:{metrics['port']}"]
    # and the real checker accepts it, rules and all
    here = str(REPOSITORY / "helm/metier/alerts")
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(told).replace("/etc/prometheus/alerts", here))
    program = "import install; print(install.promtool())"
    promtool = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY / "infra/local", capture_output=True, text=True, check=True
    )
    done = subprocess.run(
        [promtool.stdout.strip(), "check", "config", tmp_path / "prometheus.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_grafana_asks_services_that_are_there(services: Services) -> None:
    places = [urlsplit(str(one["url"])) for one in config("grafana/sources.yaml")["datasources"]]

    for place in places:
        targets = {str(port["target"]) for port in services[str(place.hostname)]["ports"]}
        assert str(place.port) in targets


def test_kafka_tells_its_clients_the_address_that_they_are_told(services: Services) -> None:
    lines = (FILE.parent / "compose/kafka.properties").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    told = {name: environment(one).get("METIER_KAFKA_BOOTSTRAP") for name, one in services.items()}

    assert {f"PLAINTEXT://{place}" for place in told.values() if place} == {settings["advertised.listeners"]}
    assert settings["log.dirs"].startswith(mounts(services["kafka"], "volume")["kafka"])
