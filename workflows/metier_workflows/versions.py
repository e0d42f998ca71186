"""Which replica may run what, while several versions of a workflow are served: a run is left to one that serves its version.

The orchestrator keeps one `Versions`, and refreshes it with its leases; `execution` finds a run's workflow by it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from metier_infra.errors import NotServedHere, UnknownWorkflow
from metier_infra.journal import Journal
from metier_infra.rows import Run
from metier_infra.serving import Served, Version
from metier_workflows.workflow import Workflow, Workflows


class Versions:
    """What this replica serves, and what others do. A version that nobody has served for `grace_s` seconds is gone."""

    def __init__(self, journal: Journal, workflows: Workflows, *, instance: str, grace_s: float) -> None:
        self._journal = journal
        self._workflows = workflows
        self._instance = instance
        self._grace_s = grace_s
        self._known: Sequence[Served] = ()

    async def refresh(self) -> None:
        """Say what is served here, and look at what the others say."""
        await self._journal.serving.tell(self._instance, self._workflows.versions)
        self._known = await self._journal.serving.all()

    async def find(self, run: Run) -> Workflow:
        """The workflow of a run. Raises `NotServedHere` while another replica serves it, or did within the grace, and else `UnknownWorkflow`."""
        try:
            return self._workflows.find(run.workflow, run.version)
        except UnknownWorkflow:
            self._known = await self._journal.serving.all()
            ago_s = last_served(run, self._known)
            if ago_s is None:
                raise
        if ago_s <= self._grace_s:
            raise NotServedHere(f"the version {run.version or 'newest'} of {run.workflow!r} is not served here")
        raise UnknownWorkflow(
            f"the run is pinned to version {run.version} of {run.workflow!r}, which no orchestrator serves any more"
            if run.version
            else f"no orchestrator serves the workflow {run.workflow!r} any more"
        )

    def here(self, run: Run) -> bool:
        """Whether this replica is to take a run that nobody has: it serves it, or nobody does any more, so that it must end."""
        if self._serves(run):
            return True
        ago_s = last_served(run, self._known)
        return ago_s is None or ago_s > self._grace_s

    def everywhere(self, run: Run) -> bool:
        """Whether whoever owns the run's partition serves it: every replica that lives does, as far as is known."""
        live = {one.instance for one in self._known if one.ago_s <= self._journal.lease_s} - {self._instance}
        serving = {one.instance for one in self._known if fits(run, one.version)}
        return self._serves(run) and live <= serving

    def _serves(self, run: Run) -> bool:
        return any(fits(run, one) for one in self._workflows.versions)


def fits(run: Run, version: Version) -> bool:
    """Whether this version can run it."""
    return run.workflow == version.workflow and run.version in {None, version.version}


def last_served(run: Run, known: Collection[Served]) -> float | None:
    """How many seconds ago somebody last served the run's version; None: nobody ever did."""
    return min((one.ago_s for one in known if fits(run, one.version)), default=None)
