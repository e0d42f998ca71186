"""The blob store in the journal's Postgres: where roles on several machines keep what is too large for an event. `compose` opens it.

A connection for each use: values of that size are rare, and one that is open would be in nobody's hands for most of its life.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import psycopg

from metier_infra.blobs import checked, digest, verified
from metier_infra.errors import MissingService

CONNECT_S = 10
_PUT = (
    "INSERT INTO blobs (sha256, body, put_at) VALUES (%s, %s, extract(epoch FROM clock_timestamp()))"
    " ON CONFLICT (sha256) DO UPDATE SET body = excluded.body, put_at = excluded.put_at"
)
_PRUNE = "DELETE FROM blobs WHERE put_at < extract(epoch FROM clock_timestamp()) - %s"


class PostgresBlobs:
    """See `metier_infra.blobs.Blobs`. A row of the table `blobs` for each digest; nothing expires but by `prune`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def put(self, data: bytes) -> str:
        """See `Blobs.put`. Written anew if it is there already, so that it is whole, and young."""
        sha256 = digest(data)
        with self._connected() as connection:
            connection.execute(_PUT, (sha256, data))
        return sha256

    def get(self, sha256: str) -> bytes:
        """See `Blobs.get`."""
        with self._connected() as connection:
            row = connection.execute("SELECT body FROM blobs WHERE sha256 = %s", (checked(sha256),)).fetchone()
        return verified(sha256, row[0] if row else None)

    def prune(self, older_s: float) -> int:
        """See `Blobs.prune`."""
        with self._connected() as connection:
            return connection.execute(_PRUNE, (older_s,)).rowcount

    @contextmanager
    def _connected(self) -> Generator[psycopg.Connection]:
        try:
            with psycopg.connect(self._url, connect_timeout=CONNECT_S) as connection:
                yield connection
        except psycopg.Error as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise MissingService(f"the blob store in Postgres cannot be used: {reason}") from error
