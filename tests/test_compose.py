"""How settings become parts: agents and their models, keys, and where the system is found. Not tested here: the parts themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from metier import client, compose, compose_tools, configuration
from metier_infra.errors import BadSettings, MissingPackage, MissingService, UnknownAgent


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without our settings, in a folder of its own."""
    import os

    for name in [name for name in os.environ if name.startswith("METIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_three_agents_ship_one_per_policy_each_on_its_own_model() -> None:
    specs = compose.agent_specs(configuration.configure())
    assert {spec.policy.kind for spec in specs.values()} == {"autonomous", "collaborative", "meta_reasoned"}
    assert len({spec.model for spec in specs.values()}) == 3
    assert all(model.startswith("recorded:") for model in (spec.model for spec in specs.values()))
    assert {name: card.policy for name, card in compose.cards(configuration.configure(), specs, {}).items()} == {
        n: s.policy.kind for n, s in specs.items()
    }


def test_the_environment_and_the_caller_replace_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METIER_MODEL_CODER", "openai:gpt-5")
    before = compose.agent_specs(configuration.configure(), {})
    after = compose.agent_specs(configuration.configure(), {"coder": "anthropic:claude"})
    assert (before["coder"].model, after["coder"].model) == ("openai:gpt-5", "anthropic:claude")
    assert before["coder"].digest != after["coder"].digest
    assert before["reasoner"] == after["reasoner"]


def test_a_model_for_an_agent_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METIER_MODEL_CODDER", "openai:gpt-5")
    with pytest.raises(UnknownAgent, match="codder"):
        compose.agent_specs(configuration.configure())


def test_models_open_before_anything_else_starts() -> None:
    config = configuration.configure()
    specs = compose.agent_specs(config, {"coder": "cohere:command"})
    with pytest.raises(MissingPackage):
        compose.open_models(config, specs.values(), compose.open_buckets(config))


def test_a_grant_key_is_asked_for_where_it_must_be_shared_and_drawn_where_not() -> None:
    config = configuration.configure()
    with pytest.raises(MissingService, match="METIER_GRANT_KEY"):
        compose_tools.grant_key(config)
    one, other = configuration.standalone(config), configuration.standalone(config)
    assert len(compose_tools.grant_key(one)) >= 32
    assert compose_tools.grant_key(one) != compose_tools.grant_key(other)


def test_the_local_stack_is_found_unless_the_environment_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configuration.use_local_stack() is False
    configuration.LOCAL_ENV.parent.mkdir()
    configuration.LOCAL_ENV.write_text(
        "export METIER_KAFKA_BOOTSTRAP=127.0.0.1:7\nexport METIER_REDIS_URL='redis://127.0.0.1:8/0'\n"
    )
    monkeypatch.setenv("METIER_KAFKA_BOOTSTRAP", "10.0.0.1:9")
    assert configuration.use_local_stack() is True
    assert configuration.configure().kafka.bootstrap == "10.0.0.1:9"
    monkeypatch.delenv("METIER_KAFKA_BOOTSTRAP")
    monkeypatch.setenv("METIER_REDIS_URL", "redis://10.0.0.1/1")
    assert configuration.use_local_stack() is True
    config = configuration.configure()
    assert config.kafka.bootstrap == "127.0.0.1:7"
    assert config.lane.redis_url is not None
    assert config.lane.redis_url.get_secret_value() == "redis://10.0.0.1/1"
    monkeypatch.delenv("METIER_KAFKA_BOOTSTRAP")


def test_an_engine_alone_is_not_a_stack() -> None:
    configuration.LOCAL_ENV.parent.mkdir()
    configuration.LOCAL_ENV.write_text("export METIER_SANDBOX_IMAGE=x\n")
    assert configuration.use_local_stack() is False


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("METIER_TOOL_KINDS", "code,kode", "there is no kind 'kode'; there are code, command, mcp, function"),
        ("METIER_TOOL_SECRETS", "nosuch", "METIER_TOOL_SECRETS: there is no folder nosuch"),
    ],
)
async def test_a_setting_of_tools_that_means_nothing_is_refused_before_there_is_a_container(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nosuch.sock")
    with pytest.raises(BadSettings, match=says):
        await compose_tools.open_inline_lane(configuration.standalone(configuration.configure()))


def test_tools_of_other_kinds_than_are_run_here_are_disabled_and_the_reason_is_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert compose_tools.served(configuration.configure()).disabled("python") == ""
    monkeypatch.setenv("METIER_TOOL_KINDS", "command, mcp")
    assert "METIER_TOOL_KINDS says command, mcp" in compose_tools.served(configuration.configure()).disabled("python")
    assert compose_tools.toolbox(configuration.configure()).disabled("python") == ""


async def test_where_nothing_runs_a_sentence_says_what_to_start() -> None:
    with pytest.raises(MissingService, match="metier dev"):
        async with client.connect(configuration.configure()):
            pass
    with pytest.raises(MissingService, match="no journal"):
        async with client.reading(configuration.configure()):
            pass
