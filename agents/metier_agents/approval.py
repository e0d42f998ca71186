"""What a safety bundle says of one tool call. Pure: hands ask `judge` before a call is written down, and do what the verdict says.

Every rule that matches adds what it found, in any order, and nothing takes away: `join` is union. So it is associative, commutative and
idempotent, `NOTHING` is its identity, and a denial stands whatever is joined to it. A verdict is read from all that was found, the
strictest first: deny, skip, ask, mutate, proceed. Skip stands above ask because a person who agrees to one rule's question must not set off
a call that another rule says is not to be made; so whatever is joined, no call runs that one of the rules alone would have held back.

Two rules that give one argument different values deny the call: to take either would let the order of the file decide, and to ask would have a
person approve a call that the bundle does not agree on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import cast

from pydantic import JsonValue

from metier_agents.arguments import at, texts, unreadable
from metier_agents.patterns import found, named
from metier_agents.safety import AllowRule, AskRule, Bundle, DenyRule, MutateRule, Rule, SkipRule
from metier_tools.toolbox import Tool


@dataclass(frozen=True)
class Proceed:
    """The call is made as it is."""


@dataclass(frozen=True)
class Mutate:
    """The call is made with these arguments."""

    arguments: dict[str, JsonValue]


@dataclass(frozen=True)
class Ask:
    """A person is asked, for `within_s` seconds at most, whether the call is made with these arguments: as the rules changed them, not as the model wrote them."""

    why: str
    within_s: float
    arguments: dict[str, JsonValue]


@dataclass(frozen=True)
class Skip:
    """The call is not made; the model reads this in place of a result."""

    say: str


@dataclass(frozen=True)
class Deny:
    """The call is refused."""

    why: str


Verdict = Proceed | Mutate | Ask | Skip | Deny


@dataclass(frozen=True)
class Found:
    """What rules found: sentences for each thing that they want, how long the most impatient would wait in seconds, and arguments with their new values in JSON."""

    denied: frozenset[str] = frozenset()
    skipped: frozenset[str] = frozenset()
    asked: frozenset[str] = frozenset()
    within_s: float = float("inf")
    changes: frozenset[tuple[str, str]] = frozenset()


NOTHING = Found()


def join(one: Found, other: Found) -> Found:
    """What both found."""
    return Found(
        one.denied | other.denied,
        one.skipped | other.skipped,
        one.asked | other.asked,
        min(one.within_s, other.within_s),
        one.changes | other.changes,
    )


def verdict(found: Found, arguments: Mapping[str, JsonValue]) -> Verdict:
    """What is to be done about a call with these arguments: the strictest of all that was found."""
    if found.denied or disputed(found):
        return Deny(_said(found.denied) or _DISPUTED.format(names=", ".join(sorted(disputed(found)))))
    if found.skipped:
        return Skip(_said(found.skipped))
    changed = changed_by(found, arguments)
    if found.asked:
        return Ask(_said(found.asked), found.within_s, changed)
    return Mutate(changed) if found.changes else Proceed()


_DISPUTED = "rules of the safety bundle give different values to the argument {names}"


def disputed(found: Found) -> frozenset[str]:
    """The arguments to which rules give different values."""
    names = [name for name, _ in found.changes]
    return frozenset(name for name in names if names.count(name) > 1)


def _said(sentences: frozenset[str]) -> str:
    return "; ".join(sorted(sentences))


def changed_by(found: Found, arguments: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The arguments with the changes made; they must not be disputed."""
    return {**arguments, **{name: json.loads(value) for name, value in sorted(found.changes)}}


def judge(bundle: Bundle, tool: Tool, arguments: Mapping[str, JsonValue]) -> Verdict:
    """What the bundle says of a call of `tool`. Total: it raises nothing, whatever the arguments are.

    A changed call is judged again, with what was found before, until the rules change nothing more: so no rule is escaped by a change, and as
    findings only grow and rules are finite, it ends.
    """
    if problem := unreadable({**_defaults(tool), **arguments}):
        return Deny(f"the arguments cannot be judged: {problem}")
    everything = NOTHING
    while (more := join(everything, _found(bundle, tool, _as_made(everything, arguments)))) != everything:
        everything = more
    said = verdict(everything, arguments)
    if isinstance(said, Mutate | Ask) and (unfit := tool.problem(said.arguments)):
        return Deny(f"the call does not fit any more as the safety bundle changes it: {unfit}")
    return said


def _as_made(found: Found, arguments: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    return arguments if disputed(found) else changed_by(found, arguments)


def _found(bundle: Bundle, tool: Tool, arguments: Mapping[str, JsonValue]) -> Found:
    """What the bundle finds in a call as it stands."""
    if not bundle.allows_tool(tool.spec.name):
        return Found(denied=frozenset({f"the safety bundle does not allow the tool {tool.spec.name}"}))
    filled = {**_defaults(tool), **arguments}
    matching = [rule for rule in bundle.rules if _is_about(rule, tool) and _matches(rule, filled)]
    return reduce(join, (_of(rule, bundle) for rule in matching), NOTHING if matching else _otherwise(bundle))


def _otherwise(bundle: Bundle) -> Found:
    sentence = frozenset({"no rule of the safety bundle allows this call"})
    return {
        "allow": NOTHING,
        "ask": Found(asked=sentence, within_s=bundle.within_s),
        "deny": Found(denied=sentence),
    }[bundle.otherwise]


def _of(rule: Rule, bundle: Bundle) -> Found:
    match rule:
        case AllowRule():
            return NOTHING
        case MutateRule():
            return Found(changes=frozenset((name, _canonical(value)) for name, value in rule.change.items()))
        case AskRule():
            return Found(asked=frozenset({rule.why}), within_s=rule.within_s or bundle.within_s)
        case SkipRule():
            return Found(skipped=frozenset({rule.say}))
        case DenyRule():
            return Found(denied=frozenset({rule.why}))


def _canonical(value: JsonValue) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _defaults(tool: Tool) -> dict[str, JsonValue]:
    """What holds for arguments that are left out, as far as the schema says."""
    properties = cast("object", tool.spec.parameters.get("properties"))
    fields = cast("dict[str, object]", properties) if isinstance(properties, dict) else {}
    known = {name: cast("dict[str, JsonValue]", field) for name, field in fields.items() if isinstance(field, dict)}
    return {name: field["default"] for name, field in known.items() if "default" in field}


def _is_about(rule: Rule, tool: Tool) -> bool:
    return named(rule.tools, tool.spec.name) and (not rule.risks or tool.spec.risk in rule.risks)


def _matches(rule: Rule, arguments: Mapping[str, JsonValue]) -> bool:
    return all(_fits(pattern, at(arguments, path), rule.missing) for path, pattern in rule.arguments.items())


def _fits(pattern: str, values: list[JsonValue], missing: bool) -> bool:
    return any(found(pattern, text) for value in values for text in texts(value)) if values else missing
