"""Every client of kafka-python is opened here: where the broker is, how it is told who comes, and what its errors mean.

`kafka_bus`, `kafka_scan` and `kafka_topics` open theirs by `opened`, and make ours of what they raise by `told`. Two errors come of it:
`BusGone` for a broker that is away, and `BusRefused` for one that is there and says no; `kafka_cause` finds out which, and why.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, TopicAuthorizationFailedError

from metier_infra.errors import BadSettings, BusGone, BusRefused
from metier_infra.kafka_cause import Cause, cause
from metier_infra.settings import KafkaSettings

C = TypeVar("C")
CONNECTING = {"bootstrap_timeout_ms": 5_000, "reconnect_backoff_max_ms": 1_000}
"""A broker that is away is said to be so after 5 s, and found again within a second of its return (the client's own: 30 s each)."""
_HIDDEN = 29
_DENIED = {
    "TopicAuthorizationFailedError": "the topic",
    "GroupAuthorizationFailedError": "the group",
    "ClusterAuthorizationFailedError": "any topic of it, or the cluster",
}
"""kafka-python's errors for what no access control list allows, by name: one of them comes only as words inside a `KafkaError`."""


def brokers(settings: KafkaSettings) -> list[str]:
    """The brokers' addresses. Raises `BadSettings` when none is set."""
    if not settings.bootstrap:
        raise BadSettings("METIER_KAFKA_BOOTSTRAP is not set: it names the broker, host:port")
    return [place.strip() for place in settings.bootstrap.split(",")]


def arguments(settings: KafkaSettings) -> dict[str, Any]:
    """What kafka-python's clients are told of the broker and of us. Raises `BadSettings` for files that cannot be used."""
    told: dict[str, Any] = {"bootstrap_servers": brokers(settings), "security_protocol": settings.security_protocol}
    if (context := tls(settings)) is not None:
        told["ssl_context"] = context
    if settings.sasl_mechanism is not None and settings.password is not None:
        told |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.username,
            "sasl_plain_password": settings.password.get_secret_value(),
        }
    return told | CONNECTING


def tls(settings: KafkaSettings) -> ssl.SSLContext | None:
    """How TLS is spoken: 1.2 or newer, with the broker's certificate and name checked; None where it is not. Raises `BadSettings`."""
    if not settings.security_protocol.endswith("SSL"):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise BadSettings(f"METIER_KAFKA_CA_FILE: {settings.ca_file} cannot be used: {_short(error)}") from error
    if settings.cert_file is not None:
        try:
            context.load_cert_chain(settings.cert_file, settings.key_file, password=_no_password)
        except (OSError, ssl.SSLError) as error:
            both = f"{settings.cert_file} and {settings.key_file}"
            raise BadSettings(f"METIER_KAFKA_CERT_FILE, METIER_KAFKA_KEY_FILE: {both} cannot be used: {_short(error)}") from error  # fmt: skip
    return context


def _no_password() -> str:
    """Else OpenSSL would ask for one at the terminal."""
    return ""


def _short(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or str(error)


def opened(kind: Callable[..., C], settings: KafkaSettings, **more: object) -> C:
    """A client of this kind. Raises `BusGone` or `BusRefused` with the cause, and `BadSettings`.

    Where a password or a certificate is shown, it is shown once beforehand: kafka-python would show a wrong one again and again for its five seconds.
    """
    known = arguments(settings)
    refuse_strangers(settings)
    try:
        return kind(**known, **more)
    except KafkaError as error:
        raise told(settings, error) from error


def refuse_hidden(settings: KafkaSettings, topics: Sequence[str]) -> None:
    """Raise `BusRefused` where one of these topics is hidden from us. A consumer only sees nothing of it, as if it were not there yet."""
    if not topics:
        return
    admin = opened(KafkaAdminClient, settings, client_id="metier-access")
    try:
        hidden = [str(one["name"]) for one in admin.describe_topics(topics) if one["error_code"] == _HIDDEN]
    finally:
        admin.close()
    if hidden:
        raise told(settings, TopicAuthorizationFailedError(", ".join(hidden)))


def denied(error: Exception) -> bool:
    """Whether an access control list is missing. A producer that met this fails all that comes after, too."""
    return _denied(error) is not None


def _denied(error: Exception) -> str | None:
    said = f"{type(error).__name__}: {error}"
    return next((name for name in _DENIED if name in said), None)


def told(settings: KafkaSettings, error: KafkaError, doing: str = "does not answer") -> BusGone:
    """Our error for one of kafka-python's: what it did not do, and why. Where the client gave up, it asks the broker, which takes seconds at the most."""
    name = _denied(error)
    if name is not None:
        what = str(error).rpartition(f"{name}: ")[2].strip("{}'") if f"{name}: " in str(error) else ""
        thing = _DENIED[name] + (f" {what}" if what else "")
        return BusRefused(f"Kafka at {settings.bootstrap} does not let {_who(settings)} use {thing}: an access control list is missing; `metier acls` tells what each role needs")  # fmt: skip
    found = _cause(settings)
    if found is not None and found.refused:
        return _stranger(settings, found)
    return BusGone(f"Kafka at {settings.bootstrap} {doing}: {found.said if found else error or type(error).__name__}")


def _cause(settings: KafkaSettings) -> Cause | None:
    return cause(settings, brokers(settings), tls(settings))


def refuse_strangers(settings: KafkaSettings) -> None:
    """Raise `BusRefused` where a password or a certificate has to be shown, and the broker does not take ours."""
    if settings.security_protocol == "PLAINTEXT":
        return
    found = _cause(settings)
    if found is not None and found.refused:
        raise _stranger(settings, found)


def _stranger(settings: KafkaSettings, found: Cause) -> BusRefused:
    return BusRefused(f"Kafka at {settings.bootstrap} does not let {_who(settings)} in: {found.said}")


def _who(settings: KafkaSettings) -> str:
    return f"the user {settings.username}" if settings.username else "this client"
