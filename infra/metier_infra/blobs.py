"""Large values by claim check: bytes that are kept under their SHA-256, so that a message carries the claim and not the bytes.

Tool runners put files here that are too large to travel inside a result, and read those of a call; `claims` puts the data of events
that is too large for a record. `FolderBlobs` serves every process that shares the folder; `postgres_blobs` is another adapter of the port.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from metier_infra.errors import MissingBlob, MissingService

_DIGEST = re.compile(r"[0-9a-f]{64}")
MOST_BYTES = 2 * 1024**3
"""What a folder of blobs may grow to; bytes."""
KEPT_S = 3600.0
"""A file that is younger is never deleted; seconds."""


class Blobs(Protocol):
    """Bytes by their digest.

    Contract: what `put` returned can be read by whoever shares the store, unchanged, until it expires; putting again is harmless.
    Methods block and may be called from any thread. They raise `MissingService` when the store cannot be used.
    """

    def put(self, data: bytes) -> str:
        """Keep bytes; their SHA-256 in hex."""
        ...

    def get(self, sha256: str) -> bytes:
        """The bytes of this digest. Raises `MissingBlob` when they are not here, or not what they were."""
        ...

    def prune(self, older_s: float) -> int:
        """Delete what was last put longer ago than this, in seconds; how many there were."""
        ...


def digest(data: bytes) -> str:
    """The claim on these bytes."""
    return hashlib.sha256(data).hexdigest()


def checked(sha256: str) -> str:
    """The same, if it is a digest at all. Raises `MissingBlob`."""
    if not _DIGEST.fullmatch(sha256):
        raise MissingBlob("a claim on a file is 64 hex characters")
    return sha256


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
    """See `Blobs`. A file for each digest, in a folder of this machine or a shared one.

    Beyond `most_bytes` the files that were put longest ago expire: they are deleted when others are put, but none within an hour. The
    folder is looked at once for each sixteenth of `most_bytes` that this process puts, so it may be larger by that much for each process.
    """

    def __init__(self, folder: Path, *, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._lock, self._put_bytes = threading.Lock(), most_bytes

    def put(self, data: bytes) -> str:
        """See `Blobs.put`. Written whole under another name first, so that nobody reads half of it, and anew if it is there already."""
        sha256 = digest(data)
        try:
            _write(self._place(sha256), data)
            self._expire(len(data))
        except OSError as error:
            raise MissingService(f"the blob store {self._folder} cannot be written: {error.strerror}") from error
        return sha256

    def get(self, sha256: str) -> bytes:
        """See `Blobs.get`."""
        try:
            data = self._place(checked(sha256)).read_bytes()
        except FileNotFoundError:
            data = None
        except OSError as error:
            raise MissingService(f"the blob store {self._folder} cannot be read: {error.strerror}") from error
        return verified(sha256, data)

    def prune(self, older_s: float) -> int:
        """See `Blobs.prune`."""
        old = [one.path for one in _files(self._folder) if one.put_at < time.time() - older_s]
        try:
            for path in old:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise MissingService(f"the blob store {self._folder} cannot be written: {error.strerror}") from error
        return len(old)

    def _place(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256[2:]

    def _expire(self, put_bytes: int) -> None:
        with self._lock:
            self._put_bytes += put_bytes
            if self._put_bytes < self._most_bytes // 16:
                return
            self._put_bytes = 0
            for one in expired(list(_files(self._folder)), self._most_bytes, time.time() - KEPT_S):
                with suppress(OSError):  # the bytes were put; one that stays is tried again
                    one.path.unlink()


@dataclass(frozen=True)
class Kept:
    """A file of the folder. `put_at` is seconds since the epoch."""

    path: Path
    size: int
    put_at: float


def expired(files: list[Kept], most_bytes: int, before: float) -> list[Kept]:
    """Those to delete so that the others take `most_bytes` at most: the oldest, and none that was put after `before`."""
    gone, over = list[Kept](), sum(one.size for one in files) - most_bytes
    for one in sorted(files, key=lambda one: one.put_at):
        if over <= 0 or one.put_at > before:
            break
        gone.append(one)
        over -= one.size
    return gone


def _files(folder: Path) -> Iterator[Kept]:
    """All files of the folder, those too that a process left half written when it was killed."""
    for path in folder.glob("??/*"):
        with suppress(FileNotFoundError):  # another process deletes too
            about = path.stat()
            yield Kept(path, about.st_size, about.st_mtime)


def _write(place: Path, data: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=place.parent)
    new = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        new.replace(place)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
