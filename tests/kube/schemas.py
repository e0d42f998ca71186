"""JSON schemas as kubeconform reads them: one file for each kind, from the package kubernetes-validate and from definitions of custom resources.

Used by `test_lint`. Custom resources are closed on the way: a field that no schema names is an error, where an API server would drop it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import yaml

Node = dict[str, Any]


def write_schemas(folder: Path, minor: str, definitions: Iterable[Path], kinds: Collection[str]) -> None:
    """Write the schemas that one minor version of Kubernetes has for these kinds, and those of the custom resources, into a new folder."""
    folder.mkdir()
    builtin = Path(str(files("kubernetes_validate"))) / f"kubernetes-json-schema/v{minor}.0-local-strict"
    wanted = {kind.lower() for kind in kinds} | {"_definitions"}
    for path in (path for path in builtin.glob("*.json") if path.stem.partition("-")[0] in wanted):
        (folder / path.name).write_text(json.dumps(_each(json.loads(path.read_text()), _older_draft)))
    for path in definitions:
        for definition in yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader):
            _write_custom(folder, definition["spec"])


def _write_custom(folder: Path, spec: Node) -> None:
    group = spec["group"].partition(".")[0]
    for version in spec["versions"]:
        schema = _each(version["schema"]["openAPIV3Schema"], _closed)
        schema["properties"]["metadata"] = {"type": "object"}
        name = f"{spec['names']['kind'].lower()}-{group}-{version['name']}.json"
        (folder / name).write_text(json.dumps(schema))


def _each(node: Any, change: Callable[[Node], Node]) -> Any:
    """Return the same tree with every object in it changed."""
    if isinstance(node, list):
        return [_each(one, change) for one in cast("list[Any]", node)]
    if isinstance(node, dict):
        return {name: _each(below, change) for name, below in change(cast("Node", node)).items()}
    return node


def _older_draft(node: Node) -> Node:
    """Write references as kubeconform resolves them: to a file beside, by the older word."""
    kept = {name: below for name, below in node.items() if not (name in {"$schema", "$id"} and isinstance(below, str))}
    if isinstance(kept.get("$ref"), str):
        kept["$ref"] = (
            kept["$ref"].replace("/api/_definitions.json", "_definitions.json").replace("$defs", "definitions")
        )
    if isinstance(kept.get("$defs"), dict):
        kept["definitions"] = kept.pop("$defs")
    return kept


def _closed(node: Node) -> Node:
    """Let nothing in that has no name, unless the definition says that it keeps it."""
    kept = dict(node)
    if kept.pop("x-kubernetes-int-or-string", False):
        kept = {name: below for name, below in kept.items() if name not in {"type", "anyOf"}} | {
            "type": ["integer", "string"]
        }
    open_ = kept.get("x-kubernetes-preserve-unknown-fields") or kept.get("x-kubernetes-embedded-resource")
    if isinstance(kept.get("properties"), dict) and "additionalProperties" not in kept and not open_:
        kept["additionalProperties"] = False
    return kept
