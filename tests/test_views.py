"""What notebooks and terminals are shown: well-formed, escaped, complete, and readable in grey."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colbert_rag import ColBERT, Ranking
from colbert_rag.display import bar, columns, element, fitted, one_line, visible
from colbert_rag.ranking import Rankings

HOSTILE = {
    "script": "red <script>alert('planet')</script> planet",
    "attribute": "red \" onmouseover='alert(1)' x=\" planet",
    "entities": "red &amp; &lt;b&gt; planet & rings",
    "closing tags": "red </span></mark></div></style> planet <!-- rings ]]>",
    "style": "red } .colbert *{display:none} planet",
    "right to left": "red كوكب أحمر planet",
    "override": "red \u202eplanet\u2066 rings",
    "emoji": "red 🪐 👩\u200d👩\u200d👧 planet",
    "control characters": "red \x00\x07\x1b[31m\x85 planet \x7f rings",
    "line ends": "red\r\nplanet\n\n\nrings\tstorms",
    "a long word": f"red {'x' * 100_000} planet",
    "nothing": "",
}
ELEMENTS = (
    "b bdi caption details div i img input label mark p small span style summary sup table tbody "
    "td th thead tr"
).split()
ATTRIBUTES = "alt class dir open src style title type".split()


class Page(HTMLParser):
    """Reads markup strictly: every element is known, closed, and closed in order."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.classes: list[str] = []
        self.texts: dict[str, str] = {}
        self.attributes: list[tuple[str, str]] = []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ELEMENTS
        names = [name for name, _ in attrs]
        assert set(names) <= set(ATTRIBUTES)
        assert len(names) == len(set(names))
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("img", "input"):
            self.open.append(tag)
            self.classes.append(dict(attrs).get("class") or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.classes.pop()

    def handle_data(self, data: str) -> None:
        for within in {*self.open, *" ".join(self.classes).split()}:
            self.texts[within] = self.texts.get(within, "") + data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    handle_decl = unknown_decl = handle_pi = handle_comment


def without_marks(markup: str) -> str:
    """The markup without the numbers and the tokens that are not in the text."""
    apart = r'<(mark|label) class="[^"]*apart"[^>]*>.*?</\1>'
    return re.sub(rf"{apart}|<sup>.*?</sup>", "", markup)


@pytest.fixture(params=HOSTILE.values(), ids=HOSTILE.keys())
def text(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Explanations


def test_an_explanation_is_well_formed_and_loses_no_character(
    text: str, colbert: Callable[..., ColBERT]
) -> None:
    # All words are read, so that nothing is hidden behind a cut.
    model = colbert("native-bert-no-expansion", document_length=300, query_length=300)
    query = text or "planet"

    markup = model.explain(query, text)._repr_html_()

    Page(markup)
    page = Page(without_marks(markup))
    assert in_short(page.texts.get("document", "")) == in_short(text)
    assert in_short(page.texts["query"]).startswith(in_short(query))


def in_short(text: str) -> str:
    """The text as the views show it, with the middle of a long word left out."""
    middle = re.sub(r" … [\d,]+ characters … ", "", visible(text))
    return re.sub("x{200,}", "x" * 200, middle)


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_no_text_breaks_a_view(tiny_colbert: ColBERT, text: str) -> None:
    explanation = tiny_colbert.explain(f"red {text}", text)

    Page(explanation._repr_html_())
    Page(tiny_colbert.rank(f"red {text}", [text, "mars"])._repr_html_())
    assert is_for_a_terminal(str(explanation))
    assert is_for_a_terminal(str(tiny_colbert.rank(f"red {text}", [text])))


def is_for_a_terminal(shown: str) -> bool:
    lines = shown.split("\n")
    return all(line.isprintable() or visible(line) == line for line in lines) and not re.search(
        "[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown
    )


def test_the_same_explanation_looks_the_same_every_time(tiny_colbert: ColBERT) -> None:
    first = tiny_colbert.explain("red planet", "mars is red")
    second = tiny_colbert.explain("red planet", "mars is red")

    assert first._repr_html_() == first._repr_html_() == second._repr_html_()


def test_views_on_one_page_cannot_meddle_with_each_other(tiny_colbert: ColBERT) -> None:
    markup = tiny_colbert.explain("red planet", "mars is red")._repr_html_()

    names = {name for name, _ in Page(markup).attributes}

    # Checkboxes belong together by name or id, and there are none of either.
    assert names.isdisjoint({"id", "name", "for"})
    style = re.findall(r"<style>(.*?)</style>", markup)[0]
    root = re.findall(r'^<div class="([\w-]+)">', markup)[0]
    assert style.startswith(f".{root}.{root}.{root}{{")


def test_numbers_tie_words_to_their_matches_without_any_colour(tiny_colbert: ColBERT) -> None:
    explanation = tiny_colbert.explain("red planet", "mars is red")
    markup = explanation._repr_html_()

    switches = re.findall(
        r'<label class="q(\d+)[^>]*><input type="checkbox">(.*?)<sup>(\d+)', markup
    )
    marks = re.findall(r'<mark class="([^"]*)"[^>]*>(.*?)<sup>(.*?)</sup>', markup)

    view = explanation.overview
    assert [(number, word) for number, word, _ in switches][:2] == [("1", "red"), ("2", "planet")]
    assert all(number == shown for number, _, shown in switches)
    expected = [
        (place.label, "\u00a0".join(str(line + 1) for line in place.lines))
        for place in view.places
        if place.lines
    ]
    assert [(word, numbers) for _, word, numbers in marks] == expected
    assert all(re.findall(r"m(\d+)", kinds) == shown.split("\u00a0") for kinds, _, shown in marks)


def test_the_underline_grows_with_what_a_word_carries(tiny_colbert: ColBERT) -> None:
    explanation = tiny_colbert.explain("which red planet is known?", "mars is red and known")
    strengths = [
        float(found) for found in re.findall(r"<mark [^>]*--s:([\d.]+)", explanation._repr_html_())
    ]

    places = [place for place in explanation.overview.places if place.lines]

    in_text = [(place.share, s) for place, s in zip(places, strengths, strict=True) if place.span]
    assert [s for _, s in sorted(in_text)] == sorted(s for _, s in in_text)
    assert max(s for _, s in in_text) == 1.0


def test_expansion_tokens_are_one_line_that_says_what_they_carry(tiny_colbert: ColBERT) -> None:
    explanation = tiny_colbert.explain("which planet is red?", "Mars is the red planet. " * 3)

    [line] = [line for line in explanation.overview.lines if line.role == "expansion"]

    carried = sum(m.share for m in explanation.matches if m.query.role == "expansion")
    assert (line.name, line.tokens) == ("24 expansion tokens", 24)
    assert line.share == pytest.approx(carried)
    assert f"{100 * carried:.1f} %" in str(explanation)
    assert re.search(r"24 expansion tokens +(mostly on )?\S+", str(explanation))
    assert "24 × [MASK]" in explanation._repr_html_()  # noqa: RUF001


def test_a_long_table_waits_behind_a_click(colbert: Callable[..., ColBERT]) -> None:
    model = colbert("native-bert-no-expansion", query_length=100)

    short = model.explain("red planet", "mars")._repr_html_()
    long = model.explain("red planet " * 30, "mars")._repr_html_()

    assert "<details open>" in short
    assert "<details>" in long


def test_what_the_model_did_not_read_is_shown_apart(tiny_colbert: ColBERT) -> None:
    explanation = tiny_colbert.explain("red", "planet " * 100 + "the very end")

    page = Page(explanation._repr_html_())

    assert page.texts["unread"].endswith("the very end")
    assert "were not read" in page.texts["small"]
    assert "were not read" in str(explanation)


def test_an_output_is_small_enough_to_be_kept(tiny_colbert: ColBERT) -> None:
    explanation = tiny_colbert.explain("which planet is red? " * 9, "planet " * 10_000)

    assert len(explanation._repr_html_()) < 50_000


def test_a_terminal_sees_the_best_match_in_context(tiny_colbert: ColBERT) -> None:
    explanation = tiny_colbert.explain("red planet", "mars is known as the red planet")

    table = str(explanation).split("\n")

    word = explanation.overview.places[explanation.overview.lines[0].best[0]].label
    assert table[1] == "Query: red planet"
    assert f"[{word}]" in table[3] or table[3].endswith(word)
    assert max(map(columns, table)) <= 100


# Rankings


def ranking(scores: list[float], texts: list[str], query: str = "red planet") -> Ranking:
    return Ranking.from_scores(scores, query=query, texts=texts, query_rows=4)


def test_a_ranking_is_well_formed_and_escaped(text: str) -> None:
    page = Page(ranking([1.0, 2.0, 0.5], [text, "mars", "venus"], query=text)._repr_html_())

    assert page.texts.get("query", "") == one_line(text)[:300]
    assert one_line(text)[:100] in page.texts["text"]


def test_a_ranking_shows_how_places_changed() -> None:
    shown = ranking([1.0, 3.0, 2.0, 2.5], ["a", "b", "c", "d"])

    moved = re.findall(r'<td class="number (\w+)" title="([^"]*)">(.*?)</td>', shown._repr_html_())

    assert moved == [
        ("up", "1 place up from the input", "▲ 1"),
        ("up", "2 places up from the input", "▲ 2"),
        ("soft", "the same place as in the input", "="),
        ("down", "3 places down from the input", "▼ 3"),
    ]


def test_bars_begin_at_zero_and_end_at_the_best_score() -> None:
    shown = ranking([4.0, math.nan, 1.0, -2.0], list("abcd"))._repr_html_()

    assert re.findall(r'style="width:([\d.]+)%', shown) == ["100.0", "25.0", "0.0", "0.0"]


def test_a_score_that_is_not_a_number_is_a_dash() -> None:
    shown = ranking([1.0, math.nan], ["mars", "venus"])

    assert "nan" not in shown._repr_html_()
    assert str(shown).split("\n")[-1].split()[:2] == ["2", "-"]


def test_a_ranking_in_a_terminal_is_a_table() -> None:
    shown = ranking([1.0, 3.0, 1.5], ["mars\nis  red", "the red planet " * 20, ""])

    assert str(shown).split("\n") == [
        "Ranking of 3 texts for 'red planet'",
        "rank     score           input  moved  text",
        "   1    3.0000 ████████      2    ▲ 1  "
        "the red planet the red planet the red planet the red planet …",
        "   2    1.0000 ██▋           1    ▼ 1  mars is red",
        "   3    1.5000 ████          3      =",
    ]


def test_only_the_first_fifty_places_are_listed() -> None:
    shown = ranking([float(-n) for n in range(60)], [f"text {n}" for n in range(60)])

    assert str(shown).endswith("and 10 more places")
    assert Page(shown._repr_html_()).texts["foot"] == "and 10 more places"


def test_an_empty_ranking_is_shown_as_one() -> None:
    shown = ranking([], [])

    assert str(shown) == "Ranking of 0 texts for 'red planet'"
    assert Page(shown._repr_html_()).texts["caption"] == "red planetRanking of 0 texts"


def test_a_window_is_shown_from_where_it_begins() -> None:
    texts = ["venus " * 50 + "mars"]
    shown = Ranking.from_scores([1.0], query="red", texts=texts, query_rows=4, spans=[(300, 304)])

    assert str(shown).endswith("…mars")
    assert Page(shown._repr_html_()).texts["text"].endswith("…mars")


MANY = [
    ranking([1.0, 3.0, 2.0, 0.5], ["mars", "the red planet", "venus", "<b>moon</b>"]),
    ranking([1.0], ["sun"]),
]


def test_rankings_of_many_queries_in_a_terminal_are_short_tables() -> None:
    assert str(Rankings(MANY)).split("\n") == [
        "Ranking of 4 texts for 'red planet'",
        "rank     score           input  moved  text",
        "   1    3.0000 ████████      2    ▲ 1  the red planet",
        "   2    2.0000 █████▍        3    ▲ 1  venus",
        "   3    1.0000 ██▋           1    ▼ 2  mars",
        "and 1 more place",
        "",
        "Ranking of 1 texts for 'red planet'",
        "rank     score           input  moved  text",
        "   1    1.0000 ████████      1      =  sun",
    ]


def test_rankings_of_many_queries_in_a_notebook_are_short_tables() -> None:
    page = Page(Rankings(MANY)._repr_html_())

    assert page.texts["caption"] == "red planetRanking of 4 textsred planetRanking of 1 texts"
    assert page.texts["foot"] == "and 1 more place"
    assert "moon" not in page.texts["text"]


def test_only_the_first_twenty_rankings_are_listed() -> None:
    shown = Rankings(MANY[1:] * 27)

    assert (str(shown).count("Ranking of"), str(shown).split("\n\n")[-1]) == (
        20,
        "and 7 more rankings",
    )
    assert Page(shown._repr_html_()).texts["p"] == "and 7 more rankings"


def test_rankings_are_a_list_like_any_other() -> None:
    given = Rankings(MANY)

    assert given == MANY
    assert isinstance(given, list)
    assert [*reversed(given)] == [MANY[1], MANY[0]]
    assert (str(Rankings()), repr(Rankings())) == ("[]", "[]")
    given.append("<mine>")  # type: ignore[arg-type]
    assert str(given).endswith("\n\n'<mine>'")
    assert Page(given._repr_html_()).texts["div"].endswith("'<mine>'")
    assert [each.texts for each in pickle.loads(pickle.dumps(Rankings(MANY)))] == [
        each.texts for each in MANY
    ]


# Parts


def test_markup_escapes_everything_but_markup() -> None:
    inner = element("b", "<i>")

    outer = element("p", inner, " & ", title="\"'<", class_="x", open=True, hidden=False)

    expected = '<p title="&quot;&#x27;&lt;" class="x" open><b>&lt;i&gt;</b> &amp; </p>'
    assert outer == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("mars", "mars  ", id="filled"),
        pytest.param("mars venus", "mars …", id="cut"),
        pytest.param("火星は赤い", "火星… ", id="wide characters"),
        pytest.param(
            "e\u0301e\u0301e\u0301", "e\u0301e\u0301e\u0301   ", id="accents take no room"
        ),
    ],
)
def test_columns_of_a_terminal_are_filled_exactly(text: str, expected: str) -> None:
    assert fitted(text, 6) == expected


@pytest.mark.parametrize(
    ("part", "expected"),
    [(0.0, "    "), (0.5, "██  "), (1.0, "████"), (0.28, "█▏  "), (-1, "    "), (7, "████")],
)
def test_a_bar_has_eighths_of_a_column(part: float, expected: str) -> None:
    assert bar(part, 4) == expected


def test_a_bar_of_what_is_not_a_number_is_empty() -> None:
    assert bar(math.nan, 3) == "   "
