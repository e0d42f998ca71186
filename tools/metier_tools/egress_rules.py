"""What the egress proxy lets through, and how: pure functions and tables, without a socket.

`egress` asks them for every request, and does what they say.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

import h11

from metier_tools.profile import Egress

Verdict = Literal[
    "allowed", "bad_request", "literal", "not_listed", "spent", "unresolved", "private_address", "unreachable"
]
Resolve = Callable[[str, int], Sequence[str]]
"""The addresses of a host, as text; raises `OSError` when there are none."""
Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Target:
    """Where a request wants to go; `path` is empty for a tunnel."""

    host: str
    port: int
    path: bytes


_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)|\[.*")
"""A host whose last label is a number is an IPv4 address in one of its many spellings; one in brackets is an IPv6 address."""
_HOST = rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,254})"
_AUTHORITY = re.compile(_HOST + rb":([0-9]{1,5})()")
_URL = re.compile(rb"(?i:http)://" + _HOST + rb"(?::([0-9]{1,5}))?((?:[/?][^#]*)?)")
_OF_ONE_HOP = frozenset((b"connection", b"host", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"))

_ANSWERS: dict[Verdict, tuple[HTTPStatus, str]] = {
    "bad_request": (
        HTTPStatus.BAD_REQUEST,
        "this proxy takes CONNECT host:port and METHOD http://host/path, with one Host header and one length",
    ),
    "literal": (HTTPStatus.FORBIDDEN, "{host} is an address: ask by a name that is in egress.hosts of the profile"),
    "not_listed": (
        HTTPStatus.FORBIDDEN,
        "{host}:{port} is not allowed; the operator allows it by adding it to egress.hosts of the profile",
    ),
    "spent": (
        HTTPStatus.TOO_MANY_REQUESTS,
        "{host}:{port} is not asked: this call has used all its bytes; the operator sets egress.bytes of the profile",
    ),
    "unresolved": (HTTPStatus.BAD_GATEWAY, "{host} has no address: check the name"),
    "private_address": (
        HTTPStatus.FORBIDDEN,
        "{host} leads to an address that is not public; the operator may set egress.private of the profile",
    ),
    "unreachable": (HTTPStatus.BAD_GATEWAY, "{host}:{port} does not answer as a server should: try again later"),
}


def allowed(rules: Egress, host: str, port: int) -> bool:
    """Whether the list has this host and port. An address is never allowed, however it is spelled, even if the list has it."""
    name = host.lower().removesuffix(".")
    if not _NAME.fullmatch(name) or _NUMBER.fullmatch(name):
        return False
    return any(_fits(entry, name, port) for entry in rules.hosts)


def _fits(entry: str, name: str, port: int) -> bool:
    listed, _, number = entry.partition(":")
    if port not in ({int(number)} if number else {80, 443}):
        return False
    return name.endswith(listed[1:]) if listed.startswith("*.") else name == listed


def public(address: str) -> bool:
    """Whether an address is one of the public network. Raises `ValueError` when it is no address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = (ip.ipv4_mapped or ip.sixtofour) if isinstance(ip, ipaddress.IPv6Address) else None
    if inner:
        return public(str(inner))
    local = ip.is_multicast or ip.is_reserved or (isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local)
    return ip.is_global and not local


def target_of(request: h11.Request) -> Target | None:
    """Where a request wants to go; None when that, or where its body ends, can be read in more than one way."""
    names = {name for name, _ in request.headers}
    lengths = len(names & {b"content-length", b"transfer-encoding"})
    tunnel = request.method == b"CONNECT"
    found = (_AUTHORITY if tunnel else _URL).fullmatch(request.target)
    if not found or lengths > (0 if tunnel else 1):
        return None
    host, port, path = found[1].decode().lower(), int(found[2] or 80), found[3]
    if not 0 < port <= 65535:
        return None
    return Target(host, port, b"" if tunnel else path if path.startswith(b"/") else b"/" + path)


def judge(rules: Egress, target: Target | None) -> Verdict:
    """What is to be said of a request before any name is looked up."""
    if target is None:
        return "bad_request"
    if _NUMBER.fullmatch(target.host.removesuffix(".")):
        return "literal"
    return "allowed" if allowed(rules, target.host, target.port) else "not_listed"


def look_up(rules: Egress, target: Target, resolve: Resolve) -> tuple[Verdict, Sequence[str]]:
    """Ask once for the addresses of an allowed host: one that is not public spoils them all."""
    try:
        found = resolve(target.host, target.port)
        is_public = [public(address) for address in found]
    except (OSError, ValueError):
        return "unresolved", ()
    if not found:
        return "unresolved", ()
    return ("allowed", found) if rules.private or all(is_public) else ("private_address", ())


def answer_to(verdict: Verdict, host: str, port: int) -> bytes:
    """A whole HTTP response that says why not, in one sentence."""
    status, sentence = _ANSWERS[verdict]
    body = sentence.format(host=host, port=port) + "\n"
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}"
    return f"{head}\r\nConnection: close\r\n\r\n{body}".encode()


def kept(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers that go on: not those for this hop, nor those for a proxy. A length beside a transfer encoding is void."""
    every = list(headers)
    named = {word.strip().lower() for name, value in every if name == b"connection" for word in value.split(b",")}
    chunked = any(name == b"transfer-encoding" for name, _ in every)
    dropped = {*_OF_ONE_HOP, *named, b"content-length"} if chunked else {*_OF_ONE_HOP, *named} - {b"content-length"}
    return [(name, value) for name, value in every if name not in dropped and not name.startswith(b"proxy-")]


def forwarded(event: h11.Event, target: Target) -> h11.Event:
    """A part of a message as it is written for the other side."""
    if isinstance(event, h11.Request):
        host = target.host if target.port == 80 else f"{target.host}:{target.port}"
        chunked = [(name, b"chunked") for name, _ in event.headers if name == b"transfer-encoding"]
        headers = [(b"host", host.encode()), *kept(event.headers), *chunked, (b"connection", b"close")]
        return h11.Request(method=event.method, target=target.path, headers=headers)
    if isinstance(event, h11.Response):
        headers = [*kept(event.headers), (b"connection", b"close")]
        return h11.Response(status_code=event.status_code, reason=event.reason, headers=headers)
    if isinstance(event, h11.InformationalResponse):
        return h11.InformationalResponse(status_code=event.status_code, headers=kept(event.headers))
    return h11.EndOfMessage() if isinstance(event, h11.EndOfMessage) else event
