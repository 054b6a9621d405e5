"""What the demonstration ranks, and how: real passages, a keyword search, and both frameworks.

The passages are the docstrings of Python's standard library: some thousand pieces of technical
prose that every machine has which can run this. The keyword search is the BM25 of the SQLite that
Python carries, and stands for whatever a pipeline retrieves with.
"""

from __future__ import annotations

import ast
import os
import re
import sqlite3
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from colbert_rag.colbert import ColBERT
from colbert_rag.errors import ColBERTRagError, MissingExtraError
from colbert_rag.ranking import Ranking

QUESTIONS = (
    "How do I run another program and get its output?",
    "How do I delete a folder and everything inside it?",
    "put text into lines that are not too wide",
    "How do I ask for a password without showing it?",
)
"""Asked in other words than the documentation's, which is where keywords fail."""

CANDIDATES = 100
"""How many passages the keyword search hands on."""

LONGEST_PASSAGE = 500
"""Characters of a docstring that are ranked: its first paragraphs say what a thing is for."""

STOP_WORDS = frozenset(
    "a an and are at be by can could do does for from get have how i in is it its me my of on or "
    "should so some something that the there this to want was what when where which who why will "
    "with without would you".split()
)
"""What the keyword search does not look for."""

SKIPPED_FOLDERS = frozenset(
    "dist-packages distutils ensurepip idlelib lib2to3 pydoc_data site-packages test tests "
    "turtledemo".split()
)
"""Tests, tools, what is on its way out, and what is not the standard library."""


@dataclass(frozen=True, slots=True)
class Docstring:
    """The docstring of a module, class or function.

    Attributes:
        name: Where it is, as in `shutil.rmtree`.
        text: Its first paragraphs.
    """

    name: str
    text: str

    @property
    def content(self) -> str:
        """Name and text, as they are ranked."""
        return f"{self.name}: {self.text}"


def standard_library(*, limit: int | None = None, show_progress: bool = False) -> list[Docstring]:
    """The docstrings of the public parts of the standard library, in alphabetical order of modules.

    Sources are parsed and nothing is imported: importing all modules would start windows and read
    settings.

    Args:
        limit: Stop after so many.
        show_progress: Draw a progress bar on standard error.

    Raises:
        ColBERTRagError: this Python came without the sources of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    passages: dict[str, Docstring] = {}
    bar = tqdm(_modules(root), desc="Reading docstrings", unit="module", disable=not show_progress)
    for file, module in bar:
        for passage in read_passages(file, module):
            passages.setdefault(passage.name, passage)
        if limit is not None and len(passages) >= limit:
            break
    if not passages:
        raise ColBERTRagError(f"{root} holds no Python sources, whose docstrings are needed here")
    return list(passages.values())[:limit]


def _modules(root: Path) -> list[tuple[Path, str]]:
    """Source files and the names of their modules."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith("_")
        )
        for name in sorted(files):
            file = Path(folder, name)
            parts = file.relative_to(root).with_suffix("").parts
            # The documented source of some modules is a twin, such as _pydatetime.
            public = parts[-1].removeprefix("_py")
            if file.suffix == ".py" and (public == "__init__" or not public.startswith("_")):
                kept = parts[:-1] if public == "__init__" else (*parts[:-1], public)
                found.append((file, ".".join(kept)))
    return sorted(found, key=lambda pair: pair[1])


def read_passages(file: Path, module: str) -> Iterator[Docstring]:
    """The docstrings of a source file, outermost first; none where it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the parsed code, such as an invalid escape
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return  # a template or a broken link among the sources
    yield from _docstrings(tree, module)


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[Docstring]:
    text = ast.get_docstring(node)
    if text and len(text.split()) > 2:
        yield Docstring(name, _opening(text))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for inner in node.body:
        if not isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not inner.name.startswith("_"):
            yield from _docstrings(inner, f"{name}.{inner.name}")


def _opening(text: str) -> str:
    """The first paragraphs, as many as fit whole; a longer first one is cut after a word."""
    if len(text) <= LONGEST_PASSAGE:
        return text
    end = text.rfind("\n\n", 0, LONGEST_PASSAGE)
    if end < 0:
        end = max(text.rfind(" ", 0, LONGEST_PASSAGE), 0) or LONGEST_PASSAGE
    return text[:end].rstrip()


class KeywordSearch:
    """BM25 over passages, by SQLite's full-text search, in memory."""

    def __init__(self, passages: Sequence[Docstring]) -> None:
        """Index the passages.

        Raises:
            ColBERTRagError: this Python's SQLite was built without full-text search.
        """
        self._database = sqlite3.connect(":memory:")
        try:
            self._database.execute(
                "create virtual table passages using fts5(name, text, tokenize = 'porter')"
            )
        except sqlite3.OperationalError as error:
            raise ColBERTRagError(
                f"the SQLite {sqlite3.sqlite_version} of this Python has no full-text search "
                f"({error}), which the demonstration searches with"
            ) from error
        rows = ((number, passage.name, passage.text) for number, passage in enumerate(passages))
        self._database.executemany(
            "insert into passages (rowid, name, text) values (?, ?, ?)", rows
        )

    def __call__(self, query: str, *, k: int = CANDIDATES) -> list[int]:
        """Positions of the passages that share words with a query, best first."""
        said = dict.fromkeys(re.findall(r"\w+", query.lower()))
        # Documentation seldom asks, so that "how" and "I" would weigh more than the matter itself.
        words = [word for word in said if word not in STOP_WORDS] or list(said)
        if not words:
            return []
        rows = self._database.execute(
            "select rowid from passages where passages match ? order by rank limit ?",
            (" OR ".join(f'"{word}"' for word in words), k),
        )
        return [number for (number,) in rows]

    def close(self) -> None:
        """Give the memory back."""
        self._database.close()


@dataclass(frozen=True, slots=True)
class Comparison:
    """One question, answered twice.

    Attributes:
        query: The question.
        found: What keywords found, best first.
        search_seconds: How long that took.
        ranking: The same passages by late interaction.
        rank_seconds: How long that took.
    """

    query: str
    found: list[Docstring]
    search_seconds: float
    ranking: Ranking
    rank_seconds: float

    @property
    def best(self) -> list[Docstring]:
        """All passages in the new order."""
        return [self.found[at.index] for at in self.ranking]


def compare(
    query: str,
    passages: Sequence[Docstring],
    search: KeywordSearch,
    model: ColBERT,
    *,
    show_progress: bool = False,
) -> Comparison:
    """Search by keywords, and rerank what they found."""
    start = time.perf_counter()
    found = [passages[number] for number in search(query)]
    searched = time.perf_counter()
    ranking = model.rank(query, [passage.content for passage in found], show_progress=show_progress)
    ranked = time.perf_counter()
    return Comparison(query, found, searched - start, ranking, ranked - searched)


@dataclass(frozen=True, slots=True)
class FrameworkAnswer:
    """What a framework's component made of the same passages.

    Attributes:
        best: Names of the passages it returned, best first.
        shares: Whether it answered from the very model it was compared with.
        seconds: How long it took.
    """

    best: list[str]
    shares: bool
    seconds: float


def answer_in_langchain(model: ColBERT, comparison: Comparison, top_n: int) -> FrameworkAnswer:
    """Rerank as a LangChain chain would.

    Raises:
        MissingExtraError: langchain-core is not installed.
    """
    try:
        from langchain_core.documents import Document

        from colbert_rag.langchain import ColBERTRerank
    except ImportError as error:
        raise MissingExtraError("langchain-core", extra="langchain") from error

    named = model.settings
    reranker = ColBERTRerank(
        model=named.checkpoint, device=named.device, dtype=named.dtype, top_n=top_n
    )
    documents = [
        Document(page_content=passage.content, id=passage.name) for passage in comparison.found
    ]
    start = time.perf_counter()
    best = reranker.compress_documents(documents, comparison.query)
    seconds = time.perf_counter() - start
    return FrameworkAnswer([str(at.id) for at in best], reranker.ranker is model, seconds)


def answer_in_llama_index(model: ColBERT, comparison: Comparison, top_n: int) -> FrameworkAnswer:
    """Rerank as a LlamaIndex query engine would.

    Raises:
        MissingExtraError: llama-index-core is not installed.
    """
    try:
        from llama_index.core.schema import NodeWithScore, TextNode

        from colbert_rag.llama_index import ColBERTRerank
    except ImportError as error:
        raise MissingExtraError("llama-index-core", extra="llama-index") from error

    named = model.settings
    reranker = ColBERTRerank(
        model=named.checkpoint, device=named.device, dtype=named.dtype, top_n=top_n
    )
    nodes = [
        NodeWithScore(node=TextNode(text=passage.content, id_=passage.name))
        for passage in comparison.found
    ]
    start = time.perf_counter()
    best = reranker.postprocess_nodes(nodes, query_str=comparison.query)
    seconds = time.perf_counter() - start
    return FrameworkAnswer([at.node.node_id for at in best], reranker.ranker is model, seconds)


FRAMEWORKS: dict[str, Callable[[ColBERT, Comparison, int], FrameworkAnswer]] = {
    "LangChain": answer_in_langchain,
    "LlamaIndex": answer_in_llama_index,
}
