"""`metier acls`: what each role may do on the broker, as words for Kafka's own tool or as JSON. `cli` registers it, `metier_infra.kafka_acls` knows it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from metier import compose, configuration
from metier.cli_runs import Json
from metier_infra.errors import BadSettings
from metier_infra.kafka_acls import PRINCIPAL, accesses, shell

TOOL = 'kafka-acls.sh --bootstrap-server "$METIER_KAFKA_BOOTSTRAP" --command-config "$COMMAND_CONFIG"'


def acls(
    principal: Annotated[
        str, typer.Option(help="Who a role comes as, by the broker's word; {role} in it is the role's name.")
    ] = PRINCIPAL,
    role: Annotated[str | None, typer.Option(help="Only this role, as `orchestrator` or `agent-coder`.")] = None,
    as_json: Json = False,
) -> None:
    """Print the access control lists that each role needs, and no more: a line for `kafka-acls.sh` each. Nothing is changed."""
    config = configuration.configure()
    if "{role}" not in principal and role is None:
        raise BadSettings(
            "--principal has no {role} in it: all roles would come as one; name one by --role, or put {role} in"
        )
    found = accesses(compose.agent_specs(config), prefix=config.kafka.prefix, principal=principal)
    known = list(dict.fromkeys(one.role for one in found))
    if role is not None and role not in known:
        raise BadSettings(f"there is no role {role!r}; there are: {', '.join(known)}")
    wanted = [one for one in found if role in (None, one.role)]
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in wanted]))
        return
    for one in wanted:
        typer.echo(f"{TOOL} {shell(one)}")
