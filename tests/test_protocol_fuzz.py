"""The host's side of the sandbox protocol against any bytes at all: no hang, no unbounded memory, no error but `Forged`.

Nothing here starts a container; `tests/abuse` has the programs that send such bytes from inside one.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metier_tools.conversation import GRACE_S, Conversation
from metier_tools.inside import wire
from metier_tools.profile import STRICT
from metier_tools.protocol import Chunk, Demux, End, Forged, Frame, Frames, LeftOut, Pong, Taken
from metier_tools.sandbox import Outcome, Request

KINDS = (wire.PONG, wire.OUT, wire.ERR, wire.TAKEN, wire.ABSENT, wire.IRREGULAR, wire.TOO_LARGE, wire.DONE)
MOST = wire.FRAME.size + wire.CHUNK
"""The largest frame there is: all that a decoder may ever hold."""
VERDICTS = {"ok", "error", "timeout", "oom", "output_cut", "died"}


def on_the_wire(frame: Frame) -> int:
    """How many bytes a frame was."""
    match frame:
        case Pong():
            return wire.FRAME.size
        case Chunk(_, data):
            return wire.FRAME.size + len(data)
        case Taken(_, data):
            return wire.FRAME.size + wire.NAME.size + len(data)
        case LeftOut():
            return wire.FRAME.size + wire.NAME.size
        case End():
            return wire.FRAME.size + wire.END.size


class Decoder:
    """Demultiplexer and frames as `Conversation` joins them, with an account of what goes in, what comes out, and so what is held."""

    def __init__(self) -> None:
        self._demux, self._frames = Demux(), Frames()
        self.held = 0
        self.found = 0

    def feed(self, data: bytes) -> list[Frame]:
        inner = self._demux.feed(data)
        frames = self._frames.feed(inner)
        assert all(isinstance(frame, Pong | Chunk | Taken | LeftOut | End) for frame in frames)
        self.held += len(inner) - sum(map(on_the_wire, frames))
        self.found += len(frames)
        assert 0 <= self.held < MOST
        return frames


def end(source: random.Random) -> bytes:
    """The body of an end; one in twenty cannot be."""
    if source.random() < 0.05:
        wall = source.choice((-1.0, float("nan"), float("inf"), 1.0))
        return wire.END.pack(
            source.choice((256, -65, 2**31 - 1)), source.randrange(256), source.randrange(256), 0, wall, wall, 0
        )
    return wire.END.pack(
        source.choice((0, 1, 255, -9, -64)),
        source.randrange(3),
        source.randrange(8),
        source.randrange(256),
        1.5,
        0.1,
        source.getrandbits(32),
    )


def body(source: random.Random, kind: int) -> bytes:
    """What a frame of this kind holds."""
    if kind == wire.DONE:
        return end(source)
    if kind == wire.PONG:
        return b""
    number = source.randbytes(wire.NAME.size)
    if kind in {wire.ABSENT, wire.IRREGULAR, wire.TOO_LARGE}:
        return number
    return number + source.randbytes(
        source.choice((0, 1, 30, 300)) if source.random() < 0.98 else wire.CHUNK - wire.NAME.size
    )


def frame(source: random.Random) -> bytes:
    """A frame that is right, or one in twenty that lies about its kind or its length."""
    kind = source.choice(KINDS)
    data = body(source, kind)
    lie = source.randrange(80)
    kind, length = (source.randrange(256) if lie == 0 else kind), len(data)
    if lie in {1, 2, 3}:
        length = (source.getrandbits(32), length + 1, max(0, length - 1))[lie - 1]
    return wire.FRAME.pack(kind, length) + data


def muxed(source: random.Random, data: bytes) -> bytes:
    """The engine's envelope, cut anywhere; now and then a stream or a length that is not so."""
    whole = bytearray()
    while data:
        size = source.choice((1, 7, 50, 4000, 65536))
        part, data = data[:size], data[size:]
        stream = source.choice((1, 1, 1, 1, 1, 1, 1, 2)) if source.random() < 0.999 else source.randrange(256)
        whole += struct.pack(">BxxxI", stream, len(part)) + part
    return bytes(whole)


def mutated(source: random.Random, data: bytes) -> bytes:
    """The same with a byte turned, a piece missing, or a piece twice."""
    at, size = source.randrange(len(data) + 1), source.randrange(9)
    fate = source.randrange(12)
    if fate == 0:
        return data[:at] + source.randbytes(size) + data[at + size :]
    if fate == 1:
        return data[:at] + data[at + size :]
    if fate == 2:
        return data[:at] + data[at : at + size] + data[at:]
    return data[:at] if fate == 3 else data


def cut(source: random.Random, data: bytes) -> Iterator[bytes]:
    """The pieces in which it arrives."""
    most = source.choice((1, 9, 200, 65536)) if len(data) < 5000 else 65536
    while data:
        size = source.randint(1, most)
        yield data[:size]
        data = data[size:]


@pytest.mark.parametrize("seed", range(12))
def test_ten_thousand_random_frames_are_frames_or_a_forgery_and_no_more_than_one_is_held(seed: int) -> None:
    source = random.Random(seed)
    found = forged = 0
    while found + forged < 10_000:
        decoder = Decoder()
        frames = b"".join(frame(source) for _ in range(source.randrange(1, 60)))
        try:
            for part in cut(source, mutated(source, muxed(source, frames))):
                decoder.feed(part)
        except Forged:
            forged += 1
        found += decoder.found
    assert found > 8_000
    assert forged > 100


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=400), max_size=30), st.sampled_from(KINDS), st.integers(0, 2**32 - 1))
def test_any_bytes_in_any_pieces_are_frames_or_a_forgery(parts: list[bytes], kind: int, length: int) -> None:
    decoder = Decoder()
    head = wire.FRAME.pack(kind, length)
    try:
        decoder.feed(struct.pack(">BxxxI", 1, len(head)) + head)
        for part in parts:
            decoder.feed(struct.pack(">BxxxI", 1, len(part)) + part)
        for part in parts:
            decoder.feed(part)
    except Forged:
        pass


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000), st.lists(st.integers(1, 400), max_size=40))
def test_where_a_stream_is_cut_changes_nothing_of_what_is_read(data: bytes, cuts: list[int]) -> None:
    def read(pieces: list[bytes]) -> tuple[list[Frame], bool]:
        decoder, found = Decoder(), list[Frame]()
        try:
            for piece in pieces:
                found += decoder.feed(piece)
        except Forged:
            return [], True
        return found, False

    pieces, left = list[bytes](), muxed(random.Random(len(data)), data)
    for size in cuts:
        pieces.append(left[:size])
        left = left[size:]
    assert read([*pieces, left]) == read([muxed(random.Random(len(data)), data)])


def test_a_frame_that_is_promised_and_never_comes_takes_no_more_memory_than_it_may() -> None:
    decoder = Decoder()
    promise = wire.FRAME.pack(wire.OUT, wire.CHUNK)
    decoder.feed(struct.pack(">BxxxI", 1, 2**32 - 1) + promise)
    tracemalloc.start()
    for _ in range(2000):
        decoder.feed(bytes(32))
    for _ in range(300):
        decoder.feed(
            wire.FRAME.pack(wire.OUT, wire.CHUNK) + bytes(wire.CHUNK)
            if decoder.held == 0
            else bytes(MOST - decoder.held)
        )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * MOST


@pytest.mark.parametrize("stream", [wire.OUT, wire.ERR])
def test_a_gigabyte_promised_by_the_engine_is_passed_on_and_not_kept(stream: int) -> None:
    demux = Demux()
    demux.feed(struct.pack(">BxxxI", stream, 2**32 - 1))
    tracemalloc.start()
    passed = sum(len(demux.feed(bytes(65536))) for _ in range(500))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert passed == (500 * 65536 if stream == wire.OUT else 0)
    assert peak < 1 << 20


def lies(source: random.Random) -> bytes:
    """What a hostile container answers to one request."""
    frames = [
        frame(source) if source.random() < 0.2 else wire.FRAME.pack(wire.OUT, 9) + source.randbytes(9)
        for _ in range(source.randrange(8))
    ]
    if source.random() < 0.5:
        frames.append(wire.FRAME.pack(wire.DONE, wire.END.size) + end(source))
    return mutated(source, muxed(source, b"".join(frames)))


class Peer:
    """The container's end of the line: reads one request, says what it is told to, and hangs up or falls silent."""

    def __init__(self, said: bytes) -> None:
        self.ours, self._theirs = socket.socketpair()
        self._said = said
        self._thread = threading.Thread(target=self._speak)
        self._thread.start()

    def _speak(self) -> None:
        self._theirs.settimeout(10)
        self._theirs.recv(65536)
        try:
            self._theirs.sendall(self._said)
        except OSError:
            return
        self._theirs.shutdown(socket.SHUT_WR)

    def end(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._theirs.close()


REQUEST = Request("python", "print(1)", 5.0)
SMALL = STRICT.model_copy(update={"keep_bytes": 1000, "flood_bytes": 10_000})


def converse(said: bytes) -> tuple[Outcome, bool]:
    peer = Peer(said)
    line = Conversation(peer.ours, SMALL)
    outcome = line.run(REQUEST)
    broken = not line.alive()
    line.hang_up()
    peer.end()
    return outcome, broken


def test_thousands_of_conversations_with_liars_each_end_with_an_outcome() -> None:
    source = random.Random(4)
    began = time.monotonic()
    ends = [converse(lies(source)) for _ in range(3000)]
    assert {outcome.status for outcome, _ in ends} <= VERDICTS
    assert {"ok", "error", "died"} <= {outcome.status for outcome, _ in ends}
    assert all(len(outcome.stdout) <= 1000 and len(outcome.stderr) <= 1000 for outcome, _ in ends)
    assert all(outcome.files == {} for outcome, _ in ends)
    assert all(broken for outcome, broken in ends if outcome.exit_code is None)
    assert time.monotonic() - began < 10 * (REQUEST.timeout_s + GRACE_S)


def test_a_container_that_reads_nothing_ends_a_call_on_time_however_long_the_request() -> None:
    ours, theirs = socket.socketpair()
    line = Conversation(ours, SMALL)
    outcome = line.run(Request("python", "#" * (8 << 20), 0.1))
    assert (outcome.status, line.broken) == ("timeout", True)
    line.hang_up()
    theirs.close()


def test_a_container_that_speaks_without_end_is_cut_long_before_its_time() -> None:
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def chatter() -> None:
        part = wire.FRAME.pack(wire.OUT, 1000) + bytes(1000)
        while not stop.is_set():
            try:
                theirs.sendall(struct.pack(">BxxxI", 1, len(part)) + part)
            except OSError:
                return

    thread = threading.Thread(target=chatter)
    thread.start()
    line = Conversation(ours, SMALL)
    outcome = line.run(Request("python", "1", 60.0))
    stop.set()
    line.hang_up()
    thread.join(10)
    theirs.close()
    assert (outcome.status, outcome.truncated, len(outcome.stdout), line.broken) == ("output_cut", True, 1000, True)


def test_a_container_that_speaks_only_in_envelopes_of_nothing_ends_on_time() -> None:
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def chatter() -> None:
        while not stop.is_set():
            try:
                theirs.sendall(struct.pack(">BxxxI", 1, 0) * 500 + struct.pack(">BxxxI", 2, 5) + b"noise")
            except OSError:
                return

    thread = threading.Thread(target=chatter)
    thread.start()
    line = Conversation(ours, SMALL)
    outcome = line.run(Request("python", "1", 0.2))
    stop.set()
    line.hang_up()
    thread.join(10)
    theirs.close()
    assert (outcome.status, outcome.stdout, line.broken) == ("timeout", "", True)
