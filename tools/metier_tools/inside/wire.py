"""The words on the line between a container's PID 1 and the host, shared by both ends, and how the container's end reads and writes them. Standard library only."""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

REQUEST = struct.Struct(">BfIII")
"""Kind, seconds, bytes that may be written in all, length of the wish that follows (`WISH`), length of the parts that follow that."""
FRAME = struct.Struct(">BI")
"""Kind, length of the data that follows: both of a part of a request, and of what is sent back."""
WISH = struct.Struct(">I")
"""The bytes that files may take in all; their names follow, each ended by NUL."""
NAME = struct.Struct(">H")
"""In a part `FILE` the length of the path that begins it; in what is sent back of a file, its number among those wanted."""
END = struct.Struct(">iBBBffI")
"""Exit code (negative: signal), why it was stopped, dirty (below), out-of-memory kills, wall seconds, processor seconds, resident KiB."""
ENDED, TIME, FLOOD = 0, 1, 2
"""Why a program was stopped: it was not, its time was up, it wrote more than it may."""
LEFT, CHANGED, UNREAD = 1, 2, 4
"""Why a container is dirty: something of the call is left; this process was changed; the program was not read to its end."""
PING, PYTHON, SHELL, COMMAND, SERVER = 0, 1, 2, 3, 4
SOURCE, ARGUMENT, VARIABLE, STDIN, FILE = 1, 2, 3, 4, 5
PONG, OUT, ERR, TAKEN, ABSENT, IRREGULAR, TOO_LARGE, DONE = 0, 1, 2, 3, 4, 5, 6, 9
CHUNK = 65536
DOOR = "/run/metier.sock"
PORT = 3128


def read_some(most: int) -> bytes:
    """Read from the host. When the host is gone this process ends; the kernel kills the rest, and the engine removes the container."""
    data = os.read(0, min(most, CHUNK))
    if not data:
        os._exit(0)
    return data


def read_exactly(length: int) -> bytes:
    """Read so many bytes from the host."""
    data = bytearray()
    while len(data) < length:
        data += read_some(length - len(data))
    return bytes(data)


def write(data: bytes | memoryview) -> None:
    """Write all of it to the host."""
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def send(kind: int, data: bytes) -> None:
    """Write one frame to the host."""
    write(FRAME.pack(kind, len(data)) + data)


def slurp(path: str) -> bytes:
    """What a small file of the kernel says; nothing when it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(fd, CHUNK)
    finally:
        os.close(fd)


def attempt(work: Callable[[], object]) -> bool:
    """Do what may fail, and say whether it went well."""
    try:
        work()
    except OSError:
        return False
    return True
