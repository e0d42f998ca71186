"""The README's first python block is a real workflow: it is loaded as a module and run in one process, on recorded models.

Not tested here: the block that publishes over Kafka (the end-to-end tests do that with plain kafka-python), and the figures shown.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from metier import client, configuration
from metier.roles import embedded
from metier_infra.events import RunSucceeded

README = Path(__file__).parents[1] / "README.md"
QUESTION = "Geb is 10 less than half the age of Haley. If Haley is 26 years old, how old is Geb?"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


async def test_the_first_block_is_a_workflow_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "from_the_readme.py").write_text(blocks("python")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("METIER_WORKFLOWS", "from_the_readme")

    async with embedded(configuration.configure(), journal=tmp_path / "journal.db") as system:
        end = await client.publish_and_wait(
            system.bus, "second-opinion", {"question": QUESTION}, event_id=None, timeout_s=60
        )

    assert isinstance(end, RunSucceeded)
    assert end.result == {"question": QUESTION, "answer": "3.0", "dissent": {}}
    assert end.cost_usd > 0


def test_every_python_block_compiles() -> None:
    for block in blocks("python"):
        compile(block, str(README), "exec")


def test_the_first_screen_has_the_two_commands_and_the_block_comes_before_them() -> None:
    text = README.read_text(encoding="utf-8")

    assert text.index("```python") < text.index("make demo   #") < text.index("make test   #") < text.index("## ")
