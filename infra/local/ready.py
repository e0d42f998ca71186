"""Whether a service answers, asked in its own protocol and with the standard library alone.

Called by `lifecycle` through each service's `ready` check; hands on to the sockets. A check returns yes or no, or
raises what a socket raises: `answers` takes that for no.
"""

import http.client
import socket
import struct
from collections.abc import Callable

HOST = "127.0.0.1"
_PATIENCE = 2.0


def answers(check: Callable[[], bool]) -> bool:
    """Run a check; a refused, broken or garbled conversation is a no."""
    try:
        return check()
    except (OSError, EOFError, struct.error, http.client.HTTPException):
        return False


def kafka(port: int) -> bool:
    """Ask for the cluster's metadata: yes once it names a broker and a controller."""
    with socket.create_connection((HOST, port), _PATIENCE) as connection:
        request = struct.pack(">hhih", 3, 1, 1, 5) + b"ready" + struct.pack(">i", 0)  # Metadata v1, of no topic
        connection.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", _read(connection, 4))
        return _has_broker_and_controller(_read(connection, size))


def _has_broker_and_controller(answer: bytes) -> bool:
    """Walk over the Metadata v1 answer: correlation, brokers (id, host, port, rack), controller."""
    brokers = _int32(answer, 4)
    position = 8
    for _ in range(brokers):
        position += 4
        position += 2 + _int16(answer, position) + 4
        position += 2 + max(_int16(answer, position), 0)
    return brokers >= 1 and _int32(answer, position) >= 0


def _int16(answer: bytes, position: int) -> int:
    return int.from_bytes(answer[position : position + 2], "big", signed=True)


def _int32(answer: bytes, position: int) -> int:
    return int.from_bytes(answer[position : position + 4], "big", signed=True)


def postgres(port: int, database: str) -> bool:
    """Send a startup packet: the server says R when it lets us in, E while it starts or stops."""
    with socket.create_connection((HOST, port), _PATIENCE) as connection:
        words = b"user\0postgres\0database\0" + database.encode() + b"\0\0"
        packet = struct.pack(">i", 3 << 16) + words
        connection.sendall(struct.pack(">i", len(packet) + 4) + packet)
        return _read(connection, 1) == b"R"


def redis(port: int) -> bool:
    """Say PING: anything but PONG (-LOADING, for one) is a no."""
    with socket.create_connection((HOST, port), _PATIENCE) as connection:
        connection.sendall(b"PING\r\n")
        return _read(connection, 7) == b"+PONG\r\n"


def _read(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = connection.recv(size - len(found))
        if not piece:
            raise EOFError
        found += piece
    return found
