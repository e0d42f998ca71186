"""How a person names a moment on a command line. `cli_control` and `cli_dead_letters` read it."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from metier_infra.errors import BadSettings

_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def since_of(text: str | None, now: float) -> float:
    """The moment as seconds since the epoch: so long ago as `30m`, `6h` and `2d` say, or a time in ISO 8601 (UTC where it does not say); None: 0.

    Raises:
        BadSettings: it is neither.
    """
    if text is None:
        return 0.0
    if ago := _AGO.fullmatch(text):
        return now - float(ago[1]) * _UNITS_S[ago[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadSettings(f"{text!r} is no moment: say 30m, 6h or 2d ago, or a time as 2026-11-28T10:00") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
