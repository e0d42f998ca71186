"""The container engine that tool runners use: there, with the images, and keeping the limits that it is told."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from metier import compose_tools
from metier.doctor.case import Case
from metier.doctor.examination import Part
from metier.doctor.finding import Finding, error, ok, skipped
from metier_infra.errors import MetierError, MissingService

if TYPE_CHECKING:
    from metier_tools.docker_engine import Engine
    from metier_tools.selftest import Finding as Limit

WITHIN_S = 180.0
"""The self-test starts a container and runs it against its walls."""
USUAL = Path("/var/run/docker.sock")


def examine(case: Case) -> list[Finding]:
    """See `Part`."""
    from metier_tools.docker_engine import Engine

    engine = Engine(None)
    found = [ok("engine.reachable", f"it answers, version {engine.version()}"), *_images(engine, case)]
    if any(one.level == "error" for one in found):
        return [*found, skipped("engine.self_test", "there is an image missing: see engine.images")]
    with closing(compose_tools.open_sandbox(case.config, pool=0)) as sandbox:
        return [*found, limits(sandbox.findings())]


def _images(engine: Engine, case: Case) -> list[Finding]:
    """Those of the settings and of the declared profiles; files that cannot be read are told of by `files.tools`."""
    named = {case.config.sandbox.image}
    with suppress(MetierError):
        named |= {one.image for one in compose_tools.catalogue(case.config).profiles.values() if one.image}
    return [_image(engine, name) for name in sorted(named)]


def _image(engine: Engine, name: str) -> Finding:
    try:
        return ok("engine.images", engine.image_id(name)[:19], of=name)
    except MissingService:
        return error(
            "engine.images",
            "it is not in the engine",
            "pull or build it; METIER_SANDBOX_IMAGE and a profile's `image` name those that are wanted",
            of=name,
        )


def limits(found: Sequence[Limit]) -> Finding:
    """What to think of what a container proved of itself."""
    missing = [f"{one.name} ({one.seen})" for one in found if not one.holds]
    if missing:
        return error(
            "engine.self_test",
            f"it does not enforce: {'; '.join(missing)}",
            "see docs/explanation/sandbox.md: a tool runner does not start on this engine",
        )
    return ok("engine.self_test", f"it enforces all {len(found)} limits that were tried")


def unneeded(case: Case) -> str:
    """Where no engine is configured, and no tool runner is asked for."""
    if case.asked.named or case.environment.get("DOCKER_HOST") or USUAL.exists():
        return ""
    return "no engine is configured here (DOCKER_HOST): `--role tools` asks for one"


PART = Part(
    "engine",
    ("engine.reachable", "engine.images", "engine.self_test"),
    examine,
    frozenset({"tools"}),
    within_s=WITHIN_S,
    unneeded=unneeded,
    mend="start it, or correct DOCKER_HOST",
)
