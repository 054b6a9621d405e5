"""The house stays readable: how long a module and a function may be."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "colbert_rag"
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
