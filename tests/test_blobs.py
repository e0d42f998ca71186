"""Claim checks: what was put is got back unchanged, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from metier_infra.blobs import FolderBlobs, digest
from metier_infra.errors import MissingBlob


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
