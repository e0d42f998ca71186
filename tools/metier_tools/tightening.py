"""A tool's limits together with those that an agent's safety bundle demands: of each the stricter, never a looser one. Pure.

`execution` calls it before anything starts. What comes of it is a profile like any other, so that a container made under it is of another
recipe, and is never shared with calls that are held to less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from metier_infra.errors import BadSpec
from metier_tools.profile import Egress, Profile, find_profile
from metier_tools.tool import Hold, Host
from metier_tools.toolbox import Function, Refusal, Tool

NOT_LIMITS = frozenset({"name", "version", "image"})
"""What stays the tool's own: what it is called, and the image, without which its program would not be there."""
_PLAIN_PORTS = frozenset({80, 443})


def held_to(tool: Tool, hold: Hold | None, profiles: Mapping[str, Profile]) -> Tool | Refusal:
    """The tool under what its agent's safety bundle demands, or why it may not be called under that."""
    if hold is None:
        return tool
    if isinstance(tool.action, Function):
        return tool if hold.functions else Refusal(_UNHELD.format(name=tool.spec.name))
    try:
        demanded = find_profile(profiles, hold.profile) if hold.profile else tool.profile
    except BadSpec as error:
        return Refusal(
            f"the safety bundle's sandbox cannot be made for {tool.spec.name}: {error}; bring agents and tool runners to the same tool files"
        )
    return replace(tool, profile=tightened(tool.profile, demanded, hold.egress))


_UNHELD = (
    "{name} is a trusted function: it runs in no sandbox, so nothing that the agent's safety bundle demands of one would hold there; "
    "a bundle lets it be called with `functions: allow`"
)


def tightened(own: Profile, demanded: Profile, hosts: Iterable[Host]) -> Profile:
    """The stricter of two profiles in each limit; of hosts only those that both let through and that are among `hosts`.

    Name, version and image stay those of `own`, and where nothing is stricter it is `own` itself.
    """
    stricter: dict[str, object] = {
        name: min(getattr(own, name), getattr(demanded, name))
        for name in Profile.model_fields.keys() - NOT_LIMITS - {"single_use", "egress"}
    }
    stricter["single_use"] = own.single_use or demanded.single_use
    stricter["egress"] = _egress(own.egress, demanded.egress, tuple(hosts))
    return own.model_copy(update=stricter)


def _egress(own: Egress | None, demanded: Egress | None, hosts: tuple[Host, ...]) -> Egress | None:
    if own is None or demanded is None:
        return None
    left = common_hosts(common_hosts(own.hosts, demanded.hosts), hosts)
    if not left:
        return None
    return Egress(hosts=left, bytes=min(own.bytes, demanded.bytes), private=own.private and demanded.private)


def common_hosts(some: Iterable[Host], others: Iterable[Host]) -> tuple[Host, ...]:
    """Entries that let through exactly what both lists let through; as `egress_rules.allowed` reads them."""
    others = tuple(others)
    both = dict.fromkeys(_both(one, other) for one in some for other in others)
    return tuple(entry for entry in both if entry and not _is_within_another(entry, both))


def _is_within_another(entry: Host, entries: Iterable[Host]) -> bool:
    """Whether another entry lets all of it through, so that it may be left out: equal demands come to equal profiles."""
    return any(other and other != entry and _both(entry, other) == entry for other in entries)


def _both(one: Host, other: Host) -> Host:
    """The entry for what two entries have in common; empty for nothing."""
    (name, port), (other_name, other_port) = _parts(one), _parts(other)
    named = _narrower(name, other_name) or _narrower(other_name, name)
    if port is None or other_port is None:
        number = other_port if port is None else port
        fits = number is None or number in _PLAIN_PORTS
    else:
        number, fits = port, port == other_port
    return (named if number is None else f"{named}:{number}") if named and fits else ""


def _parts(entry: Host) -> tuple[str, int | None]:
    name, _, port = entry.partition(":")
    return name, int(port) if port else None


def _narrower(name: str, other: str) -> str:
    """`name`, if `other` has all that it has."""
    within = name == other or (other.startswith("*.") and name.removeprefix("*").endswith(other[1:]))
    return name if within else ""
