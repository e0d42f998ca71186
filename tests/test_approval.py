"""What a safety bundle says of a tool call: the algebra of findings, rules over arguments, changed calls, and arguments that mean harm.

Not here: that a person is really asked, and what is done with the verdict; hands do that.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, JsonValue

from metier_agents.approval import NOTHING, Ask, Deny, Found, Mutate, Proceed, Skip, Verdict, join, judge, verdict
from metier_agents.arguments import DEEPEST, LARGEST_BITS, MOST_CHARACTERS, MOST_VALUES
from metier_agents.safety import Bundle
from metier_tools.builtin import PYTHON, SHELL
from metier_tools.declare import Arguments, from_model
from metier_tools.tool import Risk, ToolSpec
from metier_tools.toolbox import Command, ServerTool, Tool

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
SENTENCES = st.frozensets(st.sampled_from(["one", "two", "three"]), max_size=2)
CHANGES = st.frozensets(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["1", "2", '"x"'])), max_size=3)
FOUND = st.builds(Found, SENTENCES, SENTENCES, SENTENCES, st.sampled_from([1.0, 60.0, float("inf")]), CHANGES)
GIVEN: dict[str, JsonValue] = {"a": 0, "c": [1]}
STRICTNESS = (Proceed, Mutate, Ask, Skip, Deny)


def rank(said: Verdict) -> int:
    return STRICTNESS.index(type(said))


def runs(said: Verdict, *, agreed: bool) -> bool:
    """Whether the call is made, when a person who is asked agrees or does not."""
    return isinstance(said, Proceed | Mutate) or (isinstance(said, Ask) and agreed)


@UNTIMED
@given(FOUND, FOUND, FOUND)
def test_joining_does_not_depend_on_order_grouping_or_repetition(one: Found, two: Found, three: Found) -> None:
    assert join(one, join(two, three)) == join(join(one, two), three)
    assert join(one, two) == join(two, one)
    assert join(one, one) == one
    assert join(one, NOTHING) == one


@UNTIMED
@given(FOUND, FOUND)
def test_what_is_joined_is_never_milder_than_either_part(one: Found, two: Found) -> None:
    joined = verdict(join(one, two), GIVEN)
    assert rank(joined) >= max(rank(verdict(one, GIVEN)), rank(verdict(two, GIVEN)))
    for agreed in (True, False):
        if runs(joined, agreed=agreed):
            assert runs(verdict(one, GIVEN), agreed=agreed)
            assert runs(verdict(two, GIVEN), agreed=agreed)


@UNTIMED
@given(FOUND)
def test_a_denial_absorbs_whatever_is_joined_to_it_and_nothing_changes_nothing(found: Found) -> None:
    denied = Found(denied=frozenset({"no"}))
    assert isinstance(verdict(join(denied, found), GIVEN), Deny)
    assert verdict(join(NOTHING, found), GIVEN) == verdict(found, GIVEN)
    assert verdict(NOTHING, GIVEN) == Proceed()


@UNTIMED
@given(FOUND, CHANGES)
def test_what_a_person_approves_is_the_call_as_it_was_changed(
    found: Found, changes: frozenset[tuple[str, str]]
) -> None:
    said = verdict(join(found, Found(changes=changes)), GIVEN)
    if isinstance(said, Ask | Mutate):
        assert said.arguments == {**GIVEN, **{name: json.loads(value) for name, value in found.changes | changes}}


def test_two_values_for_one_argument_deny_the_call_and_the_same_value_twice_does_not() -> None:
    one, two = Found(changes=frozenset({("a", "1")})), Found(changes=frozenset({("a", "2")}))
    assert verdict(join(one, two), GIVEN) == Deny("rules of the safety bundle give different values to the argument a")
    assert verdict(join(one, one), GIVEN) == Mutate({"a": 1, "c": [1]})
    floating = Found(changes=frozenset({("a", "1.0")}))
    assert isinstance(verdict(join(one, floating), GIVEN), Deny)


def test_one_value_written_in_another_order_is_the_same_value() -> None:
    values: list[dict[str, JsonValue]] = [{"x": 1, "y": 2}, {"y": 2, "x": 1}]
    rules = [{"then": "mutate", "change": {"more": value}} for value in values]
    assert judge(bundle(*rules), mail(), HI) == Mutate({**HI, "more": values[0]})


def test_the_most_impatient_rule_says_how_long_a_person_has() -> None:
    asks = [Found(asked=frozenset({why}), within_s=within) for why, within in (("b", 60.0), ("a", 5.0))]
    assert verdict(join(*asks), {}) == Ask("a; b", 5.0, {})


def bundle(*rules: Mapping[str, Any], **more: Any) -> Bundle:
    return Bundle.model_validate({"name": "test", "version": 1, "tools": {"allow": ["*"]}, "otherwise": "allow", "rules": rules, **more})  # fmt: skip


class Mail(Arguments):
    to: list[str]
    subject: str = "hello"
    copies: int = 1
    more: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])


def mail(risk: Risk = "write") -> Tool:
    made = from_model("mail", "Send it.", Mail, Command(("mail", "{subject}")))
    return replace(made, spec=made.spec.model_copy(update={"risk": risk}))


def said(rule: Mapping[str, Any], arguments: dict[str, JsonValue], tool: Tool | None = None, **more: Any) -> Verdict:
    return judge(bundle(rule, **more), tool or mail(), arguments)


DENY = {"then": "deny", "why": "no"}
HI: dict[str, JsonValue] = {"to": ["a@example.com"]}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"then": "allow"}, Proceed()),
        ({"then": "mutate", "change": {"copies": 2}}, Mutate({**HI, "copies": 2})),
        ({"then": "ask", "why": "look"}, Ask("look", 3600.0, HI)),
        ({"then": "ask", "why": "look", "within_s": 7}, Ask("look", 7.0, HI)),
        ({"then": "skip", "say": "not now"}, Skip("not now")),
        (DENY, Deny("no")),
    ],
)
def test_what_a_match_means(rule: dict[str, Any], expected: Verdict) -> None:
    assert said(rule, HI) == expected


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        ({"tools": ["mail"]}, True),
        ({"tools": ["ma*", "x"]}, True),
        ({"tools": ["m?il"]}, True),
        ({"tools": ["Mail"]}, False),
        ({"tools": ["mai"]}, False),
        ({"risks": ["write"]}, True),
        ({"risks": ["read", "destructive"]}, False),
        ({"tools": ["mail"], "risks": ["read"]}, False),
        ({"arguments": {"to": "@example\\.com$"}}, True),
        ({"arguments": {"to": "^b@"}}, True),
        ({"arguments": {"to": "^c@"}}, False),
        ({"arguments": {"subject": "^hello$"}}, True),
        ({"arguments": {"subject": "^hell$"}}, False),
        ({"arguments": {"copies": "^1$"}}, True),
        ({"arguments": {"more.deep.list.key": "^va"}}, True),
        ({"arguments": {"more.deep": "^value$"}}, True),
        ({"arguments": {"more.deep": "^key$"}}, True),
        ({"arguments": {"more.flag": "^true$"}}, True),
        ({"arguments": {"more.none": "^null$"}}, True),
        ({"arguments": {"*": "^value$"}}, True),
        ({"arguments": {"*": "^hello$"}}, True),
        ({"arguments": {"*": "nowhere"}}, False),
        ({"arguments": {"more.dotted.name": "^there$"}}, False),
        ({"arguments": {"to": "a@", "subject": "hello"}}, True),
        ({"arguments": {"to": "a@", "subject": "other"}}, False),
        ({"arguments": {"gone": ".*"}}, False),
        ({"arguments": {"gone": ".*"}, "missing": True}, True),
        ({"arguments": {"more.gone.x": ".*"}, "missing": True}, True),
        ({"arguments": {"subject": "other"}, "missing": True}, False),
    ],
)  # fmt: skip
def test_when_a_rule_matches(rule: dict[str, Any], matches: bool) -> None:
    arguments: dict[str, JsonValue] = {
        "to": ["a@example.com", "b@example.com"],
        "more": {"deep": {"list": [[{"key": "value"}], 1]}, "flag": True, "none": None},
    }
    assert said({**DENY, **rule}, arguments) == (Deny("no") if matches else Proceed())


def served(**properties: JsonValue) -> Tool:
    spec = ToolSpec(
        name="s__t", description="x", parameters={"type": "object", "properties": properties}, kind="mcp", risk="read"
    )
    return Tool(spec, ServerTool("s", ("s",), "t"), lambda _: None)


def test_a_name_with_dots_in_it_is_found() -> None:
    assert isinstance(said({**DENY, "arguments": {"a.b": "x"}}, {"a.b": "x"}, served()), Deny)
    assert isinstance(said({**DENY, "arguments": {"a.b": "x"}}, {"a": {"b": "x"}}, served()), Deny)


def test_a_default_of_the_schema_is_an_argument_too_and_a_strange_schema_harms_nobody() -> None:
    rule = {**DENY, "arguments": {"force": "^true$"}}
    assert isinstance(said(rule, {}, served(force={"type": "boolean", "default": True})), Deny)
    assert said(rule, {"force": False}, served(force={"type": "boolean", "default": True})) == Proceed()
    strange: list[JsonValue] = [True, [], "x", None, {"default": {"a": [True]}}, {"default": 1 << 100_000}]
    for one in strange:
        assert isinstance(said(rule, {}, served(force=one, other=one)), Proceed | Deny)
    odd = served().spec.model_copy(update={"parameters": {"properties": [1]}})
    assert said(rule, {}, replace(served(), spec=odd)) == Proceed()


def test_where_no_rule_matches_the_bundle_says_what_holds_and_denies_if_it_does_not_say() -> None:
    rule = {"then": "allow", "tools": ["other"]}
    assert said(rule, HI, otherwise="allow") == Proceed()
    asked = said(rule, HI, otherwise="ask", within_s=9)
    assert isinstance(asked, Ask)
    assert asked.within_s == 9.0
    plain = Bundle.model_validate({"name": "test", "version": 1, "tools": {"allow": ["*"]}})
    assert isinstance(judge(plain, mail(), HI), Deny)


def test_a_tool_that_the_bundle_does_not_allow_is_denied_whatever_its_rules_say() -> None:
    assert isinstance(said({"then": "allow"}, HI, tools={"allow": ["python"]}), Deny)
    assert isinstance(said({"then": "allow"}, HI, tools={"allow": ["*"], "deny": ["m*"]}), Deny)
    assert said({"then": "allow"}, HI, tools={"allow": ["m*"], "deny": ["x*"]}) == Proceed()


RULES: list[dict[str, Any]] = [
    {"then": "allow"},
    {"then": "mutate", "change": {"copies": 2}},
    {"then": "mutate", "change": {"copies": 3}, "arguments": {"copies": "^2$"}},
    {"then": "mutate", "change": {"subject": "x"}, "arguments": {"copies": "^2$"}},
    {"then": "ask", "why": "look", "arguments": {"subject": "^x$"}},
    {"then": "skip", "say": "not now", "arguments": {"subject": "^y$"}},
    {"then": "deny", "why": "no", "arguments": {"copies": "^7$"}},
]
MAILS = st.fixed_dictionaries(
    {"to": st.just(["a"])},
    optional={"copies": st.sampled_from([1, 2, 7]), "subject": st.sampled_from(["x", "y", "z"])},
)


@UNTIMED
@given(st.lists(st.sampled_from(RULES), max_size=5), st.randoms(), MAILS)
def test_the_order_of_the_rules_does_not_matter(
    rules: list[dict[str, Any]], random: Any, arguments: dict[str, JsonValue]
) -> None:
    shuffled = random.sample(rules, len(rules))
    assert judge(bundle(*rules), mail(), arguments) == judge(bundle(*shuffled), mail(), arguments)


@UNTIMED
@given(st.lists(st.sampled_from(RULES), max_size=4), st.sampled_from(RULES), MAILS)
def test_one_more_rule_never_lets_a_call_run_that_was_held_back(
    rules: list[dict[str, Any]], more: dict[str, Any], arguments: dict[str, JsonValue]
) -> None:
    before, after = judge(bundle(*rules), mail(), arguments), judge(bundle(*rules, more), mail(), arguments)
    for agreed in (True, False):
        assert runs(before, agreed=agreed) or not runs(after, agreed=agreed)


@UNTIMED
@given(st.lists(st.sampled_from(RULES), max_size=5), MAILS)
def test_no_rule_is_escaped_by_a_change(rules: list[dict[str, Any]], arguments: dict[str, JsonValue]) -> None:
    made = judge(bundle(*rules), mail(), arguments)
    if isinstance(made, Mutate | Ask):
        again = judge(bundle(*rules), mail(), made.arguments)
        assert rank(again) <= rank(made)
        assert runs(again, agreed=True)
        assert not isinstance(again, Mutate) or again.arguments == made.arguments


def test_a_call_that_a_change_makes_deniable_is_denied() -> None:
    change = {"then": "mutate", "change": {"subject": "danger"}}
    watch = {**DENY, "arguments": {"subject": "danger"}}
    assert judge(bundle(change, watch), mail(), HI) == Deny("no")
    assert judge(bundle(change), mail(), HI) == Mutate({**HI, "subject": "danger"})


def test_what_was_wrong_with_the_call_as_it_came_stands_after_the_change() -> None:
    change = {"then": "mutate", "change": {"subject": "clean"}}
    watch = {**DENY, "arguments": {"subject": "danger"}}
    assert judge(bundle(change, watch), mail(), {**HI, "subject": "danger"}) == Deny("no")


def test_rules_that_change_each_others_work_end_in_a_denial_and_not_in_a_circle() -> None:
    there = {"then": "mutate", "change": {"subject": "a"}, "arguments": {"subject": "^(b|hello)$"}}
    back = {"then": "mutate", "change": {"subject": "b"}, "arguments": {"subject": "^a$"}}
    for rules in itertools.permutations((there, back)):
        assert judge(bundle(*rules), mail(), HI) == Deny("rules of the safety bundle give different values to the argument subject")  # fmt: skip


def test_a_change_that_does_not_fit_the_tool_denies_the_call() -> None:
    for rule in ({"then": "mutate", "change": {"copies": "two"}}, {"then": "mutate", "change": {"nosuch": 1}}):
        made = said(rule, HI)
        assert isinstance(made, Deny)
        assert made.why.startswith("the call does not fit any more as the safety bundle changes it: ")


def test_a_rule_by_tool_reaches_into_the_program_that_a_model_writes() -> None:
    rule = {**DENY, "tools": ["shell"], "arguments": {"script": r"\bcurl\b"}}
    assert said(rule, {"script": "cd /tmp && curl x"}, SHELL) == Deny("no")
    assert said(rule, {"script": "cd /tmp && curly x"}, SHELL) == Proceed()
    assert said(rule, {"code": "curl"}, PYTHON) == Proceed()


def nested(levels: int) -> JsonValue:
    inner: JsonValue = "x"
    for _ in range(levels):
        inner = [inner]
    return inner


def circle() -> dict[str, Any]:
    inner: dict[str, Any] = {}
    inner["again"] = inner
    return inner


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "deep": ({"a": nested(100_000)}, f"deeper than {DEEPEST} levels"),
    "circle": (circle(), f"deeper than {DEEPEST} levels"),
    "wide": ({"a": [0] * (MOST_VALUES + 1)}, f"more than {MOST_VALUES} values"),
    "wide and deep": ({"a": [[0] * 1000] * 1000}, f"more than {MOST_VALUES} values"),
    "wide circle": ({"a": [circle()] * 100}, f"deeper than {DEEPEST} levels"),
    "long": ({"a": "x" * (MOST_CHARACTERS + 1)}, f"more than {MOST_CHARACTERS} characters"),
    "long names": ({"x" * 1_000_001: 1, "y" * 1_000_001: 1}, f"more than {MOST_CHARACTERS} characters"),
    "surrogate": ({"a": "cu\ud800rl"}, "no Unicode"),
    "surrogate in a name": ({"a": {"\udfff": 1}}, "no Unicode"),
    "number": ({"a": 1 << (LARGEST_BITS + 1)}, "a number that is too long"),
    "bytes": ({"a": b"x"}, "no JSON"),
    "object": ({"a": object()}, "no JSON"),
    "names": ({"a": {1: "x"}}, "no JSON"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_arguments_that_are_more_than_can_be_judged_are_denied_and_nothing_is_raised(name: str) -> None:
    arguments, says = HOSTILE[name]
    made = said({"then": "allow", "arguments": {"*": "x"}}, arguments, served())
    assert isinstance(made, Deny)
    assert says in made.why


def test_what_is_just_within_the_bounds_is_judged() -> None:
    big: list[dict[str, Any]] = [
        {"a": nested(DEEPEST - 2)},
        {"a": [0] * (MOST_VALUES - 2)},
        {"a": "x" * (MOST_CHARACTERS - 1)},
        {"a": 1 << (LARGEST_BITS - 1)},
        {"a": float("nan"), "b": float("-inf"), "c": "\x00\U0010ffff"},
    ]
    for arguments in big:
        assert said({**DENY, "arguments": {"*": "nowhere"}}, arguments, served()) == Proceed()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@UNTIMED
@given(
    st.lists(st.sampled_from(RULES), max_size=4),
    st.dictionaries(st.sampled_from(["to", "copies", "subject", "more", "x"]), JSON),
)
def test_whatever_the_arguments_are_there_is_a_verdict(
    rules: list[dict[str, Any]], arguments: dict[str, JsonValue]
) -> None:
    assert isinstance(judge(bundle(*rules), mail(), arguments), Proceed | Mutate | Ask | Skip | Deny)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(.*)*x", "^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_a_pattern_that_would_hang_another_engine_ends_at_once(pattern: str) -> None:
    text = "a" * 1_000_000
    assert said({**DENY, "arguments": {"a": pattern}}, {"a": text + "!"}, served()) in (Proceed(), Deny("no"))
