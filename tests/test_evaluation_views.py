"""What an evaluation looks like: in a terminal, in a notebook, as a figure."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest

from benchmarks import tune
from colbert_rag import ColBERT
from colbert_rag.evaluation import Evaluation, JudgedCollection, Run, System, evaluate, reranked
from colbert_rag.evaluation.text_view import to_text
from colbert_rag.figure import Figure
from tests.test_evaluation import TEXTS

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert(1)</script>\x1b[31m & more"


@pytest.fixture
def view(tiny_colbert: ColBERT) -> Evaluation:
    queries = {f"q{number}": f"red planet {number}" for number in range(30)}
    queries["q0"] = HOSTILE
    judged = {query: {"mars": 1} for query in queries}
    found = {query: {"sun": 4.0, "moon": 3.0, "venus": 2.0, "mars": 1.0} for query in queries}
    base = System(f"base {HOSTILE}", lambda collection, nothing: Run(scores=found))
    collection = JudgedCollection.of("tiny", judged, queries, TEXTS)
    return evaluate(collection, [reranked(base, tiny_colbert, "ours", depth=4)], depths=(2, 3))


def test_a_terminal_is_not_steered(view: Evaluation) -> None:
    assert "\x1b" not in repr(view)
    assert "␛[31m" in repr(view)


def test_the_text_says_what_was_measured_on_what_and_by_what(view: Evaluation) -> None:
    assert repr(view).startswith(
        "tiny: 30 judged queries, 4 documents; measures by trec_eval (pytrec-eval-terrier "
    )
    for part in ("quality", "nDCG@10 against base", "cost", "depth 2", "randomisation test"):
        assert part in repr(view)


def test_one_query_and_one_document_are_counted_as_one() -> None:
    alone = JudgedCollection.of("one", {"q": {"mars": 1}}, {"q": "red"}, {"mars": "Mars is red."})
    base = System("base", lambda collection, nothing: Run(scores={"q": {"mars": 1.0}}))

    assert repr(evaluate(alone, [base])).startswith("one: 1 judged query, 1 document; measures by")


@pytest.mark.parametrize("width", [60, 100])
def test_prose_keeps_to_the_width_of_a_terminal(view: Evaluation, width: int) -> None:
    prose = [line for line in to_text(view, width).splitlines() if "note:" in line or "p:" in line]

    assert prose
    assert max(map(len, prose)) <= width


def test_markup_of_others_is_escaped(view: Evaluation) -> None:
    assert "<script" not in view._repr_html_()
    assert "&lt;script&gt;" in view._repr_html_()


def test_a_notebook_sees_tables_and_one_figure(view: Evaluation) -> None:
    html = view.to_html()

    assert html.count("<table>") == 3
    assert html.count("<svg") == 1
    # Any number of outputs may be on one page, and nothing is fetched.
    assert not re.search(r'\sid="', html)
    # A style sheet inside of a drawing would be that of the whole page.
    assert html.count("<style") == 1
    assert not re.search(r"<svg.*<style", html, re.DOTALL)
    assert not re.search(r'(?:src|href)="', html)


def test_without_a_reranker_there_is_no_figure(view: Evaluation) -> None:
    alone = System("alone", lambda collection, nothing: Run(scores={"q1": {"mars": 1.0}}))

    assert "<svg" not in evaluate(view.collection, [alone]).to_html()


def drawn(figure: Figure) -> ElementTree.Element:
    return ElementTree.fromstring(figure.svg(standalone=True))


FIGURE = Figure(
    "Is it <worth> it?",
    "value by depth",
    ["10\n100", "20\n180"],
    {"one": [0.1, 0.3], "two": [0.2, float("nan")]},
    {"level": 0.15},
)


def test_a_figure_fits_a_narrow_screen_and_says_what_it_shows() -> None:
    root = drawn(FIGURE)

    assert root.get("viewBox", "").startswith("0 0 400 ")
    assert root.get("role") == "img"
    assert "one: 0.1 at 10, 0.3 at 20; " in root.get("aria-label", "")
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert words[0] == "Is it <worth> it?"
    assert {"10", "100", "180", "one", "two", "level"} <= set(words)


def test_higher_values_stand_higher() -> None:
    (line, *_) = drawn(FIGURE).iter(f"{SVG}polyline")

    (left, low), (right, high) = (
        map(float, pair.split(",")) for pair in line.get("points", "").split()
    )
    assert left < right
    assert low > high  # downwards is positive


def test_what_is_not_a_number_is_not_drawn() -> None:
    lines = list(drawn(FIGURE).iter(f"{SVG}polyline"))

    assert [len(line.get("points", "").split()) for line in lines] == [2, 1]
    assert "nan" not in ElementTree.tostring(lines[1]).decode()


def test_a_figure_has_colours_for_light_and_dark() -> None:
    assert FIGURE.svg(standalone=True).count("light-dark(") == 8
    assert "color-scheme: light dark" in FIGURE.svg(standalone=True)


@pytest.mark.parametrize("value", [0.0, 0.5, 123456.0])
def test_a_figure_of_one_value_is_drawn(value: float) -> None:
    assert list(drawn(Figure("q", "u", ["1"], {"a": [value]}, {})).iter(f"{SVG}circle"))


def test_the_figures_of_the_page_are_drawn_from_the_results() -> None:
    results = json.loads(tune.RESULTS.read_text(encoding="utf-8"))

    for name, figure in tune.figures(results).items():
        drawing = (tune.IMAGES / f"{name}.svg").read_text(encoding="utf-8")
        assert drawing == f"{figure.svg(standalone=True)}\n"
    page = (tune.ROOT / "docs" / "tune.md").read_text(encoding="utf-8")
    assert all(f"images/{name}.svg" in page for name in tune.figures(results))
