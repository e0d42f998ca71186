"""The sandbox protocol without a container: the decoder against any bytes, the conversation against a lying peer, PID 1's own parts."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier_tools.conversation import Conversation, Output, Said, verdict
from metier_tools.inside import pid1, reset, wire
from metier_tools.profile import Profile
from metier_tools.protocol import Chunk, Demux, End, Forged, Frame, Frames, LeftOut, Pong, Taken
from metier_tools.sandbox import Outcome, Request

chunks = st.builds(Chunk, st.sampled_from([wire.OUT, wire.ERR]), st.binary(min_size=1, max_size=300))
seconds = st.floats(0, 1e6, width=32)
ends = st.builds(
    End, st.integers(-64, 255), st.integers(0, 2), st.integers(0, 7), st.integers(0, 255), seconds, seconds, st.integers(0, 2**32 - 1)
)  # fmt: skip
taken = st.builds(Taken, st.integers(0, 65535), st.binary(max_size=300))
left_out = st.builds(LeftOut, st.integers(0, 65535), st.sampled_from([wire.ABSENT, wire.IRREGULAR, wire.TOO_LARGE]))
frames_sent = st.lists(st.one_of(st.just(Pong()), chunks, taken, left_out, ends), max_size=8)


def encoded(frame: Frame) -> bytes:
    match frame:
        case Pong():
            return wire.FRAME.pack(wire.PONG, 0)
        case Chunk(stream, data):
            return wire.FRAME.pack(stream, len(data)) + data
        case Taken(number, data):
            return wire.FRAME.pack(wire.TAKEN, 2 + len(data)) + wire.NAME.pack(number) + data
        case LeftOut(number, reason):
            return wire.FRAME.pack(reason, 2) + wire.NAME.pack(number)
        case End():
            body = wire.END.pack(*vars(frame).values())
            return wire.FRAME.pack(wire.DONE, len(body)) + body


def muxed(data: bytes, stream: int = 1, size: int = 7) -> bytes:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(struct.pack(">BxxxI", stream, len(part)) + part for part in parts)


@given(frames_sent, st.integers(1, 9), st.integers(1, 50))
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(sent: list[Frame], mux: int, cut: int) -> None:
    wire = muxed(b"".join(map(encoded, sent)), size=mux)
    wire = muxed(b"PID 1 complains", stream=2) + wire
    demux, frames = Demux(), Frames()
    parts = [wire[at : at + cut] for at in range(0, len(wire), cut)]
    assert [frame for part in parts for frame in frames.feed(demux.feed(part))] == sent


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_any_bytes_are_frames_or_a_forgery(parts: list[bytes]) -> None:
    demux, frames = Demux(), Frames()
    try:
        for part in parts:
            frames.feed(demux.feed(part))
    except Forged:
        pass


@pytest.mark.parametrize(
    "head",
    [
        (wire.OUT, wire.CHUNK + 1),
        (wire.OUT, 0),
        (wire.PONG, 1),
        (wire.DONE, wire.END.size + 1),
        (7, 1),
        (255, 2**32 - 1),
    ],
)
def test_a_head_that_pid1_would_not_send_is_forged_before_its_body_comes(head: tuple[int, int]) -> None:
    with pytest.raises(Forged):
        Frames().feed(wire.FRAME.pack(*head))


@pytest.mark.parametrize(
    "end", [(999, 0, 0, 0, 1, 1, 1), (0, 3, 0, 0, 1, 1, 1), (0, 0, 8, 0, 1, 1, 1), (0, 0, 0, 0, float("nan"), 1, 1)]
)
def test_an_end_that_cannot_be_is_forged(end: tuple[float, ...]) -> None:
    with pytest.raises(Forged):
        Frames().feed(wire.FRAME.pack(wire.DONE, wire.END.size) + wire.END.pack(*end))


DONE = encoded(End(0, False, 0, 0, 0.1, 0.1, 1))


@contextmanager
def peer(say: Callable[[socket.socket], None]) -> Generator[Conversation]:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=say, args=(theirs,))
    thread.start()
    line = Conversation(ours, Profile(keep_bytes=10, flood_bytes=1000))
    try:
        yield line
    finally:
        line.hang_up()
        thread.join(5)
        theirs.close()


def saying(*frames: bytes) -> Callable[[socket.socket], None]:
    def say(theirs: socket.socket) -> None:
        theirs.recv(65536)
        theirs.sendall(muxed(b"".join(frames), size=500))

    return say


def run(say: Callable[[socket.socket], None], timeout_s: float = 1.0) -> tuple[Outcome, bool]:
    with peer(say) as line:
        outcome = line.run(Request("python", "1", timeout_s))
        return outcome, line.broken


def test_an_honest_peer_is_believed() -> None:
    outcome, broken = run(saying(encoded(Chunk(wire.OUT, b"hi\xff\0")), encoded(Chunk(wire.ERR, b"oh")), DONE))
    assert (outcome.status, outcome.stdout, outcome.stderr, outcome.truncated, broken) == (
        "ok",
        "hi��",
        "oh",
        False,
        False,
    )


def test_output_beyond_what_is_kept_is_cut_and_said() -> None:
    outcome, broken = run(saying(encoded(Chunk(wire.OUT, b"0123456789abc")), DONE))
    assert (outcome.status, outcome.stdout, outcome.truncated, broken) == ("ok", "0123456789", True, False)


def test_a_container_that_lets_a_flood_through_is_ended() -> None:
    outcome, broken = run(saying(*[encoded(Chunk(wire.OUT, b"x" * wire.CHUNK))] * 5, DONE))
    assert (outcome.status, outcome.truncated, broken) == ("output_cut", True, True)


@pytest.mark.parametrize(
    "lie",
    [
        b"\xff" * 50,
        encoded(Pong()) + DONE,
        DONE + DONE,
        DONE + encoded(Chunk(wire.OUT, b"more")),
        wire.FRAME.pack(wire.OUT, 2**31),
        wire.FRAME.pack(wire.DONE, 3) + b"abc",
    ],
    ids=["noise", "pong", "two ends", "after the end", "endless", "short end"],
)
def test_a_forged_frame_ends_the_container(lie: bytes) -> None:
    outcome, broken = run(saying(lie))
    assert (outcome.status, outcome.exit_code, broken) == ("died", None, True)


def test_a_peer_that_hangs_up_has_died() -> None:
    outcome, broken = run(lambda theirs: theirs.shutdown(socket.SHUT_RDWR))
    assert (outcome.status, broken) == ("died", True)


def test_silence_ends_soon_after_the_programs_time() -> None:
    began = time.monotonic()
    outcome, broken = run(lambda theirs: None, timeout_s=0.1)
    assert (outcome.status, broken) == ("timeout", True)
    assert time.monotonic() - began < 10


def test_a_dirty_end_is_a_result_but_the_last_one() -> None:
    outcome, broken = run(saying(encoded(End(0, False, 1, 0, 0.1, 0.1, 1))))
    assert (outcome.status, broken) == ("ok", True)


def test_a_line_is_alive_while_it_is_open_and_silent() -> None:
    ours, theirs = socket.socketpair()
    line = Conversation(ours, Profile())
    assert line.alive()
    theirs.send(b"a word out of turn")
    assert not line.alive()
    theirs.recv(0)
    theirs.close()
    line.hang_up()
    assert not line.alive()


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (End(0, False, 0, 0, 1, 1, 1), "ok"),
        (End(0, False, 0, 1, 1, 1, 1), "ok"),
        (End(3, False, 0, 0, 1, 1, 1), "error"),
        (End(-9, False, 0, 1, 1, 1, 1), "oom"),
        (End(1, False, 0, 2, 1, 1, 1), "oom"),
        (End(-9, True, 0, 0, 1, 1, 1), "timeout"),
        (End(-9, 2, 0, 0, 1, 1, 1), "output_cut"),
        (End(-9, True, 0, 1, 1, 1, 1), "timeout"),
        (End(-11, False, 0, 0, 1, 1, 1), "error"),
    ],
)
def test_one_word_for_each_end(end: End, said: str) -> None:
    assert verdict(Said(end)) == said


def test_files_that_nobody_wanted_or_that_are_too_large_are_forged() -> None:
    output = Output(keep=10, flood=10, take=("a", "b"), most=3)
    for piece in (Taken(1, b""), Taken(1, b"xy"), LeftOut(0, wire.ABSENT)):
        output.keep(piece)
    assert (output.files, output.left_out) == ({"b": b"xy"}, {"a": "it is not there, or its path leads over a link"})
    with pytest.raises(Forged, match="nobody wanted"):
        output.keep(Taken(2, b""))
    with pytest.raises(Forged, match="more of files than was allowed"):
        output.keep(Taken(0, b"zz"))


def test_output_keeps_the_first_bytes_of_each_stream() -> None:
    output = Output(keep=3, flood=100)
    for stream, data in ((wire.OUT, b"ab"), (wire.ERR, b"xy"), (wire.OUT, b"cd"), (wire.OUT, b"ef")):
        output.add(Chunk(stream, data))
    assert (output.text(wire.OUT), output.text(wire.ERR), output.truncated) == ("abc", "xy", True)


def test_pid1_wipes_a_hostile_tree_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    top = tmp_path / "top"
    (top / "a" / "b" / "c").mkdir(parents=True)
    (top / "a" / "link").symlink_to(outside)
    (top / "-rf").write_text("")
    (top / "a" / "b" / "locked").mkdir(mode=0)
    os.mkfifo(top / "fifo")
    reset.wipe(str(top))
    assert list(top.iterdir()) == []
    assert (outside / "kept").read_text() == "kept"


def test_pid1_gives_up_on_a_tree_that_is_too_deep(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(250):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    with pytest.raises(OSError, match="too deep"):
        reset.wipe(str(tmp_path))


def test_pid1_refuses_to_run_as_anyone_else() -> None:
    with pytest.raises(SystemExit, match="must be PID 1"):
        pid1.serve([])
