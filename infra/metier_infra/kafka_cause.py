"""Why a broker does not let a client in: asked over a plain socket, step by step. `kafka_access` asks when kafka-python gave up.

kafka-python 3.0 says of each of these only that it could not bootstrap in time: a host that is not there, a certificate that is not
trusted, a wrong password. Here a step ends with its own sentence: find the host, connect, agree on TLS, show the password, be answered.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from kafka.net.sasl.scram import ScramClient

from metier_infra.settings import KafkaSettings

STEP_S = 3.0
"""How long a broker may take for one step; seconds."""
LONGEST = 1 << 20
"""Bytes of an answer. What is longer is none of Kafka's."""
_METADATA, _HANDSHAKE, _AUTHENTICATE = (3, 1), (17, 1), (36, 0)
_MECHANISM = 33


@dataclass(frozen=True)
class Cause:
    """A sentence, and whether a person must act: what was refused today is refused tomorrow."""

    said: str
    refused: bool = False


class _Refused(Exception):
    """The broker was there and said no."""


def cause(settings: KafkaSettings, places: Sequence[str], context: ssl.SSLContext | None) -> Cause | None:
    """The first refusal of these brokers, or why the first of them cannot be reached; None where one lets us in."""
    found: list[Cause] = []
    for place in places[:3]:
        one = _ask(settings, place, context)
        if one is None or one.refused:
            return one
        found.append(one)
    return found[0]


def _ask(settings: KafkaSettings, place: str, context: ssl.SSLContext | None) -> Cause | None:
    host, _, port = place.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), STEP_S) as plain:
            return _let_in(settings, _Line(context.wrap_socket(plain, server_hostname=host) if context else plain))
    except ssl.SSLCertVerificationError as error:
        why = error.verify_message.rstrip(".")
        return Cause(f"its certificate is not trusted ({why}): METIER_KAFKA_CA_FILE names the authority, METIER_KAFKA_BOOTSTRAP the host", refused=True)  # fmt: skip
    except ssl.SSLError as error:
        return _of_tls(settings, error)
    except socket.gaierror as error:
        return Cause(f"there is no host {host}: {error.strerror}")
    except (OSError, OverflowError) as error:
        return Cause(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _of_tls(settings: KafkaSettings, error: ssl.SSLError) -> Cause:
    reason = error.reason or str(error)
    if "ALERT" in reason or "CERTIFICATE_REQUIRED" in reason:
        return Cause(f"it does not take this client's certificate ({reason}): METIER_KAFKA_CERT_FILE and METIER_KAFKA_KEY_FILE name it", refused=True)  # fmt: skip
    return _other_protocol(settings, f"no TLS there, {reason}")


def _other_protocol(settings: KafkaSettings, why: str) -> Cause:
    return Cause(f"this listener may speak something else than {settings.security_protocol} ({why}): see METIER_KAFKA_SECURITY_PROTOCOL")  # fmt: skip


def _let_in(settings: KafkaSettings, line: _Line) -> Cause | None:
    try:
        if settings.sasl_mechanism is not None:
            _show_password(settings, line)
        line.ask(_METADATA, struct.pack(">i", 0))
    except _Refused as error:
        return Cause(str(error), refused=True)
    except (EOFError, ConnectionResetError):
        return _other_protocol(settings, "it hung up")
    except (struct.error, UnicodeDecodeError, IndexError):
        return _other_protocol(settings, "it answers what Kafka does not")
    return None


def _show_password(settings: KafkaSettings, line: _Line) -> None:
    mechanism, user = str(settings.sasl_mechanism), str(settings.username)
    word = settings.password.get_secret_value() if settings.password else ""
    code, rest = _code(line.ask(_HANDSHAKE, _text(mechanism)))
    if code == _MECHANISM:
        raise _Refused(f"it takes {', '.join(_texts(rest))} and not {mechanism}: see METIER_KAFKA_SASL_MECHANISM")
    if mechanism == "PLAIN":
        _authenticate(line, f"\0{user}\0{word}".encode(), user)
        return
    scram = ScramClient(user, word, mechanism)
    scram.process_server_first_message(_authenticate(line, scram.first_message(), user))
    _authenticate(line, scram.final_message(), user)


def _authenticate(line: _Line, token: bytes, user: str) -> bytes:
    code, rest = _code(line.ask(_AUTHENTICATE, struct.pack(">i", len(token)) + token))
    if code:
        raise _Refused(f"it does not know the user {user} by this password: see METIER_KAFKA_USERNAME, METIER_KAFKA_PASSWORD and METIER_KAFKA_SASL_MECHANISM")  # fmt: skip
    after = 2 + max(struct.unpack_from(">h", rest)[0], 0)
    (size,) = struct.unpack_from(">i", rest, after)
    return rest[after + 4 : after + 4 + max(size, 0)]


class _Line:
    """Requests of Kafka's protocol, and their answers."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def ask(self, request: tuple[int, int], body: bytes) -> bytes:
        """The answer's body. Raises `EOFError` where the broker hangs up, `struct.error` where it is none."""
        whole = struct.pack(">hhi", *request, 1) + _text("metier-cause") + body
        self._connection.sendall(struct.pack(">i", len(whole)) + whole)
        (size,) = struct.unpack(">i", self._read(4))
        if not 4 <= size <= LONGEST:
            raise struct.error("no answer of Kafka has this size")
        return self._read(size)[4:]

    def _read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            piece = self._connection.recv(size - len(found))
            if not piece:
                raise EOFError
            found += piece
        return found


def _code(answer: bytes) -> tuple[int, bytes]:
    return int(struct.unpack_from(">h", answer)[0]), answer[2:]


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text.encode())) + text.encode()


def _texts(data: bytes) -> list[str]:
    """An array of texts, as far as it can be read."""
    texts: list[str] = []
    at = 4
    with suppress(struct.error):
        while at < len(data):
            (size,) = struct.unpack_from(">h", data, at)
            texts.append(data[at + 2 : at + 2 + size].decode())
            at += 2 + size
    return texts
