"""Agent files: what fits, what is refused and with which sentence, and what changes an agent's digest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metier_agents.recordings import read_recordings
from metier_agents.spec import AgentSpec, load_agent, load_agents, with_model
from metier_infra.errors import BadSpec

EXAMPLES = Path(__file__).parent.parent / "workflows/metier/examples"
GOOD = """\
name: thinker
model: recorded:gpt-4o-2024-08-06
policy:
  kind: autonomous
  threshold: 0.7
tools:
  - name: python
    fits: [code]
"""


def written(folder: Path, text: str, name: str = "agent.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_becomes_a_spec(tmp_path: Path) -> None:
    spec = load_agent(written(tmp_path, GOOD))
    assert (spec.name, spec.policy.kind, spec.tools[0].name) == ("thinker", "autonomous", "python")
    assert spec.tools[0].fitting("code")
    assert not spec.tools[0].fitting("math")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD.replace("threshold", "treshold"), "5: policy.treshold: unknown field; did you mean threshold?"),
        (GOOD.replace("fits", "fit"), "8: tools.0.fit: unknown field; did you mean fits?"),
        (GOOD + "skils: {a: 1}\n", "9: skils: unknown field; did you mean skills?"),
        (GOOD + "zzz: 1\n", "9: zzz: unknown field"),
        (GOOD + "limits: {turn: 3}\n", "9: limits.turn: unknown field; did you mean turns?"),
        (GOOD.replace("0.7", "7"), "5: policy.threshold: input should be less than or equal to 1"),
        (GOOD.replace("autonomous", "autonomus"), "3: policy: input tag 'autonomus' found"),
        (GOOD.replace("name: thinker\n", ""), "1: name: this field is missing"),
        ("name: a\nmodel: m\npolicy: autonomous\n", "3: policy: expected fields below it, kind among them"),
        (GOOD.replace("  kind: autonomous\n", ""), "3: policy: expected fields below it, kind among them"),
        (
            GOOD.replace("- name: python\n    fits: [code]", "- python"),
            "7: tools.0: expected fields below it, such as name",
        ),
        (GOOD + "limits: 3\n", "9: limits: expected fields below it, such as turns"),
        (
            GOOD.replace("  - name: python\n    fits: [code]", "  - fits: [code]"),
            "7: tools.0.name: this field is missing",
        ),
        (GOOD.replace("thinker", "The Thinker"), "1: name: must be lower-case letters"),
        (GOOD + "skills: {code: 2}\n", "9: skills.code: input should be less than or equal to 1"),
        ("- 1\n", "1: expected an agent's fields"),
        ("", "1: expected an agent's fields"),
        ("name: [\n", "2: not YAML:"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_file_line_and_field(tmp_path: Path, text: str, sentence: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(BadSpec) as caught:
        load_agent(path)
    assert str(caught.value).startswith(f"{path}:{sentence}")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadSpec, match="cannot be read"):
        load_agent(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name: " + "[" * 5_000, "too deep in brackets"),
        ("name: " + "1" * 5_000, "digits"),
        ("name: 2026-13-28\n", "month"),
        ("name: a\n#" + "x" * (1 << 20), "larger than 1024 KiB"),
    ],
)
def test_a_file_that_no_person_wrote_is_refused_in_one_sentence(tmp_path: Path, text: str, why: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(BadSpec, match=why) as caught:
        load_agent(path)
    assert str(caught.value).startswith(f"{path}: cannot be read: ")
    assert "\n" not in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(BadSpec, match="it is no file"):
        load_agents(tmp_path)


def test_two_agents_of_one_name_are_refused(tmp_path: Path) -> None:
    written(tmp_path, GOOD, "a.yaml")
    written(tmp_path, GOOD, "b.yaml")
    with pytest.raises(BadSpec, match="already declared"):
        load_agents(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="no agent files"):
        load_agents(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        ("0.7", "0.8"),
        ("gpt-4o-2024-08-06", "gemini-1.5-pro"),
        ("[code]", "[code, math]"),
        ("name: python", "name: shell"),
        ("tools:", "limits: {turns: 3}\ntools:"),
        ("tools:", "skills: {code: 0.5}\ntools:"),
    ],
)
def test_a_change_of_behaviour_changes_the_digest(tmp_path: Path, change: tuple[str, str]) -> None:
    before = load_agent(written(tmp_path, GOOD))
    after = load_agent(written(tmp_path, GOOD.replace(*change)))
    assert before.digest != after.digest


def test_the_digest_does_not_depend_on_the_description_or_on_the_order_of_a_set(tmp_path: Path) -> None:
    text = GOOD.replace("[code]", "[code, math, law, prose]")
    other = text.replace("[code, math, law, prose]", "[prose, law, math, code]") + "description: says nothing\n"
    assert load_agent(written(tmp_path, text)).digest == load_agent(written(tmp_path, other)).digest


def test_a_model_can_be_replaced(tmp_path: Path) -> None:
    spec = load_agent(written(tmp_path, GOOD))
    other = with_model(spec, "openai:gpt-5")
    assert (other.model, other.name, other.policy) == ("openai:gpt-5", spec.name, spec.policy)
    assert other.digest != spec.digest


def test_the_examples_load_and_there_is_one_of_each_policy() -> None:
    agents = load_agents(EXAMPLES / "agents")
    assert sorted(spec.policy.kind for spec in agents.values()) == ["autonomous", "collaborative", "meta_reasoned"]
    assert len({spec.model for spec in agents.values()}) == 3


def test_the_examples_say_of_themselves_what_was_measured() -> None:
    recordings = read_recordings(EXAMPLES / "data/zeroeval.jsonl.gz")
    for spec in load_agents(EXAMPLES / "agents").values():
        for category, skill in spec.skills.items():
            if (spec.name, category) != ("coder", "code_reasoning"):
                assert skill == round(recordings.accuracy(spec.model.partition(":")[2], category), 3)


def test_a_spec_survives_json() -> None:
    spec = load_agents(EXAMPLES / "agents")["careful"]
    assert AgentSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_field_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\nmodel: scripted:x\npolicy: {kind: autonomous, kind: collaborative}\n")
    with pytest.raises(BadSpec, match=r"twice.yaml:3: kind: this field stands here a second time"):
        load_agent(path)
    path.write_text("name: &a [*a]\nname: b\n")
    with pytest.raises(BadSpec, match=r"twice.yaml:2: name: this field stands here a second time"):
        load_agent(path)
