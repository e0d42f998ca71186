"""What `metier routers fit` and `judge` do with the journal and with files. `cli_routers` calls it; `choosing` fits, `router_judging` judges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from pydantic import JsonValue

from metier.router_versions import Source
from metier_infra.errors import BadSettings, MissingRouter, RouterBroken
from metier_infra.journal import Journal
from metier_infra.outcomes import Answered, Logged, Page
from metier_infra.routers import EVERYONE, Fitted, RouterVersion, Stages, Verdict
from metier_workflows import router_data, router_judging
from metier_workflows.choosing import stored
from metier_workflows.choosing.matrix import Matrix
from metier_workflows.choosing.matrix_files import read_matrix
from metier_workflows.choosing.router import Router
from metier_workflows.evaluating.results import matrix_of, read_evaluated


def rows_of(source: Source) -> Matrix | None:
    """The rows of the file or folder; None where none is named. Raises `BadSpec` or `BadSettings`."""
    if source.eval_set is not None:
        return router_data.as_agents(matrix_of(read_evaluated(source.eval_set)), source.names)
    if source.matrix is not None:
        return router_data.as_agents(read_matrix(source.matrix.parent, source.matrix.name), source.names)
    return None


async def fit(journal: Journal, source: Source, *, by: str, seed: int, explores: bool) -> RouterVersion:
    """Fit a version and store it; the same rows give the same version. Raises `BadSettings` or `BadSpec`."""
    if source.given != 1:
        raise BadSettings("say what to fit on: one of --from-outcomes, --eval-set and --matrix")
    matrix = rows_of(source) or router_data.of_outcomes((await said(journal, source.tenant)).rows)
    if not len(matrix):
        raise BadSettings("no outcome that somebody judged is known yet: report some, or fit on an eval set")
    fitted = stored.fit(matrix, _facts(source, matrix), by=by, seed=seed, explores=explores)
    return await journal.routers.keep(fitted.known, fitted.body)


def _facts(source: Source, matrix: Matrix) -> Mapping[str, JsonValue]:
    place = source.eval_set or source.matrix
    return {
        "source": "outcomes" if source.outcomes else "eval set" if source.eval_set else "matrix",
        "name": place.name if place else source.tenant or "all tenants",
        "rows": len(matrix),
        "agents": list(matrix.models),
        "digest": router_data.digest(matrix),
    }


async def said(journal: Journal, tenant: str | None, *, page: int = 500) -> Page:
    """All that is known of how right agents, and the answers of decisions, were; oldest first."""
    rows, answers, after = list[Logged](), list[Answered](), (0.0, "")
    while True:
        read = await journal.outcomes.logged(tenant=tenant or "", after=after, limit=page)
        rows += read.rows
        answers += read.answers
        if read.after is None:
            return Page(rows, answers, None)
        after = read.after


async def judge(journal: Journal, version: RouterVersion, source: Source) -> Verdict:
    """Judge a version by what was logged, and by the eval set or matrix if one is named, and keep what was found, with what earlier judgements found of the rest."""
    router = stored.load(await _body(journal, version.version))
    since = version.fitted_at if version.fitted_on.get("source") == "outcomes" else 0.0
    answers = (await said(journal, source.tenant)).answers
    others = await _tried(journal, answers)
    log = router_judging.on_log(*router_judging.cases(router, answers, since=since, others=others))
    matrix = rows_of(source)
    sets = None
    if matrix is not None:
        same = router_data.digest(matrix) == version.fitted_on.get("digest")
        baseline = await _promoted(journal, source.tenant)
        place = source.eval_set or source.matrix
        sets = replace(
            router_judging.on_set(router, matrix, baseline=baseline, same=same), name=place.name if place else ""
        )
    verdict = router_judging.verdict(log, sets, _earlier(version))
    await journal.routers.judge(version.version, verdict)
    return verdict


def _earlier(version: RouterVersion) -> router_judging.Earlier | None:
    if version.report is None or version.judged_at is None:
        return None
    return router_judging.Earlier(version.report, version.judged_at)


async def _tried(journal: Journal, answers: Iterable[Answered]) -> list[Router]:
    """The versions that did not decide, while one was on trial, as far as they can be loaded here."""
    found: list[Router] = []
    for version in sorted({one.kept.decision.other for one in answers} - {""}):
        with suppress(MissingRouter, RouterBroken):
            found.append(stored.load(await _body(journal, version)))
    return found


async def _body(journal: Journal, version: str) -> Fitted:
    fitted = await journal.routers.get(version)
    if fitted is None:
        raise MissingRouter(f"the router version {version!r} is gone from the journal")
    return fitted


async def _promoted(journal: Journal, tenant: str | None) -> Router | None:
    """The version that decides for the tenant now."""
    stages = await journal.routers.stages()
    name = stages.get(tenant or EVERYONE, Stages()).promoted or stages.get(EVERYONE, Stages()).promoted
    return stored.load(await _body(journal, name)) if name else None
