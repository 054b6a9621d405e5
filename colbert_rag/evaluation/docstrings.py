"""What the demonstrations rank: the docstrings of Python's standard library, searched by keywords.

They are some thousand pieces of technical prose that every machine has which can run this. The
keyword search is the BM25 of the SQLite that Python carries, and stands for whatever a pipeline
retrieves with.
"""

from __future__ import annotations

import ast
import pkgutil
import re
import sqlite3
import sysconfig
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from colbert_rag.errors import ColBERTRagError
from colbert_rag.progress import progress_bar

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

SKIPPED_PACKAGES = frozenset(
    "distutils ensurepip idlelib lib2to3 pydoc_data test tests turtledemo".split()
)
"""Tests, tools, and what is on its way out."""


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


def standard_library(
    *,
    limit: int | None = None,
    modules: Collection[str] | None = None,
    show_progress: bool = False,
) -> list[Docstring]:
    """The docstrings of the public parts of the standard library, in alphabetical order of modules.

    Sources are parsed and nothing is imported: importing all modules would start windows and read
    settings.

    Args:
        limit: Stop after so many.
        modules: Names of the modules and packages to read; None for all.
        show_progress: Draw a bar.

    Raises:
        ColBERTRagError: this Python came without the sources of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    passages: dict[str, Docstring] = {}
    found = sorted(_modules(root), key=lambda pair: pair[1])
    if modules is not None:
        found = [(file, name) for file, name in found if name.partition(".")[0] in modules]
    what, total = "Reading docstrings", len(found)
    with progress_bar(what, total=total, unit="module", show=show_progress) as bar:
        for file, module in found:
            for passage in read_passages(file, module):
                passages.setdefault(passage.name, passage)
            bar.update(1)
            if limit is not None and len(passages) >= limit:
                break
    if not passages:
        raise ColBERTRagError(f"{root} holds no Python sources, whose docstrings are needed here")
    return list(passages.values())[:limit]


def _modules(folder: Path, prefix: str = "") -> Iterator[tuple[Path, str]]:
    """Source files and the names of their modules."""
    for _, name, is_package in pkgutil.iter_modules([str(folder)]):
        # The documented source of some modules is a twin, such as _pydatetime.
        public = name.removeprefix("_py")
        if public.startswith("_") or name in SKIPPED_PACKAGES:
            continue
        if is_package:
            yield folder / name / "__init__.py", prefix + name
            yield from _modules(folder / name, f"{prefix}{name}.")
        else:
            yield folder / f"{name}.py", prefix + public


def read_passages(file: Path, module: str) -> Iterator[Docstring]:
    """The docstrings of a source file, outermost first; none where it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the parsed code, such as an invalid escape
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return  # a template, or a module that is no Python source
    yield from _docstrings(tree, module)


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[Docstring]:
    text = ast.get_docstring(node)
    if text and len(text.split()) > 2:
        yield Docstring(name, _opening(text))
    if isinstance(node, ast.Module | ast.ClassDef):
        for inner in node.body:
            if isinstance(
                inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ) and not inner.name.startswith("_"):
                yield from _docstrings(inner, f"{name}.{inner.name}")


def _opening(text: str) -> str:
    """The first paragraphs, as many as fit whole; a longer first one is cut after a word."""
    if len(text) <= LONGEST_PASSAGE:
        return text
    cut = text[:LONGEST_PASSAGE]
    return (cut.rpartition("\n\n")[0] or cut.rpartition(" ")[0] or cut).rstrip()


@contextmanager
def keyword_search(
    passages: Sequence[Docstring], *, top_k: int = CANDIDATES
) -> Iterator[Callable[[str], list[Docstring]]]:
    """Index passages in memory; what it gives finds those that share words with a query, by BM25.

    Raises:
        ColBERTRagError: this Python's SQLite was built without full-text search.
    """
    with closing(sqlite3.connect(":memory:")) as database:
        try:
            database.execute(
                "create virtual table passages using fts5(name, text, tokenize = 'porter')"
            )
        except sqlite3.OperationalError as error:
            raise ColBERTRagError(
                f"the SQLite {sqlite3.sqlite_version} of this Python has no full-text search "
                f"({error}), which the demonstration searches with"
            ) from error
        rows = ((number, passage.name, passage.text) for number, passage in enumerate(passages))
        database.executemany("insert into passages (rowid, name, text) values (?, ?, ?)", rows)

        def find(query: str) -> list[Docstring]:
            asked = dict.fromkeys(re.findall(r"\w+", query.lower()))
            # Documentation seldom asks: "how" and "I" would weigh more than the matter itself.
            words = [word for word in asked if word not in STOP_WORDS] or list(asked)
            if not words:
                return []
            found = database.execute(
                "select rowid from passages where passages match ? order by rank limit ?",
                (" OR ".join(f'"{word}"' for word in words), top_k),
            )
            return [passages[number] for (number,) in found]

        yield find
