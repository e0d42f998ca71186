r"""Names of Kafka headers that are no text: read as text, with `\xff` for what is none. `kafka_bus` asks for it before it consumes.

kafka-python 3.0 decodes names strictly, inside its poll: one such record, which any producer in another language can write, would stop its partition for good.
"""

from __future__ import annotations

from typing import SupportsIndex, overload

from kafka.record import memory_records
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch


class _Lenient(bytearray):
    """Bytes whose parts decode whatever they are."""

    @overload
    def __getitem__(self, at: SupportsIndex) -> int: ...

    @overload
    def __getitem__(self, at: slice) -> _Lenient: ...

    def __getitem__(self, at: SupportsIndex | slice) -> int | _Lenient:
        found = super().__getitem__(at)
        return found if isinstance(found, int) else _Lenient(found)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        del errors
        return super().decode(encoding, "backslashreplace")


class _Batch(DefaultRecordBatch):
    """A batch that reads a record again, leniently, where a name in it is no text."""

    __slots__ = ()

    def _read_msg(self) -> DefaultRecord:
        try:
            return super()._read_msg()
        except UnicodeDecodeError:
            strict, self._buffer = self._buffer, _Lenient(self._buffer)
        try:
            return super()._read_msg()
        finally:
            self._buffer = strict


def be_lenient() -> None:
    """From now on, in this process."""
    memory_records.DefaultRecordBatch = _Batch
