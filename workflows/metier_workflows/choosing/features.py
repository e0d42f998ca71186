"""What of a task's text a router sees: a vector. `skills` fits on it and predicts from it.

A core install hashes runs of characters; `tfidf` (the extra `routing`) and an embedder of your own are the other two kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from metier_workflows.choosing.matrix import Floats

LONGEST_TEXT = 4000
"""Characters of a text that are looked at, so that a decision's time has a bound."""
RUNS = (3, 5)
_STEP, _MIX = np.uint32(0x01000193), np.uint32(2654435761)


class Embedder(Protocol):
    """Turns a text into a vector: always the same one, without a network, in well under a millisecond where decisions are to stay fast."""

    @property
    def name(self) -> str:
        """Which embedder, and which version of it: a router that was fitted with it is only loaded with it."""
        ...

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        ...

    def embed(self, text: str) -> Floats:
        """The vector, of `width` numbers."""
        ...


@dataclass(frozen=True)
class HashedText:
    """Runs of 3 and of 5 bytes, hashed into `width` signed counts; their square roots, at length 1. Needs numpy only.

    Feature hashing: Weinberger et al., 2009. The hash is FNV-1a over the run, mixed by Knuth's multiplier.
    """

    width: int = 512

    @property
    def name(self) -> str:
        """Its kind and width."""
        return f"hashed-{self.width}"

    def embed(self, text: str) -> Floats:
        """The vector; that of an empty text is zero."""
        read = np.frombuffer(text[:LONGEST_TEXT].lower().encode("utf-8", "replace"), np.uint8).astype(np.uint32)
        counts = sum((self._counts(read, run) for run in RUNS), np.zeros(self.width))
        damped = np.sign(counts) * np.sqrt(np.abs(counts))
        length = float(np.sqrt(damped @ damped))
        return damped / length if length else damped

    def _counts(self, read: np.ndarray[tuple[int], np.dtype[np.uint32]], run: int) -> Floats:
        if len(read) < run:
            return np.zeros(self.width)
        places = np.zeros(len(read) - run + 1, np.uint32)
        for start in range(run):
            places = places * _STEP ^ read[start : len(read) - run + 1 + start]
        places *= _MIX
        signs = 1.0 - 2.0 * ((places >> np.uint32(8)) & np.uint32(1))
        return np.bincount((places >> np.uint32(16)) % self.width, weights=signs, minlength=self.width).astype(
            np.float64
        )


def embedded(embedder: Embedder, texts: Sequence[str]) -> Floats:
    """Queries by numbers."""
    return np.stack([embedder.embed(text) for text in texts]) if texts else np.zeros((0, embedder.width))
