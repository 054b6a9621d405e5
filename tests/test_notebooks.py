"""The notebooks run in a fresh kernel, show again what is kept in them, and keep their form."""

from __future__ import annotations

import ast
import difflib
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest
from nbformat import NotebookNode

from tests.helpers.notebooks import METADATA, execute, read

FOLDER = Path(__file__).parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
OVERVIEWS = [FOLDER / "README.md", FOLDER.parent / "docs" / "notebooks.md"]
NUMBER = re.compile(r"-?\d+(\.\d+)?")
MRR = re.compile(r"^(.+?) +hit rate .*MRR: (.+)$", re.MULTILINE)
PLACE_OF_THIS_MACHINE = re.compile(r"/(?:home|root|tmp|usr|opt|work|Users|var)/|\b[A-Z]:\\\\")

each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
runs = pytest.mark.slow  # a kernel and its imports alone take seconds


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], NotebookNode]]:
    """A notebook with the outputs of a run of now; two run at a time, on one core each."""
    pool = ThreadPoolExecutor(2)
    running = {path: pool.submit(execute, path, tmp_path_factory.mktemp("run")) for path in PATHS}
    yield lambda path: running[path].result()
    pool.shutdown(cancel_futures=True)


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: NotebookNode) -> list[list[str]]:
    """Of each output: a stream's name, or the ways in which a value shows itself."""
    return [
        sorted(output.get("data", {})) or [output.get("name", "error")] for output in cell.outputs
    ]


def printed(notebook: NotebookNode) -> str:
    """Everything that is shown as text."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    return "\n".join(
        output["text"] if "text" in output else output["data"]["text/plain"] for output in outputs
    )


def words(notebook: NotebookNode) -> list[str]:
    return NUMBER.sub("#", printed(notebook)).split()


def imports(notebook: NotebookNode) -> Iterator[tuple[str, str]]:
    """Module and name of everything that is imported from the package."""
    for node in ast.walk(ast.parse("\n".join(cell.source for cell in code(notebook)))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("colbert_rag"):
            yield from ((str(node.module), alias.name) for alias in node.names)


def lines_to_read(source: str) -> int:
    """Lines of code: without imports, comments, and literal data."""
    return sum(
        len([line for line in ast.unparse(node).splitlines() if line])
        for node in ast.parse(source).body
        if not isinstance(node, ast.Import | ast.ImportFrom) and not is_data(node)
    )


def is_data(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)


def mean_reciprocal_ranks(notebook: NotebookNode) -> list[float]:
    """As printed: of the first stage, of the same reranked, and of late interaction alone."""
    return [float(value) for _, value in MRR.findall(printed(notebook))]


def test_the_notebooks_are_numbered_from_one() -> None:
    assert [path.stem.split("_")[0] for path in PATHS] == ["1", "2", "3", "4", "5", "6"]


@runs
@each
def test_a_notebook_runs_without_errors_and_warnings(
    path: Path, fresh: Callable[[Path], NotebookNode]
) -> None:
    shown = [kind for cell in code(fresh(path)) for kind in kinds(cell)]

    assert ["stderr"] not in shown, printed(fresh(path))


@runs
@each
def test_a_run_shows_again_what_is_kept(path: Path, fresh: Callable[[Path], NotebookNode]) -> None:
    kept, now = read(path), fresh(path)

    assert [kinds(cell) for cell in code(now)] == [kinds(cell) for cell in code(kept)]
    # Another Python has other docstrings, and another float type moves numbers.
    alike = difflib.SequenceMatcher(None, words(kept), words(now), autojunk=False).ratio()
    assert alike > 0.8, f"kept:\n{printed(kept)}\nnow:\n{printed(now)}"


@runs
def test_reranking_a_keyword_search_is_worth_it(fresh: Callable[[Path], NotebookNode]) -> None:
    first_stage, reranked, alone = mean_reciprocal_ranks(fresh(PATHS[1]))

    assert min(reranked, alone) > first_stage + 0.15


@runs
def test_reranking_good_vectors_does_no_harm(fresh: Callable[[Path], NotebookNode]) -> None:
    first_stage, reranked, alone = mean_reciprocal_ranks(fresh(PATHS[2]))

    assert min(reranked, alone) > first_stage - 0.02


@runs
def test_the_score_by_hand_is_that_of_the_model(fresh: Callable[[Path], NotebookNode]) -> None:
    pairs = re.findall(r"(\S+) by hand, (\S+) by model", printed(fresh(PATHS[3])))

    assert len(pairs) == 2
    assert [float(hand) for hand, _ in pairs] == pytest.approx(
        [float(model) for _, model in pairs], abs=0.02
    )


@runs
def test_padding_with_zeros_changes_the_order(fresh: Callable[[Path], NotebookNode]) -> None:
    replies = re.findall(
        r"(\S+) padded with zeros +(\S+) without padding", printed(fresh(PATHS[3]))
    )

    padded, exact = ([float(score) for score in scores] for scores in zip(*replies, strict=True))
    assert padded.index(max(padded)) != exact.index(max(exact))


@runs
def test_both_indexes_find_the_same(fresh: Callable[[Path], NotebookNode]) -> None:
    found = re.findall(r"same order: (\w+) +scores apart by (\S+)", printed(fresh(PATHS[4])))

    assert [same for same, _ in found] == ["True"] * 3
    assert max(float(apart) for _, apart in found) < 0.01


@runs
def test_the_smallest_effort_that_finds_all_is_chosen(
    fresh: Callable[[Path], NotebookNode],
) -> None:
    found = re.findall(r"^([1-5])( \*)? +(\d\.\d{3}) ", printed(fresh(PATHS[4])), re.MULTILINE)

    assert [effort for effort, _, _ in found] == ["1", "2", "3", "4", "5"]
    enough = [effort for effort, _, recall in found if float(recall) == 1.0]
    assert [effort for effort, star, _ in found if star] == enough[:1]


@runs
def test_many_questions_show_what_few_do_not(fresh: Callable[[Path], NotebookNode]) -> None:
    shown = re.findall(r"(\d+) questions: .* p = (\S+)", printed(fresh(PATHS[5])))

    # Five differences have 32 signs, of which two are as one-sided as can be: p is 1/16 at least.
    assert [int(count) for count, _ in shown] == [5, 10, 25, 50]
    assert float(shown[0][1]) > 0.06
    assert float(shown[-1][1]) < 0.01


@runs
def test_deeper_reranking_is_better_and_dearer(fresh: Callable[[Path], NotebookNode]) -> None:
    text = printed(fresh(PATHS[5]))
    points = re.findall(r"depth +(\d+): nDCG@10 (\S+), +(\d+) documents", text)

    assert [int(depth) for depth, _, _ in points] == [10, 20, 50, 100, 200]
    before = float(re.findall(r"depth +0: nDCG@10 (\S+)", text)[0])
    values = [float(value) for _, value, _ in points]
    assert before < values[0] < values[-1]
    encoded = [int(count) for _, _, count in points]
    assert encoded == sorted(encoded)


@each
def test_a_notebook_opens_with_its_promise_and_one_checkpoint(path: Path) -> None:
    first, second, *others = read(path).cells

    assert re.match(r"# \d · \S.*\n\n[^#]+\n\n\*\*Time:\*\* .+ \*\*Hardware:\*\* ", first.source)
    install, checkpoint = second.source.splitlines()
    assert re.match(r'# %pip install --quiet "\.\.\[[\w,-]+\]"', install)
    assert re.match(r'CHECKPOINT = "offline-minilm"  # .+: "[\w-]+/[\w.-]+"$', checkpoint)
    assert not any("CHECKPOINT =" in cell.source for cell in others)


@each
def test_a_notebook_ends_with_what_was_seen_and_where_to_go(path: Path) -> None:
    cells = read(path).cells

    assert "## What you saw" in cells[-1].source
    following = [next_.name for next_ in PATHS[PATHS.index(path) + 1 :][:1]]
    assert re.findall(r"\]\((.+\.ipynb)\)", cells[-1].source) == following


@each
def test_a_notebook_is_short(path: Path) -> None:
    cells = read(path).cells

    assert len(cells) <= 15
    assert max(lines_to_read(cell.source) for cell in cells if cell.cell_type == "code") <= 10
    assert path.stat().st_size < 60_000


@each
def test_only_public_names_are_used(path: Path) -> None:
    used = list(imports(read(path)))

    assert used
    assert [pair for pair in used if pair[1] not in import_module(pair[0]).__all__] == []


@each
def test_outputs_were_kept_from_one_run_from_top_to_bottom(path: Path) -> None:
    cells = code(read(path))

    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    assert ["stderr"] not in [kind for cell in cells for kind in kinds(cell)]


@each
def test_nothing_of_the_machine_is_kept(path: Path) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))

    assert stored["metadata"] == METADATA
    assert all(cell["metadata"] == {} for cell in stored["cells"])
    assert [cell["id"] for cell in stored["cells"]] == [
        f"cell-{number}" for number in range(1, len(stored["cells"]) + 1)
    ]
    assert not PLACE_OF_THIS_MACHINE.search(json.dumps(stored))


@pytest.mark.parametrize("overview", OVERVIEWS, ids=lambda path: path.parent.name)
def test_an_overview_names_every_notebook(overview: Path) -> None:
    links = re.findall(r"\]\((.+\.ipynb)\)", overview.read_text(encoding="utf-8"))

    assert [(overview.parent / link).resolve() for link in links] == PATHS
