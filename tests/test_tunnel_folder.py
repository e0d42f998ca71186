"""The folders of tunnels to engines elsewhere: they go with their tunnel, and what a killed process left goes with the next one. Not here: the tunnels (`access`)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from metier_tools.tunnel import private_folder

KILLED = """
import os, signal, tempfile
from metier_tools.tunnel import private_folder
tempfile.tempdir = {folder!r}
owner = type("Owner", (), {{}})()
print(private_folder(owner), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


class Owner:
    """Has a folder."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_a_killed_process_left_goes_with_the_next_and_what_lives_stays(folder: Path) -> None:
    # Given one folder of a process that was killed, one of a tunnel that lives, and one that is nobody's
    words = [sys.executable, "-c", KILLED.format(folder=str(folder))]
    left = Path(subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip())
    assert left.is_dir()
    foreign = folder / "metier-engine-foreign"
    foreign.mkdir()
    lives = Owner()
    its = private_folder(lives)
    # When another one is made
    other = Owner()
    own = private_folder(other)
    # Then the first is gone
    assert sorted(folder.iterdir()) == sorted([foreign, its, own])


def test_a_folder_goes_with_its_tunnel(folder: Path) -> None:
    owner = Owner()
    own = private_folder(owner)
    assert [one.name for one in own.iterdir()] == ["owner"]
    del owner
    assert list(folder.iterdir()) == []
