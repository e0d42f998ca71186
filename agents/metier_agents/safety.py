"""The safety bundle: one versioned YAML file that says what an agent may do, and what becomes of what it says.

`compose` calls `load_bundles` and finds the one that an agent's spec names. `approval` judges tool calls by it, `output_check` answers;
the tool runner keeps what `demand` makes of it. Errors name file, line and field; `safety_check` finds what no file alone can show.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue
from pydantic_core import PydanticCustomError

from metier_agents.patterns import Glob, Pattern, named
from metier_infra import declared
from metier_infra.declared import Declared
from metier_infra.errors import BadSpec
from metier_tools.tool import Hold, Host, ProfileRef, Risk, digest_of

Sentence = Annotated[str, Field(min_length=1, max_length=1000)]
Wait = Annotated[float, Field(gt=0, le=30 * 86_400)]
"""Seconds, at most thirty days."""


class Tools(Declared):
    """Which tools may be offered at all."""

    allow: tuple[Glob, ...] = Field((), description="tools, as globs over their names; none named: no tool")
    deny: tuple[Glob, ...] = Field((), description="but not these")


def _plain_json(arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        json.dumps(arguments, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        raise PydanticCustomError("json", "must be JSON: no infinite numbers, and text that is Unicode") from error
    return arguments


class _Rule(Declared):
    tools: tuple[Glob, ...] = Field(("*",), min_length=1, description="the tools that it is about, as globs")
    risks: tuple[Risk, ...] = Field((), description="the risk classes that it is about; none named: all")
    arguments: dict[Annotated[str, Field(min_length=1, max_length=200)], Pattern] = Field(
        default_factory=dict[str, str],
        description="patterns, all of which must be found, by the dotted path of the argument; a path leads through lists to each of their items, `*` is the whole "
        "call, and of an object or a list each text in it is tried",
    )
    missing: bool = Field(
        default=False, description="whether an argument that is not there, and has no default, counts as found"
    )


class AllowRule(_Rule):
    """Adds nothing: the call goes on as far as this rule is concerned. What other rules demand of it stands."""

    then: Literal["allow"] = Field(description="what a match means")


class MutateRule(_Rule):
    """The call goes on with other arguments. The rules are asked again of the call as it is then."""

    then: Literal["mutate"] = Field(description="what a match means")
    change: Annotated[dict[str, JsonValue], AfterValidator(_plain_json)] = Field(
        min_length=1, description="arguments that get these values, whatever they were"
    )


class AskRule(_Rule):
    """The call waits for a person. Refused, or not answered in time, it is not made."""

    then: Literal["ask"] = Field(description="what a match means")
    why: Sentence = Field(description="what the person is told")
    within_s: Wait | None = Field(None, description="how long it waits; seconds; none: the bundle's `within_s`")


class SkipRule(_Rule):
    """The call is not made, and the model goes on with this sentence in place of a result."""

    then: Literal["skip"] = Field(description="what a match means")
    say: Sentence = Field(description="what the model reads in place of a result")


class DenyRule(_Rule):
    """The call is refused."""

    then: Literal["deny"] = Field(description="what a match means")
    why: Sentence = Field(description="what the model is told")


Rule = Annotated[AllowRule | MutateRule | AskRule | SkipRule | DenyRule, Field(discriminator="then")]


class Refusal(Declared):
    """What is done when the model, or its provider's filter, declines to answer."""

    then: Literal["take", "ask_again", "next_model", "fail"] = Field(
        "take",
        description="the refusal is the answer; the model is asked again; the next fallback is asked; the call ends failed",
    )
    say: Sentence | None = Field(
        None, description="what the model is told when it is asked again; none: that the task is within its rules"
    )
    times: int = Field(1, ge=1, le=3, description="how often it is asked again, at most")
    after: Literal["take", "next_model", "fail"] = Field("take", description="what is done when it declines still")


class _Check(Declared):
    say: Sentence | None = Field(
        None, description="what the model is told, or why the answer is held back; none: a sentence of ours"
    )


class _Demand(_Check):
    then: Literal["withhold", "ask_again"] = Field(
        "withhold", description="the answer is held back; or the model is asked again"
    )


class MustNotMatch(_Check):
    """What must not be in an answer."""

    kind: Literal["must_not_match"] = Field(description="what is checked")
    pattern: Pattern = Field(description="found anywhere in the answer, its claims, conflicts and open questions")
    then: Literal["withhold", "ask_again", "mask"] = Field(
        "withhold",
        description="held back; asked again; or each word (what stands between white space) in which it is found is struck out",
    )


class MustMatch(_Demand):
    """What must be in an answer."""

    kind: Literal["must_match"] = Field(description="what is checked")
    pattern: Pattern = Field(description="found anywhere in the answer or in what its claims say")


class Longest(_Demand):
    """How long an answer may be."""

    kind: Literal["longest"] = Field(description="what is checked")
    characters: int = Field(
        ge=1, le=1_000_000, description="of the answer with its claims, conflicts and open questions"
    )


Detail = Literal["card", "email", "phone", "secret"]


class NoDetails(_Check):
    """Details of people and systems that must not be in an answer, by their form."""

    kind: Literal["no_details"] = Field(description="what is checked")
    of: tuple[Detail, ...] = Field(
        min_length=1,
        description="card numbers (with a right check digit), e-mail addresses, telephone numbers, what looks like a password, key or token",
    )
    then: Literal["withhold", "ask_again", "mask"] = Field(
        "mask", description="held back; asked again; or a word in brackets is put in their place"
    )


class Claims(_Demand):
    """How many claims, each with a quote that was found in its source, an answer must stand on."""

    kind: Literal["claims"] = Field(description="what is checked")
    at_least: int = Field(1, ge=1, le=50, description="claims; an answer that leaves everything unresolved needs none")


Check = Annotated[MustNotMatch | MustMatch | Longest | NoDetails | Claims, Field(discriminator="kind")]


class Bundle(Declared):
    """What an agent may do, and what becomes of what it says. What it does not say is not allowed."""

    name: str = Field(pattern=r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", description="a DNS label; agents refer to it")
    version: int = Field(
        ge=1, le=999_999_999, description="raised with every change; `NAME@VERSION` names one, `NAME` the newest"
    )
    description: str = Field("", description="for people; no part of the digest")
    tools: Tools = Field(
        default_factory=lambda: Tools.model_validate({}), description="which tools may be offered at all"
    )
    rules: tuple[Rule, ...] = Field(
        (),
        max_length=500,
        description="what a tool call needs; every rule that matches counts and the strictest wins, so their order does not matter",
    )
    otherwise: Literal["allow", "ask", "deny"] = Field("deny", description="what holds where no rule matches")
    within_s: Wait = Field(3600.0, description="how long a call waits for a person, who else refuses it; seconds")
    sandbox: ProfileRef | None = Field(
        None,
        description="a profile, `NAME` or `NAME@VERSION`, within whose limits every call runs, beside those of its tool; none: those of its tool alone",
    )
    egress: tuple[Host, ...] = Field(
        (),
        description="the only hosts that calls may reach, where the profile of the tool lets them too; none named: no network",
    )
    functions: Literal["refuse", "allow"] = Field(
        "refuse",
        description="trusted functions run in no sandbox, so nothing can be held there: whether they are called all the same",
    )
    models: tuple[Glob, ...] = Field(
        ("*",), min_length=1, description="models that it may run on, fallbacks too, as globs over their ids"
    )
    capture: bool = Field(default=False, description="whether prompts and answers may stand on spans and in logs")
    refusal: Refusal = Field(
        default_factory=lambda: Refusal.model_validate({}), description="what is done when the model declines"
    )
    output: tuple[Check, ...] = Field((), max_length=100, description="what an answer must pass before anyone sees it")
    asks: int = Field(
        1, ge=0, le=5, description="how often in all the model is asked again for a better answer; then it is held back"
    )

    @property
    def key(self) -> str:
        """The name and version by which others refer to it."""
        return f"{self.name}@{self.version}"

    @property
    def digest(self) -> str:
        """Twelve hex characters that change with any change of what it says."""
        return digest_of(self.model_dump(mode="json", exclude={"description"}))[:12]

    def allows_tool(self, name: str) -> bool:
        """Whether the tool may be offered at all."""
        return named(self.tools.allow, name) and not named(self.tools.deny, name)

    def allows_model(self, model: str) -> bool:
        """Whether an agent under it may run on this model."""
        return named(self.models, model)


def demand(bundle: Bundle | None) -> Hold | None:
    """What each tool call of an agent carries, for the runner to keep; None where no bundle holds."""
    if bundle is None:
        return None
    return Hold(profile=bundle.sandbox or "", egress=bundle.egress, functions=bundle.functions == "allow")


def load_bundles(folder: Path) -> dict[str, Bundle]:
    """Every bundle in `folder/*.yaml`, in all its versions, by `NAME@VERSION`; none where there is no such folder.

    Raises:
        BadSpec: a file that does not fit, or one version of a bundle in two files.
    """
    bundles: dict[str, Bundle] = {}
    for path in sorted(folder.glob("*.yaml")):
        bundle = load_bundle(path)
        if bundle.key in bundles:
            raise BadSpec(f"{path}: there is a safety bundle {bundle.key} already; give it another version")
        bundles[bundle.key] = bundle
    return bundles


def load_bundle(path: Path) -> Bundle:
    """The bundle in one file. Raises `BadSpec` with file, line and field."""
    return declared.load(path, Bundle, parts=_PARTS, sentences=_SENTENCES)


def find_bundle(bundles: Mapping[str, Bundle], wanted: str) -> Bundle:
    """The bundle of this name, in its newest version unless it names one. Raises `BadSpec` with the nearest names."""
    versions = [bundle for bundle in bundles.values() if wanted in {bundle.name, bundle.key}]
    if not versions:
        raise BadSpec(f"there is no safety bundle {wanted!r}; {_nearest(wanted, bundles)}")
    return max(versions, key=lambda bundle: bundle.version)


def _nearest(wanted: str, keys: Iterable[str]) -> str:
    near = difflib.get_close_matches(wanted, keys, n=3) or sorted(keys)
    return f"there are {', '.join(near)}" if near else "there are none: they are files in the folder of safety bundles"


_PARTS: Mapping[str, type[Declared]] = {
    "tools": Tools,
    "allow": AllowRule,
    "mutate": MutateRule,
    "ask": AskRule,
    "skip": SkipRule,
    "deny": DenyRule,
    "refusal": Refusal,
    "must_not_match": MustNotMatch,
    "must_match": MustMatch,
    "longest": Longest,
    "no_details": NoDetails,
    "claims": Claims,
}
_SENTENCES: Mapping[str, str] = {
    "model_type": "expected a safety bundle's fields, such as name and version",
    "string_pattern_mismatch": "a name is lower-case letters, digits and hyphens; a host `api.example.com`, `*.example.com` or with `:8443`; a profile NAME or NAME@VERSION; a glob has no spaces or brackets",
    "union_tag_not_found": "the field that says what it is, `then` of a rule or `kind` of an output check, is missing",
}
