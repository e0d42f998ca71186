"""What a sandbox may use: named, versioned limits, as an author writes them in YAML and as safety bundles refer to them.

`tool_files` reads them, `limits` makes container options of them, `conversation` and `egress` keep the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, ByteSize, Field, TypeAdapter

from metier_infra.declared import Declared
from metier_infra.errors import BadSpec
from metier_tools.tool import Host, digest_of

KIB, MIB = 1024, 1024 * 1024
_size: TypeAdapter[ByteSize] = TypeAdapter(ByteSize)


def _bytes(given: object) -> object:
    return int(_size.validate_python(given)) if isinstance(given, str) else given


Size = Annotated[int, BeforeValidator(_bytes), Field(ge=1, le=1 << 31)]
"""Bytes: a number, or words such as `256MiB`."""


class Egress(Declared):
    """What the network may be used for: these hosts, through our proxy, and nothing else."""

    hosts: tuple[Host, ...] = Field(
        min_length=1,
        description="lower-case names: `api.example.com` (ports 80 and 443), `api.example.com:8443`, `*.example.com`",
    )
    bytes: Size = Field(default=10 * MIB, description="what one call may send and receive in all")
    private: bool = Field(
        default=False, description="whether a name may lead to a private, loopback or link-local address"
    )


@dataclass(frozen=True)
class Attempt:
    """One request for the network that a program made. `host` is empty and `port` 0 where it named none that is well formed.

    `verdict` is `allowed` or why not, in a word; `bytes` counts both directions.
    """

    host: str
    port: int
    verdict: str
    bytes: int


class Profile(Declared):
    """The limits of one container."""

    name: str = Field(default="strict", pattern=r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", description="a DNS label")
    version: int = Field(
        default=1, ge=1, description="raised with every change; `NAME@VERSION` names one, `NAME` the newest"
    )
    image: str | None = Field(default=None, description="image reference; none: `METIER_SANDBOX_IMAGE`")
    cpus: float = Field(default=1.0, gt=0, description="processor time, in processors")
    memory_bytes: Size = Field(
        default=256 * MIB, ge=6 * MIB, description="memory, scratch files included; there is no swap beyond it"
    )
    pids: int = Field(default=64, ge=4, description="processes and threads")
    tmp_bytes: Size = Field(
        default=64 * MIB, description="size of the scratch folder, the only place that can be written"
    )
    tmp_inodes: int = Field(default=8192, ge=16, description="files and folders in it")
    file_bytes: Size = Field(default=64 * MIB, description="size of one file")
    open_files: int = Field(default=256, ge=32, description="open files of one process")
    longest_s: float = Field(
        default=300.0, gt=0, le=400, description="no call may take longer, whatever it asks for; seconds"
    )
    keep_bytes: Size = Field(default=256 * KIB, description="what is kept of each output stream of a call")
    flood_bytes: Size = Field(default=8 * MIB, description="a call that writes more than this in all is stopped")
    put_bytes: Size = Field(default=16 * MIB, description="files and standard input that a call may bring, in all")
    take_bytes: Size = Field(default=16 * MIB, description="files that may be taken out after a call, in all")
    single_use: bool = Field(default=False, description="a new container for every call, even within a run")
    egress: Egress | None = Field(default=None, description="network use through the proxy; none: no network at all")

    @property
    def key(self) -> str:
        """The name and version by which others refer to it."""
        return f"{self.name}@{self.version}"

    @property
    def digest(self) -> str:
        """Twelve hex characters that change with any limit."""
        return digest_of(self.model_dump(mode="json"))[:12]


STRICT = Profile.model_validate({})
"""What runs where nothing else is said: no network, a small share of the machine."""


def find_profile(profiles: Mapping[str, Profile], wanted: str) -> Profile:
    """The profile of this name, in its newest version unless it names one. Raises `BadSpec`."""
    versions = [profile for profile in profiles.values() if wanted in {profile.name, profile.key}]
    if not versions:
        raise BadSpec(f"there is no profile {wanted!r}; there are {', '.join(sorted(profiles))}")
    return max(versions, key=lambda profile: profile.version)
