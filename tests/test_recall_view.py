"""What `recall` shows: a table in a terminal; a table and a plot in a notebook."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from colbert_rag.figure import TICK, WIDTH
from colbert_rag.index.recall import Measured, Recall
from tests.helpers.browser import CHROMIUM, frame, render

SVG = "{http://www.w3.org/2000/svg}"

RECALL = Recall(
    k=20,
    queries=50,
    wanted=0.95,
    exact=Measured(effort=None, recall=1.0, p50=1000.0, p95=1500.25),
    efforts=(
        Measured(effort=1, recall=0.91, p50=1.0, p95=1.5),
        Measured(effort=2, recall=0.96, p50=10.0, p95=12.0),
        Measured(effort=3, recall=0.98, p50=10.1, p95=13.0),
    ),
    chosen=2,
)


def drawing(recall: Recall) -> ElementTree.Element:
    """The plot, which must be XML of its own."""
    (svg,) = re.findall(r"<svg.*</svg>", recall._repr_html_(), re.DOTALL)
    return ElementTree.fromstring(svg)


def ticks(recall: Recall) -> dict[str, float]:
    """Where the tick of each way stands."""
    return {
        text.text or "": float(text.get("x", ""))
        for text in drawing(recall).iter(f"{SVG}text")
        if text.get("class") == "tick" and text.get("text-anchor") == "middle"
    }


def points(recall: Recall) -> list[tuple[float, float]]:
    """The marks of the first line, and that of its legend."""
    marks = [one for one in drawing(recall).iter(f"{SVG}circle") if one.get("class") != "ring"]
    return [(float(mark.get("cx", "")), float(mark.get("cy", ""))) for mark in marks]


def test_a_terminal_sees_a_table() -> None:
    assert repr(RECALL) == str(RECALL)
    assert [line.split() for line in str(RECALL).splitlines()[:5]] == [
        "effort recall@20 p50 ms p95 ms".split(),
        "1 0.910 1.0 1.5".split(),
        "2 * 0.960 10.0 12.0".split(),
        "3 0.980 10.1 13.0".split(),
        "exact 1.000 1000.0 1500.2".split(),
    ]
    assert str(RECALL).splitlines()[5] == (
        "* effort 2 is the smallest that finds 95.0% of the best (50 queries)"
    )


def test_a_notebook_sees_the_same_table_as_text_and_one_plot() -> None:
    html = RECALL._repr_html_()

    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", html)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    assert cells == [
        ["effort", "recall@20", "p50 ms", "p95 ms"],
        ["1", "0.910", "1.0", "1.5"],
        ["2 *", "0.960", "10.0", "12.0"],
        ["3", "0.980", "10.1", "13.0"],
        ["exact", "1.000", "1,000.0", "1,500.2"],
    ]
    assert '<tr class="marked"><td class="name">2 *<' in html
    assert html.count('class="marked"') == 1
    assert "effort 2 is the smallest that finds 95.0% of the best (50 queries)" in html
    assert html.count("<svg") == html.count("<style") == 1
    assert not re.search(r'\s(?:id|src|href)="', html)


def test_where_no_effort_is_enough_both_views_say_so() -> None:
    short = replace(RECALL, wanted=0.99, chosen=3)

    for view in (repr(short), short._repr_html_()):
        assert "* no effort finds 99.0% of the best; 3 finds the most (50 queries)" in view


def test_what_is_not_markup_is_escaped() -> None:
    # Nothing of a caller is in it today but numbers; what they become is text all the same.
    odd = replace(RECALL, k="<b>&", queries="<script>")  # type: ignore[arg-type]

    assert "<b>" not in odd._repr_html_()
    assert "<script" not in odd._repr_html_()
    assert "recall@&lt;b&gt;&amp;" in odd._repr_html_()
    assert drawing(odd).get("aria-label", "").count("recall@<b>&") == 1


def test_the_plot_has_recall_upwards_and_time_to_the_right_on_a_log_scale() -> None:
    (left, low), (middle, _), (_, high) = points(RECALL)[:3]
    (exact,) = [  # its mark is a square, around its place
        [tuple(map(float, corner.split(","))) for corner in mark.get("points", "").split()]
        for mark in drawing(RECALL).iter(f"{SVG}polygon")
        if len(mark.get("points", "").split()) == 4
    ][:1]
    right = sum(x for x, _ in exact) / 4

    assert low > high  # downwards is positive
    # 1, 10 and 1000 milliseconds: one power of ten of three.
    assert (middle - left) / (right - left) == pytest.approx(1 / 3, abs=0.01)


def test_the_chosen_effort_has_the_only_ring() -> None:
    (ring,) = [one for one in drawing(RECALL).iter(f"{SVG}circle") if one.get("class") == "ring"]

    assert (float(ring.get("cx", "")), float(ring.get("cy", ""))) == points(RECALL)[1]


def test_the_plot_says_what_it_shows() -> None:
    label = drawing(RECALL).get("aria-label", "")

    assert ": 0.91 at 1, 0.96 at 2 *, 0.98 at 3; exact: 1 at exact; wanted: 0.95" in label


@pytest.mark.parametrize(
    "times",
    [(5.0, 5.0, 5.0, 5.0), (1.0, 30.0, 29.0, 2.0), (0.0, 0.01, 90000.0, 90001.0)],
    ids=["all alike", "in no order", "far apart"],
)
def test_ticks_never_run_into_each_other_or_out(times: tuple[float, ...]) -> None:
    *others, last = times
    recall = replace(
        RECALL,
        exact=replace(RECALL.exact, p50=last),
        efforts=tuple(
            replace(way, p50=time) for way, time in zip(RECALL.efforts, others, strict=True)
        ),
    )

    where = [ticks(recall)[name] for name in ("1", "2 *", "3", "exact")]

    assert min(right - left for left, right in pairwise(sorted(where))) >= TICK - 0.11
    assert min(where) >= TICK / 2
    assert max(where) <= WIDTH - TICK / 2
    by_time = sorted(range(4), key=times.__getitem__)
    assert [where[place] for place in by_time] == sorted(where)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine to take screenshots")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_is_readable_on_narrow_and_wide_pages(dark: bool, tmp_path: Path) -> None:
    script = """
    const report = [...document.querySelectorAll("iframe")].map(frame => {
      const page = frame.contentDocument, root = page.querySelector("body > div");
      const svg = page.querySelector("svg").getBoundingClientRect();
      const texts = [...page.querySelectorAll("svg text")].map(it => it.getBoundingClientRect());
      const touch = (a, b) => a.left < b.right && b.left < a.right &&
                              a.top < b.bottom - 2 && b.top < a.bottom - 2;
      return {overflow: page.documentElement.scrollWidth - frame.clientWidth,
              outside: texts.filter(it => it.left < svg.left || it.right > svg.right).length,
              touching: texts.filter((a, i) => texts.some((b, j) => i < j && touch(a, b))).length,
              size: Math.min(...texts.map(it => it.height))};
    });
    console.log("REPORT " + JSON.stringify(report));
    """
    close = replace(RECALL, exact=replace(RECALL.exact, p50=12345.0))
    page = "".join(frame(close._repr_html_(), width) for width in (400, 1000))

    [measured] = render(page, tmp_path, script=script, dark=dark, size="1440,1020").reports

    for each in measured:
        assert (each["overflow"], each["outside"], each["touching"]) == (0, 0, 0)
        assert each["size"] >= 12
