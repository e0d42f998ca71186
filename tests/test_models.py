"""How an agent's models are opened: the layers round each, the chain, what is shared, and what is said at the start."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from pydantic import SecretStr

from metier import compose, configuration
from metier_agents.buckets import Draw, MemoryBuckets
from metier_agents.journal_buckets import JournalBuckets
from metier_agents.langchain_model import LangChainModel
from metier_agents.model import Model, Options, ScriptedModel
from metier_agents.model_table import Known, ModelTable, read_known
from metier_agents.models import Shop, open_model
from metier_agents.rate import bucket_name
from metier_agents.redis_buckets import RedisBuckets
from metier_agents.spec import AgentSpec
from metier_agents.turns import ModelTurn, Usage, User
from metier_infra.errors import (
    BadSettings,
    BadSpec,
    CircuitOpen,
    MetierError,
    MissingPackage,
    MissingService,
    ModelBusy,
)

TABLE = {
    "prices": {
        "as_of": "2026-01-01",
        "source": "a test",
        "usd_per_million": [{"model": "openai:dear", "input": 3, "output": 9}],
    },
    "limits": [{"model": "openai:limited*", "requests_per_minute": 1}],
    "breaker": {"failures": 2},
    "patience": {"tries": 1},
}


def spec(model: str, *fallbacks: str, limits: Mapping[str, float] | None = None) -> AgentSpec:
    fields = {"name": "a", "model": model, "fallbacks": fallbacks, "policy": {"kind": "collaborative"}}
    return AgentSpec.model_validate({**fields, "limits": limits or {}})


class Provider:
    """Opens scripted models under the ids that are asked for."""

    def __init__(self, **errors: list[MetierError]) -> None:
        self._errors = errors
        self.opened: dict[str, ScriptedModel] = {}

    def __call__(self, model: str, *, timeout_s: float) -> Model:
        del timeout_s
        turn = ModelTurn(text="42", usage=Usage(input_tokens=1_000_000, output_tokens=0))
        self.opened[model] = ScriptedModel([turn], name=model, errors=self._errors.get(model.partition(":")[2], []))
        return self.opened[model]


def shop(provider: Provider | None = None) -> Shop:
    return Shop(Known(ModelTable.model_validate(TABLE)), MemoryBuckets(), provider or Provider())


async def ask(model: Model, left_s: float = 5) -> ModelTurn:
    return await model.ask([User(text="?")], tools=(), tool_choice="none", deadline=time.time() + left_s)


def layers(model: object) -> list[str]:
    return [] if model is None else [type(model).__name__, *layers(getattr(model, "inner", None))]


@pytest.mark.parametrize(
    ("model", "wrapped"),
    [
        ("openai:free", ["Priced", "Guarded", "Timed", "ScriptedModel"]),
        ("openai:limited", ["Priced", "Limited", "Guarded", "Timed", "ScriptedModel"]),
        ("scripted:x", ["Priced", "ScriptedModel"]),
        ("recorded:x", ["Priced", "ScriptedModel"]),
    ],
)
def test_each_model_has_the_layers_that_it_needs(model: str, wrapped: list[str]) -> None:
    assert layers(shop().model_of(spec(model))) == wrapped


async def test_a_reply_has_its_price_and_an_unknown_one_has_none() -> None:
    assert (await ask(shop().model_of(spec("openai:dear")))).cost_usd == 3.0
    assert (await ask(shop().model_of(spec("openai:free")))).cost_usd is None


async def test_a_fallback_replies_under_its_own_name_and_price() -> None:
    provider = Provider(free=[ModelBusy("500")])
    turn = await ask(shop(provider).model_of(spec("openai:free", "openai:dear")))
    assert (turn.model, turn.cost_usd, [one.model for one in turn.passed_over]) == ("openai:dear", 3.0, ["openai:free"])


async def test_a_recorded_model_may_stand_in_a_chain() -> None:
    turn = await ask(shop(Provider(free=[ModelBusy("500")])).model_of(spec("openai:free", "recorded:x")))
    assert turn.model == "recorded:x"


async def test_a_chain_does_not_wait_long_at_the_gate_of_a_model_that_has_another_behind_it() -> None:
    chain = shop().model_of(spec("openai:limited", "openai:dear"))
    names = [(await asyncio.wait_for(ask(chain, left_s=600), 20)).model for _ in range(2)]
    assert names == ["openai:limited", "openai:dear"]


async def test_two_agents_on_one_model_share_its_circuit_and_its_bucket() -> None:
    counter = shop(Provider(away=[ModelBusy("500")]))
    first, second = (counter.model_of(spec("openai:away")) for _ in range(2))
    for one in (first, second):
        with pytest.raises(ModelBusy, match="500"):
            await ask(one)
    for one in (first, second):
        with pytest.raises(CircuitOpen):
            await ask(one)
    limited = [counter.model_of(spec("openai:limited")), counter.model_of(spec("openai:limited-too"))]
    await ask(limited[0])
    with pytest.raises(ModelBusy, match="no room"):
        await ask(limited[1])


class KeyedChat(GenericFakeChatModel):
    """LangChain's fake, with a key."""

    api_key: SecretStr


class SeenBuckets(MemoryBuckets):
    """Remembers which buckets were drawn from."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    async def draw(self, name: str, draw: Draw) -> float:
        self.names.append(name)
        return await super().draw(name, draw)


@pytest.mark.parametrize("key", ["sk-one", "sk-two"])
async def test_the_bucket_of_a_model_is_named_by_its_providers_key(key: str) -> None:
    def provider(model: str, *, timeout_s: float) -> Model:
        del timeout_s
        return LangChainModel(KeyedChat(messages=iter([AIMessage("42")]), api_key=SecretStr(key)), model)

    known, buckets = Known(ModelTable.model_validate(TABLE)), SeenBuckets()
    await ask(Shop(known, buckets, provider).model_of(spec("openai:limited")))
    rule = known.limit("openai:limited")
    assert rule is not None
    assert set(buckets.names) == {bucket_name(rule, "openai", key)}


async def test_requests_of_two_agents_stand_in_one_line_before_the_bucket_that_they_share() -> None:
    buckets = SeenBuckets()
    counter = Shop(Known(ModelTable.model_validate(TABLE)), buckets, Provider())
    first, second = (counter.model_of(spec("openai:limited")) for _ in range(2))
    await ask(first)
    waiting = [asyncio.create_task(ask(one, left_s=600)) for one in (first, second)]
    await asyncio.sleep(0.05)
    assert len(buckets.names) == 2
    for one in waiting:
        one.cancel()
    await asyncio.wait(waiting)


@pytest.mark.parametrize(("on_refusal", "model"), [(False, "openai:a"), (True, "openai:b")])
async def test_a_refusal_is_passed_on_only_where_that_is_wished(on_refusal: bool, model: str) -> None:
    def provider(model: str, *, timeout_s: float) -> Model:
        del timeout_s
        return ScriptedModel([ModelTurn(text="42", refused=model == "openai:a")], name=model)

    chain = Shop(Known(), MemoryBuckets(), provider).model_of(spec("openai:a", "openai:b"))
    options = Options(next_on_refusal=on_refusal)
    asked = chain.ask([User(text="?")], tools=(), tool_choice="none", deadline=time.time() + 60, options=options)
    assert (await asked).model == model


# ---- what is said at the start


def test_a_fallback_that_cannot_be_opened_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    real = Shop(read_known(), MemoryBuckets())
    with pytest.raises(BadSettings, match=r"anthropic:claude-x.*ANTHROPIC_API_KEY"):
        real.model_of(spec("openai:gpt-5", "anthropic:claude-x"))
    with pytest.raises(MissingPackage, match="groq:x"):
        real.model_of(spec("openai:gpt-5", "groq:x"))
    with pytest.raises(BadSpec, match="not a script"):
        real.model_of(spec("openai:gpt-5", "scripted:nosuch.yaml"))


def test_a_limit_on_money_that_cannot_be_kept_is_refused_with_what_to_do() -> None:
    with pytest.raises(BadSpec, match=r"agent a .*limits\.cost_usd.* openai:free; .*METIER_MODELS"):
        shop().model_of(spec("openai:dear", "openai:free", limits={"cost_usd": 1.0}))
    shop().model_of(spec("openai:dear", "recorded:x", limits={"cost_usd": 1.0}))


def test_opening_a_local_model_loads_no_provider() -> None:
    program = (
        "import sys\n"
        "from metier_agents.buckets import MemoryBuckets\n"
        "from metier_agents.model_table import read_known\n"
        "from metier_agents.models import Shop\n"
        "Shop(read_known(), MemoryBuckets())\n"
        "print(sorted({'redis', 'langchain', 'langchain_core', 'psycopg'} & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_recordings_are_asked_for() -> None:
    with pytest.raises(BadSpec, match="needs a file of recordings"):
        open_model("recorded:x")


# ---- from settings


def test_rate_limits_are_kept_where_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("METIER_REDIS_URL", "METIER_KAFKA_BOOTSTRAP", "METIER_LIMITS_IN"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(compose.open_buckets(configuration.configure()), MemoryBuckets)
    monkeypatch.setenv("METIER_KAFKA_BOOTSTRAP", "127.0.0.1:9")
    with pytest.raises(MissingService, match="METIER_REDIS_URL"):
        compose.open_buckets(configuration.configure())
    monkeypatch.setenv("METIER_REDIS_URL", "redis://127.0.0.1:9/0")
    assert isinstance(compose.open_buckets(configuration.configure()), RedisBuckets)
    monkeypatch.setenv("METIER_LIMITS_IN", "journal")
    assert isinstance(compose.open_buckets(configuration.configure()), JournalBuckets)


def test_the_users_file_is_named_by_a_setting_and_read_when_models_are_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "models.yaml"
    path.write_text("prices: {}\n")
    monkeypatch.setenv("METIER_MODELS", str(path))
    config = configuration.configure()
    with pytest.raises(BadSpec, match=r"models\.yaml:1: prices\.as_of"):
        compose.open_models(config, [], MemoryBuckets())
