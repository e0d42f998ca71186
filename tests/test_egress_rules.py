"""What the egress proxy's rules allow: tables of spellings, and that nothing outside the list ever gets through.

Not here: sockets; `test_egress` has them.
"""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metier_tools.egress_rules import Target, allowed, forwarded, judge, public, target_of
from metier_tools.profile import Egress

LISTED = Egress.model_validate(
    {"hosts": ("api.example.com", "*.wild.example", "odd.example.com:8443", "10.0.0.1", "2130706433")}
)


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("api.example.com", 80),
        ("api.example.com", 443),
        ("API.Example.COM", 443),
        ("api.example.com.", 443),
        ("a.wild.example", 443),
        ("a.b-c.d_e.wild.example", 80),
        ("odd.example.com", 8443),
    ],
)
def test_a_listed_host_is_allowed_at_its_ports(host: str, port: int) -> None:
    assert allowed(LISTED, host, port)


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("other.example.com", 443),
        ("example.com", 443),
        ("xapi.example.com", 443),
        ("api.example.com.evil.test", 443),
        ("api.example.com..", 443),
        ("api.example.com", 22),
        ("api.example.com", 8443),
        ("odd.example.com", 443),
        ("wild.example", 443),
        (".wild.example", 443),
        ("a..wild.example", 443),
        ("evilwild.example", 443),
        ("a.wild.example", 8080),
        ("*.wild.example", 443),
        ("api.example.com\n", 443),
        ("api.example.com\x00.wild.example", 443),
        ("\uff41pi.example.com", 443),
        (f"{'a' * 64}.wild.example", 443),
        ("a." * 130 + "wild.example", 443),
        ("", 443),
        (".", 443),
    ],
)
def test_what_only_looks_like_a_listed_host_is_not_allowed(host: str, port: int) -> None:
    assert not allowed(LISTED, host, port)


SPELLINGS = [
    "10.0.0.1",
    "10.0.0.1.",
    "2130706433",
    "0x7f.1",
    "0x7F000001",
    "0177.0.0.1",
    "127.1",
    "0x",
    "1",
    "a.wild.example.0x1",
    "[::1]",
    "[::ffff:127.0.0.1]",
]


@pytest.mark.parametrize("host", SPELLINGS)
def test_an_address_is_refused_in_any_spelling_even_when_it_is_listed(host: str) -> None:
    request = h11.Request(method="GET", target=f"http://{host}/", headers=[("Host", "x")])

    assert not allowed(LISTED, host, 80)
    assert judge(LISTED, target_of(request)) == "literal"


def is_listed(host: str, port: int) -> bool:
    """What `LISTED` says, told another way: by labels from the right."""
    labels = host.lower().removesuffix(".").split(".")[::-1]
    if labels[:3] == ["com", "example", "odd"]:
        return len(labels) == 3 and port == 8443
    if labels[:3] == ["com", "example", "api"]:
        return len(labels) == 3 and port in {80, 443}
    return labels[:2] == ["example", "wild"] and len(labels) > 2 and port in {80, 443}


LABELS = st.sampled_from(["api", "odd", "wild", "example", "com", "a", "", "*", "API", "10", "0x1", "a_b", "é", "\n"])
HOSTS = st.one_of(st.text(max_size=40), st.lists(LABELS, max_size=6).map(".".join))
PORTS = st.one_of(st.sampled_from([80, 443, 8443]), st.integers(0, 70000))


@given(HOSTS, PORTS)
@example("odd.example.com", 443)
@example("wild.example", 443)
def test_no_name_outside_the_list_is_ever_allowed(host: str, port: int) -> None:
    assert is_listed(host, port) or not allowed(LISTED, host, port)


@given(st.lists(st.sampled_from([*"@:/?#\\[]%.", "http://", "api.example.com", "evil.test", "80", "a"]), max_size=8))
def test_no_spelling_of_a_url_leads_to_a_name_outside_the_list(parts: list[str]) -> None:
    target = target_of(h11.Request(method="GET", target="http://" + "".join(parts), headers=[("Host", "x")]))

    assert judge(LISTED, target) != "allowed" or (target and is_listed(target.host, target.port))


PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fd00::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "2001:db8::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_of_the_public_network_is_known(address: str) -> None:
    assert not public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "100.128.0.1"])
def test_a_public_address_is_known(address: str) -> None:
    assert public(address)


@pytest.mark.parametrize(("port", "host"), [(80, b"api.example.com"), (8443, b"api.example.com:8443")])
def test_the_host_that_goes_on_is_that_of_the_url(port: int, host: bytes) -> None:
    request = h11.Request(method="GET", target="http://api.example.com/", headers=[("Host", "evil.test")])

    sent = forwarded(request, Target("api.example.com", port, b"/"))

    assert isinstance(sent, h11.Request)
    assert [value for name, value in sent.headers if name == b"host"] == [host]
