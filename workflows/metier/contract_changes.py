"""Whether a new document of the contract keeps what an old one promised. Pure; `cli_contracts` shows it.

What Métier receives may become wider and never narrower: old senders must be understood. What it sends may become narrower and never
wider: old readers must understand it. Readers ignore fields that they do not know, so a new field breaks nobody; one that is gone does.
On a channel where Métier talks to itself both hold, since old and new processes talk to each other during an upgrade.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]
Document = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """What differs: in which event type and where in it, in words, and whether somebody who relies on the old document breaks."""

    place: str
    what: str
    breaking: bool


@dataclass(frozen=True)
class _Message:
    """An event type of a document: its topics, what Métier does with it, and the schemas of its headers and data."""

    topics: frozenset[str]
    actions: frozenset[str]
    schemas: Mapping[str, Schema]


@dataclass(frozen=True)
class _Lost:
    """What one schema allows and another does not, at a place. `field`: a whole field that the other does not have."""

    place: str
    what: str
    field: bool = False


_TOLD = {
    ("receive", True): "{} is not taken any more",
    ("receive", False): "{} is taken now",
    ("send", True): "{} may come now",
    ("send", False): "{} does not come any more",
}


def changes(old: Document, new: Document) -> list[Change]:
    """Everything that differs, by event type."""
    before, after = _messages(old), _messages(new)
    found: list[Change] = []
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            found.append(Change(name, "the event type is gone", breaking=True))
        elif name not in before:
            found.append(Change(name, "a new event type", breaking=False))
        else:
            found += dict.fromkeys(_between(name, (old, before[name]), (new, after[name])))
    return found


def _messages(document: Document) -> dict[str, _Message]:
    return {
        message["name"]: _read(document, key, message) for key, message in document["components"]["messages"].items()
    }


def _read(document: Document, key: str, message: Schema) -> _Message:
    channels = [name for name, channel in document["channels"].items() if key in channel["messages"]]
    refs = {f"#/channels/{name}/messages/{key}" for name in channels}
    return _Message(
        frozenset(document["channels"][name]["address"] for name in channels),
        frozenset(
            one["action"]
            for one in document["operations"].values()
            if refs & {message["$ref"] for message in one["messages"]}
        ),
        {"headers": message["headers"], "data": message["payload"]},
    )


def _between(name: str, old: tuple[Document, _Message], new: tuple[Document, _Message]) -> Iterator[Change]:
    before, after = old[1], new[1]
    if before.topics != after.topics:
        yield Change(name, f"it travels on {_listed(after.topics)}, no more on {_listed(before.topics)}", breaking=True)
    if before.actions != after.actions:
        lost = bool(before.actions - after.actions)
        yield Change(
            name, f"Métier's part is {_listed(after.actions)}, and was {_listed(before.actions)}", breaking=lost
        )
    for action in sorted(before.actions & after.actions):
        for part, schema in before.schemas.items():
            gone = list(_lost(f"{name}: {part}", (old[0], schema), (new[0], after.schemas[part])))
            come = list(_lost(f"{name}: {part}", (new[0], after.schemas[part]), (old[0], schema)))
            yield from _judged(action, gone, come)
            if action == "receive":
                yield from _defaults(f"{name}: {part}", (old[0], schema), (new[0], after.schemas[part]))


def _judged(action: str, gone: Sequence[_Lost], come: Sequence[_Lost]) -> Iterator[Change]:
    for lost, breaking in [(gone, action == "receive"), (come, action == "send")]:
        for one in lost:
            if one.field:
                yield Change(one.place, "the field is gone" if lost is gone else "a new field", breaking=lost is gone)
            else:
                yield Change(one.place, _TOLD[action, breaking].format(one.what), breaking=breaking)


def _listed(words: frozenset[str]) -> str:
    return " and ".join(sorted(words)) or "nothing"


At = tuple[Document, Schema]
"""A schema, in the document in which its references lead somewhere."""
_Stack = frozenset[tuple[str, str]]


def _lost(place: str, a: At, b: At, stack: _Stack = frozenset()) -> Iterator[_Lost]:
    """What `a` allows and `b` does not."""
    pair = (str(a[1].get("$ref")), str(b[1].get("$ref")))
    if pair in stack:
        return
    stack = stack | {pair} if pair != ("None", "None") else stack
    mine, theirs = _forms(a), _forms(b)
    for kind, (fits, form) in {one: (_fitting(one, theirs), mine[one]) for one in mine}.items():
        if fits is None:
            yield _Lost(place, "anything" if kind == "any" else kind)
        elif fits != "any":
            yield from _lost_of_kind(place, (a[0], form), (b[0], theirs[fits]), stack)


def _fitting(kind: str, theirs: Mapping[str, Schema]) -> str | None:
    """Which form of the other takes values of this kind."""
    wider = {"integer": "number"}.get(kind, kind)
    return next((one for one in (kind, wider, "any") if one in theirs), None)


def _forms(at: At) -> dict[str, Schema]:
    """The kinds of value that a schema allows, and the schema of each: `any` where it says nothing."""
    document, schema = at[0], _resolved(*at)
    if "anyOf" in schema or "oneOf" in schema:
        found: dict[str, Schema] = {}
        for branch in schema.get("anyOf") or schema["oneOf"]:
            for kind, form in _forms((document, branch)).items():
                found[kind if kind not in found else f"{kind} of another form"] = form
        return found
    if "type" not in schema and ("const" in schema or "enum" in schema):
        return {"string": schema}
    kinds = schema.get("type", "any")
    return dict.fromkeys([kinds] if isinstance(kinds, str) else kinds, schema)


def _resolved(document: Document, schema: Schema) -> Schema:
    """The schema, with its reference followed and what stands in `allOf` put into it."""
    while "$ref" in schema:
        found: Any = document
        for step in str(schema["$ref"]).removeprefix("#/").split("/"):
            found = found[step]
        schema = {**found, **{key: value for key, value in schema.items() if key != "$ref"}}
    for part in schema.get("allOf", ()):
        base = _resolved(document, part)
        fields = {**base.get("properties", {})}
        for name, field in schema.get("properties", {}).items():
            fields[name] = {**fields.get(name, {}), **field}
        schema = {**base, **{k: v for k, v in schema.items() if k != "allOf"}, "properties": fields}
    return schema


def _lost_of_kind(place: str, a: At, b: At, stack: _Stack) -> Iterator[_Lost]:
    yield from (_Lost(place, what) for what in [*_values(a[1], b[1]), *_bounds(a[1], b[1]), *_others(a[1], b[1])])
    yield from _fields(place, a, b, stack)
    for inner, word in (("items", "[]"), ("additionalProperties", ".*")):
        if inner in a[1] or inner in b[1]:
            yield from _lost(f"{place}{word}", (a[0], _inner(a[1], inner)), (b[0], _inner(b[1], inner)), stack)


def _inner(schema: Schema, keyword: str) -> Schema:
    found: Schema | bool = schema.get(keyword, True)
    if isinstance(found, bool):
        return {} if found else {"type": []}
    return found


def _values(a: Schema, b: Schema) -> Iterator[str]:
    """Values that are listed."""
    mine, theirs = _listing(a), _listing(b)
    if theirs is not None:
        lost = ["any value beside those listed"] if mine is None else [repr(one) for one in mine if one not in theirs]
        yield from lost


def _listing(schema: Schema) -> Sequence[object] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


_BOUNDS: Mapping[str, tuple[Callable[[Any, Any], bool], str]] = {
    "minimum": (operator.lt, "less than {}"),
    "maximum": (operator.gt, "more than {}"),
    "exclusiveMinimum": (operator.lt, "{} or less"),
    "exclusiveMaximum": (operator.gt, "{} or more"),
    "minLength": (operator.lt, "less than {} characters"),
    "maxLength": (operator.gt, "more than {} characters"),
    "minItems": (operator.lt, "less than {} items"),
    "maxItems": (operator.gt, "more than {} items"),
}


def _bounds(a: Schema, b: Schema) -> Iterator[str]:
    """Values beyond a bound that `a` does not have, or has further out."""
    for keyword, (beyond, words) in _BOUNDS.items():
        if keyword in b and (keyword not in a or beyond(a[keyword], b[keyword])):
            yield words.format(b[keyword])


_SILENT = {"title", "description", "default", "examples", "type", "properties", "required", "items", "const", "enum", "additionalProperties"}  # fmt: skip
"""Keywords that say nothing about which values fit, or are looked at elsewhere. Of any other, a difference is taken for the worst."""


def _others(a: Schema, b: Schema) -> Iterator[str]:
    for keyword in sorted(b.keys() - _SILENT - _BOUNDS.keys()):
        if a.get(keyword) != b[keyword]:
            yield f"what does not fit the {keyword} {b[keyword]}"


def _fields(place: str, a: At, b: At, stack: _Stack) -> Iterator[_Lost]:
    mine, theirs = a[1].get("properties", {}), b[1].get("properties", {})
    for name in sorted(set(b[1].get("required", ())) - set(a[1].get("required", ()))):
        yield _Lost(f"{place}.{name}", "its absence")
    for name, schema in mine.items():
        if name not in theirs:
            yield _Lost(f"{place}.{name}", "", field=True)
        else:
            yield from _lost(f"{place}.{name}", (a[0], schema), (b[0], theirs[name]), stack)


def _defaults(place: str, old: At, new: At) -> Iterator[Change]:
    """Fields whose absence means something else than before."""
    before, after = _resolved(*old).get("properties", {}), _resolved(*new).get("properties", {})
    for name in sorted(before.keys() & after.keys()):
        was, now = before[name].get("default"), after[name].get("default")
        if "default" in before[name] and "default" in after[name] and was != now:
            yield Change(f"{place}.{name}", f"its absence means {now!r}, and meant {was!r}", breaking=True)
