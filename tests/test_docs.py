"""The documentation against the code: generated pages are up to date, links lead somewhere, commands exist, python parses.

Not tested: that prose is true, and that shown output is what a run prints today.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from metier import reference, reference_cli
from metier_infra import event_types, telemetry

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted(
    [
        *REPOSITORY.glob("*.md"),
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "helm").rglob("*.md"),
        *(REPOSITORY / "workflows" / "metier").rglob("*.md"),
    ]
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
TITLE = re.compile(r"^#.*$", re.MULTILINE)  # the reference has synopses there, with what stands for an argument
COMMAND = re.compile(r"^(?:\w+=\S+ +)*(?:\.venv/bin/)?metier +(.*)$")
DEMO = re.compile(r'^make demo ARGS="([^"]*)"')
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))


def lines_of_commands(text: str) -> Iterator[str]:
    """Lines of shell blocks, and code in the running text."""
    for language, body in FENCE.findall(text):
        if language == "sh":
            yield from body.splitlines()
    yield from SPAN.findall(TITLE.sub("", FENCE.sub("", text)).replace("\\|", "|"))


def commands_in(text: str) -> list[list[str]]:
    """The words after `metier`, for each command that is written out."""
    found: list[list[str]] = []
    for line in lines_of_commands(text):
        if demo := DEMO.match(line.strip()):
            found.append(["demo", *shlex.split(demo[1])])
        elif command := COMMAND.match(line.strip()):
            found.append(
                list(takewhile(lambda word: word not in {"<", ">", "|"}, shlex.split(command[1], comments=True)))
            )
    return [words for words in found if words and not words[0].isupper()]


def parse(words: list[str]) -> None:
    """Fail where the CLI would: an unknown command or option, a missing argument."""
    known: dict[str, Any] = dict(reference_cli.commands())
    for length in (2, 1):
        name = " ".join(("metier", *words[:length]))
        if name in known:
            rest = [word for word in words[length:] if word != "--help"]
            assert not rest or not hasattr(known[name], "commands"), f"there is no command metier {' '.join(words)}"
            assert not rest or known[name].make_context(name, rest)
            return
    groups = {name.split()[1] for name in known}
    assert len(words) == 1, f"there is no command metier {' '.join(words)}"
    assert words[0] in groups, f"there is no command metier {words[0]}"


@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_a_generated_page_is_what_the_generator_gives_now(name: str) -> None:
    committed = (REPOSITORY / "docs" / "reference" / name).read_text(encoding="utf-8")

    assert committed == reference.pages()[name], "run: python -m metier.reference docs/reference"


def test_no_other_page_stands_among_the_generated_ones() -> None:
    assert {page.name for page in (REPOSITORY / "docs" / "reference").iterdir()} == set(reference.PAGES)


def test_every_event_has_its_topic_and_every_attribute_its_meaning() -> None:
    constants = {value for name, value in vars(telemetry).items() if name.isupper() and isinstance(value, str)}
    spans = {telemetry.SCHEMA_URL, telemetry.ROOT, telemetry.SANDBOX_LEASE, telemetry.SANDBOX_EXEC, telemetry.EGRESS}

    assert all(kind.TOPIC for kind in event_types.EVENTS.values())
    assert constants - spans - {"metier.decision.chosen"} == set(reference.ATTRIBUTES)


def test_nothing_of_this_machine_and_no_secret_enters_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    before = reference.pages()
    monkeypatch.setenv("METIER_POSTGRES_URL", "postgresql://someone:hunter2@elsewhere:5432/x")
    monkeypatch.setenv("METIER_GRANT_KEY", "hunter2")
    monkeypatch.setenv("METIER_INSTANCE", "this-machine")

    assert reference.pages() == before


@EVERY_PAGE
def test_relative_links_lead_to_files(page: Path) -> None:
    targets = [link.partition("#")[0] for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8")))]

    missing = [one for one in targets if one and ":" not in one and not (page.parent / one).exists()]

    assert missing == []


@EVERY_PAGE
def test_every_metier_command_parses(page: Path) -> None:
    for words in commands_in(page.read_text(encoding="utf-8")):
        parse(words)


@EVERY_PAGE
def test_every_python_block_compiles(page: Path) -> None:
    for language, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            compile(body, str(page), "exec")


def test_the_commands_in_the_docs_are_found_and_wrong_ones_refused() -> None:
    found = [words for page in PAGES for words in commands_in(page.read_text(encoding="utf-8"))]

    assert len(found) > 30
    for wrong in (
        ["nosuch"],
        ["runs", "nosuch"],
        ["tools", "nosuch"],
        ["publish", "specialists"],
        ["demo", "--querys", "3"],
    ):
        with pytest.raises(Exception, match=r"no command|[Nn]o such option|[Mm]issing"):
            parse(wrong)
