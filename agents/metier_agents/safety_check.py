"""What is wrong between an agent, its safety bundle and the tools that there are. `compose` refuses it, `metier agents check` shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from metier_agents.patterns import is_name, named
from metier_agents.safety import Bundle, MutateRule
from metier_agents.spec import AgentSpec
from metier_infra.errors import BadSpec
from metier_tools.profile import Profile
from metier_tools.tightening import common_hosts
from metier_tools.toolbox import Tool, Toolbox


def problems(spec: AgentSpec, bundle: Bundle, toolbox: Toolbox) -> list[str]:
    """Each thing that cannot be, in a sentence; none when all is well."""
    found = [*_models(spec, bundle), *_tools(spec, bundle, toolbox), *_named_tools(bundle, toolbox)]
    return [*found, *_sandbox(bundle, toolbox)]


def _models(spec: AgentSpec, bundle: Bundle) -> Iterator[str]:
    for word, model in [("model", spec.model), *(("fallback", one) for one in spec.fallbacks)]:
        if not bundle.allows_model(model):
            yield f"the {word} {model} of {spec.name} is not among the models of the safety bundle {bundle.key}: {', '.join(bundle.models)}"


def _tools(spec: AgentSpec, bundle: Bundle, toolbox: Toolbox) -> Iterator[str]:
    for name in dict.fromkeys(tool.name for tool in spec.tools):
        tool = toolbox.tool(name)
        if not bundle.allows_tool(name):
            yield f"the tool {name} of {spec.name} is not allowed by the safety bundle {bundle.key}: add it to tools.allow there, or take it from the agent"
        elif tool is not None:
            yield from _tool(tool, spec, bundle)


def _tool(tool: Tool, spec: AgentSpec, bundle: Bundle) -> Iterator[str]:
    name = tool.spec.name
    if tool.spec.kind == "function" and bundle.functions == "refuse":
        yield f"the tool {name} of {spec.name} is a trusted function, and the safety bundle {bundle.key} does not say `functions: allow`"
    if bundle.otherwise == "deny" and not any(
        named(rule.tools, name) and _is_about(tool, rule.risks) for rule in bundle.rules
    ):
        yield f"no rule of the safety bundle {bundle.key} is about the tool {name} of {spec.name}, so every call of it would be denied"


def _is_about(tool: Tool, risks: tuple[str, ...]) -> bool:
    return not risks or tool.spec.risk in risks


def _named_tools(bundle: Bundle, toolbox: Toolbox) -> Iterator[str]:
    fields = [("tools.allow", bundle.tools.allow), ("tools.deny", bundle.tools.deny)]
    fields += [(f"rules.{number}.tools", rule.tools) for number, rule in enumerate(bundle.rules)]
    for field, globs in fields:
        for name in globs:
            if is_name(name) and name not in toolbox:
                yield f"{bundle.key}: {field}: there is no tool {name!r}; there are {', '.join(toolbox.names)}"
    for number, rule in enumerate(bundle.rules):
        if isinstance(rule, MutateRule):
            yield from _changes(bundle, number, rule, toolbox)


def _changes(bundle: Bundle, number: int, rule: MutateRule, toolbox: Toolbox) -> Iterator[str]:
    """Arguments that a tool does not have, of tools that the rule names."""
    for tool in filter(None, (toolbox.tool(name) for name in rule.tools)):
        known = cast("object", tool.spec.parameters.get("properties"))
        for argument in rule.change:
            if isinstance(known, dict) and argument not in known:
                yield f"{bundle.key}: rules.{number}.change: the tool {tool.spec.name} has no argument {argument!r}"


def _sandbox(bundle: Bundle, toolbox: Toolbox) -> Iterator[str]:
    if bundle.sandbox is None:
        return
    try:
        profile = toolbox.profile(bundle.sandbox)
    except BadSpec as error:
        yield f"{bundle.key}: sandbox: {error}"
        return
    yield from _unreachable(bundle, profile)


def _unreachable(bundle: Bundle, profile: Profile) -> Iterator[str]:
    through = profile.egress.hosts if profile.egress else ()
    for host in bundle.egress:
        if not common_hosts([host], through):
            yield f"{bundle.key}: egress: the profile {profile.key} of `sandbox` does not let {host} through"
