"""What the roles said of a run with which something is wrong: the lines of their logs that name it, in order of time. Pure but for reading the logs.

`harness` asks for it once the checks have judged, so that what is told of a failure is enough to find its cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

_TIME = re.compile(r'"timestamp": "([^"]+)"')
RUNS = 2
"""Of so many runs the lines are told."""
LINES = 60
"""And so many of each: the last ones."""


def of(
    wrong: Mapping[str, Sequence[str]], names: Mapping[str, str], logs: Mapping[str, str]
) -> Mapping[str, Sequence[str]]:
    """By run, what the processes logged of it. `names` maps run ids to the names of requests, `logs` processes to what they said."""
    said = " ".join(sentence for sentences in wrong.values() for sentence in sentences)
    words = {word.split("/")[0].strip(":") for word in said.split()}
    concerned = [run_id for run_id, name in names.items() if {run_id, name} & words][:RUNS]
    return {f"{names[run_id]} ({run_id})": list(_lines(run_id, logs))[-LINES:] for run_id in concerned}


def _lines(run_id: str, logs: Mapping[str, str]) -> Iterator[str]:
    found = [(_at(line), name, line) for name, log in logs.items() for line in log.splitlines() if run_id in line]
    return (f"{name}: {line[:400]}" for _, name, line in sorted(found))


def _at(line: str) -> str:
    """When a line was said; lines of other programs come first."""
    found = _TIME.search(line)
    return found[1] if found else ""
