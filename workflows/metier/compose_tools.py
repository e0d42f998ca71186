"""The part of `compose` that names the adapters of tools: sandbox, lanes, vault, files that declare them.

`cli_tools`, `roles` and `compose` call it. Everything is imported where it is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from metier_infra.errors import BadSettings, MissingService

if TYPE_CHECKING:
    from metier_tools.docker_sandbox import DockerSandbox
    from metier_tools.execution import Execution
    from metier_tools.lane import ToolLane
    from metier_tools.sandbox import Recipe, Sandbox, Script
    from metier_tools.tool import Kind
    from metier_tools.tool_files import Catalogue
    from metier_tools.toolbox import Toolbox
    from metier_tools.vault import Vault

from metier.configuration import Config


def grant_key(config: Config) -> bytes:
    """The key that signs tool calls. Raises `MissingService` when none is set."""
    if config.lane.grant_key is None:
        raise MissingService(
            "METIER_GRANT_KEY is not set: agents and tool runners share it to sign and verify tool calls"
        )
    return config.lane.grant_key.get_secret_value().encode()


def tool_modules(config: Config) -> list[str]:
    """The Python modules that declare tools."""
    return [name.strip() for name in config.tools.modules.split(",") if name.strip()]


def tool_kinds(config: Config) -> list[Kind]:
    """The kinds of tools that are run here. Raises `BadSettings` for a word that is none."""
    from metier_tools.tool import Kind

    known: Mapping[str, Kind] = {kind: kind for kind in get_args(Kind)}
    named = [name.strip() for name in config.tools.kinds.split(",") if name.strip()]
    for name in named:
        if name not in known:
            raise BadSettings(f"METIER_TOOL_KINDS: there is no kind {name!r}; there are {', '.join(known)}")
    return [known[name] for name in named]


def toolbox(config: Config) -> Toolbox:
    """The tools that there are: those that ship, and those that are declared, disabled where they are not approved."""
    from metier_tools import tool_files

    return tool_files.toolbox(config.tools.files, tool_modules(config))


def served(config: Config) -> Toolbox:
    """The same tools; those of kinds that are not run here are disabled too. Raises `BadSettings` as `tool_kinds` does."""
    from metier_tools.toolbox import Toolbox

    kinds = tool_kinds(config)
    strange = f"its kind is not among those that are run here: METIER_TOOL_KINDS says {', '.join(kinds) or 'none'}"
    every = toolbox(config)
    here = (tool if tool.spec.kind in kinds else replace(tool, disabled=tool.disabled or strange) for tool in every)
    return Toolbox(here, every.profiles)


def catalogue(config: Config) -> Catalogue:
    """The tools, profiles and MCP servers that are declared."""
    from metier_tools import tool_files

    return tool_files.load(config.tools.files, tool_modules(config))


def open_sandbox(config: Config, **change: float) -> DockerSandbox:
    """The sandbox on the container engine. `change` replaces settings of it. Raises `MissingService` when there is no engine or image."""
    from metier_tools.docker_sandbox import DockerSandbox

    return DockerSandbox(config.sandbox.model_copy(update=change))


def open_checked_sandbox(config: Config, **change: float) -> DockerSandbox:
    """The same, for programs that nobody has read: an engine that does not enforce our limits is refused. Raises `MissingService`."""
    sandbox = open_sandbox(config, **change)
    try:
        sandbox.check()
    except BaseException:
        sandbox.close()
        raise
    return sandbox


def server_recipe(config: Config, known: Catalogue, name: str) -> Recipe:
    """The container of a declared MCP server. Raises `MissingService` for a secret that is not there."""
    from metier_tools.sandbox import Recipe, Server

    file, secrets = known.servers[name], vault(config)
    values = [(secret, secrets.value(secret)) for secret in file.secrets]
    for secret, value in values:
        if value is None:
            raise MissingService(f"the MCP server {name} needs the secret {secret}: put it into METIER_TOOL_SECRETS")
    given = tuple((secret, value) for secret, value in values if value is not None)
    return Recipe(known.profile(file.profile), Server(name, file.command, given))


def vault(config: Config) -> Vault:
    """Where the tools' secrets are. Raises `BadSettings` when the folder is not there."""
    from metier_tools.vault import FolderVault

    if config.tools.secrets is not None and not config.tools.secrets.is_dir():
        raise BadSettings(f"METIER_TOOL_SECRETS: there is no folder {config.tools.secrets}")
    return FolderVault(config.tools.secrets)


def execution(config: Config, tools: Toolbox, sandbox: Sandbox) -> Execution:
    """What runs tool calls, in this process's containers."""
    from metier_infra.blobs import FolderBlobs
    from metier_tools.execution import Execution

    return Execution(tools, sandbox, vault(config), FolderBlobs(config.tools.blobs))


def open_lane(config: Config) -> ToolLane:
    """The Celery lane to the tool runners."""
    from metier_tools.celery_lane import CeleryLane

    if config.lane.redis_url is None:
        raise MissingService(
            "METIER_REDIS_URL is not set: it names the Redis that carries tool calls, redis://host:port/0"
        )
    kinds = {tool.spec.name: tool.spec.kind for tool in toolbox(config)}
    url, namespace = config.lane.redis_url.get_secret_value(), config.lane.lane_namespace
    return CeleryLane(url, grant_key(config), namespace=namespace, kinds=kinds)


async def open_inline_lane(config: Config) -> ToolLane:
    """Tools called from this process, in the engine's containers. Raises as `served`, `vault` and `open_checked_sandbox` do."""
    from metier_tools.inline_lane import InlineLane
    from metier_tools.runner import Runner

    tools, _ = served(config), vault(config)  # what can be wrong with these is said before there are containers
    sandbox = await asyncio.to_thread(open_checked_sandbox, config)
    runner = Runner(execution(config, tools, sandbox).run, grant_key(config))
    return InlineLane(runner, sandbox, threads=config.sandbox.limit)


def scripted_lane(script: Script | None = None) -> Callable[[Config], Awaitable[ToolLane]]:
    """Opens a lane whose tools run in no container and do what `script` says (None: nothing), for tests and benchmarks."""

    async def opener(config: Config) -> ToolLane:
        from metier_tools.inline_lane import InlineLane
        from metier_tools.runner import Runner
        from metier_tools.sandbox import Outcome, ScriptedSandbox

        sandbox = ScriptedSandbox(script or (lambda _: Outcome("ok")))
        return InlineLane(Runner(execution(config, toolbox(config), sandbox).run, grant_key(config)), sandbox)

    return opener
