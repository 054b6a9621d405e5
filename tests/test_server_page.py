"""The page at `/`, in a real browser: it searches, explains, and takes every text for a text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from colbert_rag import ColBERT, LocalIndex
from tests.helpers.browser import CHROMIUM
from tests.helpers.devtools import Browser, browsing
from tests.helpers.serving import Running, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine to open a page"),
]

HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    "<svg onload=\"document.title='owned'\"> </p></li></style> red planet \u202e \x07 &lt;b&gt; "
    + "x"
    * 300
)
FACTS = [
    {"id": "mars", "text": "Mars is the red planet. " * 30, "metadata": {"order": 4}},
    {"id": "saturn", "text": "Saturn has rings of ice and rock.", "metadata": {"order": 6}},
    {"id": HOSTILE, "text": HOSTILE, "metadata": {HOSTILE: HOSTILE}},
    {"id": "arabic", "text": "المريخ كوكب أحمر red", "metadata": {}},
]


@pytest.fixture(scope="module")
def server(tiny_colbert: ColBERT, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("server")
    with LocalIndex(folder / "facts.sqlite", tiny_colbert) as index:
        index.add(FACTS)
    with serving(folder, "--index", folder / "facts.sqlite", "--name", "planets") as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def search(browser: Browser, query: str) -> None:
    browser.type("#query", query)
    browser.click("button")
    browser.until("!document.querySelector('button').disabled")


def said(browser: Browser) -> str:
    text: str = browser.run("document.querySelector('#said').textContent")
    return text


def press(browser: Browser, key: str) -> None:
    code = {"Enter": 13, "Tab": 9}[key]
    for kind in ("keyDown", "keyUp"):
        browser.send(
            "Input.dispatchKeyEvent",
            type=kind,
            key=key,
            code=key,
            windowsVirtualKeyCode=code,
            text="\r" if (key, kind) == ("Enter", "keyDown") else "",
        )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 800, 400])
def test_a_search_shows_results_and_why(
    width: int, dark: bool, server: Running, browser: Browser, tmp_path: Path
) -> None:
    browser.console.clear()
    browser.asked.clear()
    browser.look(width=width, dark=dark)
    browser.open(f"{server.url}/")
    browser.until("document.querySelector('#model').textContent")
    search(browser, "which planet is red?")
    browser.click("li:first-child summary")
    browser.until("document.querySelector('.why').shadowRoot.querySelector('mark')")
    browser.photograph(tmp_path / "page.png")

    assert "planets · 16 dimensions · cpu · 4 documents" in browser.run("document.body.innerText")
    assert browser.run("document.querySelectorAll('li').length") == len(FACTS)
    assert browser.run("document.querySelector('#said').textContent").startswith("4 results in ")
    # Nothing reaches beyond the screen, nothing is said on the console, nobody else is asked.
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.console == []
    assert {url for url in browser.asked if not url.startswith((server.url, "data:"))} == set()
    ink, paper = browser.run(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert (sum(map(int, ink[4:-1].split(","))) > sum(map(int, paper[4:-1].split(",")))) is dark


def test_hostile_texts_stay_texts(server: Running, browser: Browser, tmp_path: Path) -> None:
    browser.console.clear()
    browser.look(width=1200, dark=False)
    browser.open(f"{server.url}/")
    search(browser, HOSTILE)
    place = browser.run(
        "[...document.querySelectorAll('li .text')]"
        ".findIndex(it => it.textContent.includes('owned'))"
    )
    browser.click(f"li:nth-child({place + 1}) summary")
    why = f"document.querySelector('li:nth-child({place + 1}) .why').shadowRoot"
    browser.until(f"{why}.querySelector('mark')")
    browser.photograph(tmp_path / "hostile.png")

    assert browser.run("document.title") == "colbert-rag"
    assert browser.run("document.querySelectorAll('script').length") == 1
    for tree in ("document", why):
        assert browser.run(f"{tree}.querySelectorAll('svg, [onerror], [onload]').length") == 0
    assert browser.run(f"{why}.querySelectorAll('script').length") == 0
    shown = browser.run("[...document.querySelectorAll('li .text')].map(it => it.textContent)")
    assert HOSTILE in shown
    assert browser.run("document.documentElement.scrollWidth") <= 1200
    assert browser.console == []


def test_texts_of_ones_own(server: Running, browser: Browser, tiny_colbert: ColBERT) -> None:
    browser.console.clear()
    browser.open(f"{server.url}/")
    browser.click("[value=own]")
    browser.type("#texts", "Saturn has rings.\n\nMars is red.\nIt is cold.\n\n\n")
    search(browser, "red")

    texts = ["Saturn has rings.", "Mars is red.\nIt is cold."]
    ranking = tiny_colbert.rank("red", texts)
    assert browser.run("[...document.querySelectorAll('.text')].map(it => it.textContent)") == [
        place.text for place in ranking
    ]
    assert browser.run("document.querySelector('.score').textContent") == f"{ranking[0].mean:.3f}"
    assert browser.console == []


def test_what_goes_wrong_is_said(server: Running, browser: Browser) -> None:
    browser.open(f"{server.url}/")
    browser.click("[value=own]")
    search(browser, "red")

    assert said(browser) == "There is no text to look in: write some above"
    assert browser.run("document.querySelector('#said').className") == "bad"
    assert browser.run("document.activeElement.id") == "texts"


def test_the_keyboard_is_enough(server: Running, browser: Browser) -> None:
    browser.look(width=800, dark=False)
    browser.open(f"{server.url}/")
    assert browser.run("document.activeElement.id") == "query"
    browser.send("Input.insertText", text="which planet is red?")
    press(browser, "Enter")
    browser.until("document.querySelectorAll('li').length")
    browser.until("!document.querySelector('button').disabled")
    for _ in range(3):  # the button, where to look, and the first result
        press(browser, "Tab")
        outline = "getComputedStyle(document.activeElement).outline"
        assert "solid 2px" in browser.run(outline)
    assert browser.run("document.activeElement.matches('li:first-child summary')")
    press(browser, "Enter")
    browser.until("document.querySelector('.why').shadowRoot.querySelector('mark')")


def test_a_server_that_is_gone_is_said_in_words(
    tiny_checkpoint: Path, browser: Browser, tmp_path: Path
) -> None:
    with serving(tmp_path, "-m", tiny_checkpoint) as running:
        browser.open(f"{running.url}/")
        browser.type("#texts", "Mars is red.")
        search(browser, "red")
        assert said(browser).startswith("1 result in ")
        port = running.url.rpartition(":")[2]
        assert running.stop() == 0
    browser.click("li:first-child summary")
    gone = "the server does not answer: is it still running?"
    why = "document.querySelector('.why').shadowRoot"
    browser.until(f"{why}.textContent === {gone!r}")
    search(browser, "rings")
    assert said(browser) == f"T{gone[1:]}"

    # It is asked again as soon as it is there again.
    with serving(tmp_path, "-m", tiny_checkpoint, "--port", port):
        search(browser, "rings")
        assert said(browser).startswith("1 result in ")


def test_a_server_that_is_full_says_when_to_come_back(
    tiny_checkpoint: Path, browser: Browser, tmp_path: Path
) -> None:
    with serving(tmp_path, "-m", tiny_checkpoint) as running:
        browser.open(f"{running.url}/")
        browser.run(
            "window.fetch = async () => new Response(JSON.stringify({message: "
            "'9 requests wait already, and no more may; try again in 3 s'}), {status: 429})"
        )
        browser.type("#texts", "Mars is red.")
        search(browser, "red")

        assert said(browser).endswith("try again in 3 s")


def test_a_locked_server_asks_for_its_key(
    tiny_checkpoint, browser: Browser, tmp_path: Path
) -> None:
    with serving(tmp_path, "-m", tiny_checkpoint, "--api-key", "open-sesame") as running:
        browser.console.clear()
        browser.open(f"{running.url}/")
        assert browser.run("document.querySelector('#model').textContent") == ""
        browser.type("#secret", "open-sesame")
        browser.type("#texts", "Mars is red.")
        search(browser, "red")

        assert browser.run("document.querySelectorAll('li').length") == 1
        assert browser.console == []
        for key, flaw in (("wrong", "wrong"), ("", "missing")):
            browser.run(f"document.querySelector('#secret').value = {key!r}")
            search(browser, "red")
            assert said(browser) == f"The API key is {flaw}: enter it above"
            assert browser.run("document.activeElement.id") == "secret"
