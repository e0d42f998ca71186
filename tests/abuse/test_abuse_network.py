"""Network: there is none, whatever family, protocol or trick asks for it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from metier_tools.sandbox import Outcome

FAMILIES = """
import errno, json, socket
seen = {}
for family in range(-1, 70):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET, socket.SOCK_RDM):
        try: socket.socket(family if family >= 0 else 1 << 16, kind).close()
        except OSError as error: seen.setdefault(family, set()).add(errno.errorcode[error.errno])
        else: seen.setdefault(family, set()).add('allowed')
print(json.dumps({family: sorted(answers) for family, answers in seen.items()}))
"""


def test_no_family_of_sockets_is_there_but_unix_and_internet(python: Callable[..., Outcome]) -> None:
    seen = {int(family): answers for family, answers in json.loads(python(FAMILIES).stdout).items()}
    refused = {family for family, answers in seen.items() if answers == ["EPERM"]}
    assert set(seen) - refused <= {1, 2, 10}


@pytest.mark.parametrize("family", ["AF_VSOCK", "AF_ALG", "AF_NETLINK", "AF_PACKET", "AF_TIPC", "AF_BLUETOOTH", "AF_KEY", "AF_CAN", "AF_RDS", "AF_QIPCRTR"])  # fmt: skip
def test_a_family_that_leads_out_of_the_namespace_is_not_permitted(refusal: Callable[[str], str], family: str) -> None:
    numbers = {"AF_VSOCK": 40, "AF_ALG": 38, "AF_NETLINK": 16, "AF_PACKET": 17, "AF_TIPC": 30, "AF_BLUETOOTH": 31, "AF_KEY": 15, "AF_CAN": 29, "AF_RDS": 21, "AF_QIPCRTR": 42}  # fmt: skip
    for kind in ("SOCK_STREAM", "SOCK_DGRAM", "SOCK_RAW", "SOCK_SEQPACKET"):
        assert refusal(f"socket.socket({numbers[family]}, socket.{kind})") == "EPERM"


def test_a_family_cannot_be_hidden_in_the_high_half_of_its_register(refusal: Callable[[str], str]) -> None:
    number = "{'x86_64': 41, 'aarch64': 198}[os.uname().machine]"
    assert refusal(f"syscall({number}, 1 << 32 | 40, 1, 0)") == "EPERM"
    assert refusal(f"syscall({number}, 1 << 32 | 1, 1, 0)") == "EPERM"


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_raw_sockets_are_refused(refusal: Callable[[str], str], family: str) -> None:
    for protocol in (1, 6, 58, 255):
        assert refusal(f"socket.socket(socket.{family}, socket.SOCK_RAW, {protocol})") in {"EPERM", "ENETUNREACH"}


EXOTIC = {
    "SCTP": "socket.SOCK_STREAM, 132",
    "DCCP": "6, 33",
    "MPTCP": "socket.SOCK_STREAM, 262",
    "UDP-Lite": "socket.SOCK_DGRAM, 136",
    "L2TP": "socket.SOCK_DGRAM, 115",
    "ping": "socket.SOCK_DGRAM, 1",
}


@pytest.mark.parametrize("protocol", EXOTIC)
def test_no_protocol_of_the_kernel_is_there_that_nobody_needs(refusal: Callable[[str], str], protocol: str) -> None:
    assert refusal(f"socket.socket(socket.AF_INET, {EXOTIC[protocol]})") in {"EPERM", "ENETUNREACH"}


PLACES = [
    "1.1.1.1",
    "169.254.169.254",
    "172.17.0.1",
    "10.0.0.1",
    "192.168.1.1",
    "0.1.2.3",
    "224.0.0.1",
    "255.255.255.255",
]


@pytest.mark.parametrize("place", PLACES)
def test_no_address_is_reachable(refusal: Callable[[str], str], place: str) -> None:
    assert refusal(f"socket.socket().connect(({place!r}, 80))") == "ENETUNREACH"
    assert refusal(f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ({place!r}, 53))") in {
        "ENETUNREACH",
        "EACCES",
    }


@pytest.mark.parametrize("place", ["2606:4700::1111", "fe80::1", "::ffff:1.1.1.1", "ff02::1"])
def test_no_address_of_the_new_protocol_is_reachable_either(refusal: Callable[[str], str], place: str) -> None:
    assert refusal(f"socket.socket(socket.AF_INET6).connect(({place!r}, 80))") in {
        "ENETUNREACH",
        "EADDRNOTAVAIL",
        "EINVAL",
    }


def test_no_name_is_resolved(python: Callable[..., Outcome]) -> None:
    outcome = python(
        "import socket\ntry: print(socket.getaddrinfo('example.com', 80))\nexcept socket.gaierror as error: print(error.errno)"
    )
    assert outcome.stdout in {"-3\n", "-2\n"}


def test_there_is_no_device_but_the_loopback(python: Callable[..., Outcome]) -> None:
    assert python("import os; print(os.listdir('/sys/class/net'))").stdout == "['lo']\n"
    assert (
        python("print(len(open('/proc/net/route').readlines()), len(open('/proc/net/arp').readlines()))").stdout
        == "1 1\n"
    )


def test_nobody_else_is_on_the_loopback_or_among_the_abstract_sockets(python: Callable[..., Outcome]) -> None:
    seen = python(
        "print([len(open(f'/proc/net/{kind}').readlines()) for kind in ('tcp', 'tcp6', 'udp', 'udp6', 'unix', 'raw', 'packet')])"
    )
    assert seen.stdout == "[1, 1, 1, 1, 1, 1, 1]\n"


def test_an_abstract_socket_and_a_listener_end_with_their_call(python: Callable[..., Outcome]) -> None:
    listen = (
        "import os, socket, time\nfor family, place in ((1, '\\0metier'), (2, ('127.0.0.1', 4242)), (1, '/tmp/s')):\n"
        "    if os.fork() == 0:\n        s = socket.socket(family); s.bind(place); s.listen(); time.sleep(600)\ntime.sleep(0.2)"
    )
    assert python(listen).status == "ok"
    connect = "import socket\nfor family, place in ((1, '\\0metier'), (2, ('127.0.0.1', 4242)), (1, '/tmp/s')):\n    try: socket.socket(family).connect(place); print('connected')\n    except OSError: print('nobody')"
    assert python(connect).stdout == "nobody\n" * 3


def test_privileged_options_of_sockets_are_refused(refusal: Callable[[str], str]) -> None:
    inet = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
    assert refusal(inet + "s.setsockopt(socket.SOL_SOCKET, 33, 1 << 20)") in {"EPERM", "ENETUNREACH"}
    assert refusal(inet + "s.setsockopt(socket.IPPROTO_IP, 19, 1)") in {"EPERM", "ENETUNREACH"}
    assert refusal(inet + "s.setsockopt(socket.IPPROTO_IP, 64, bytes(84))") in {"EPERM", "ENOPROTOOPT", "ENETUNREACH"}
