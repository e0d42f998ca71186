"""Whether two answers say the same: a pure function.

The loop compares a model's answer after tools with its own from before; the benches compare answers with what is right.
"""

from __future__ import annotations

import ast
import gc
import warnings
from collections.abc import Generator
from contextlib import contextmanager

LONGEST = 10_000
"""Characters up to which a text is read as a literal."""


def same(one: str, other: str) -> bool:
    """Whether both write down the same Python literal; else, whether their texts are equal but for white space and case.

    A literal text and its bare content are the same: `'ab'` and `ab`. So the README of the recordings compares code answers.
    """
    first, second = literal(one), literal(other)
    if first is not None and second is not None:
        return first == second
    if first is None and second is None:
        return _folded(one) == _folded(other)
    return (one.strip() if first is None else first[0]) == (other.strip() if second is None else second[0])


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def literal(text: str) -> tuple[object] | None:
    """The value that a text writes down, in a tuple; None when it is no literal."""
    if len(text) > LONGEST:
        return None
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning), _no_collection():
            return (ast.literal_eval(text.strip()),)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


@contextmanager
def _no_collection() -> Generator[None]:
    # A finaliser that parses too (a logged traceback does) makes the parse that it interrupts fail: CPython gh-106905.
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
