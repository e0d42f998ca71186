"""The way out of a sandbox: what the proxy does for good clients and with hostile ones, and the relay that leads to it.

Not here: the rules as tables, which `test_egress_rules` has; the mount of the socket and the relay in a container; that needs an engine.
"""

from __future__ import annotations

import select
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from metier_tools import egress, egress_call
from metier_tools.egress import EgressProxy
from metier_tools.inside import loopback
from metier_tools.profile import Attempt, Egress

OPENED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Server(socketserver.ThreadingTCPServer):
    """A server on 127.0.0.1; `seen` is what it was asked."""

    daemon_threads, block_on_close, request_queue_size = True, False, 64

    def __init__(self, handler: type[socketserver.BaseRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.seen = list[str]()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are cut are what these tests are about."""


class Web(BaseHTTPRequestHandler):
    """Tells what it was sent, chunked at /chunked; /endless never ends, /silent ends without an answer."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.seen.append(f"{self.requestline}\n{self.headers}".lower())
        body = b"you sent " + self.sent()
        if self.path == "/patient" and select.select([self.connection], [], [], 0.1)[0]:
            body = b"you have left"
        if self.path == "/silent":
            self.close_connection = True
            return
        self.send_response(200)
        chunked, length = self.path == "/chunked", 10**12 if self.path == "/endless" else len(body)
        self.send_header(*("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(length)))
        self.send_header("Proxy-Thing", "x")
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body)
        while self.path == "/endless":
            self.wfile.write(b"x" * 4096)

    def do_POST(self) -> None:
        self.do_GET()

    def sent(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = list[bytes]()
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size + 2)[:-2])
        return b"".join(parts)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class Echo(socketserver.BaseRequestHandler):
    """Sends all back at once, and a word when the client has ended its side."""

    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)
        self.request.sendall(b"bye")


@contextmanager
def served(handler: type[socketserver.BaseRequestHandler]) -> Generator[Server]:
    with Server(handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def web() -> Iterator[Server]:
    with served(Web) as server:
        yield server


@pytest.fixture
def echo() -> Iterator[Server]:
    with served(Echo) as server:
        yield server


class Bench:
    """A place for proxies and their clients. `asked`: the names that were looked up; `addresses`: what is answered, each time."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.path, self.stack = folder / "proxy", stack
        self.asked = list[str]()
        self.addresses: Callable[[], Sequence[str]] = lambda: ["127.0.0.1"]

    def resolve(self, host: str, port: int) -> Sequence[str]:
        assert port
        self.asked.append(host)
        return self.addresses()

    def open(self, rules: Egress, *, idle_s: float = 60.0, connections: int = 32) -> EgressProxy:
        proxy = EgressProxy(self.path, rules, resolve=self.resolve, idle_s=idle_s, connections=connections)
        self.stack.callback(proxy.close)
        return proxy

    def connect(self, sent: str) -> socket.socket:
        client = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        client.settimeout(20)
        client.connect(str(self.path))
        with suppress(BrokenPipeError):
            client.sendall(sent.encode())
        return client

    def ask(self, sent: str) -> str:
        return rest_of(self.connect(sent)).decode()

    def tunnel(self, port: int) -> socket.socket:
        client = self.connect(f"CONNECT api.example.test:{port} HTTP/1.1\r\nHost: x\r\n\r\n")
        assert exactly(client, len(OPENED)) == OPENED
        return client


def rest_of(client: socket.socket) -> bytes:
    """All until the end; a reset is an end too."""
    parts = list[bytes]()
    with suppress(ConnectionResetError):
        while data := client.recv(65536):
            parts.append(data)
    return b"".join(parts)


def exactly(client: socket.socket, size: int) -> bytes:
    with client.makefile("rb") as stream:
        return stream.read(size)


def rules(*ports: int, private: bool = True, bytes: int = 10**8) -> Egress:
    return Egress(hosts=tuple(f"api.example.test:{port}" for port in ports), private=private, bytes=bytes)


def at_any_port(*hosts: str) -> Egress:
    return Egress(hosts=hosts, private=True, bytes=10**8)


def get(port: int, path: str = "/x", more: str = "") -> str:
    return f"GET http://api.example.test:{port}{path} HTTP/1.1\r\nHost: other.test\r\n{more}\r\n"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path, stack)


def until(ready: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not ready() and time.monotonic() < end:
        time.sleep(0.01)
    return ready()


def threads() -> int:
    return sum(thread.name == "egress" for thread in threading.enumerate())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_request_goes_on_with_the_host_of_its_url_and_without_what_is_for_proxies(bench: Bench, web: Server) -> None:
    proxy = bench.open(rules(web.port))
    answer = bench.ask(
        get(
            web.port,
            "/x?y=1",
            "Proxy-Authorization: s\r\nConnection: x-hop\r\nX-Hop: 1\r\nUpgrade: h2c\r\nX-Own: 2\r\n",
        )
    )

    head, _, body = answer.partition("\r\n\r\n")
    assert (head.split("\r\n")[0], body) == ("HTTP/1.1 200 OK", "you sent ")
    assert "connection: close" in head.lower()
    assert "proxy-thing" not in head.lower()
    assert web.seen[0].split("\n")[0] == "get /x?y=1 http/1.1"
    headers = set(filter(None, web.seen[0].split("\n")[1:]))
    assert headers == {f"host: api.example.test:{web.port}", "x-own: 2", "connection: close"}
    (attempt,) = proxy.report()
    assert (attempt.host, attempt.port, attempt.verdict) == ("api.example.test", web.port, "allowed")
    assert attempt.bytes > len(answer)


@pytest.mark.parametrize("path", ["/x", "/chunked"])
@pytest.mark.parametrize("framing", ["Content-Length: 200000\r\n\r\n{}", "Transfer-Encoding: chunked\r\n\r\n30d40\r\n{}\r\n0\r\n\r\n"])  # fmt: skip
def test_a_body_goes_on_in_whichever_way_it_is_framed(bench: Bench, web: Server, framing: str, path: str) -> None:
    bench.open(rules(web.port))
    head = f"POST http://api.example.test:{web.port}{path} HTTP/1.1\r\nHost: x\r\n"

    with HTTPResponse(bench.connect(head + framing.format("b" * 200_000)), method="POST") as answer:
        answer.begin()
        assert answer.read() == b"you sent " + b"b" * 200_000


def test_a_tunnel_carries_bytes_both_ways_and_passes_on_the_end_of_one_side(bench: Bench, echo: Server) -> None:
    proxy = bench.open(rules(echo.port))
    client = bench.connect(f"CONNECT api.example.test:{echo.port} HTTP/1.1\r\nHost: x\r\n\r\nearly")
    sender = threading.Thread(target=client.sendall, args=(b"z" * 1_000_000,))
    sender.start()

    assert exactly(client, len(OPENED) + 5 + 1_000_000) == OPENED + b"early" + b"z" * 1_000_000
    sender.join()
    client.shutdown(socket.SHUT_WR)
    assert rest_of(client) == b"bye"
    assert [attempt.verdict for attempt in proxy.report()] == ["allowed"]
    assert proxy.report()[0].bytes > 2_000_010


def test_a_host_outside_the_list_is_refused_in_a_sentence_and_never_looked_up(bench: Bench, web: Server) -> None:
    proxy = bench.open(rules(web.port))

    with capture_logs() as logs:
        answer = bench.ask(
            "POST http://evil.test/secret?path HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123456789"
        )

    assert answer.startswith("HTTP/1.1 403 Forbidden\r\n")
    assert answer.endswith("evil.test:80 is not allowed; the operator allows it by adding it to egress.hosts of the profile\n")  # fmt: skip
    assert (bench.asked, web.seen) == ([], [])
    assert [(one.host, one.port, one.verdict) for one in proxy.report()] == [("evil.test", 80, "not_listed")]
    assert [(one["host"], one["port"], one["reason"], one["action"]) for one in logs] == [("evil.test", 80, "not_listed", "refuse")]  # fmt: skip
    assert "secret" not in str(logs)


HOST = "Host: x\r\n"
BAD = {
    "https in the clear": f"GET https://api.example.test/ HTTP/1.1\r\n{HOST}\r\n",
    "origin form": f"GET /x HTTP/1.1\r\n{HOST}\r\n",
    "user in the URL": f"GET http://api.example.test@evil.test/ HTTP/1.1\r\n{HOST}\r\n",
    "backslash": f"GET http://api.example.test\\@evil.test/ HTTP/1.1\r\n{HOST}\r\n",
    "fragment": f"GET http://api.example.test#@evil.test/ HTTP/1.1\r\n{HOST}\r\n",
    "escaped host": f"GET http://api%2eexample.test/ HTTP/1.1\r\n{HOST}\r\n",
    "no host in the URL": f"GET http:///x HTTP/1.1\r\n{HOST}\r\n",
    "port out of range": f"GET http://api.example.test:70000/ HTTP/1.1\r\n{HOST}\r\n",
    "no Host": "GET http://api.example.test/ HTTP/1.1\r\n\r\n",
    "two Hosts": f"GET http://api.example.test/ HTTP/1.1\r\n{HOST}{HOST}\r\n",
    "space in the target": f"GET http://api.example.test/a b HTTP/1.1\r\n{HOST}\r\n",
    "bare return in a header": f"GET http://api.example.test/ HTTP/1.1\r\n{HOST}A: b\rC: d\r\n\r\n",
    "zero in a header": f"GET http://api.example.test/ HTTP/1.1\r\n{HOST}A: b\0\r\n\r\n",
    "space before the colon": f"GET http://api.example.test/ HTTP/1.1\r\n{HOST}A : b\r\n\r\n",
    "length and encoding": f"POST http://api.example.test/ HTTP/1.1\r\n{HOST}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": f"POST http://api.example.test/ HTTP/1.1\r\n{HOST}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "odd encoding": f"POST http://api.example.test/ HTTP/1.1\r\n{HOST}Transfer-Encoding: xchunked\r\n\r\n",
    "tunnel with a body": f"CONNECT api.example.test:80 HTTP/1.1\r\n{HOST}Content-Length: 3\r\n\r\nabc",
    "tunnel without a port": f"CONNECT api.example.test HTTP/1.1\r\n{HOST}\r\n",
    "head too long": f"GET http://api.example.test/ HTTP/1.1\r\n{HOST}A: {'x' * egress.HEAD_BYTES}\r\n\r\n",
    "name too long": f"GET http://{'a.' * 200}test/ HTTP/1.1\r\n{HOST}\r\n",
    "no HTTP": "\x16\x03\x01\x02 tls?\r\n\r\n",
}


@pytest.mark.parametrize("sent", BAD.values(), ids=BAD.keys())
def test_a_request_that_can_be_read_in_two_ways_is_refused(bench: Bench, sent: str) -> None:
    proxy = bench.open(at_any_port("api.example.test", "evil.test"))

    assert bench.ask(sent).startswith("HTTP/1.1 400 Bad Request\r\n")
    assert (bench.asked, [attempt.verdict for attempt in proxy.report()]) == ([], ["bad_request"])


def test_a_tunnel_to_another_port_is_refused(bench: Bench) -> None:
    bench.open(at_any_port("api.example.test"))

    assert "403 Forbidden" in bench.ask("CONNECT api.example.test:22 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert bench.asked == []


@pytest.mark.parametrize("found", [["127.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["::ffff:127.0.0.1"]])
def test_a_name_that_leads_to_a_private_address_is_refused(bench: Bench, web: Server, found: list[str]) -> None:
    bench.open(rules(web.port, private=False))
    bench.addresses = lambda: found

    assert "api.example.test leads to an address that is not public" in bench.ask(get(web.port))
    assert web.seen == []


def test_a_name_is_looked_up_once_so_that_what_was_checked_is_what_is_reached(bench: Bench, web: Server) -> None:
    bench.open(rules(web.port))
    answers = iter([["127.0.0.1"], ["127.0.0.2"]])
    bench.addresses = lambda: next(answers)

    assert "200 OK" in bench.ask(get(web.port))
    assert bench.asked == ["api.example.test"]


@pytest.mark.parametrize("found", [[], ["no address"], OSError("no such name")])
def test_a_name_without_an_address_is_a_sentence(bench: Bench, found: list[str] | OSError) -> None:
    bench.open(rules(80))

    def addresses() -> list[str]:
        if isinstance(found, OSError):
            raise found
        return found

    bench.addresses = addresses
    assert "api.example.test has no address: check the name" in bench.ask(get(80))


def test_a_server_that_is_not_there_or_says_nothing_is_a_sentence(bench: Bench, web: Server) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = int(unused.getsockname()[1])
        bench.open(rules(nobody, web.port))
        assert "502 Bad Gateway" in bench.ask(get(nobody))
        assert "does not answer as a server should" in bench.ask(get(web.port, "/silent"))


def test_the_end_of_a_request_is_not_passed_on_as_the_end_of_its_client(bench: Bench, web: Server) -> None:
    bench.open(rules(web.port))
    client = bench.connect(get(web.port, "/patient"))
    client.shutdown(socket.SHUT_WR)

    assert rest_of(client).endswith(b"you sent ")


def test_a_client_that_still_sends_can_read_why_it_is_refused(bench: Bench) -> None:
    bench.open(rules(80))
    client = bench.connect("POST http://evil.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
    assert b"evil.test:80 is not allowed" in rest_of(client)

    for _ in range(3):
        client.sendall(b"abc")
        time.sleep(0.03)


def test_a_body_that_breaks_its_framing_is_refused(bench: Bench, web: Server) -> None:
    bench.open(rules(web.port))
    head = f"POST http://api.example.test:{web.port}/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

    assert bench.ask(head + "-1\r\nGET / HTTP/1.1\r\n\r\n").startswith("HTTP/1.1 400")


def test_the_byte_limit_cuts_all_of_a_call_and_the_next_call_has_it_anew(
    bench: Bench, web: Server, echo: Server
) -> None:
    proxy = bench.open(rules(web.port, echo.port, bytes=300_000))
    idle = bench.tunnel(echo.port)

    cut = bench.ask(get(web.port, "/endless"))

    assert 200_000 < len(cut) <= 300_000
    assert rest_of(idle) == b""
    later = bench.ask(get(web.port))
    assert later.startswith("HTTP/1.1 429 ")
    assert "egress.bytes" in later
    assert [attempt.verdict for attempt in proxy.report()] == ["allowed", "allowed", "spent"]
    assert 300_000 < sum(attempt.bytes for attempt in proxy.report()) < 300_000 + 2 * loopback.CHUNK
    proxy.start_call()
    assert "200 OK" in bench.ask(get(web.port))
    assert [attempt.verdict for attempt in proxy.report()] == ["allowed"]


def test_the_byte_limit_counts_what_is_sent_too(bench: Bench, echo: Server) -> None:
    proxy = bench.open(rules(echo.port, bytes=300_000))
    client = bench.tunnel(echo.port)

    with suppress(BrokenPipeError, ConnectionResetError):
        while True:
            client.send(b"x" * 1000)
            client.recv(1000)
    assert [attempt.verdict for attempt in proxy.report()] == ["allowed"]
    assert proxy.report()[0].bytes > 300_000


def test_a_new_call_cuts_what_the_last_one_left_open_or_waiting(bench: Bench, web: Server, echo: Server) -> None:
    proxy = bench.open(rules(web.port, echo.port), connections=1)
    proxy.start_call()
    left_open, left_waiting = bench.tunnel(echo.port), bench.connect(get(web.port))

    proxy.start_call()

    assert (rest_of(left_open), rest_of(left_waiting)) == (b"", b"")
    assert (web.seen, proxy.report()) == ([], ())


def test_the_report_ends_the_call_and_until_the_next_one_nobody_gets_out(
    bench: Bench, web: Server, echo: Server
) -> None:
    proxy = bench.open(rules(web.port, echo.port))
    proxy.start_call()
    left_open = bench.tunnel(echo.port)

    assert [attempt.port for attempt in proxy.report()] == [echo.port]

    assert rest_of(left_open) == b""
    between = [bench.connect(get(web.port)) for _ in range(3)]
    assert select.select(between, [], [], 0.3)[0] == []
    proxy.start_call()
    assert [rest_of(client) for client in between] == [b""] * 3
    assert "200 OK" in bench.ask(get(web.port))
    assert (len(web.seen), len(proxy.report())) == (1, 1)


def test_what_is_done_before_the_first_call_counts_to_that_call(bench: Bench, web: Server, echo: Server) -> None:
    proxy = bench.open(rules(web.port, echo.port, bytes=300_000))
    early = bench.tunnel(echo.port)
    early.sendall(b"x" * 140_000)
    exactly(early, 140_000)

    proxy.start_call()

    bench.ask(get(web.port, "/endless"))
    attempts = proxy.report()
    assert [attempt.port for attempt in attempts] == [echo.port, web.port]
    assert 300_000 < sum(attempt.bytes for attempt in attempts) < 300_000 + 2 * loopback.CHUNK


@pytest.mark.parametrize("how", ["spent", "over"])
def test_a_request_that_was_read_before_its_call_came_to_an_end_reaches_nobody(
    bench: Bench, web: Server, echo: Server, how: str
) -> None:
    proxy = bench.open(rules(web.port, echo.port, bytes=100_000))
    proxy.start_call()
    other, asked, go_on = bench.tunnel(echo.port), threading.Event(), threading.Event()

    def addresses() -> list[str]:
        asked.set()
        assert go_on.wait(20)
        return ["127.0.0.1"]

    bench.addresses = addresses
    late = bench.connect(get(web.port))
    assert asked.wait(20)
    if how == "over":
        proxy.report()
    else:
        with suppress(BrokenPipeError, ConnectionResetError):
            other.sendall(b"x" * 1_000_000)
    assert rest_of(late) == b""
    go_on.set()

    assert until(lambda: threads() == 1)
    assert web.seen == []
    assert "allowed" not in [attempt.verdict for attempt in proxy.report() if attempt.port == web.port]


def test_a_new_call_closes_as_many_as_the_queue_holds_and_is_not_held_up_by_those_who_come_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = bench.open(rules(80))
    monkeypatch.setattr(egress, "_WAITING", 1)
    proxy.report()
    clients = [bench.connect("x\r\n\r\n") for _ in range(4)]

    proxy.start_call()

    assert [rest_of(client)[:12] for client in clients] == [b"", b"", b"HTTP/1.1 400", b"HTTP/1.1 400"]


def test_no_more_connections_are_served_at_one_time_than_said(bench: Bench, web: Server) -> None:
    bench.open(rules(web.port), connections=3)
    now, most, lock = 0, 0, threading.Lock()

    def addresses() -> list[str]:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1
        return ["127.0.0.1"]

    bench.addresses = addresses
    clients = [bench.connect(get(web.port)) for _ in range(6)]
    assert all(rest_of(client).startswith(b"HTTP/1.1 200") for client in clients)
    assert most <= 3


def test_a_call_that_connects_without_end_is_heard_no_more(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = bench.open(rules(80))
    monkeypatch.setattr(egress_call, "MOST_ATTEMPTS", 2)

    answers = [bench.ask("x\r\n\r\n")[:12] for _ in range(2)]
    further = bench.connect("x\r\n\r\n")

    assert answers == ["HTTP/1.1 400"] * 2
    assert select.select([further], [], [], 0.3)[0] == []
    assert proxy.report() == (Attempt("", 0, "bad_request", 5),) * 2
    proxy.start_call()
    assert rest_of(further) == b""
    assert bench.ask("x\r\n\r\n").startswith("HTTP/1.1 400")


def test_a_client_that_drips_its_head_is_dropped(bench: Bench) -> None:
    bench.open(rules(80), idle_s=0.3)
    client = bench.connect("GET ")
    client.settimeout(0.05)

    def dropped() -> bool:
        try:
            client.send(b"x")
            return client.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    end = time.monotonic() + 10
    while not (gone := dropped()) and time.monotonic() < end:
        pass
    assert gone


def test_a_tunnel_where_nothing_moves_is_dropped(bench: Bench, echo: Server) -> None:
    bench.open(rules(echo.port), idle_s=0.3)

    assert rest_of(bench.tunnel(echo.port)) == b""


def test_close_leaves_no_thread_no_file_and_no_open_connection(bench: Bench, echo: Server) -> None:
    files = open_files()
    with ExitStack() as clients:
        inner = Bench(bench.path.parent, clients)
        proxy = inner.open(rules(echo.port))
        assert inner.path.stat().st_mode & 0o777 == 0o666
        tunnel, silent = inner.tunnel(echo.port), inner.connect("GET")
        assert until(lambda: threads() == 3)

        proxy.close()

        assert (rest_of(tunnel), rest_of(silent), threads()) == (b"", b"", 0)
        assert not inner.path.exists()
    assert until(lambda: open_files() == files)


def test_a_proxy_that_is_shut_closes_too(bench: Bench) -> None:
    proxy = bench.open(rules(80))
    proxy.report()
    waiting = bench.connect("x\r\n\r\n")
    assert select.select([waiting], [], [], 0.2)[0] == []

    proxy.close()

    assert (rest_of(waiting), threads()) == (b"", 0)


@pytest.fixture
def relay(bench: Bench) -> Iterator[int]:
    """The relay as it runs in a container: its source, in a bare interpreter, with an inherited listener. Gives its port."""
    source = Path(loopback.__file__).read_text(encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        program = f"import sys; exec(sys.argv[1]); relay({listener.fileno()}, sys.argv[2])"
        line = [sys.executable, "-I", "-S", "-c", program, source, str(bench.path)]
        with subprocess.Popen(line, pass_fds=[listener.fileno()]) as process:
            yield int(listener.getsockname()[1])
            assert process.poll() is None, "the relay has ended"
            process.kill()


def test_a_program_gets_out_through_the_relay(bench: Bench, web: Server, relay: int) -> None:
    bench.open(rules(web.port))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": f"http://127.0.0.1:{relay}"}))
    body = b"b" * 2_000_000

    for _ in range(3):
        assert opener.open(f"http://api.example.test:{web.port}/x", body, timeout=20).read() == b"you sent " + body
    with pytest.raises(urllib.error.HTTPError, match="403") as refused:
        opener.open("http://evil.test/", body, timeout=20)
    assert "evil.test:80 is not allowed" in refused.value.read().decode()


def test_the_relay_passes_on_the_end_of_one_side(bench: Bench, echo: Server, relay: int) -> None:
    bench.open(rules(echo.port))
    with socket.create_connection(("127.0.0.1", relay), 20) as client:
        client.sendall(f"CONNECT api.example.test:{echo.port} HTTP/1.1\r\nHost: x\r\n\r\nhello".encode())
        client.shutdown(socket.SHUT_WR)

        assert rest_of(client) == OPENED + b"hellobye"


def test_the_relay_outlives_odd_clients_and_an_absent_proxy(bench: Bench, web: Server, relay: int) -> None:
    with socket.create_connection(("127.0.0.1", relay), 20) as client:
        assert rest_of(client) == b""
    bench.open(rules(web.port))
    for _ in range(2 * loopback.MOST):
        with socket.create_connection(("127.0.0.1", relay), 20) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sendall(b"GET ")
    with socket.create_connection(("127.0.0.1", relay), 20) as client:
        client.sendall(get(web.port).encode())
        assert rest_of(client).startswith(b"HTTP/1.1 200 OK")


def test_the_relay_holds_a_sender_back_whose_bytes_nobody_takes(bench: Bench, relay: int) -> None:
    with socket.socket(socket.AF_UNIX) as nobody, socket.create_connection(("127.0.0.1", relay), 20) as client:
        nobody.bind(str(bench.path))
        nobody.listen()
        sent = 0
        while sent < 64_000_000 and select.select([], [client], [], 0.5)[1]:
            sent += client.send(b"x" * 65536, socket.MSG_DONTWAIT)

    assert sent < 64_000_000


def test_the_relay_leads_no_more_connections_to_the_proxy_than_it_serves(bench: Bench, relay: int) -> None:
    with ExitStack() as stack:
        proxy = stack.enter_context(socket.socket(socket.AF_UNIX))
        proxy.bind(str(bench.path))
        proxy.listen(128)
        for _ in range(loopback.MOST + 3):
            stack.enter_context(socket.create_connection(("127.0.0.1", relay), 20))
        for _ in range(loopback.MOST):
            stack.enter_context(proxy.accept()[0])

        assert select.select([proxy], [], [], 0.3)[0] == []
