"""Ctrl-C in a command that computes: it ends, with all its processes, by exit code 130 and without a trace.

Not here: commands that ask agents (test_eval_run), and those that run tools (test_exec_process).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from metier.terminal import one_interrupt

pyarrow: Any = import_module("pyarrow")
parquet: Any = import_module("pyarrow.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the matrix `ours`: 20,000 queries, so that a split takes long, and two models that are right in turn."""
    ids = [str(row) for row in range(20_000)]
    parquet.write_table(pyarrow.table({"qid": ids, "text": ids}), tmp_path / "ours_q.parquet")
    scores = {f"s__{name}": [float((row + at) % 2) for row in range(20_000)] for at, name in enumerate("ab")}
    parquet.write_table(pyarrow.table({"qid": ids, **scores}), tmp_path / "ours_o.parquet")
    return tmp_path


def workers(of: int) -> list[int]:
    """The processes that this one has started to compute in, as far as they have begun to."""
    found = Path(f"/proc/{of}/task/{of}/children").read_text(encoding="ascii").split()
    return [int(one) for one in found if "_multiarray_umath" in Path(f"/proc/{one}/maps").read_text(encoding="utf-8")]


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("presses", [1, 3])
def test_an_evaluation_of_routing_that_a_person_stops_ends_with_all_its_processes(folder: Path, presses: int) -> None:
    # Given splits under way in two processes, of more than there is time for
    words = ["eval", "routing", "--data", str(folder), "--name", "ours", "--splits", "100", "--parallel", "2"]
    process = subprocess.Popen([sys.executable, "-m", "metier", *words], stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
    try:
        while len(begun := workers(process.pid)) < 2:
            assert process.poll() is None
            time.sleep(0.02)
        # When somebody presses Ctrl-C, which a terminal tells every process of it
        for _ in range(presses):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.02)
        _, said = process.communicate(timeout=100)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    # Then none of them is left, and nothing is said of it
    assert (process.returncode, said) == (130, "")
    assert not any(Path(f"/proc/{one}").exists() for one in begun)


@pytest.mark.usefixtures("heeded")
def test_the_second_ctrl_c_changes_nothing() -> None:
    ended = False
    try:
        with one_interrupt():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.raise_signal(signal.SIGINT)
                ended = True
    except KeyboardInterrupt:
        assert ended
    else:
        raise AssertionError("the first one was not heard")


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.default_int_handler])
def test_where_ctrl_c_is_not_pressed_it_does_afterwards_what_it_did_before(before: Any) -> None:
    signal.signal(signal.SIGINT, before)
    with one_interrupt():
        assert (signal.getsignal(signal.SIGINT) is signal.SIG_IGN) == (before is signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) == before
