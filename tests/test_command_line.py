"""A command's templates filled in for one call: what becomes a word, and which values are refused because a program would obey them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from metier_tools.command_line import LINE_BYTES, WORD_BYTES, argv_of, places, stdin_of
from metier_tools.toolbox import Command, Refusal


@pytest.mark.parametrize(
    ("argv", "arguments", "line"),
    [
        (("ls",), {}, ("ls",)),
        (("cat", "{a}"), {"a": "x y; rm -rf $(z)"}, ("cat", "x y; rm -rf $(z)")),
        (("head", "-n{a}", "f{b}"), {"a": 3, "b": True}, ("head", "-n3", "ftrue")),
        (("x", "{a}"), {"a": 1.5}, ("x", "1.5")),
        (("x", "{a}", "y"), {"a": ["b", 2, "c d"]}, ("x", "b", "2", "c d", "y")),
        (("x", "{a}", "y"), {"a": []}, ("x", "y")),
        (("x", "--a={a}"), {"a": "-rf"}, ("x", "--a=-rf")),
        (("x", "-{a}"), {"a": "l"}, ("x", "-l")),
        (("x", "--", "{a}", "{b}"), {"a": "-rf", "b": ["-1", "-2"]}, ("x", "--", "-rf", "-1", "-2")),
        (("awk", "{print $1}", "{ }", "{}"), {}, ("awk", "{print $1}", "{ }", "{}")),
        (("jq", "{{a}} {a}"), {"a": "{b}"}, ("jq", "{a} {b}")),
        (("x", ""), {}, ("x", "")),
    ],
    ids=str,
)
def test_values_stand_in_the_place_of_their_names(
    argv: tuple[str, ...], arguments: dict[str, JsonValue], line: tuple[str, ...]
) -> None:
    assert argv_of(Command(argv), arguments) == line


@pytest.mark.parametrize(
    ("argv", "arguments", "says"),
    [
        (("cat", "{a}"), {"a": "-n"}, "a: a value that begins with - would be taken for an option"),
        (("cat", "{a}"), {"a": "--"}, "a: a value that begins with -"),
        (("cat", "{a}", "--", "{b}"), {"a": "-n", "b": "-n"}, "a: a value that begins with -"),
        (("cat", "{a}"), {"a": -5}, "a: a value that begins with -"),
        (("cat", "{a}"), {"a": ["x", "-n"]}, "a: a value that begins with -"),
        (("cat", "{a}"), {"a": ["--", "-n"]}, "a: a value that begins with -"),
        (("cat", "{a}{b}"), {"a": "", "b": "-n"}, "a, b: a value that begins with -"),
        (("cat", "{a}-n"), {"a": ""}, "a: a value that begins with -"),
        (("cat", "{a}=--", "{b}"), {"a": "x", "b": "-n"}, "b: a value that begins with -"),
        (("cat", "x{a}"), {"a": "b\0c"}, "a: NUL cannot stand"),
        (("cat", "--", "{a}"), {"a": ["b", "\0"]}, "a: NUL cannot stand"),
        (("cat", "{a}"), {"a": "é" * (WORD_BYTES // 2 + 1)}, "at most 120000 bytes"),
        (("cat", "{a}"), {"a": ["x" * 99_999] * (LINE_BYTES // 100_000 + 1)}, "longer than 1000000 bytes"),
        (("cat", "{a}"), {}, "a: this argument is missing"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_a_program_would_obey_and_what_the_kernel_does_not_take_is_refused(
    argv: tuple[str, ...], arguments: dict[str, JsonValue], says: str
) -> None:
    refusal = argv_of(Command(argv), arguments)
    assert isinstance(refusal, Refusal)
    assert says in refusal.sentence


@pytest.mark.parametrize(
    ("stdin", "arguments", "read"),
    [
        ("", {}, b""),
        ("{a}", {"a": "-é\n"}, "-é\n".encode()),
        ("{a} {b} {c}\n", {"a": False, "b": 2, "c": ["x", 1]}, b'false 2 ["x", 1]\n'),
        ("{{a}}", {}, b"{a}"),
    ],
)
def test_standard_input_is_a_template_too(stdin: str, arguments: dict[str, JsonValue], read: bytes) -> None:
    assert stdin_of(Command(("x",), stdin), arguments) == read


@pytest.mark.parametrize("arguments", [{}, {"a": "b\0"}])
def test_standard_input_without_its_argument_or_with_nul_is_refused(arguments: dict[str, JsonValue]) -> None:
    assert isinstance(stdin_of(Command(("x",), "{a}"), arguments), Refusal)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.sampled_from(["-", "--", "-x", "--x=1"])
VALUES = st.one_of(TEXT, st.integers(), st.booleans(), st.lists(TEXT, max_size=3))
WORDS = st.lists(st.sampled_from(["{a}", "{b}", "{a}{b}", "x", "-o", "--c={a}", "{b}.txt"]), max_size=5)


@given(words=WORDS, a=TEXT, b=VALUES)
def test_no_value_ever_becomes_an_option(words: list[str], a: str, b: JsonValue) -> None:
    line = argv_of(Command(("p", *words)), {"a": a, "b": b})
    if isinstance(line, tuple):
        options = [word for word in line if word.startswith("-")]
        authors = [word for word in words if word.startswith("-")]
        assert len(options) == len(authors)
        assert not any("\0" in word for word in line)


@given(st.text(max_size=30))
def test_what_names_no_argument_is_text(text: str) -> None:
    if not places(text) and "{{" not in text and "\0" not in text:
        assert argv_of(Command(("p", text)), {}) == ("p", text)
