"""Clocks that do not agree. Leases are kept by the database's clock; deadlines, of calls and tool calls, by that of whoever looks at them."""

from __future__ import annotations

from metier.doctor.finding import Finding, error, ok, warning

WARNED_S = 1.0
"""Beyond it, spans of one trace stand in the wrong order."""
WRONG_S = 10.0
"""What a tool call has, unless its tool says otherwise: beyond it, calls come too late before they start."""
MEND = "let both machines keep their time by NTP (chrony, systemd-timesyncd), and see whether it does"


def skew(name: str, skew_s: float, unsure_s: float, whose: str) -> Finding:
    """What to think of a clock that is `skew_s` ahead of ours, give or take `unsure_s`."""
    off_s = max(0.0, abs(skew_s) - unsure_s)
    seen = f"the clock of {whose} is {abs(skew_s):.3f} s {'ahead of' if skew_s > 0 else 'behind'} ours, give or take {unsure_s:.3f} s"
    if off_s > WRONG_S:
        return error(name, seen, MEND)
    return warning(name, seen, MEND) if off_s > WARNED_S else ok(name, seen)


def ahead(name: str, ahead_s: float) -> Finding:
    """What to think of the newest record, which somebody else's clock stamped `ahead_s` from now; negative: ago."""
    if ahead_s <= WARNED_S:
        return ok(name, f"the newest record is {max(0.0, -ahead_s):.0f} s old by our clock")
    return warning(
        name, f"a record bears a time {ahead_s:.1f} s from now: its producer's clock is ahead, or ours is behind", MEND
    )
