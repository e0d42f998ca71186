"""Large values by claim check: bytes that are kept under their SHA-256, so that a message carries the claim and not the bytes.

Tool runners put files here that are too large to travel inside a result, and read those of a call. `FolderBlobs` serves every process
that shares the folder; other stores are adapters of the same port.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Protocol

from metier_infra.errors import MissingBlob

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Blobs(Protocol):
    """Bytes by their digest. Contract: what `put` returned can be read by whoever shares the store, unchanged; putting again is harmless.

    Methods block and may be called from any thread.
    """

    def put(self, data: bytes) -> str:
        """Keep bytes; their SHA-256 in hex."""
        ...

    def get(self, sha256: str) -> bytes:
        """The bytes of this digest. Raises `MissingBlob` when they are not here, or not what they were."""
        ...


def digest(data: bytes) -> str:
    """The claim on these bytes."""
    return hashlib.sha256(data).hexdigest()


def verified(sha256: str, data: bytes | None) -> bytes:
    """These bytes, if they are what the claim says. Raises `MissingBlob`."""
    if data is None:
        raise MissingBlob(
            f"no file of the digest {sha256[:12]}… is in the blob store: it was never put there, or has expired"
        )
    if digest(data) != sha256:
        raise MissingBlob(f"the file of the digest {sha256[:12]}… in the blob store is not what was put there")
    return data


class FolderBlobs:
    """See `Blobs`. A file for each digest, in a folder of this machine or a shared one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, data: bytes) -> str:
        """See `Blobs.put`. Written whole under another name first, so that nobody reads half of it."""
        sha256 = digest(data)
        place = self._place(sha256)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=place.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(name).replace(place)
        return sha256

    def get(self, sha256: str) -> bytes:
        """See `Blobs.get`."""
        if not _DIGEST.fullmatch(sha256):
            raise MissingBlob("a claim on a file is 64 hex characters")
        place = self._place(sha256)
        return verified(sha256, place.read_bytes() if place.is_file() else None)

    def _place(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256[2:]
