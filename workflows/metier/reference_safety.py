"""The reference page of safety bundles, written from the model that reads them. `reference` puts it beside the other pages."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from metier.reference_tables import default_of, described, table, type_name
from metier_agents import safety

_PARTS: Sequence[tuple[str, type[BaseModel]]] = (
    ("The file", safety.Bundle),
    ("`tools`", safety.Tools),
    ("A rule that says `then: allow`", safety.AllowRule),
    ("A rule that says `then: mutate`", safety.MutateRule),
    ("A rule that says `then: ask`", safety.AskRule),
    ("A rule that says `then: skip`", safety.SkipRule),
    ("A rule that says `then: deny`", safety.DenyRule),
    ("`refusal`", safety.Refusal),
    ("An output check of kind `must_not_match`", safety.MustNotMatch),
    ("An output check of kind `must_match`", safety.MustMatch),
    ("An output check of kind `longest`", safety.Longest),
    ("An output check of kind `no_details`", safety.NoDetails),
    ("An output check of kind `claims`", safety.Claims),
)
_HEAD = """`METIER_SAFETY` names the folder; a file `*.yaml` in it declares one version of one bundle, and an agent names it in its field `safety`. A field that is not on
this page is refused, with file, line and the nearest name. [Write a safety bundle](../how-to/write-a-safety-bundle.md) shows how.
"""


def safety_page() -> str:
    """The fields of safety bundles, and of what they hold."""
    return "\n".join(["# Safety bundles\n", _HEAD, *(_section(*part) for part in _PARTS)])


def _section(title: str, model: type[BaseModel]) -> str:
    rows = [
        (f"`{name}`", type_name(field.annotation), _default(default_of(field)), field.description or "")
        for name, field in model.model_fields.items()
    ]
    return f"## {title}\n\n{described(model)}\n\n" + table(("field", "type", "default", "meaning"), rows)


def _default(said: str) -> str:
    return said if len(said) < 60 else "the defaults below"
