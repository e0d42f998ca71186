"""The retriever port over every adapter (files, Postgres, LangChain), what an agent file says of it, and what each adapter refuses.

Not here: what a model does with sources (`test_citing.py`), and how good a ranking is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from metier_agents.bm25_retriever import Bm25Retriever, passages
from metier_agents.langchain_retriever import LangChainRetriever, open_langchain_retriever
from metier_agents.postgres_retriever import PostgresRetriever
from metier_agents.retrieval import LONGEST_TEXT, find_sources, open_retriever
from metier_agents.retriever import Retriever, Source
from metier_agents.spec import AgentSpec, Postgres, Retrieval, load_agent, with_model
from metier_infra.database import Database, Statement
from metier_infra.errors import BadSpec, RetryLater
from metier_infra.postgres_journal import PostgresDatabase
from metier_infra.sqlite_journal import SqliteDatabase

TEXTS = {
    "bridge": "The harbour bridge was opened in 1871. The bridge has five arches; “granite”, it is said.",
    "ferry": "The ferry passes under the bridge twice a day.",
    "museum": "The museum of salt keeps an oak pump.",
    "park": "The oldest tree of the park is a ginkgo.",
}
TABLE = Postgres.model_validate({"kind": "postgres", "table": "public.articles", "id": "slug", "text": "body"})


class Overlap(BaseRetriever):
    """A LangChain retriever that counts common words."""

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        wanted = set(query.lower().strip("?").split())
        common = {name: len(wanted & set(text.lower().split())) for name, text in TEXTS.items()}
        ranked = sorted((name for name in TEXTS if common[name]), key=lambda name: -common[name])
        return [Document(TEXTS[name], metadata={"source": name, "title": name.title()}) for name in ranked]


class Broken(BaseRetriever):
    error: Exception

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        raise self.error

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        raise self.error


def write_files(folder: Path) -> Path:
    for name, text in TEXTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
async def postgres(empty_postgres_url: str) -> AsyncIterator[Database]:
    db = await PostgresDatabase(empty_postgres_url, size=1).open()
    await db.write(Statement("CREATE TABLE articles (slug text PRIMARY KEY, title text, body text)"))
    for name, text in TEXTS.items():
        row = {"slug": name, "title": None if name == "park" else name.title(), "body": text}
        await db.write(Statement("INSERT INTO articles (slug, title, body) VALUES (:slug, :title, :body)", row))
    yield db
    await db.close()


@pytest.fixture(params=["files", "postgres", "langchain"])
def retriever(request: pytest.FixtureRequest, tmp_path: Path) -> Retriever:
    if request.param == "files":
        return Bm25Retriever(write_files(tmp_path), "*")
    if request.param == "langchain":
        return LangChainRetriever(Overlap(), "overlap")
    return PostgresRetriever(request.getfixturevalue("postgres"), TABLE)


# ---- the contract


async def test_the_best_source_comes_first_with_its_text_word_for_word(retriever: Retriever) -> None:
    found = await retriever.find("When was the harbour bridge opened?", 4)
    assert (found[0].id, found[0].title.lower(), found[0].text) == ("bridge", "bridge", TEXTS["bridge"])
    assert found[1].id == "ferry"
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


@pytest.mark.parametrize("k", [1, 2])
async def test_no_more_are_found_than_were_asked_for(retriever: Retriever, k: int) -> None:
    assert len(await retriever.find("the harbour bridge", k)) == k


@pytest.mark.parametrize("query", ["zebra", ""])
async def test_nothing_found_is_no_error(retriever: Retriever, query: str) -> None:
    assert await retriever.find(query, 5) == ()


@pytest.mark.parametrize(
    "query",
    [
        "'; DROP TABLE articles; --",
        "bridge & | ! ( :* <-> 'ferry",
        "%s %(k)s :now :k \\ 100%",
        "a\0b",
        "“§” 💥 \u2028",
        "bridge " * 5000,
    ],
    ids=ascii,
)
async def test_a_query_is_text_whatever_it_says(retriever: Retriever, query: str) -> None:
    await retriever.find(query, 5)
    assert (await retriever.find("harbour", 5))[0].id == "bridge"


# ---- the search that opens a call


def retrieval(strategy: str = "synthesise", k: int = 5, **origin: Any) -> Retrieval:
    return Retrieval.model_validate({"strategy": strategy, "from": origin, "k": k})


@pytest.fixture
async def sqlite() -> AsyncIterator[Database]:
    db = SqliteDatabase(":memory:")
    yield db
    await db.close()


@pytest.mark.parametrize(("strategy", "found"), [("synthesise", 2), ("acknowledge", 2), ("authoritative", 1)])
async def test_an_authority_is_one_source_and_the_other_strategies_get_all(
    sqlite: Database, tmp_path: Path, strategy: str, found: int
) -> None:
    wanted = retrieval(strategy, kind="files", folder=write_files(tmp_path))
    sources = await find_sources(wanted, sqlite, "harbour bridge")
    assert [one.id for one in sources] == ["bridge", "ferry"][:found]


async def test_sources_can_be_stored_told_apart_and_shown(
    sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile_factory.py").write_text(
        "from langchain_core.documents import Document\n"
        "class Made:\n"
        "    async def ainvoke(self, query):\n"
        "        return [Document('a\\0b\\ud800' + 'x' * 99999, metadata={'source': 's\\n' + 's' * 999})] * 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = await find_sources(retrieval(k=2, kind="langchain", factory="hostile_factory:Made"), sqlite, "q")
    assert [one.id for one in found] == ["s " + "s" * 198, "s " + "s" * 198 + "~2"]
    assert found[0].text.startswith("a b?x")
    assert len(found[0].text) == LONGEST_TEXT


# ---- files


async def test_a_changed_file_is_found_by_what_it_says_now(tmp_path: Path) -> None:
    files = Bm25Retriever(write_files(tmp_path), "*")
    assert await files.find("submarine", 1) == ()
    (tmp_path / "ferry").write_text("The ferry is a submarine now.")
    assert [one.id for one in await files.find("submarine", 1)] == ["ferry"]
    (tmp_path / "ferry").write_text("The ferry is a steamship now.")  # of the same size
    os.utime(tmp_path / "ferry", ns=(1, 1))
    assert await files.find("submarine", 1) == ()


async def test_what_is_hidden_binary_or_outside_the_folder_is_no_source(tmp_path: Path) -> None:
    folder, secret = tmp_path / "docs", tmp_path / "secret.txt"
    (folder / ".git").mkdir(parents=True)
    secret.write_text("the password is harbour")
    (folder / "link.txt").symlink_to(secret)
    (folder / ".git" / "harbour").write_text("harbour")
    (folder / "binary").write_bytes(b"harbour \xff\xfe")
    (folder / "empty").write_text("")
    (folder / "good.md").write_text("# The harbour\n\nIt is deep.")
    found = await Bm25Retriever(folder, "**/*").find("harbour password", 9)
    assert [(one.id, one.title) for one in found] == [("good.md", "The harbour")]


async def test_files_without_a_word_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    assert await Bm25Retriever(tmp_path, "*").find("harbour", 1) == ()


@pytest.mark.parametrize(("folder", "pattern"), [("gone", "**/*"), (".", "*.md"), (".", "/etc/*"), (".", "../*")])
async def test_a_folder_without_such_files_is_refused_with_its_name(tmp_path: Path, folder: str, pattern: str) -> None:
    (tmp_path / "inner").mkdir()
    with pytest.raises(BadSpec, match="inner"):
        await Bm25Retriever(tmp_path / "inner" / folder, pattern).find("harbour", 1)


def test_a_long_file_is_cut_between_paragraphs_and_nothing_of_it_is_lost() -> None:
    paragraphs = [f"paragraph {number} " + "x" * 300 for number in range(20)]
    pieces = passages("\n\n".join(paragraphs))
    assert "\n\n".join(pieces) == "\n\n".join(paragraphs)
    assert 2 < len(pieces) < 20
    assert max(map(len, pieces)) <= 2_002


def test_without_the_extra_the_sentence_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['bm25s'] = None\n"
        "from pathlib import Path; from metier_agents.retrieval import open_retriever; from metier_agents.spec import Files\n"
        "try: open_retriever(Files(kind='files', folder=Path('x'), pattern='*'), None)\n"
        "except Exception as error: print(error.code, error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith(
        "missing_package sources of kind files need a package: pip install 'metier[retrieval]'"
    )


def test_no_library_is_loaded_before_a_retriever_is_opened() -> None:
    program = "import metier_agents.loop, sys; print({'bm25s', 'numpy', 'langchain_core'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"


# ---- Postgres


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"table": "nowhere"}, "there is no table nowhere"),
        ({"text": "nothing"}, 'column "nothing" does not exist'),
        ({"language": "klingon"}, '"klingon" does not exist'),
    ],
)
async def test_a_table_that_is_not_as_declared_is_refused(
    postgres: Database, change: dict[str, str], says: str
) -> None:
    origin = Postgres.model_validate({**TABLE.model_dump(), **change})
    with pytest.raises(BadSpec, match=says):
        await PostgresRetriever(postgres, origin).find("bridge", 1)


async def test_words_are_found_in_another_form_and_one_of_them_is_enough(postgres: Database) -> None:
    found = await PostgresRetriever(postgres, TABLE).find("opening bridges and zebras", 1)
    assert [one.id for one in found] == ["bridge"]


async def test_a_row_without_a_title_is_a_source_too(postgres: Database) -> None:
    found = await PostgresRetriever(postgres, TABLE).find("ginkgo", 1)
    assert [(one.id, one.title) for one in found] == [("park", "")]


async def test_a_journal_that_is_no_postgres_is_refused(sqlite: Database) -> None:
    with pytest.raises(BadSpec, match="set METIER_POSTGRES_URL"):
        await open_retriever(TABLE, sqlite).find("bridge", 1)


# ---- LangChain


async def test_a_cut_connection_may_be_tried_again_and_other_errors_may_not() -> None:
    for error in (OSError("unreachable"), type("ConnectError", (Exception,), {})("cut")):
        with pytest.raises(RetryLater, match=r"the retriever mine does not answer: (OSError|ConnectError)"):
            await LangChainRetriever(Broken(error=error), "mine").find("q", 1)
    with pytest.raises(BadSpec, match="the retriever mine broke: KeyError"):
        await LangChainRetriever(Broken(error=KeyError("x")), "mine").find("q", 1)


@pytest.mark.parametrize(
    ("factory", "says"),
    [("no.such.module:make", "No module named"), ("json:nothing", "no attribute"), ("builtins:dict", "no LangChain")],
)
def test_a_factory_that_makes_no_retriever_is_refused(factory: str, says: str) -> None:
    with pytest.raises(BadSpec, match=f"{factory}.*{says}"):
        open_langchain_retriever(factory)


async def test_ids_scores_and_titles_are_taken_where_the_vendor_gives_them() -> None:
    class Made:
        async def ainvoke(self, input: str) -> list[Document]:
            return [Document("a", id="7", metadata={"score": 3, "title": "A"}), Document("b"), Document("c")]

    found = await LangChainRetriever(Made(), "made").find("q", 2)
    assert found == (
        Source(id="7", title="A", text="a", score=3.0),
        Source(id="document 2", title="document 2", text="b", score=0.5),
    )


# ---- the agent file

GOOD = """\
name: clerk
model: scripted:x
policy: {kind: autonomous}
retrieval:
  strategy: synthesise
  from:
    kind: files
    folder: handbook
  k: 3
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "clerk.yaml"
    path.write_text(text)
    return path


def test_an_agent_file_says_where_sources_come_from(tmp_path: Path) -> None:
    spec = load_agent(written(tmp_path, GOOD))
    assert spec.retrieval == retrieval(k=3, kind="files", folder="handbook")
    assert with_model(spec, "scripted:y").retrieval == spec.retrieval


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("synthesise", "synthesize", "5: retrieval.strategy: input should be 'synthesise', 'authoritative' or 'acknowledge'"),
        ("  strategy: synthesise\n", "", "4: retrieval.strategy: this field is missing"),
        ("kind: files", "kind: web", "6: retrieval.from: input tag 'web' found"),
        ("    folder: handbook\n", "", "6: retrieval.from.folder: this field is missing"),
        ("folder:", "foldr:", "8: retrieval.from.foldr: unknown field; did you mean folder?"),
        ("k: 3", "k: 0", "9: retrieval.k: input should be greater than or equal to 1"),
        ("k: 3", "k: 51", "9: retrieval.k: input should be less than or equal to 50"),
        ("k: 3", "n: 3", "9: retrieval.n: unknown field"),
        ("from:", "origin:", "6: retrieval.origin: unknown field"),
        ("kind: files\n    folder: handbook", "kind: postgres\n    table: a; DROP", "8: retrieval.from.table: must be a plain SQL name, or two"),
        ("kind: files\n    folder: handbook", "{kind: postgres, table: a, text: 'b\"'}", "7: retrieval.from.text: must be a plain SQL name: "),
        ("kind: files\n    folder: handbook", "{kind: postgres, table: a, language: \"x'\"}", "7: retrieval.from.language: must be a plain"),
        ("kind: files\n    folder: handbook", "{kind: langchain, factory: nothing}", "7: retrieval.from.factory: must be module:function"),
    ],
)  # fmt: skip
def test_a_retrieval_that_does_not_fit_is_refused_with_line_and_field(
    tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(BadSpec) as caught:
        load_agent(path)
    assert str(caught.value).startswith(f"{path}:{sentence}")


def test_another_strategy_or_origin_is_another_agent() -> None:
    base = {"name": "a", "model": "scripted:x", "policy": {"kind": "autonomous"}}
    kinds = [None, retrieval(kind="files", folder="a"), retrieval(kind="files", folder="b"), retrieval("acknowledge", kind="files", folder="a")]  # fmt: skip
    digests = {AgentSpec.model_validate({**base, "retrieval": one}).digest for one in kinds}
    assert len(digests) == len(kinds)
