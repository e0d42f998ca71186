"""One system for all tests that look at what a system shows."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio

from .scraped import System, worked


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[System]:
    """A system that has done its work: runs that ended well and badly, a dead letter, an outcome."""
    async with worked(tmp_path_factory.mktemp("system")) as found:
        yield found
