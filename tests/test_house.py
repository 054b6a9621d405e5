"""The house stays readable: how long a module and a function may be, and which way a call takes."""

from __future__ import annotations

import ast
import io
import re
import sys
import threading
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from colbert_rag import LocalIndex, encoder, langchain, llama_index, shared_colbert
from colbert_rag.colbert import SHARED

PACKAGE = Path(__file__).parents[1] / "colbert_rag"
WALKS = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
MODULE_LINES = 350
FUNCTION_LINES = 50
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


def code_lines(source: str) -> set[int]:
    """Numbers of the lines that hold code, and not only a comment."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (*NO_CODE, tokenize.ENDMARKER):
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines


def functions(source: str) -> Iterator[tuple[str, int]]:
    """Each function, and how many lines of code it has below its signature, without docstring."""
    lines = code_lines(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body:
                own = range(body[0].lineno, (node.end_lineno or 0) + 1)
                yield node.name, sum(line in lines for line in own)


def sources() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), path.read_text(encoding="utf-8")


def test_no_module_is_long() -> None:
    found = {name: source.count("\n") for name, source in sources()}

    assert {name: lines for name, lines in found.items() if lines > MODULE_LINES} == {}


def test_no_function_is_long() -> None:
    found = {
        f"{name}: {function}": lines
        for name, source in sources()
        for function, lines in functions(source)
    }

    assert {name: lines for name, lines in found.items() if lines > FUNCTION_LINES} == {}


def test_code_is_counted_without_what_explains_it() -> None:
    source = (
        'def f(\n    a,\n):\n    """Say.\n\n    More.\n    """\n'
        "    # why\n\n    x = (\n        a\n    )\n    return x\n"
    )

    assert list(functions(source)) == [("f", 4)]


def files_entered(call: Callable[[], object]) -> list[str]:
    """Files of the package whose functions a call runs, in this thread and the encoder's."""
    seen: set[str] = set()
    # A thread is traced from its start: the next call starts another one.
    for model in SHARED._values.values():
        model._loaded().text_encoder.encoder._batcher.close()

    def note(frame: FrameType, event: str, argument: object) -> None:
        seen.add(frame.f_code.co_filename)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encoder, "TRIM_EVERY", sys.maxsize)  # else now and then one more
            call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    ours = (Path(name) for name in seen if Path(name).is_relative_to(PACKAGE))
    return sorted(path.relative_to(PACKAGE).as_posix() for path in ours)


def walk(beginning: str) -> tuple[list[str], list[int]]:
    """The files that one walk of the architecture names, and the counts it gives."""
    text = WALKS.partition(f"* {beginning}")[2].partition("\n* *")[0].partition("\n\n")[0]
    counts = [int(count) for count in re.findall(r"\((\d+)\)", text)]
    return sorted(set(re.findall(r"`([\w/]+\.py)`", text))), counts


@pytest.mark.parametrize("framework", ["LangChain", "LlamaIndex"])
def test_a_query_enters_the_files_that_the_architecture_names(
    framework: str, tiny_checkpoint: Path
) -> None:
    fields = {"model": str(tiny_checkpoint), "device": "cpu", "dtype": "float32"}
    ours = {"langchain/rerank.py", "langchain/documents.py"}
    if framework == "LangChain":
        reranker = langchain.ColBERTRerank(**fields)

        def call(text: str) -> None:
            reranker.compress_documents([Document(text)], "red planet")

    else:
        ours = {"llama_index/rerank.py"}
        postprocessor = llama_index.ColBERTRerank(**fields)

        def call(text: str) -> None:
            node = NodeWithScore(node=TextNode(text=text))
            postprocessor.postprocess_nodes([node], query_str="red planet")

    call("Mars is red.")

    found = files_entered(lambda: call("Venus is hot."))

    named, counts = walk("*A query from LangChain to its score*")
    shared = {name for name in named if not name.startswith(("langchain/", "llama_index/"))}
    assert set(found) == shared | ours
    assert len(found) == counts[["LangChain", "LlamaIndex"].index(framework)]


def test_add_enters_the_files_that_the_architecture_names(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = shared_colbert(tiny_checkpoint, device="cpu", dtype="float32")
    found = {}
    for pooling in (None, 2.0):
        with LocalIndex(tmp_path / f"{pooling}.sqlite", model, token_pooling=pooling) as index:
            index.add(["Mars is red."])
            found[pooling] = files_entered(lambda: index.add(["Venus is hot."]))

    named, counts = walk("*`add` of a `LocalIndex`*")
    assert found[2.0] == named
    assert found[None] == [name for name in named if name != "index/pooling.py"]
    assert counts == [len(found[None])]
