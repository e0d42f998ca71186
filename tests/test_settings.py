"""Settings: what the environment says, in types; what it says wrongly is refused in one sentence that names the variable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from metier_infra.errors import BadSettings
from metier_infra.settings import (
    SETTINGS,
    JournalSettings,
    KafkaSettings,
    RoleSettings,
    SandboxSettings,
    load,
    model_overrides,
    refuse_unknown,
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("METIER_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_every_setting_has_a_default_a_meaning_and_cannot_change(kind: type[BaseSettings]) -> None:
    settings = load(kind)
    for name, field in kind.model_fields.items():
        assert field.description, name
        with pytest.raises(ValidationError, match="frozen"):
            setattr(settings, name, getattr(settings, name))


def test_the_defaults_need_nothing_that_is_not_on_a_laptop() -> None:
    assert load(KafkaSettings).bootstrap is None
    assert load(JournalSettings).postgres_url is None
    assert load(JournalSettings).sqlite_path == Path(".metier/journal.db")


def test_the_environment_is_read_and_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METIER_KAFKA_PARTITIONS", "12")
    monkeypatch.setenv("METIER_SANDBOX_WAIT_S", "1.5")
    monkeypatch.setenv("METIER_READY_FILE", "/run/ready")
    assert load(KafkaSettings).partitions == 12
    assert load(SandboxSettings).wait_s == 1.5
    assert load(RoleSettings).ready_file == Path("/run/ready")


@pytest.mark.parametrize(
    ("kind", "name", "value", "sentence"),
    [
        (KafkaSettings, "METIER_KAFKA_PARTITIONS", "0", "METIER_KAFKA_PARTITIONS: Input should be greater than"),
        (KafkaSettings, "METIER_KAFKA_PREFIX", "a b", "METIER_KAFKA_PREFIX: String should match pattern"),
        (JournalSettings, "METIER_LEASE_S", "soon", "METIER_LEASE_S: Input should be a valid number"),
        (RoleSettings, "METIER_LOG_LEVEL", "loud", "METIER_LOG_LEVEL: Input should be 'debug'"),
    ],
)
def test_a_bad_value_is_refused_with_the_variables_name(
    monkeypatch: pytest.MonkeyPatch, kind: type[BaseSettings], name: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSettings, match=sentence):
        load(kind)


def test_a_password_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METIER_POSTGRES_URL", "postgresql://u:hunter2@h/d")
    assert "hunter2" not in repr(load(JournalSettings))


def test_a_misspelt_name_is_refused_with_the_nearest_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METIER_KAFKA_BOOTSTRP", "h:1")
    with pytest.raises(BadSettings, match=r"METIER_KAFKA_BOOTSTRP is not .* did you mean METIER_KAFKA_BOOTSTRAP"):
        refuse_unknown()


def test_known_names_and_free_prefixes_are_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("METIER_MODEL_CODER", "METIER_LOCAL_ANYTHING", "METIER_KAFKA_BOOTSTRAP"):
        monkeypatch.setenv(name, "x")
    refuse_unknown()


def test_models_are_replaced_by_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METIER_MODEL_CODER", "openai:gpt-x")
    assert model_overrides()["coder"] == "openai:gpt-x"
