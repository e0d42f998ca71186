"""Every part looked at, side by side, each for so long at the most: what hangs hides nothing of the others. `cli_doctor` calls it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from metier.bounded import started
from metier.doctor.case import Case, Role
from metier.doctor.finding import Finding, error, skipped
from metier_infra.errors import MetierError

UNASKED = "not asked for"


@dataclass(frozen=True)
class Part:
    """One thing to examine.

    Attributes:
        name: what `--only` and `--skip` call it.
        ids: what it tells of. The first is told where there is nothing else to tell.
        examine: looks, and judges.
        roles: those that need it.
        within_s: how long it may take; seconds.
        unneeded: why it need not be looked at in this case; empty: it must.
        mend: what to do where it cannot be examined.
    """

    name: str
    ids: tuple[str, ...]
    examine: Callable[[Case], Sequence[Finding]]
    roles: frozenset[Role]
    within_s: float = 60.0
    unneeded: Callable[[Case], str] = lambda _: ""
    mend: str = "see whether a proxy or a firewall lets it through"


def examine(case: Case, parts: Sequence[Part], chosen: Collection[str]) -> list[Finding]:
    """What was found, in the order of the parts, with something of every id; nothing of it holds a secret."""
    with contextlib.redirect_stdout(sys.stderr):  # modules of workflows and tools are imported, and may print
        begun = time.monotonic()
        asked = [(part, _begun(case, part, chosen)) for part in parts]
        found = [one for part, answer in asked for one in _whole(part, _had(part, answer, begun + part.within_s))]
    return [_redacted(one, case.redacted) for one in found]


def _redacted(one: Finding, redacted: Callable[[str], str]) -> Finding:
    return replace(one, seen=redacted(one.seen), do=redacted(one.do), of=redacted(one.of))


def _begun(case: Case, part: Part, chosen: Collection[str]) -> Future[Sequence[Finding]]:
    why = _why_not(case, part, chosen)
    if why:
        return started(part.name, lambda: [skipped(part.ids[0], why)])
    return started(part.name, lambda: part.examine(case))


def _why_not(case: Case, part: Part, chosen: Collection[str]) -> str:
    if part.name not in chosen:
        return UNASKED
    if not part.roles & case.asked.roles:
        return f"not needed by {', '.join(sorted(case.asked.roles))}"
    return part.unneeded(case)


def _had(part: Part, answer: Future[Sequence[Finding]], until: float) -> Sequence[Finding]:
    first = part.ids[0]
    try:
        return answer.result(max(0.0, until - time.monotonic()))
    except TimeoutError:
        return [error(first, f"no answer within {part.within_s:g} s", part.mend)]
    except MetierError as wrong:
        return [error(first, str(wrong), part.mend)]
    except BaseException as wrong:  # of a module that is not ours, or a defect: the other parts are told all the same
        return [
            error(
                first, f"it cannot be examined: {type(wrong).__name__}: {wrong}", "mend what it says, or tell us of it"
            )
        ]


def _whole(part: Part, found: Sequence[Finding]) -> list[Finding]:
    """With a word of each id that nothing was told of."""
    told = {one.id for one in found}
    return [*found, *(skipped(name, f"see {part.ids[0]}") for name in part.ids if name not in told)]
