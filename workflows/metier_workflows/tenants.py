"""What each tenant may take: the file that an operator writes, and what it says of a tenant.

`compose` loads it; the orchestrator's `turns` and `accepting` ask it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from metier_infra.declared import Declared, load
from metier_infra.words import Name


class TenantLimits(Declared):
    """What the runs of one tenant may take together in each hour, day or month of UTC: USD, model tokens (in and out), tool calls. None: no limit.

    `at_limit` is as in a run's own limits. Once nothing is left, a run that has begun ends with what it has; `new_runs` says whether a new one does so too,
    at its first call, or is rejected.
    """

    usd: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    tokens: Annotated[int, Field(ge=0)] | None = None
    tool_calls: Annotated[int, Field(ge=0)] | None = None
    per: Literal["hour", "day", "month"] = "day"
    at_limit: Literal["stop", "smaller", "fewer"] = "stop"
    new_runs: Literal["end", "reject"] = "end"


class Tenant(Declared):
    """What one tenant may take.

    Attributes:
        runs: of its runs, so many are under way at one time, over all replicas; those that wait for persons, and those that another run started, aside. None: no limit.
        queued: so many wait for their turn; a request beyond is rejected. None: no limit.
        weight: its share of the turns, against that of others; 2 gets twice as many as 1 while both wait.
        limits: what its runs may take together. None: no limit.
    """

    runs: Annotated[int, Field(ge=1)] | None = None
    queued: Annotated[int, Field(ge=0)] | None = None
    weight: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0
    limits: TenantLimits | None = None


class Tenants(Declared):
    """The tenants by name; `others` is what holds for each one that is not named."""

    tenants: dict[Name, Tenant] = Field(default_factory=dict[Name, Tenant])
    others: Tenant = Tenant()

    def of(self, name: str) -> Tenant:
        """What this tenant may take."""
        return self.tenants.get(name, self.others)


def load_tenants(path: Path) -> Tenants:
    """What a file declares. Raises `BadSpec` with file, line and field."""
    return load(path, Tenants, parts={"tenants": Tenant, "others": Tenant, "limits": TenantLimits})
