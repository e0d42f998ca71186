"""Text files as sources, ranked by BM25 through the library bm25s. `retrieval` opens it; the embedded default.

The index is in memory and made anew when a file of the folder changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from metier_agents.retriever import Source
from metier_infra.errors import BadSpec, MissingPackage

try:
    import bm25s
except ImportError as error:
    raise MissingPackage("sources of kind files need a package: pip install 'metier[retrieval]'") from error

LARGEST_FILE = 4 << 20
PASSAGE = 2_000
State: TypeAlias = "tuple[tuple[Path, int, int], ...]"


class Bm25Retriever:
    """See `Retriever`. The sources are passages of the files in `folder` that match the glob `pattern`; ids are paths in it."""

    def __init__(self, folder: Path, pattern: str) -> None:
        self._folder = folder
        self._pattern = pattern

    async def find(self, query: str, k: int) -> tuple[Source, ...]:
        """See `Retriever.find`. Raises `BadSpec` when the folder has no such files."""
        return await asyncio.to_thread(self._find, query, k)

    def _find(self, query: str, k: int) -> tuple[Source, ...]:
        state = _state(self._folder, self._pattern)
        if not state:
            raise BadSpec(f"{self._folder}: no text files match {self._pattern!r} there")
        return _index(self._folder, state).best(query, k)


class _Index:
    def __init__(self, sources: Iterable[Source]) -> None:
        self._sources = tuple(sources)
        self._bm25 = bm25s.BM25()
        if self._sources:
            self._bm25.index(_words([f"{one.title}\n{one.text}" for one in self._sources]), show_progress=False)

    def best(self, query: str, k: int) -> tuple[Source, ...]:
        words = _words([query])[0] if self._sources else []
        scores = self._bm25.get_scores(words).tolist() if words else []
        scored = [(score, source) for score, source in zip(scores, self._sources, strict=bool(scores)) if score > 0]
        ranked = sorted(scored, key=lambda pair: (-pair[0], pair[1].id))[:k]
        return tuple(source.model_copy(update={"score": score}) for score, source in ranked)


def _words(texts: list[str]) -> list[list[str]]:
    return bm25s.tokenize(texts, stopwords=None, return_ids=False, show_progress=False)


def _state(folder: Path, pattern: str) -> State:
    """Every file that counts, with its size and time of change. Links out of the folder lead nowhere."""
    root = folder.resolve()
    try:
        paths = sorted(path for path in root.glob(pattern) if path.resolve().is_relative_to(root) and path.is_file())
    except (ValueError, NotImplementedError) as error:
        raise BadSpec(f"{folder}: {pattern!r} is no pattern of files: {error}") from error
    seen = [(path, path.stat()) for path in paths if not _hidden(path.relative_to(root))]
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in seen if stat.st_size <= LARGEST_FILE)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


@lru_cache(maxsize=8)
def _index(folder: Path, state: State) -> _Index:
    return _Index(source for path, _, _ in state for source in _sources(path, folder.resolve()))


def _sources(path: Path, root: Path) -> Iterator[Source]:
    """The passages of one file; none when it is not text."""
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return
    name, parts = path.relative_to(root).as_posix(), passages(text)
    for number, part in enumerate(parts, 1):
        yield Source(id=name if len(parts) == 1 else f"{name}#{number}", title=_title(text, path), text=part)


def _title(text: str, path: Path) -> str:
    first = text.lstrip().partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else path.stem


def passages(text: str, most: int = PASSAGE) -> list[str]:
    """The text in pieces of about `most` characters, cut between paragraphs; one paragraph is never cut."""
    pieces: list[str] = []
    for paragraph in filter(None, (part.strip() for part in text.split("\n\n"))):
        if pieces and len(pieces[-1]) + len(paragraph) < most:
            pieces[-1] += f"\n\n{paragraph}"
        else:
            pieces.append(paragraph)
    return pieces
