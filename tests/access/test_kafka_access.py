"""How a client comes in at a broker that asks who it is, and what it is told where it may not: the cause, never a bare time-out.

Not here: which access each role needs, in `test_kafka_acls`.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from kafka.admin import KafkaAdminClient, ScramMechanism, UserScramCredentialUpsertion

from metier_infra import kafka_access, kafka_bus, kafka_topics
from metier_infra.bus import Consumption
from metier_infra.errors import BadSettings, BusGone, BusRefused
from metier_infra.events import EVENTS_TOPIC, RUNS
from metier_infra.kafka_acls import Access
from metier_infra.kafka_bus import KafkaBus
from metier_infra.kafka_topics import Topic
from metier_infra.messages import Delivery, Record
from metier_infra.poison import Rule, doubted
from metier_infra.settings import KafkaSettings, load, refuse_unknown

from . import lists
from .certificates import Authority
from .conftest import Secured

HUNG = 60
Corner = Callable[..., KafkaSettings]


def allow(secured: Secured, user: str, name: str, operation: str, kind: Literal["topic", "group"] = "topic") -> None:
    """Let a user do one thing."""
    admin = secured.admin()
    lists.add(admin, lists.entries([Access(user, f"User:{user}", kind, name, "literal", [operation])]))
    admin.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """kafka-python gives up soon, where it is to give up."""
    monkeypatch.setitem(kafka_access.CONNECTING, "bootstrap_timeout_ms", 200)


def enter(settings: KafkaSettings) -> None:
    """Come in, and go."""
    kafka_access.opened(KafkaAdminClient, settings).close()


# ---- settings


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"SECURITY_PROTOCOL": "SASL_SSL"}, "METIER_KAFKA_SASL_MECHANISM is not set: METIER_KAFKA_SECURITY_PROTOCOL=SASL_SSL needs"),
        ({"SECURITY_PROTOCOL": "SASL_SSL", "SASL_MECHANISM": "PLAIN", "USERNAME": "u"}, "METIER_KAFKA_PASSWORD is not set"),
        ({"SECURITY_PROTOCOL": "SASL_SSL", "SASL_MECHANISM": "PLAIN", "USERNAME": "u", "PASSWORD": ""}, "METIER_KAFKA_PASSWORD is not set"),
        ({"USERNAME": "u"}, "METIER_KAFKA_USERNAME is set, and METIER_KAFKA_SECURITY_PROTOCOL=PLAINTEXT shows nobody a password: set that to SASL_SSL"),
        ({"SECURITY_PROTOCOL": "SSL", "PASSWORD": "hunter2"}, "METIER_KAFKA_PASSWORD is set, and METIER_KAFKA_SECURITY_PROTOCOL=SSL shows"),
        ({"CA_FILE": "/ca.pem"}, "METIER_KAFKA_CA_FILE is set, and METIER_KAFKA_SECURITY_PROTOCOL=PLAINTEXT uses no certificate"),
        ({"SECURITY_PROTOCOL": "SSL", "CERT_FILE": "/c.pem"}, "METIER_KAFKA_CERT_FILE and METIER_KAFKA_KEY_FILE belong together"),
        ({"SECURITY_PROTOCOL": "TLS"}, "METIER_KAFKA_SECURITY_PROTOCOL: Input should be 'PLAINTEXT', 'SSL'"),
        ({"SASL_MECHANISM": "GSSAPI"}, "METIER_KAFKA_SASL_MECHANISM: Input should be 'PLAIN'"),
        ({"BOOTSTRAP": "nohost"}, "METIER_KAFKA_BOOTSTRAP: 'nohost' names no broker: set host:port"),
        ({"BOOTSTRAP": "http://broker"}, "METIER_KAFKA_BOOTSTRAP: 'http://broker' names no broker"),
        ({"BOOTSTRAP": "a..b:9092"}, "METIER_KAFKA_BOOTSTRAP: 'a..b:9092' names no broker"),
        ({"BOOTSTRAP": "a:9092,b"}, "METIER_KAFKA_BOOTSTRAP: 'b' names no broker"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], sentence: str
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"METIER_KAFKA_{name}", value)
    with pytest.raises(BadSettings) as refused:
        load(KafkaSettings)
    assert str(refused.value).startswith(sentence)
    assert "hunter2" not in f"{refused.value!r} {refused.value.__cause__}"


def test_brokers_are_named_by_name_or_address_and_a_password_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"BOOTSTRAP": "kafka-1.example.org:9092, [2001:db8::1]:9093,10.0.0.1:9094", "SECURITY_PROTOCOL": "SASL_SSL",
             "SASL_MECHANISM": "SCRAM-SHA-512", "USERNAME": "metier", "PASSWORD": "hunter2"}  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(f"METIER_KAFKA_{name}", value)
    refuse_unknown()
    settings = load(KafkaSettings)
    assert kafka_access.brokers(settings) == ["kafka-1.example.org:9092", "[2001:db8::1]:9093", "10.0.0.1:9094"]
    assert "hunter2" not in repr(settings)
    told = kafka_access.arguments(settings)
    assert (told["sasl_plain_username"], told["sasl_plain_password"]) == ("metier", "hunter2")
    assert told["ssl_context"].check_hostname


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "one")
    (certificate, _), (_, other_key) = authority.certificate("a"), authority.certificate("b")
    settings = load(KafkaSettings).model_copy(update={"bootstrap": "127.0.0.1:9", "security_protocol": "SSL"})
    for update, sentence in (
        ({"ca_file": tmp_path / "none.pem"}, "METIER_KAFKA_CA_FILE: .*none.pem cannot be used: No such file"),
        ({"ca_file": other_key}, "METIER_KAFKA_CA_FILE: .* cannot be used"),
        ({"cert_file": certificate, "key_file": other_key}, "METIER_KAFKA_KEY_FILE: .* cannot be used: .*MISMATCH"),
    ):
        with pytest.raises(BadSettings, match=sentence):
            enter(settings.model_copy(update=update))


# ---- coming in


@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_password_lets_in_with_and_without_tls(secured: Secured, protocol: str, mechanism: str) -> None:
    ca = secured.authority.ca if protocol == "SASL_SSL" else None
    enter(secured.settings(security_protocol=protocol, sasl_mechanism=mechanism, ca_file=ca))


def test_a_certificate_lets_in(secured: Secured) -> None:
    enter(secured.by_certificate("admin"))


def test_records_travel_over_tls_both_ways(secured: Secured, corner: Corner) -> None:
    asyncio.run(_there_and_back(corner(security_protocol="SASL_SSL", ca_file=secured.authority.ca)))


async def _there_and_back(settings: KafkaSettings) -> None:
    kafka_topics.apply(settings, [Topic(RUNS, 1, 1)])
    bus, stop = KafkaBus(settings, client="metier-tests"), asyncio.Event()
    seen: list[bytes] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(bytes(delivery.value))
        stop.set()

    await bus.publish(Record(RUNS, b"k", b"over TLS"))
    async with asyncio.timeout(HUNG):
        await bus.consume(Consumption([RUNS], "g"), handle, stop)
    await bus.close()
    assert seen == [b"over TLS"]


# ---- not coming in


def test_a_wrong_password_is_told_as_such(secured: Secured) -> None:
    for mechanism in ("PLAIN", "SCRAM-SHA-256"):
        with pytest.raises(BusRefused, match="does not let the user admin in: it does not know the user admin by this password") as refused:  # fmt: skip
            enter(secured.settings("admin", "wrong-word", sasl_mechanism=mechanism))
        assert "wrong-word" not in str(refused.value)


def test_of_several_brokers_one_that_refuses_is_told_and_one_that_lets_in_is_enough(secured: Secured) -> None:
    there = secured.settings("admin", "wrong-word")
    both = there.model_copy(update={"bootstrap": f"127.0.0.1:9,{there.bootstrap}"})
    with pytest.raises(BusRefused, match="does not know the user admin"):
        enter(both)
    enter(secured.settings().model_copy(update={"bootstrap": both.bootstrap}))


def test_a_mechanism_that_the_broker_does_not_take_is_told_with_those_that_it_does(secured: Secured) -> None:
    with pytest.raises(
        BusRefused, match=r"it takes .*SCRAM-SHA-512.* and not OAUTHBEARER: see METIER_KAFKA_SASL_MECHANISM"
    ):
        enter(secured.settings(sasl_mechanism="OAUTHBEARER"))


def test_a_wrong_password_is_shown_once_and_not_for_five_seconds_on_end(
    secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kafka-python, which would try again and again, is not even started: it would wait here for longer than a test may take."""
    monkeypatch.setitem(kafka_access.CONNECTING, "bootstrap_timeout_ms", 3_600_000)
    with pytest.raises(BusRefused):
        enter(secured.settings("admin", "wrong-word"))


def test_an_unknown_user_is_told_as_a_wrong_password_is(secured: Secured) -> None:
    with pytest.raises(BusRefused, match="does not know the user nobody by this password"):
        enter(secured.settings("nobody", "x"))


def test_a_broker_that_shows_a_certificate_of_another_authority_is_not_believed(
    secured: Secured, tmp_path: Path
) -> None:
    other = Authority(tmp_path)
    with pytest.raises(BusRefused, match=r"its certificate is not trusted \(.*\): METIER_KAFKA_CA_FILE names"):
        enter(secured.settings(security_protocol="SASL_SSL", ca_file=other.ca))


def test_a_broker_under_a_name_that_its_certificate_does_not_bear_is_not_believed(secured: Secured) -> None:
    settings = secured.settings(security_protocol="SASL_SSL", ca_file=secured.authority.ca)
    elsewhere = settings.model_copy(update={"bootstrap": str(settings.bootstrap).replace("127.0.0.1", "localhost")})
    with pytest.raises(BusRefused, match=r"not trusted \(Hostname mismatch"):
        enter(elsewhere)


def test_a_client_without_the_certificate_that_is_asked_for_is_told_so(secured: Secured, tmp_path: Path) -> None:
    stranger = Authority(tmp_path).certificate("admin")
    for pair in ((None, None), stranger):
        with pytest.raises(BusRefused, match="does not take this client's certificate"):
            enter(secured.by_certificate("admin", cert_file=pair[0], key_file=pair[1]))


@pytest.mark.parametrize(
    ("at", "protocol"), [("SSL", "PLAINTEXT"), ("SASL_PLAINTEXT", "PLAINTEXT"), ("SASL_PLAINTEXT", "SSL")]
)
@pytest.mark.usefixtures("hasty")
def test_another_protocol_than_the_listeners_is_guessed(secured: Secured, at: str, protocol: str) -> None:
    settings = load(KafkaSettings).model_copy(
        update={"bootstrap": secured.places[at], "security_protocol": protocol,
                "ca_file": secured.authority.ca if protocol == "SSL" else None}
    )  # fmt: skip
    with pytest.raises(BusGone, match=f"may speak something else than {protocol}.*METIER_KAFKA_SECURITY_PROTOCOL"):
        enter(settings)


@contextmanager
def answering(answer: bytes) -> Generator[str]:
    """A server that says the same to everybody, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1000)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\1x", b"\xff" * 64, b""])
@pytest.mark.usefixtures("hasty")
def test_what_is_no_broker_is_told_as_such(answer: bytes) -> None:
    with answering(answer) as place, pytest.raises(BusGone, match="may speak something else than PLAINTEXT"):
        enter(load(KafkaSettings).model_copy(update={"bootstrap": place}))


@pytest.mark.usefixtures("hasty")
def test_a_host_that_is_not_there_and_a_port_where_nobody_listens_are_told_apart() -> None:
    for place, why in (("[fe80::1%dead]:9092", "there is no host fe80::1%dead"), ("127.0.0.1:9", "Connection refused")):  # fmt: skip
        with pytest.raises(BusGone, match=re.escape(f"Kafka at {place} does not answer: {why}")):
            enter(load(KafkaSettings).model_copy(update={"bootstrap": place}))


# ---- let in, and not allowed


async def test_a_record_that_only_waits_for_a_person_is_never_taken_for_poison() -> None:
    bad, good = Delivery("t", 0, 0, None, b"bad", ()), Delivery("t", 0, 1, None, b"good", ())

    async def handle(delivery: Delivery) -> None:
        if delivery is bad:
            raise BusRefused("no list allows it")

    layer = doubted(handle, Rule(failures=1, after_s=0.0))
    for _ in range(5):
        with pytest.raises(BusRefused):
            await layer(bad)
        await layer(good)


async def test_a_record_for_a_topic_that_is_not_allowed_is_told_with_the_topic_and_harms_no_other(
    secured: Secured, corner: Corner
) -> None:
    # Given a user who may write one topic and only see another
    secured.know("writer")
    settings = corner("writer", "writer")
    kafka_topics.apply(corner(), [Topic(RUNS, 1, 1), Topic(EVENTS_TOPIC, 1, 1)])
    allow(secured, "writer", settings.prefix + RUNS, "WRITE")
    allow(secured, "writer", settings.prefix + EVENTS_TOPIC, "DESCRIBE")
    bus = KafkaBus(settings, client="metier-tests")
    # When it writes both at once
    fine, not_allowed, fine_too = await asyncio.gather(
        bus.publish(Record(RUNS, b"a", b"1")), bus.publish(Record(EVENTS_TOPIC, b"a", b"2")),
        bus.publish(Record(RUNS, b"b", b"3")), return_exceptions=True,
    )  # fmt: skip
    # Then only the other topic's record is refused, by its topic's name
    assert (fine, fine_too) == (None, None)
    assert isinstance(not_allowed, BusRefused)
    assert f"does not let the user writer use the topic {settings.prefix}{EVENTS_TOPIC}:" in str(not_allowed)
    # And the bus goes on, also with that topic once it is allowed
    await bus.publish(Record(RUNS, b"a", b"4"))
    allow(secured, "writer", settings.prefix + EVENTS_TOPIC, "WRITE")
    await bus.publish(Record(EVENTS_TOPIC, b"a", b"5"))
    await bus.close()


async def test_a_user_who_may_write_nothing_at_all_is_told_so(secured: Secured, corner: Corner) -> None:
    secured.know("silent")
    settings = corner("silent", "silent")
    kafka_topics.apply(corner(), [Topic(RUNS, 1, 1)])
    allow(secured, "silent", settings.prefix + RUNS, "DESCRIBE")
    bus = KafkaBus(settings, client="metier-tests")
    with pytest.raises(BusRefused, match="does not let the user silent use any topic of it, or the cluster"):
        await bus.publish(Record(RUNS, b"a", b"1"))
    await bus.close()


async def test_a_consumer_is_told_which_topic_or_group_it_may_not_have(secured: Secured, corner: Corner) -> None:
    secured.know("reader")
    settings = corner("reader", "reader")
    kafka_topics.apply(corner(), [Topic(RUNS, 1, 1)])
    topic = settings.prefix + RUNS
    # A hidden topic: without this, the consumer would wait for it to appear, for ever and silently
    assert f"use the topic {topic}:" in await refused(settings, None)
    assert f"use the topic {topic}:" in await refused(settings, "g")
    allow(secured, "reader", topic, "DESCRIBE")
    assert f"use the group {settings.prefix}g:" in await refused(settings, "g")
    allow(secured, "reader", settings.prefix + "g", "READ", kind="group")
    assert f"use the topic {topic}:" in await refused(settings, "g")
    assert f"use the topic {topic}:" in await refused(settings, None)


async def test_a_consumer_to_which_nothing_comes_hears_that_its_password_is_another_now(
    secured: Secured, corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a consumer that was let in, and whose connection stays
    monkeypatch.setattr(kafka_bus, "PROVE_S", 0.2)
    secured.know("idle")
    settings = corner("idle", "idle")
    kafka_topics.apply(corner(), [Topic(RUNS, 1, 1)])
    allow(secured, "idle", settings.prefix + RUNS, "READ")
    allow(secured, "idle", settings.prefix + "g", "READ", kind="group")
    bus, ready = KafkaBus(settings, client="metier-tests"), asyncio.Event()
    what = Consumption([RUNS], "g", ready=ready.set)
    consuming = asyncio.create_task(bus.consume(what, unread, asyncio.Event()))
    async with asyncio.timeout(HUNG):
        await ready.wait()
        # When its password is changed
        admin = secured.admin()
        admin.alter_user_scram_credentials([UserScramCredentialUpsertion("idle", ScramMechanism.SCRAM_SHA_256, "new")])
        admin.close()
        # Then it says so, though nothing came
        with pytest.raises(BusRefused, match="does not let the user idle in"):
            await consuming
    await bus.close()


async def unread(delivery: Delivery) -> None:
    raise AssertionError(delivery)


async def refused(settings: KafkaSettings, group: str | None) -> str:
    """What a consumption was ended by."""
    bus = KafkaBus(settings, client="metier-tests")
    async with asyncio.timeout(HUNG):
        with pytest.raises(BusRefused) as told:
            await bus.consume(Consumption([RUNS], group), unread, asyncio.Event())
    await bus.close()
    return str(told.value)
