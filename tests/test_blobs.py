"""Claim checks: what was put is got back unchanged, and nothing else is."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metier_infra.blobs import KEPT_S, FolderBlobs, Kept, digest, expired
from metier_infra.errors import MissingBlob, MissingService


def test_what_was_put_is_got_back_by_whoever_shares_the_folder(tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    claim = FolderBlobs(tmp_path).put(data)
    assert claim == digest(data)
    assert FolderBlobs(tmp_path).put(data) == claim
    assert FolderBlobs(tmp_path).get(claim) == data
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 1


def test_what_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(MissingBlob, match="never put there, or has expired"):
        FolderBlobs(tmp_path).get("0" * 64)


@pytest.mark.parametrize("claim", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_claim_that_is_none_opens_no_file(tmp_path: Path, claim: str) -> None:
    with pytest.raises(MissingBlob, match="64 hex characters"):
        FolderBlobs(tmp_path).get(claim)


def test_bytes_that_were_changed_are_not_given_out(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    claim = blobs.put(b"true")
    (tmp_path / claim[:2] / claim[2:]).write_bytes(b"false")
    with pytest.raises(MissingBlob, match="not what was put there"):
        blobs.get(claim)


def test_what_was_damaged_is_whole_again_when_it_is_put_again(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    claim = blobs.put(b"true")
    (tmp_path / claim[:2] / claim[2:]).write_bytes(b"false")
    assert blobs.put(b"true") == claim
    assert blobs.get(claim) == b"true"


_FULL = """
import resource, signal, sys
from pathlib import Path
from metier_infra.blobs import FolderBlobs
from metier_infra.errors import MissingService
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    FolderBlobs(Path(sys.argv[1])).put(bytes(10_000))
except MissingService as error:
    print(error)
"""


def test_a_write_that_fails_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"the blob store {tmp_path} cannot be written: {os.strerror(errno.EFBIG)}\n"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_that_is_none_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    blobs = FolderBlobs(tmp_path / "file")
    with pytest.raises(MissingService, match="cannot be written: Not a directory"):
        blobs.put(b"x")
    with pytest.raises(MissingService, match="cannot be read: Not a directory"):
        blobs.get("0" * 64)


def aged(folder: Path, claim: str, age_s: float) -> None:
    then = time.time() - age_s
    os.utime(folder / claim[:2] / claim[2:], (then, then))


def test_the_oldest_files_expire_when_others_are_put(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path, most_bytes=3000)
    old, older, oldest = (blobs.put(bytes([n]) * 1000) for n in range(3))
    for hours, claim in enumerate((old, older, oldest), start=2):
        aged(tmp_path, claim, hours * 3600)
    assert blobs.put(b"new" * 300) == digest(b"new" * 300)
    with pytest.raises(MissingBlob, match="has expired"):
        blobs.get(oldest)
    assert blobs.get(older) + blobs.get(old) == b"\1" * 1000 + b"\0" * 1000


def test_a_file_that_is_put_again_is_young_again(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path, most_bytes=1500)
    again, other = blobs.put(b"a" * 1000), blobs.put(b"b" * 1000)
    aged(tmp_path, again, 9 * 3600)
    aged(tmp_path, other, 8 * 3600)
    blobs.put(b"a" * 1000)
    assert blobs.get(again) == b"a" * 1000
    with pytest.raises(MissingBlob):
        blobs.get(other)


def test_a_file_younger_than_an_hour_never_expires(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path, most_bytes=100)
    young = blobs.put(b"y" * 1000)
    aged(tmp_path, young, KEPT_S - 60)
    blobs.put(b"z" * 1000)
    assert blobs.get(young) == b"y" * 1000


def test_what_expires_is_no_more_than_must() -> None:
    files = [Kept(Path(str(n)), 10, float(n)) for n in (3, 1, 2, 4)]
    assert [one.put_at for one in expired(files, 25, 100.0)] == [1.0, 2.0]
    assert [one.put_at for one in expired(files, 0, 2.5)] == [1.0, 2.0]
    assert expired(files, 40, 100.0) == []
