"""The commands under `metier contracts` and `metier blobs`: what others may rely on, and data that is too large for a record.

`cli` registers them; `contracts` makes the document, `contract_changes` compares.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from metier import compose, configuration, contracts
from metier.contract_changes import Change, changes
from metier.terminal import console
from metier_infra.blobs import Blobs
from metier_infra.claims import SCHEME, digest_of
from metier_infra.errors import BadSpec, TooLarge
from metier_infra.messages import LARGEST_VALUE

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for machines.")]
GOLDEN = Path("contracts/asyncapi.json")
out = console()


def asyncapi(
    file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it here, unless that breaks what stands there."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Only what concerns others.")] = False,
) -> None:
    """Write the contract: every event type, topic and header, as one AsyncAPI 3.0 document."""
    made = contracts.document(public=public)
    if file is None:
        typer.echo(contracts.written(made), nl=False)
        return
    broken = [one for one in changes(_read(file), made) if one.breaking] if file.exists() else []
    if broken:
        raise BadSpec(
            f"{file} is left as it is, since the new one breaks it: {_sentence(broken[0])}"
            f"{f' and {len(broken) - 1} more' if broken[1:] else ''}; make a new event type that ends in .v2, or delete the file"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(contracts.written(made), encoding="utf-8")


def check(
    golden: Annotated[Path, typer.Argument(help="The document that was promised.")] = GOLDEN, as_json: Json = False
) -> None:
    """Compare this Métier with a document that was promised: exit code 1 when it breaks whoever relies on it."""
    found = changes(_read(golden), contracts.document())
    broken = any(one.breaking for one in found)
    if as_json:
        typer.echo(json.dumps({"broken": broken, "changes": [vars(one) for one in found]}))
    else:
        _show(found)
    if broken:
        raise typer.Exit(1)


def _show(found: list[Change]) -> None:
    if not found:
        typer.echo("nothing differs")
        return
    table = Table("", "where", "what")
    for one in sorted(found, key=lambda one: not one.breaking):
        table.add_row("breaks" if one.breaking else "fits", Text(one.place), Text(one.what))
    out.print(table)


def _sentence(change: Change) -> str:
    return f"{change.place}: {change.what}"


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        changes(found, found)
    except OSError as error:
        raise BadSpec(
            f"{file}: cannot be read: {error.strerror}; `metier contracts asyncapi --out {file}` makes one"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadSpec(
            f"{file}: is no document of a contract of Métier; `metier contracts asyncapi` makes one"
        ) from error
    return found


def put_blob(
    file: Annotated[Path, typer.Argument(help="JSON, the data of an event; `-` reads standard input.")],
    as_json: Json = False,
) -> None:
    """Put data into the blob store; its claim, for the header `ce_dataref` of an event with an empty value."""
    data = sys.stdin.buffer.read() if str(file) == "-" else _bytes(file)
    if len(data) > LARGEST_VALUE:
        raise TooLarge(f"{file}: {len(data)} bytes; an event takes {LARGEST_VALUE} at the most")
    claim = SCHEME + _store().put(data)
    typer.echo(json.dumps({"dataref": claim, "datasize": len(data)}) if as_json else claim)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadSpec(f"{file}: cannot be read: {error.strerror}") from error


def get_blob(
    claim: Annotated[str, typer.Argument(help="What an event has as `ce_dataref`, or the digest in it.")],
    file: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write it here.")] = None,
) -> None:
    """Get data out of the blob store, to standard output."""
    data = _store().get(digest_of(claim))
    if file is not None:
        file.write_bytes(data)
    else:
        sys.stdout.buffer.write(data)


def prune_blobs(
    days: Annotated[float, typer.Option("--days", min=1, help="What was last put longer ago than this.")] = 90.0,
    as_json: Json = False,
) -> None:
    """Delete old data from the blob store. As long as a record may be read, its data must be there: 90 days for the dead letters."""
    gone = _store().prune(days * 86_400)
    typer.echo(json.dumps({"pruned": gone}) if as_json else f"{gone} pruned")


def _store() -> Blobs:
    configuration.use_local_stack()
    config = configuration.configure()
    return compose.open_blobs(config if config.distributed else configuration.standalone(config))
