"""The demonstration: passages without imports, an honest keyword search, one model everywhere."""

import inspect
import mailbox
import math
import re
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from colbert_rag import ColBERT, ColBERTRagError, MissingExtraError, shared_colbert
from colbert_rag.cli import main
from colbert_rag.cli.demo import FRAMEWORKS, QUESTIONS, compare
from colbert_rag.evaluation.docstrings import (
    LONGEST_PASSAGE,
    Docstring,
    keyword_search,
    read_passages,
    standard_library,
)

Search = Callable[[str], list[Docstring]]

PASSAGES = [
    Docstring("a", "The dog runs after another dog."),
    Docstring("b", "A cat sleeps."),
    Docstring("c", "One dog sits, says the cat."),
    Docstring("d", "Running is what a hare does, and it goes on at some length about running."),
    Docstring("e", "Nothing of the kind is here."),
]


@pytest.fixture(scope="module")
def library() -> list[Docstring]:
    return standard_library(limit=150)


@pytest.fixture(scope="module")
def model(checkpoint) -> ColBERT:
    # The process's instance, which components of the same name find.
    return shared_colbert(checkpoint("stanford-bert"), device="cpu", dtype="float32")


@pytest.fixture
def search() -> Iterator[Search]:
    with keyword_search(PASSAGES) as opened:
        yield opened


def names(passages: list[Docstring]) -> str:
    return "".join(passage.name for passage in passages)


def okapi(query: list[str], passages: Sequence[list[str]], *, k1: float = 1.2, b: float = 0.75):
    """BM25 of every passage, as https://www.sqlite.org/fts5.html#the_bm25_function writes it."""
    average = sum(map(len, passages)) / len(passages)
    scores = [0.0] * len(passages)
    for word in query:
        holders = sum(word in passage for passage in passages)
        idf = math.log((len(passages) - holders + 0.5) / (holders + 0.5))
        for index, passage in enumerate(passages):
            count = Counter(passage)[word]
            norm = 1 - b + b * len(passage) / average
            scores[index] += idf * count * (k1 + 1) / (count + k1 * norm)
    return scores


# Passages


def test_passages_are_the_docstrings_that_python_itself_shows() -> None:
    found = {at.name: at.text for at in read_passages(Path(textwrap.__file__), "textwrap")}

    assert found["textwrap.shorten"] == inspect.getdoc(textwrap.shorten)
    assert found["textwrap.TextWrapper.fill"] == inspect.getdoc(textwrap.TextWrapper.fill)


def test_private_names_are_left_out() -> None:
    names = [at.name for at in read_passages(Path(textwrap.__file__), "textwrap")]

    assert inspect.getdoc(textwrap.TextWrapper._split)
    assert not [name for name in names if "._" in name]


def test_a_long_docstring_is_cut_after_a_whole_paragraph() -> None:
    found = {at.name: at.text for at in read_passages(Path(shutil.__file__), "shutil")}
    whole = inspect.getdoc(shutil.copytree) or ""

    assert len(whole) > LONGEST_PASSAGE >= len(found["shutil.copytree"])
    assert whole.startswith(found["shutil.copytree"] + "\n\n")


def test_a_file_that_cannot_be_parsed_has_no_passages(tmp_path: Path) -> None:
    template = tmp_path / "template.py"
    template.write_text('"""Some documentation of it."""\n{% if %}\n')

    assert list(read_passages(template, "template")) == []


def test_modules_are_read_and_not_imported(library: list[Docstring]) -> None:
    # Among the modules of the fixture; importing it would open a web browser.
    assert "antigravity" not in sys.modules
    assert library[0].name < "antigravity" < library[-1].name


def test_the_limit_is_kept(library: list[Docstring]) -> None:
    assert len(library) == 150
    assert len({passage.name for passage in library}) == 150


def test_a_python_without_sources_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))

    with pytest.raises(ColBERTRagError, match="holds no Python sources"):
        standard_library()


# Keywords


def test_the_keyword_search_is_bm25(search: Search) -> None:
    words = [re.findall(r"\w+", f"{at.name} {at.text}".lower()) for at in PASSAGES]
    scores = okapi(["dog"], words)

    found = search("dog")

    assert found == [PASSAGES[at] for at in sorted((0, 2), key=lambda index: -scores[index])]


def test_keywords_are_found_in_other_forms(search: Search) -> None:
    assert set(names(search("run"))) == {"a", "d"}


def test_words_that_only_make_a_question_are_not_looked_for(search: Search) -> None:
    assert names(search("Where is the hare?")) == "d"


@pytest.mark.parametrize("query", ['"', "dog AND", "NEAR(", "name:dog*", "dog-", "'; drop --"])
def test_no_query_is_taken_for_search_syntax(query: str, search: Search) -> None:
    assert set(names(search(query))) <= {"a", "c"}


def test_only_as_many_as_asked_for_are_found(search: Search) -> None:
    with keyword_search(PASSAGES, top_k=2) as few:
        assert few("dog cat") == search("dog cat")[:2]


# Comparison and frameworks


def test_a_comparison_reranks_what_keywords_found(model: ColBERT, search: Search) -> None:
    comparison = compare("a dog and a cat", search, model)

    found = search("a dog and a cat")
    scores = model.score("a dog and a cat", [passage.content for passage in found])
    order = sorted(range(len(found)), key=lambda index: -scores[index])
    assert comparison.found == found
    assert comparison.best == [found[index] for index in order]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_answers_from_the_same_model_in_the_same_order(
    framework: str, model: ColBERT, search: Search
) -> None:
    comparison = compare("a dog and a cat", search, model)

    named = model.settings
    reranker, answer = FRAMEWORKS[framework](
        comparison, model=named.checkpoint, device=named.device, dtype=named.dtype, top_n=2
    )

    assert answer() == [passage.name for passage in comparison.best[:2]]
    assert reranker.ranker is model


@pytest.mark.parametrize(
    ("framework", "module", "extra"),
    [
        ("LangChain", "langchain_core", "langchain"),
        ("LlamaIndex", "llama_index.core", "llama-index"),
    ],
)
def test_a_framework_that_is_not_installed_names_its_extra(
    framework: str,
    module: str,
    extra: str,
    model: ColBERT,
    search: Search,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    comparison = compare("a dog and a cat", search, model)
    hide(module, f"colbert_rag.{extra.replace('-', '_')}", monkeypatch)

    with pytest.raises(MissingExtraError, match=rf"colbert-rag-components\[{extra}\]"):
        FRAMEWORKS[framework](comparison, model=model.settings.checkpoint)


def hide(module: str, ours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a framework look as if it were not installed, to a process that has not imported it."""
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, ours, raising=False)


# The command


def demo(*arguments: str) -> int:
    return main(["demo", "--limit", "150", "--device", "cpu", *arguments])


def test_the_demo_shows_both_orders_and_both_frameworks(
    model: ColBERT, capsys: pytest.CaptureFixture[str]
) -> None:
    status = demo("--model", model.settings.checkpoint, "--dtype", "float32", "an abstract class")

    shown = capsys.readouterr()
    assert status == 0
    assert "150 passages" in shown.out
    assert re.search(r"KEYWORDS \(BM25\) +LATE INTERACTION", shown.out)
    assert re.search(r"^  1  \S+ +1 \(\d+\) \S+$", shown.out, re.MULTILINE)
    assert re.search(r"LangChain +ColBERTRerank: same order, same model in memory", shown.out)
    assert re.search(r"LlamaIndex +ColBERTRerank: same order, same model in memory", shown.out)
    assert shown.err == ""


@pytest.mark.parametrize("columns", ["80", "100"])
def test_the_demo_fits_the_terminal(
    columns: str,
    model: ColBERT,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)

    demo("--model", model.settings.checkpoint, "what is an abstract method of a class?")

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == int(columns)
    assert lines[-1].endswith(": colbert-rag serve")


def test_the_demo_leaves_out_a_framework_that_is_not_installed(
    model: ColBERT,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hide("langchain_core", "colbert_rag.langchain", monkeypatch)

    status = demo("--model", model.settings.checkpoint, "an abstract class")

    shown = capsys.readouterr().out
    assert status == 0
    assert "pip install 'colbert-rag-components[langchain]'" in " ".join(shown.split())
    assert "LlamaIndex  ColBERTRerank: same order" in shown


def test_a_question_that_shares_no_word_is_answered_politely(
    model: ColBERT, capsys: pytest.CaptureFixture[str]
) -> None:
    status = demo("--model", model.settings.checkpoint, "zyzzyva")

    assert status == 0
    assert "shares a word" in capsys.readouterr().out


def test_a_question_may_begin_with_a_dash(
    model: ColBERT, capsys: pytest.CaptureFixture[str]
) -> None:
    # As `make demo QUERY="--help me"` passes it.
    status = demo("--model", model.settings.checkpoint, "--", "-- abstract")

    assert status == 0
    assert "-- abstract" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([" "], "QUERY is empty", id="a blank question"),
        pytest.param(["--limit", "0"], "--limit is 0", id="no passages at all"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_loaded(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--model", "/nowhere", *arguments])

    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_late_interaction_finds_what_keywords_miss() -> None:
    question = "How do I delete a folder and everything inside it?"
    passages = [
        *read_passages(Path(mailbox.__file__), "mailbox"),
        *read_passages(Path(shutil.__file__), "shutil"),
    ]
    minilm = shared_colbert("offline-minilm", device="cpu")

    with keyword_search(passages) as search:
        comparison = compare(question, search, minilm)

    assert question in QUESTIONS
    assert comparison.found[0].name.startswith("mailbox.")
    assert comparison.best[0].name == "shutil.rmtree"
