"""The key that agents sign tool calls with, and tool runners check them by: strong enough, and the same on both sides."""

from __future__ import annotations

from metier.doctor.case import Case
from metier.doctor.examination import Part
from metier.doctor.finding import Finding, error, ok, skipped, warning
from metier_infra.errors import MetierError

SHORT, LONG = 16, 32
"""Bytes: 128 bits are what nobody guesses; a key shorter than SHA-256's 32 bytes weakens HMAC (RFC 2104, section 3)."""
FEW = 8
"""A key of fewer different characters was typed, not drawn."""
WAIT_S = 5.0
DRAW = "draw one by `openssl rand -hex 32`, for agents and tool runners alike"


def examine(case: Case) -> list[Finding]:
    """See `Part`."""
    key = case.config.lane.grant_key
    if key is None:
        return [skipped("grant_key.strength", "METIER_GRANT_KEY is not set: see settings.needed")]
    return [strength(key.get_secret_value()), _shared(case, key.get_secret_value().encode())]


def strength(key: str) -> Finding:
    """What to think of the key; nothing of it is told but its length."""
    name, size = "grant_key.strength", len(key.encode())
    if size < SHORT or len(set(key)) < min(FEW, SHORT):
        return error(name, f"{size} bytes, {len(set(key))} of them different: it can be guessed", DRAW)
    if key != key.strip():
        return warning(
            name,
            "it begins or ends with white space, which is part of it",
            "make the secret anew, from a file without a line end",
        )
    if size < LONG:
        return warning(name, f"{size} bytes, and {LONG} is what SHA-256 can use", DRAW)
    return ok(name, f"{size} bytes")


def _shared(case: Case, key: bytes) -> Finding:
    from metier_tools.redis_look import same_key

    lane = case.config.lane
    if lane.redis_url is None:
        return skipped("grant_key.shared", "METIER_REDIS_URL is not set: no tool runner can be asked")
    try:
        return shared(same_key(lane.redis_url.get_secret_value(), lane.lane_namespace, key, wait_s=WAIT_S))
    except MetierError:
        return skipped("grant_key.shared", "no tool runner can be asked: see redis.reachable")


def shared(same: bool | None) -> Finding:
    """What to think of what a tool runner answered; None: nothing."""
    name = "grant_key.shared"
    if same is None:
        return skipped(name, f"no tool runner answered within {WAIT_S:g} s, whose key could be compared")
    if same:
        return ok(name, "a tool runner has the same")
    return error(
        name,
        "a tool runner has another METIER_GRANT_KEY: it refuses every tool call of ours",
        "give both the same, and start them again",
    )


PART = Part(
    "grant_key",
    ("grant_key.strength", "grant_key.shared"),
    examine,
    frozenset({"agent", "tools"}),
    unneeded=lambda case: "" if case.distributed else "drawn at each start, where everything runs in one process",
)
