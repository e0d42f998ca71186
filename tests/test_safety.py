"""Safety bundles: what fits and what is refused, those that ship, an agent against its bundle, output checks and refusals.

What a bundle says of one tool call is in test_approval, what the tool runner keeps of it in test_tightening.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metier_agents import details
from metier_agents.approval import Ask, Deny, Mutate, Proceed, Skip, judge
from metier_agents.output_check import LONGEST, AskAgain, Masked, Pass, Withhold, check_output, on_refusal
from metier_agents.safety import Bundle, Detail, demand, find_bundle, load_bundle, load_bundles
from metier_agents.safety_check import problems
from metier_agents.spec import AgentSpec
from metier_infra.errors import BadSpec
from metier_infra.words import Answer, Claim, Conflict
from metier_tools.builtin import BUILTIN, PYTHON, SHELL
from metier_tools.declare import Arguments, from_model
from metier_tools.profile import STRICT, Profile
from metier_tools.tool import Hold
from metier_tools.toolbox import Command, Function, Tool, Toolbox

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
REPOSITORY = Path(__file__).parents[1]
EXAMPLES = REPOSITORY / "workflows/metier/examples/safety"
HOW_TO = REPOSITORY / "docs/how-to/write-a-safety-bundle.md"
GOOD = """\
name: lab
version: 2
tools:
  allow: [python]
rules:
  - tools: [python]
    then: ask
    why: look at the program
refusal:
  then: take
output:
  - kind: longest
    characters: 10
"""


def written(folder: Path, text: str, name: str = "lab.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_becomes_a_bundle_and_what_it_does_not_say_is_not_allowed(tmp_path: Path) -> None:
    bundle = load_bundle(written(tmp_path, "name: bare\nversion: 1\n"))
    assert (bundle.key, bundle.otherwise, bundle.egress, bundle.capture, bundle.functions) == ("bare@1", "deny", (), False, "refuse")  # fmt: skip
    assert not bundle.allows_tool("python")
    assert bundle.allows_model("openai:gpt-5")
    assert load_bundle(written(tmp_path, GOOD)).rules[0].then == "ask"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD.replace("allow:", "alow:"), "4: tools.alow: unknown field; did you mean allow?"),
        (GOOD.replace("why:", "wy:"), "8: rules.0.wy: unknown field; did you mean why?"),
        (GOOD.replace("    why: look at the program\n", ""), "6: rules.0.why: this field is missing"),
        (GOOD.replace("then: ask", "then: aks"), "6: rules.0: input tag 'aks' found"),
        (GOOD.replace("    then: ask\n", ""), "6: rules.0: the field that says what it is"),
        (GOOD.replace("version: 2", "version: 0"), "2: version: input should be greater than or equal to 1"),
        (GOOD.replace("version: 2\n", ""), "1: version: this field is missing"),
        (GOOD.replace("name: lab", "name: The Lab"), "1: name: a name is lower-case letters"),
        (GOOD.replace("characters", "caracters"), "13: output.0.caracters: unknown field; did you mean characters?"),
        (GOOD.replace("kind: longest", "kind: largest"), "12: output.0: input tag 'largest' found"),
        (GOOD.replace("then: take", "then: argue"), "10: refusal.then: input should be 'take'"),
        (GOOD + "asks: 9\n", "14: asks: input should be less than or equal to 5"),
        (GOOD + "egress: [http://example.com]\n", "14: egress.0: a name is lower-case"),
        (GOOD + "sandbox: Strict\n", "14: sandbox: a name is lower-case"),
        (GOOD + "models: []\n", "14: models: tuple should have at least 1 item"),
        (GOOD + "capure: true\n", "14: capure: unknown field; did you mean capture?"),
        (GOOD.replace("why:", "within_s: 0\n    why:"), "8: rules.0.within_s: input should be greater than 0"),
        (GOOD.replace("why:", "within_s: .inf\n    why:"), "8: rules.0.within_s: input should be less than"),
        (GOOD.replace("why:", "risks: [mild]\n    why:"), "8: rules.0.risks.0: input should be 'read'"),
        (GOOD.replace("why:", "arguments: {code: '('}\n    why:"), "8: rules.0.arguments.code: this pattern cannot be used: unclosed group"),
        (GOOD.replace("why:", "arguments: {code: '(?=a)'}\n    why:"), "8: rules.0.arguments.code: this pattern cannot be used: look-around"),
        (GOOD.replace("why:", "arguments: {code: ''}\n    why:"), "8: rules.0.arguments.code: string should have at least 1 character"),
        (GOOD.replace("then: ask\n    why: x", "").replace("then: ask", "then: mutate\n    change: {a: .nan}").replace("    why: look at the program\n", ""), "8: rules.0.change: must be JSON"),
        ("- 1\n", "1: expected a safety bundle's fields"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_with_file_line_and_field(tmp_path: Path, text: str, sentence: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(BadSpec) as caught:
        load_bundle(path)
    assert str(caught.value).startswith(f"{path}:{sentence}")


def test_all_versions_of_a_folder_are_there_and_the_newest_is_meant_unless_one_is_named(tmp_path: Path) -> None:
    for version in (2, 10, 9):
        written(tmp_path, f"name: lab\nversion: {version}\n", f"lab-{version}.yaml")
    bundles = load_bundles(tmp_path)
    assert sorted(bundles) == ["lab@10", "lab@2", "lab@9"]
    assert find_bundle(bundles, "lab").version == 10
    assert find_bundle(bundles, "lab@9").version == 9
    assert load_bundles(tmp_path / "nowhere") == {}


def test_one_version_in_two_files_and_a_bundle_that_is_not_there_are_refused(tmp_path: Path) -> None:
    written(tmp_path, GOOD, "a.yaml")
    bundles = load_bundles(tmp_path)
    with pytest.raises(BadSpec, match=r"there is no safety bundle 'lap'; there are lab@2$"):
        find_bundle(bundles, "lap")
    with pytest.raises(BadSpec, match=r"there is no safety bundle 'lab@3'; there are lab@2$"):
        find_bundle(bundles, "lab@3")
    with pytest.raises(BadSpec, match="there are none"):
        find_bundle({}, "lab")
    second = written(tmp_path, GOOD, "b.yaml")
    with pytest.raises(BadSpec) as caught:
        load_bundles(tmp_path)
    assert str(caught.value) == f"{second}: there is a safety bundle lab@2 already; give it another version"


def bundle(**fields: Any) -> Bundle:
    return Bundle.model_validate({"name": "test", "version": 1, **fields})


CHANGES: list[dict[str, Any]] = [
    {"name": "other"}, {"version": 2}, {"tools": {"allow": ["x"]}}, {"tools": {"deny": ["x"]}}, {"rules": [{"then": "allow"}]}, {"otherwise": "ask"},
    {"within_s": 1}, {"sandbox": "strict"}, {"egress": ["a.test"]}, {"functions": "allow"}, {"models": ["x"]}, {"capture": True}, {"refusal": {"then": "fail"}},
    {"output": [{"kind": "longest", "characters": 1}]}, {"asks": 2},
]  # fmt: skip


def test_every_field_but_the_description_changes_the_digest() -> None:
    digests = {bundle(**change).digest for change in ({}, *CHANGES)}
    assert len(digests) == len(CHANGES) + 1
    assert bundle(description="for people").digest == bundle().digest
    assert {name for change in CHANGES for name in change} | {"description"} == set(Bundle.model_fields)
    assert re.fullmatch("[0-9a-f]{12}", bundle().digest)


def test_what_a_call_carries_is_what_the_bundle_demands_of_the_sandbox() -> None:
    assert demand(None) is None
    assert demand(bundle()) == Hold(profile="", egress=(), functions=False)
    full = bundle(sandbox="strict@1", egress=["a.test"], functions="allow")
    assert demand(full) == Hold(profile="strict@1", egress=("a.test",), functions=True)


class Text(Arguments):
    text: str


def echoed(text: str) -> str:
    return text


MINE = from_model("mine", "What it does.", Text, Function(echoed))
NET = Profile.model_validate({"name": "net", "egress": {"hosts": ["*.example.com"]}})
TOOLS = Toolbox([PYTHON, SHELL, MINE], {STRICT.key: STRICT, NET.key: NET})
FITS: dict[str, Any] = {"tools": {"allow": ["*"]}, "rules": [{"then": "allow"}], "functions": "allow"}


def agent(*tools: str, **fields: Any) -> AgentSpec:
    return AgentSpec.model_validate(
        {"name": "a", "model": "openai:gpt-5", "policy": {"kind": "autonomous"}, "tools": [{"name": name} for name in tools], **fields}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "fields", "says"),
    [
        (agent("python", "shell", "mine"), {}, []),
        (agent(), {"models": ["openai:*"]}, []),
        (agent(), {"models": ["anthropic:*"]}, ["the model openai:gpt-5 of a is not among the models of the safety bundle test@1: anthropic:*"]),
        (agent(fallbacks=["x:y", "openai:o"]), {"models": ["openai:*"]}, ["the fallback x:y of a is not among"]),
        (agent("python", "shell"), {"tools": {"allow": ["python"]}}, ["the tool shell of a is not allowed by the safety bundle test@1"]),
        (agent("python"), {"tools": {"allow": ["*"], "deny": ["py*"]}}, ["the tool python of a is not allowed"]),
        (agent("mine"), {"functions": "refuse"}, ["the tool mine of a is a trusted function"]),
        (agent("python"), {"rules": []}, ["no rule of the safety bundle test@1 is about the tool python of a, so every call of it would be denied"]),
        (agent("python"), {"rules": [{"then": "allow", "risks": ["read"]}]}, ["no rule of the safety bundle test@1 is about the tool python"]),
        (agent("python"), {"rules": [], "otherwise": "ask"}, []),
        (agent(), {"tools": {"allow": ["pyton"]}}, ["test@1: tools.allow: there is no tool 'pyton'; there are mine, python, shell"]),
        (agent(), {"tools": {"deny": ["pyt?n", "nope"]}}, ["test@1: tools.deny: there is no tool 'nope'"]),
        (agent(), {"rules": [{"then": "allow", "tools": ["nope"]}]}, ["test@1: rules.0.tools: there is no tool 'nope'"]),
        (agent(), {"rules": [{"then": "mutate", "tools": ["python"], "change": {"code": "1", "x": 1}}]}, ["test@1: rules.0.change: the tool python has no argument 'x'"]),
        (agent(), {"sandbox": "vault"}, ["test@1: sandbox: there is no profile 'vault'; there are net@1, strict@1"]),
        (agent(), {"sandbox": "net", "egress": ["api.example.com"]}, []),
        (agent(), {"sandbox": "net", "egress": ["api.example.org"]}, ["test@1: egress: the profile net@1 of `sandbox` does not let api.example.org through"]),
        (agent(), {"sandbox": "strict", "egress": ["api.example.com"]}, ["test@1: egress: the profile strict@1"]),
    ],
)  # fmt: skip
def test_what_cannot_be_between_an_agent_its_bundle_and_the_tools_is_said(
    spec: AgentSpec, fields: dict[str, Any], says: list[str]
) -> None:
    found = problems(spec, bundle(**{**FITS, **fields}), TOOLS)
    assert len(found) == len(says)
    assert all(one.startswith(start) for one, start in zip(found, says, strict=True)), found


def answer(text: str, **fields: Any) -> Answer:
    return Answer(text=text, agent="a", model="m", policy="p", **fields)


def checked(text: str, *checks: dict[str, Any], asked: int = 0, **fields: Any) -> Pass | AskAgain | Withhold | Masked:
    return check_output(bundle(output=checks, **fields), answer(text), asked=asked)


NOT = {"kind": "must_not_match", "pattern": r"(?i)\bnightjar\b"}
MUST = {"kind": "must_match", "pattern": "because"}
SHORT = {"kind": "longest", "characters": 5}
NO_MAIL = {"kind": "no_details", "of": ["email"]}


@pytest.mark.parametrize(
    ("text", "check", "expected"),
    [
        ("all well", NOT, Pass()),
        ("all nightjars", NOT, Pass()),
        ("on Nightjar.", NOT, Withhold("The answer holds what must not be in it.")),
        ("on Nightjar.", {**NOT, "say": "secret"}, Withhold("secret")),
        ("on Nightjar.", {**NOT, "then": "ask_again", "say": "not that"}, AskAgain("not that")),
        ("on Nightjar. Yes", {**NOT, "then": "mask"}, Masked(answer("on [withheld] Yes"))),
        ("9, because 3*3", MUST, Pass()),
        ("9", MUST, Withhold("The answer lacks what must be in it.")),
        ("9", {**MUST, "then": "ask_again"}, AskAgain("The answer lacks what must be in it.")),
        ("12345", SHORT, Pass()),
        ("123456", SHORT, Withhold("The answer must be at most 5 characters long.")),
        ("a@b.test", NO_MAIL, Masked(answer("[email]"))),
        ("a@b.test", {**NO_MAIL, "then": "withhold"}, Withhold("The answer must hold none of these: email.")),
        ("a@b.test", {**NO_MAIL, "then": "ask_again"}, AskAgain("The answer must hold none of these: email.")),
        ("x", {"kind": "claims"}, Withhold("The answer must stand on at least 1 claims with quotes from sources.")),
    ],
)
def test_what_becomes_of_an_answer(text: str, check: dict[str, Any], expected: object) -> None:
    assert checked(text, check) == expected


def test_without_a_bundle_or_a_check_every_answer_passes() -> None:
    assert check_output(None, answer("x")) == Pass()
    assert check_output(bundle(), answer("x")) == Pass()


def test_a_pattern_that_goes_over_words_cannot_be_struck_out_and_so_holds_the_answer_back() -> None:
    check = {"kind": "must_not_match", "pattern": "blue bird", "then": "mask"}
    assert isinstance(checked("a blue bird", check), Withhold)


def test_the_model_is_asked_again_so_often_and_then_the_answer_is_held_back() -> None:
    again = {**MUST, "then": "ask_again"}
    assert isinstance(checked("9", again, asks=2, asked=1), AskAgain)
    assert isinstance(checked("9", again, asks=2, asked=2), Withhold)
    assert isinstance(checked("9", again, asks=0), Withhold)


CLAIM = Claim(text="it is blue", source="s1", quote="blue it is, says a@b.test")
PLACES: dict[str, Callable[[str], Answer]] = {
    "text": answer,
    "claim": lambda text: answer("x", claims=(CLAIM.model_copy(update={"text": text}),)),
    "quote": lambda text: answer("x", claims=(CLAIM.model_copy(update={"quote": text}),)),
    "conflict": lambda text: answer("x", conflicts=(Conflict(about=text, sides=()),)),
    "side": lambda text: answer("x", conflicts=(Conflict(about="y", sides=(CLAIM.model_copy(update={"quote": text}),)),)),
    "unresolved": lambda text: answer("x", unresolved=(text,)),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_everything_that_leaves_with_the_answer_is_checked_struck_out_and_counted(place: str) -> None:
    made = PLACES[place]("see Nightjar c@d.test")
    assert isinstance(check_output(bundle(output=[NOT]), made), Withhold)
    masked = check_output(bundle(output=[NO_MAIL, {**NOT, "then": "mask"}]), made)
    assert isinstance(masked, Masked)
    assert "c@d.test" not in masked.answer.model_dump_json()
    assert "Nightjar" not in masked.answer.model_dump_json()
    assert masked.answer == check_output_of(PLACES[place]("see [withheld] [email]"))
    assert isinstance(check_output(bundle(output=[{"kind": "longest", "characters": 20}]), made), Withhold)
    assert isinstance(check_output(bundle(output=[{"kind": "longest", "characters": 90}]), made), Pass)


def check_output_of(made: Answer) -> Answer:
    masked = check_output(bundle(output=[NO_MAIL]), made)
    return masked.answer if isinstance(masked, Masked) else made


def test_a_source_whose_own_name_holds_what_must_not_be_there_is_found() -> None:
    made = answer("x", claims=(CLAIM.model_copy(update={"source": "c@d.test", "quote": "q"}),))
    assert isinstance(check_output(bundle(output=[NO_MAIL]), made), Withhold)


def test_an_answer_stands_on_claims_or_says_that_it_is_unresolved() -> None:
    two = bundle(output=[{"kind": "claims", "at_least": 2, "then": "ask_again"}])
    assert check_output(two, answer("x", claims=(CLAIM, CLAIM))) == Pass()
    assert isinstance(check_output(two, answer("x", claims=(CLAIM,), unresolved=("y",))), AskAgain)
    assert isinstance(check_output(two, answer("x")), AskAgain)
    assert check_output(two, answer("x", unresolved=("y",))) == Pass()


def test_a_claim_counts_for_what_must_be_there_and_a_quote_does_not() -> None:
    assert check_output(bundle(output=[{"kind": "must_match", "pattern": "^it is blue$"}]), answer("x", claims=(CLAIM,))) == Pass()  # fmt: skip
    assert isinstance(check_output(bundle(output=[{"kind": "must_match", "pattern": "says"}]), answer("x", claims=(CLAIM,))), Withhold)  # fmt: skip


CHECKS = [NOT, MUST, SHORT, NO_MAIL, {**NOT, "then": "mask"}, {**MUST, "then": "ask_again", "say": "why?"}, {**NO_MAIL, "then": "withhold"}]  # fmt: skip
PARTS = ["x", "because", "Nightjar", "a@b.test", "  \n"]


@UNTIMED
@given(st.lists(st.sampled_from(CHECKS), max_size=5), st.randoms(), st.lists(st.sampled_from(PARTS), max_size=4))
def test_the_order_of_the_checks_does_not_matter(checks: list[dict[str, Any]], random: Any, parts: list[str]) -> None:
    text = " ".join(parts)
    assert checked(text, *checks) == checked(text, *random.sample(checks, len(checks)))


@UNTIMED
@given(st.lists(st.sampled_from(CHECKS), max_size=4), st.lists(st.sampled_from(PARTS), max_size=4))
def test_what_is_given_away_passes_every_check(checks: list[dict[str, Any]], parts: list[str]) -> None:
    made = checked(" ".join(parts), *checks)
    if isinstance(made, Masked):
        assert check_output(bundle(output=checks), made.answer) == Pass()


KEY = "AKIA" + "ABCDEFGH" + "12345678"
MIXED = "aB3" * 10
BLOCK = "-----BEGIN RSA PRIVATE " + "KEY-----\nMIIE\n-----END RSA PRIVATE " + "KEY-----"


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("email", "Write to jane.doe+x@mail.example.co.uk.", "Write to [email]."),
        ("email", "<ä@b.test>,c@d.test", "<[email]>,[email]"),
        ("email", "at 5@3 or a@b", "at 5@3 or a@b"),
        ("phone", "call +49 30 1234567.", "call [phone]."),
        ("phone", "call 0049-30/1234567", "call [phone]"),
        ("phone", "(030) 123 45 67", "[phone]"),
        ("phone", "((030) 1234567)", "([phone])"),
        ("phone", "555-123-4567 or (555) 123-4567", "[phone] or [phone]"),
        ("phone", "+1 (555) 123-4567", "[phone]"),
        ("phone", "on 2026-11-28 and 01.02.2026, 0.1234567", "on 2026-11-28 and 01.02.2026, 0.1234567"),
        ("phone", "1234567 units of 10.0.0.1 for 1,000,000", "1234567 units of 10.0.0.1 for 1,000,000"),
        ("card", "4111 1111 1111 1111 or 4111-1111-1111-1112", "[card] or 4111-1111-1111-1112"),
        ("card", "0000 0000 0000 0000", "0000 0000 0000 0000"),
        ("secret", f"key {KEY}!", "key [secret]!"),
        ("secret", f"a {MIXED} b", "a [secret] b"),
        ("secret", "password: hunter2! and token=abcdefg", "password: [secret] and token=[secret]"),
        ("secret", f"x\n{BLOCK}\ny", "x\n[secret]\ny"),
        ("secret", f"x\n{BLOCK[:40]}\ny", "x\n[secret]"),
        ("secret", "a commit 0123456789abcdef0123456789abcdef01234567", "a commit 0123456789abcdef0123456789abcdef01234567"),
        ("secret", "sk-learn-is-a-name and TheQuickBrownFoxJumpsOverTheDog", "sk-learn-is-a-name and TheQuickBrownFoxJumpsOverTheDog"),
        ("secret", "a secret garden, a token of thanks", "a secret garden, a token of thanks"),
    ],
)  # fmt: skip
def test_details_are_known_by_their_form(kind: Detail, text: str, expected: str) -> None:
    assert details.masked(text, [kind]) == expected
    assert details.has(text, [kind]) == (text != expected)
    assert not details.has(expected, [kind])


def test_details_of_several_kinds_are_struck_out_together_and_several_faults_are_said_in_one_order() -> None:
    assert details.masked("a@b.test, 0301234567", ["phone", "email"]) == "[email], [phone]"
    checks = [{**MUST, "say": word} for word in ("delta", "alpha", "charlie", "bravo", "echo")]
    assert checked("9", *checks) == Withhold("alpha bravo charlie delta echo")


ENDLESS = ["a" * 200_000, "a@" * 100_000, "a." * 100_000, "0" * 200_000, "0 " * 100_000, "(" * 200_000, "+(" * 100_000, "4-" * 100_000, "password" * 25_000,
           "password: " * 20_000, "-----BEGIN PRIVATE KEY-----" * 8_000, "aB3" * 70_000, " " * 200_000, "a@b" + "-" * 200_000, "a@" + "b." * 100_000, "\ud800" * 1000]  # fmt: skip


@pytest.mark.timeout(30)
@pytest.mark.parametrize("text", ENDLESS, ids=lambda text: ascii(text[:6]))
def test_a_hostile_answer_is_checked_in_no_more_than_linear_time(text: str) -> None:
    every = {"kind": "no_details", "of": ["card", "email", "phone", "secret"]}
    assert isinstance(checked(text, every, {**NOT, "then": "mask"}, {"kind": "must_not_match", "pattern": "(a+)+$x"}), Pass | Masked)  # fmt: skip


def test_an_answer_that_is_too_long_to_be_checked_is_held_back() -> None:
    assert isinstance(checked("x" * (LONGEST + 1), NOT), Withhold)
    assert checked("x" * LONGEST, NOT) == Pass()


def test_text_that_is_no_unicode_hides_nothing_beside_it() -> None:
    assert isinstance(checked("on Nightjar.\ud800", NOT), Withhold)


def test_nothing_of_the_answer_and_no_pattern_stands_in_the_reason() -> None:
    for check in (NOT, {**NO_MAIL, "then": "withhold"}):
        made = checked("Nightjar a@b.test", check)
        assert isinstance(made, Withhold)
        assert not re.search(r"(?i)nightjar|a@b", made.why)


@pytest.mark.parametrize(
    ("refusal", "asked", "expected"),
    [
        ({}, 0, "take"),
        ({"then": "fail"}, 0, "fail"),
        ({"then": "next_model"}, 5, "next_model"),
        ({"then": "ask_again", "say": "go on"}, 0, AskAgain("go on")),
        ({"then": "ask_again", "say": "go on"}, 1, "take"),
        ({"then": "ask_again", "times": 2, "after": "fail", "say": "go on"}, 1, AskAgain("go on")),
        ({"then": "ask_again", "times": 2, "after": "fail"}, 2, "fail"),
    ],
)
def test_what_is_done_when_a_model_declines(refusal: dict[str, Any], asked: int, expected: object) -> None:
    assert on_refusal(bundle(refusal=refusal), asked=asked) == expected
    assert on_refusal(None, asked=asked) == "take"


def test_a_model_that_is_asked_again_without_a_sentence_gets_one_of_ours() -> None:
    made = on_refusal(bundle(refusal={"then": "ask_again"}))
    assert isinstance(made, AskAgain)
    assert made.note


def example(name: str) -> Bundle:
    return find_bundle(load_bundles(EXAMPLES), name)


SCRIPT = {"script": "file sample.bin"}


def test_four_bundles_ship_and_differ() -> None:
    bundles = load_bundles(EXAMPLES)
    assert sorted(bundles) == ["corporate-communication@1", "creative-fiction@1", "education@1", "security-research@1"]
    assert len({one.digest for one in bundles.values()}) == 4
    for one in bundles.values():
        assert not one.capture
        assert one.description
        assert problems(agent(model="recorded:x"), one, BUILTIN) == []


def test_fiction_has_no_tools_and_a_refusal_is_asked_about_once() -> None:
    fiction = example("creative-fiction")
    assert isinstance(judge(fiction, PYTHON, {"code": "1"}), Deny)
    assert problems(agent("python", model="recorded:x"), fiction, BUILTIN)
    assert isinstance(on_refusal(fiction), AskAgain)
    assert on_refusal(fiction, asked=1) == "take"
    assert check_output(fiction, answer("He mixed something foul.")) == Pass()
    assert isinstance(check_output(fiction, answer("He took 30 g of the nitrate.")), AskAgain)


def risky(risk: str, name: str = "other") -> Tool:
    made = from_model(name, "x", Text, Command(("x", "{text}")))
    return Tool(made.spec.model_copy(update={"risk": risk}), made.action, made.problem)


def test_security_research_runs_python_asks_about_the_shell_and_the_network_and_denies_destruction() -> None:
    research, plain = example("security-research"), {"text": "x"}
    assert judge(research, PYTHON, {"code": "print(1)"}) == Proceed()
    asked = judge(research, SHELL, SCRIPT)
    assert isinstance(asked, Ask)
    assert asked.within_s == 1800
    assert isinstance(judge(research, risky("network"), plain), Ask)
    assert isinstance(judge(research, risky("write"), plain), Ask)
    assert judge(research, risky("read"), plain) == Proceed()
    assert isinstance(judge(research, risky("destructive"), plain), Deny)
    assert isinstance(judge(research, risky("execute"), plain), Deny)
    assert isinstance(judge(research, SHELL, {"script": "dd if=/dev/zero of=x"}), Deny)
    assert isinstance(judge(research, PYTHON, {"code": "x = '" + "a" * 56 + ".onion'"}), Deny)
    assert demand(research) == Hold(profile="strict", egress=())
    assert on_refusal(research) == "next_model"
    assert isinstance(check_output(research, answer("It calls http://evil.test/x")), AskAgain)
    assert check_output(research, answer("It calls hxxp://evil[.]test/x")) == Pass()
    assert problems(agent("python", "shell"), research, BUILTIN) == []


def test_corporate_communication_looks_things_up_and_gives_no_details_away() -> None:
    corporate = example("corporate-communication")
    search = risky("read", "search-docs")
    assert judge(corporate, search, {"text": "opening hours"}) == Proceed()
    assert isinstance(judge(corporate, search, {"text": "salary of the boss"}), Deny)
    assert isinstance(judge(corporate, risky("write", "search-docs"), {"text": "x"}), Deny)
    assert isinstance(judge(corporate, PYTHON, {"code": "1"}), Deny)
    made = check_output(corporate, answer("Mail a@b.test.", claims=(CLAIM,)))
    assert isinstance(made, Masked)
    assert (made.answer.text, made.answer.claims[0].quote) == ("Mail [email].", "blue it is, says [email]")
    assert isinstance(check_output(corporate, answer("We open at nine.")), AskAgain)
    assert isinstance(check_output(corporate, answer("Project Nightjar opens.", claims=(CLAIM,))), Withhold)
    assert isinstance(check_output(corporate, answer("We will beat last year.", claims=(CLAIM,))), AskAgain)
    assert not corporate.allows_model("openai:gpt-5")


class Search(Arguments):
    text: str
    limit: int = 10


def test_corporate_communication_takes_fewer_hits_than_a_model_wants() -> None:
    search = from_model("search", "Search.", Search, Command(("x", "{text}", "{limit}")))
    search = Tool(search.spec.model_copy(update={"risk": "read"}), search.action, search.problem)
    assert judge(example("corporate-communication"), search, {"text": "x", "limit": 500}) == Mutate({"text": "x", "limit": 20})  # fmt: skip
    assert judge(example("corporate-communication"), search, {"text": "x", "limit": 49}) == Proceed()


def test_education_wants_a_reason_and_a_program_that_neither_waits_nor_deletes() -> None:
    education = example("education")
    assert isinstance(check_output(education, answer("42")), AskAgain)
    assert isinstance(check_output(education, answer("42, because.")), AskAgain)
    assert isinstance(check_output(education, answer("42"), asked=1), Withhold)
    assert (
        check_output(education, answer("The sum is 42, because twenty and twenty-two are added digit by digit."))
        == Pass()
    )
    assert judge(education, PYTHON, {"code": "print(6 * 7)"}) == Proceed()
    assert isinstance(judge(education, PYTHON, {"code": "x = input('x')"}), Skip)
    assert isinstance(judge(education, PYTHON, {"code": "shutil.rmtree('x')"}), Skip)
    assert isinstance(on_refusal(education), AskAgain)
    assert demand(education) == Hold(profile="strict", egress=())


def test_the_bundle_of_the_how_to_does_what_the_page_says(tmp_path: Path) -> None:
    (block,) = re.findall(
        r"^```yaml\n(name: support.*?)^```$", HOW_TO.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    made = load_bundle(written(tmp_path, block))
    assert problems(agent("python", "shell", model="openai:gpt-5"), made, BUILTIN) == []
    assert judge(made, PYTHON, {"code": "print(1)"}) == Proceed()
    assert isinstance(judge(made, SHELL, {"script": "ls"}), Ask)
    assert isinstance(judge(made, SHELL, {"script": "rm -rf /"}), Deny)
    masked = check_output(made, answer("Mail a@b.test"))
    assert masked == Masked(answer("Mail [email]"))
    assert isinstance(check_output(made, answer("x" * 2001)), AskAgain)
    assert on_refusal(made) == "next_model"
    assert not made.allows_model("recorded:x")
