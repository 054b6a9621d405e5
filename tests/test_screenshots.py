"""How the notebook views look: rendered by a real browser, which is not needed for anything else.

The screenshots are kept in the folder that pytest's `--basetemp` names, to be looked at.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from colbert_rag import ColBERT
from colbert_rag.ranking import Ranking
from tests.helpers.browser import CHROMIUM, Rendering, frame, render

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine to take screenshots"),
]

IMAGES = Path(__file__).parents[1] / "docs/images"
PICTURES = {"explanation.png": "#fff", "explanation-dark.png": "#131416"}
"""Pictures of the pages by name, and the paper around them."""

VIEWS = ("explanation", "hostile explanation", "ranking", "hostile ranking")
WIDTHS = (1200, 400)

# For each frame: how far anything reaches out of the page, and colours of ink and paper.
MEASURE = """
const report = [...document.querySelectorAll("iframe")].map(frame => {
  const page = frame.contentDocument, root = page.querySelector("body > div");
  const style = frame.contentWindow.getComputedStyle(root);
  const reach = [...root.querySelectorAll("*")].map(it => it.getBoundingClientRect().right);
  return {overflow: page.documentElement.scrollWidth - frame.clientWidth,
          reach: Math.max(...reach) - root.getBoundingClientRect().right,
          soft: frame.contentWindow.getComputedStyle(root.querySelector("small")).color,
          ink: style.color, paper: style.backgroundColor};
});
console.log("REPORT " + JSON.stringify(report));
"""


@pytest.fixture(scope="module")
def views(colbert):
    """HTML of an explanation, of one of a hostile text, and of a ranking."""
    model = colbert("stanford-bert")
    hostile = f"<script>alert(1)</script> \u202e red {'x' * 100_000} كوكب 🪐\x00 planet"
    texts = ["The red planet is known for its storms. " * 9, hostile, "Saturn has rings.", ""] * 3
    nan = Ranking.from_scores(
        [1.0, float("nan"), -2.0], query=hostile, texts=[hostile] * 3, query_rows=3
    )
    shown = (
        model.explain("which planet is red?", texts[0]),
        model.explain(hostile, hostile),
        model.rank("which planet is red?", texts),
        nan,
    )
    return {name: view._repr_html_() for name, view in zip(VIEWS, shown, strict=True)}


@pytest.fixture(scope="module", params=[False, True], ids=["light", "dark"])
def rendering(
    request: pytest.FixtureRequest, views: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Rendering:
    """All views at both widths, in one screenshot; a browser takes seconds to start."""
    page = "".join(frame(view, width) for view in views.values() for width in WIDTHS)
    folder = tmp_path_factory.mktemp("dark" if request.param else "light")
    return render(page, folder, script=MEASURE, dark=request.param, size="1640,4030")


def test_a_screenshot_is_taken_and_nothing_is_said_on_the_console(rendering: Rendering) -> None:
    assert rendering.screenshot.stat().st_size > 100_000
    assert rendering.console == []


@pytest.mark.parametrize("place", range(8), ids=[f"{v} {w}" for v in VIEWS for w in WIDTHS])
def test_nothing_overflows(place: int, rendering: Rendering) -> None:
    [measured] = rendering.reports

    assert measured[place]["overflow"] <= 0
    assert measured[place]["reach"] <= 0


@pytest.mark.parametrize("system_is_dark", [False, True], ids=["light system", "dark system"])
def test_the_notebook_decides_the_theme_and_else_the_system(
    system_is_dark: bool, views: dict[str, str], tmp_path: Path
) -> None:
    bodies = {
        "<body>": system_is_dark,
        '<body data-jp-theme-light="false">': True,
        '<body data-jp-theme-light="true">': False,
        '<body class="vscode-dark">': True,
        '<body class="vscode-light">': False,
    }
    page = "".join(frame(views["ranking"], 600, body=body) for body in bodies)

    [found] = render(page, tmp_path, script=MEASURE, dark=system_is_dark).reports

    is_dark = [brightness(each["ink"]) > brightness(each["paper"]) for each in found]
    assert is_dark == list(bodies.values())
    assert min(contrast(each["ink"], each["paper"]) for each in found) > 12
    assert min(contrast(each["soft"], each["paper"]) for each in found) > 4.5


def test_tapping_a_query_word_marks_its_matches_and_no_others(
    views: dict[str, str], tmp_path: Path
) -> None:
    script = """
    const page = document.querySelector("iframe").contentDocument;
    const paint = it => it.ownerDocument.defaultView.getComputedStyle(it).backgroundColor;
    const marks = [...page.querySelectorAll("mark")], label = page.querySelector("label.q2");
    label.click();
    const chosen = paint(label);
    console.log("REPORT " + JSON.stringify(
        marks.map(it => [it.classList.contains("m2"), paint(it) == chosen])));
    label.click();
    page.activeElement.blur();  // a focused word shows its matches too, for the keyboard
    console.log("REPORT " + JSON.stringify(marks.map(it => paint(it) == chosen)));
    """

    rendering = render(frame(views["explanation"], 800), tmp_path, script=script)

    tapped, released = rendering.reports
    assert {belongs for belongs, _ in tapped} == {True, False}
    assert [shown for _, shown in tapped] == [belongs for belongs, _ in tapped]
    assert not any(released)


@pytest.mark.parametrize("picture", PICTURES)
def test_the_picture_in_the_readme_is_a_screenshot_of_this_view(
    picture: str, tmp_path: Path
) -> None:
    model = ColBERT.from_pretrained("offline-minilm", device="cpu", dtype="float32")
    view = model.explain(
        "Can I return a damaged parcel?",
        "You may send goods back within 30 days of delivery. If the package arrives broken, we "
        "refund the full price and pay the postage. Gift cards cannot be exchanged.",
    )._repr_html_()
    # Drawn larger than in a notebook, whose pages set no margins of their own.
    style = "body{margin:0;padding:8px}body>div{font-family:Inter,system-ui,sans-serif!important}"
    page = f"<style>{style}html{{background:{PICTURES[picture]}}}</style>{view}"
    script = """
    const box = document.querySelector("body > div").getBoundingClientRect();
    console.log("REPORT " + JSON.stringify([box.right, box.bottom]));
    """

    dark = "dark" in picture
    rendering = render(page, tmp_path, script=script, dark=dark, size="900,500", scale=2)

    [[right, bottom]] = rendering.reports
    assert right <= 900
    assert bottom <= 500
    assert pixels(rendering.screenshot) == pixels(IMAGES / picture) == (1800, 1000)


def pixels(png: Path) -> tuple[int, int]:
    """Width and height, which stand in a PNG's first chunk (https://www.w3.org/TR/png/#11IHDR)."""
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    return width, height


def brightness(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)` (https://www.w3.org/TR/WCAG22/#dfn-relative-luminance)."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").rstrip(")").split(",")]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio, 1 to 21 (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio)."""
    dark, light = sorted([brightness(one), brightness(other)])
    return (light + 0.05) / (dark + 0.05)
