"""A text as TF-IDF of its words and pairs of words, turned to its main directions: an `features.Embedder` by scikit-learn, the extra `routing`.

`metier eval routing --features tfidf` uses it. It is fitted on training texts, and a router that was fitted with it is only loaded with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from metier_infra.errors import MissingPackage
from metier_workflows.choosing.features import LONGEST_TEXT, Embedder, HashedText
from metier_workflows.choosing.matrix import Floats

WORDS = 30_000
"""So many words and pairs are counted at the most, the most frequent ones."""
DIRECTIONS = 128
"""Numbers in a vector: latent semantic analysis (Deerwester et al., 1990)."""
FEWEST = 50
"""Texts; with fewer there are no directions to find, and texts are hashed."""


@dataclass(frozen=True)
class TfidfText:
    """See the module. `words` and `turn` are scikit-learn's fitted objects."""

    name: str
    width: int
    words: Any
    turn: Any

    def embed(self, text: str) -> Floats:
        """The vector, at length 1; zero where no word is known."""
        vector = np.asarray(self.turn.transform(self.words.transform([text[:LONGEST_TEXT]]))[0], np.float64)
        length = float(np.sqrt(vector @ vector))
        return vector / length if length else vector


def fitted(texts: Sequence[str]) -> Embedder:
    """The embedder that these texts speak for; texts without words, or few of them, are hashed. Raises `MissingPackage`."""
    try:
        text, decomposition = (
            import_module(f"sklearn.{name}") for name in ("feature_extraction.text", "decomposition")
        )
    except ImportError as missing:
        raise MissingPackage("TF-IDF is scikit-learn's: pip install 'metier[routing]'") from missing
    words: Any = text.TfidfVectorizer(sublinear_tf=True, min_df=3, ngram_range=(1, 2), max_features=WORDS)
    try:
        counted: Any = words.fit_transform([one[:LONGEST_TEXT] for one in texts])
    except ValueError:  # scikit-learn's word for "no word is frequent enough"
        return HashedText()
    if len(texts) < FEWEST or counted.shape[1] <= DIRECTIONS:
        return HashedText()
    turn: Any = decomposition.TruncatedSVD(DIRECTIONS, random_state=0).fit(counted)
    digest = hashlib.sha256("\x00".join(texts).encode("utf-8", "replace")).hexdigest()[:16]
    return TfidfText(f"tfidf-{digest}", DIRECTIONS, words, turn)
