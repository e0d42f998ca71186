"""The commands for dead letters: list, show, redrive. `cli` registers them; `metier_infra.dead_letters` does the work.

What they show was written by anybody: what is not printable is escaped, bytes that are no text are shown as hex, and long ones are cut.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from metier import client
from metier.cli_runs import Json, run_command
from metier.client import Letters
from metier.moments import since_of
from metier.terminal import console, shown
from metier_infra.dead_letters import Letter, Wanted, in_parts, redrive, summaries, whole
from metier_infra.errors import BadSettings, LetterIncomplete, MissingLetter

SHOWN = 4096
"""So many bytes of a value are shown; `--json` gives all of them."""
AT_ONCE = 64 << 20
"""So many bytes of letters are held and sent again at one time: for each such part the topic is read once."""
IdArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ID]...", help="Where records lay, TOPIC@PARTITION:OFFSET, as `list` says."),
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Where the record lay, TOPIC@PARTITION:OFFSET.")]
Reason = Annotated[str | None, typer.Option(help="Only those that were buried for this reason, such as undecodable.")]
Topic = Annotated[str | None, typer.Option(help="Only those that lay on this topic.")]
Since = Annotated[
    str | None, typer.Option(help="Only those that were buried since: 30m, 6h, 2d ago, or a time as 2026-11-28T10:00.")
]
out = console()


def list_letters(
    reason: Reason = None,
    topic: Topic = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
    as_json: Json = False,
) -> None:
    """List the dead letters, the newest last."""
    wanted = _wanted(reason, topic, since)
    found = run_command(client.letters, lambda letters: summaries(letters.scan, wanted))[-limit:]
    if as_json:
        typer.echo(json.dumps([_facts(one) for one in found]))
        return
    heads = ("letter", "buried", "reason", "key", "bytes", "redriven", "message")
    table = Table(*[Column(head, no_wrap=True) for head in heads])
    for one in found:
        table.add_row(*map(Text, _row(one)))
    out.print(table)


def _wanted(reason: str | None, topic: str | None, since: str | None) -> Wanted:
    return Wanted(reason, topic, since_of(since, datetime.now(UTC).timestamp()))


def _row(one: Letter) -> tuple[str, ...]:
    key, room = _text(one.key or b"")[:20], max(20, out.width - 110)
    redriven = "yes" if one.redriven else ""
    return shown(one.id), _at(one), shown(one.reason), key, str(one.size), redriven, shown(one.message)[:room]


def _at(one: Letter) -> str:
    return datetime.fromtimestamp(one.at, UTC).strftime("%Y-%m-%d %H:%M:%S") if one.at else ""


def _facts(one: Letter) -> Mapping[str, object]:
    facts = {"reason": one.reason, "message": one.message, "at": one.at, "bytes": one.size, "redriven": one.redriven}
    place = {"id": one.id, "topic": one.topic, "partition": one.partition, "offset": one.offset}
    return {**place, **facts, "without": list(one.without), "key": None if one.key is None else _text(one.key)}


def show(letter_id: IdArgument, as_json: Json = False) -> None:
    """Show one dead letter as its record was: headers, key, value; and why it was buried."""

    async def work(letters: Letters) -> Letter:
        return _there(await whole(letters.scan, [letter_id]), letter_id)

    one = run_command(client.letters, work)
    if as_json:
        told = {"value": _encoded(one.value), "headers": [[name, _encoded(value)] for name, value in one.headers]}
        key = {"key": None if one.key is None else _encoded(one.key)}
        typer.echo(json.dumps({**_facts(one), **key, **told}))
        return
    for name, value in (("letter", one.id), ("reason", one.reason), ("message", one.message), ("buried", _at(one))):
        typer.echo(f"{name:<10} {shown(value)}")
    for name, header in one.headers:
        typer.echo(f"{'header':<10} {shown(name)}: {_text(header)}")
    typer.echo(f"{'key':<10} {'none' if one.key is None else _text(one.key)}")
    typer.echo(f"{'value':<10} {one.size} bytes{_missing(one)}: {_text(one.value)}")


def _missing(one: Letter) -> str:
    return f" (kept without its {' and '.join(one.without)})" if one.without else ""


def _there(found: Mapping[str, Letter], letter_id: str) -> Letter:
    if letter_id not in found:
        raise MissingLetter(f"no dead letter {letter_id!r} is there; `metier dead-letters list` shows them")
    return found[letter_id]


def _text(value: bytes) -> str:
    """For a terminal: text where the bytes are UTF-8, else hex; cut."""
    cut = "…" if len(value) > SHOWN else ""
    try:
        return shown(value.decode()[:SHOWN]) + cut
    except UnicodeDecodeError:
        return f"hex {value[: SHOWN // 2].hex()}{cut}"


def _encoded(value: bytes) -> Mapping[str, str]:
    """For a machine: all of it."""
    try:
        return {"text": value.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def redrive_letters(
    letter_ids: IdArguments = None,
    reason: Reason = None,
    topic: Topic = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the oldest.")] = 1000,
    again: Annotated[bool, typer.Option("--again", help="Also those that were sent again before.")] = False,
    as_json: Json = False,
) -> None:
    """Send dead letters again to where they lay, with their bytes, key and headers as they were; those that were sent again before are left out."""
    if bool(letter_ids) == bool(reason or topic or since):
        raise BadSettings("name letters, or say which by --reason, --topic and --since; one of both")

    async def work(letters: Letters) -> list[tuple[str, str]]:
        found = await summaries(letters.scan, Wanted() if letter_ids else _wanted(reason, topic, since))
        known = {one.id: one for one in found}
        fits = [one for one in found if again or not one.redriven][:limit]
        chosen = [_there(known, one) for one in letter_ids] if letter_ids else fits
        return [done for part in in_parts(chosen, AT_ONCE) for done in await _send(letters, part, again)]

    _tell(run_command(client.letters, work), as_json)


async def _send(letters: Letters, ids: Sequence[str], again: bool) -> list[tuple[str, str]]:
    """What became of each: `redriven`, `redriven before`, or why it cannot be. Raises `MissingLetter` for one that has expired meanwhile."""
    found = await whole(letters.scan, ids)
    return [(one, await _sent(letters, letter, again)) for one, letter in [(one, _there(found, one)) for one in ids]]


async def _sent(letters: Letters, letter: Letter, again: bool) -> str:
    if letter.redriven and not again:
        return "redriven before"
    try:
        await redrive(letters.bus, letter)
    except LetterIncomplete as error:
        return str(error)
    return "redriven"


def _tell(done: Sequence[tuple[str, str]], as_json: bool) -> None:
    """Say what became of each; exit code 1 where one could not be sent."""
    if as_json:
        typer.echo(json.dumps([{"id": one, "state": state} for one, state in done]))
    else:
        for one, state in done:
            typer.echo(f"{shown(one)} {shown(state)}")
        typer.echo(f"{sum(state == 'redriven' for _, state in done)} of {len(done)} letters redriven")
    if any(state not in {"redriven", "redriven before"} for _, state in done):
        raise typer.Exit(1)
