"""Commands whose model or index is behind `colbert-rag serve`, named by its address."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from colbert_rag import ColBERT, LocalIndex
from colbert_rag.cli import main
from tests.helpers.serving import ROOT, Running, serving
from tests.test_cli import CONTENTS, FACTS, QUERY, records, refused

KEY = "the-right-key"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def server(tiny_colbert: ColBERT, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A model and an index, behind a key."""
    folder = tmp_path_factory.mktemp("server")
    with LocalIndex(folder / "facts.sqlite", tiny_colbert) as index:
        index.add(
            {"id": fact["id"], "text": text, "metadata": {"order": order}}
            for order, (fact, text) in enumerate(zip(FACTS, CONTENTS, strict=True))
        )
    with serving(folder, "--index", folder / "facts.sqlite", "--api-key", KEY) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="module")
def bare(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A model without an index or a key."""
    with serving(tmp_path_factory.mktemp("bare"), "-m", tiny_checkpoint) as running:
        yield running


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full disk to test on")
def test_a_server_serves_where_nobody_can_be_told_so(tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "colbert_rag.cli", "serve", "--port", "0"]
    command += ["-m", str(tiny_checkpoint), "--device", "cpu"]
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(
            command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        assert said.startswith("Serving at http://127.0.0.1:")
        assert httpx.get(f"{said.split()[2]}/health", trust_env=False).status_code == 200
    finally:
        process.terminate()
        rest = process.communicate(timeout=60)[1]
    assert "Traceback" not in rest
    assert "stopped\n" in rest


@pytest.fixture
def facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(f"{json.dumps(fact)}\n" for fact in FACTS), encoding="utf-8")
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command with the key in the environment: status, output, errors."""
    monkeypatch.setenv("COLBERT_RAG_API_KEY", KEY)

    def run_command(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run_command


@pytest.mark.parametrize("score", ["sum", "mean"])
def test_rerank_gives_what_the_model_gives_here(
    score: str, server: Running, facts: Path, run: Run, tiny_colbert: ColBERT
) -> None:
    expected = tiny_colbert.rank(QUERY, CONTENTS)

    status, out, err = run("rerank", QUERY, facts, "-m", server.url, "--json", "--score", score)

    assert (status, err) == (0, "")
    assert [(at["index"], at["score"]) for at in records(out)] == [
        (at.index, pytest.approx(at.mean if score == "mean" else at.score, abs=1e-4))
        for at in expected
    ]
    assert records(out)[0]["source"] == str(facts)


def test_the_table_names_the_server(server: Running, facts: Path, run: Run) -> None:
    status, out, _ = run("rerank", QUERY, facts, "--top-k", 2, "-m", f"{server.url}/v1/")

    assert status == 0
    assert out.startswith(f"2 of 5 documents by {server.url}: ")
    assert "Mars is known as the Red Planet." in out


def test_explain_names_the_matches_of_the_model_here(
    server: Running, facts: Path, run: Run, tiny_colbert: ColBERT
) -> None:
    second = tiny_colbert.rank(QUERY, CONTENTS)[1]
    expected = tiny_colbert.explain(QUERY, second.text).to_dict()

    _, out, _ = run("explain", QUERY, facts, "-m", server.url, "--rank", 2, "--json")
    status, text, _ = run("explain", QUERY, facts, "-m", server.url, "--rank", 2)

    (found,) = records(out)
    assert found["score"] == pytest.approx(second.score, abs=1e-4)
    assert [match["query"] for match in found["matches"]] == [
        match["query"] for match in expected["matches"]
    ]
    assert status == 0
    first, *lines = text.splitlines()
    assert first == f"{facts}:{second.index + 1} ({FACTS[second.index]['id']}), number 2 of 5"
    assert lines[0] == f"{second.score:.4f} for {QUERY!r}"
    assert len(lines) == 1 + len(expected["matches"])


def test_search_finds_what_the_index_finds_here(
    server: Running, run: Run, tiny_colbert: ColBERT
) -> None:
    expected = tiny_colbert.rank(QUERY, CONTENTS[:4])  # without words is in no answer

    options = ("--json", "--score", "sum")
    status, out, err = run("search", QUERY, server.url, *options)
    _, few, _ = run(
        "search", QUERY, f"{server.url}/", *options, "--filter", '{"order": {"$lt": 2}}'
    )

    assert (status, err) == (0, "")
    assert [(at["id"], at["score"]) for at in records(out)] == [
        (FACTS[at.index]["id"], pytest.approx(at.score, abs=2e-2)) for at in expected
    ]  # an index holds float16
    assert [at["id"] for at in records(few)] == [
        at["id"] for at in records(out) if at["id"] in ("venus", "mars")
    ]


def test_the_table_of_a_search_names_the_model(
    server: Running, run: Run, tiny_checkpoint: Path
) -> None:
    status, out, _ = run("search", QUERY, server.url, "-k", 1)

    assert status == 0
    assert out.startswith(f"1 of 5 documents by {tiny_checkpoint}: ")


def test_info_says_what_the_servers_index_holds(
    server: Running, run: Run, tiny_checkpoint: Path, tiny_colbert: ColBERT
) -> None:
    status, out, _ = run("info", server.url, "--json")

    (found,) = records(out)
    assert status == 0
    assert (found["index"], found["kind"], found["documents"]) == (server.url, "server", 5)
    assert found["fingerprint"] == tiny_colbert.fingerprint
    assert f"Model         {tiny_checkpoint}" in run("info", server.url)[1]


def test_none_of_it_loads_torch(server: Running, facts: Path, bare: Running) -> None:
    program = (
        "import sys\nfrom colbert_rag.cli import main\n"
        "assert main(sys.argv[1:]) == 0\nassert 'colbert_rag.remote' in sys.modules\n"
        "sys.exit(bool({'torch', 'tokenizers', 'safetensors', 'transformers'} & set(sys.modules)))"
    )
    for words in (
        ["rerank", QUERY, str(facts), "-m", bare.url],
        ["explain", QUERY, str(facts), "-m", bare.url],
        ["search", QUERY, server.url, "--api-key-env", "OTHER"],
        ["info", server.url, "--api-key-env", "OTHER"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={"OTHER": KEY, "PATH": ""},
        )
        assert done.returncode == 0, (words, done.stderr)


# What goes wrong


def test_nobody_there_is_one_line(facts: Path, run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"

    for words in (["rerank", QUERY, facts, "-m", url], ["search", QUERY, url], ["info", url]):
        status, out, err = run(*words)
        assert (status, out) == (1, "")
        assert f"error: nothing answers at {url} " in err
        assert "See whether `colbert-rag serve` runs there" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("key", ["", "another-key"])
def test_a_key_that_is_wrong_or_missing_is_asked_for_unseen(
    key: str, server: Running, facts: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLBERT_RAG_API_KEY", key)
    for words in (["rerank", QUERY, facts, "-m", server.url], ["search", QUERY, server.url]):
        status, _, err = run(*words)
        assert status == 1
        assert "the key was refused" in err if key else "no key was sent" in err
        assert "COLBERT_RAG_API_KEY" in err
        assert "another-key" not in err


def test_a_server_without_an_index_is_told_so(bare: Running, run: Run) -> None:
    for words in (["search", QUERY, bare.url], ["info", bare.url]):
        status, _, err = run(*words)
        assert status == 1
        assert "whether it was started with --index" in err


def test_a_server_of_another_kind_is_named(run: Run, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
    ) as other:
        try:
            assert other.stdout is not None
            port = other.stdout.readline().split("port ")[1].split()[0]
            status, _, err = run("search", QUERY, f"http://127.0.0.1:{port}")
        finally:
            other.terminate()

    assert status == 1
    assert "which no server of colbert_rag does" in err
    assert f"A collection of Qdrant is named as in http://127.0.0.1:{port}/NAME" in err


WRONG = {
    "rerank q x.txt -m http://h --device cpu": "--device is for a model that is opened here",
    "rerank q x.txt -m http://h --long-documents windows": "--long-documents is for a model",
    "explain q x.txt -m http://h --query-length 8": "--query-length is for a model",
    "explain q x.txt -m http://h --html y.html": "the page at http://h explains",
    "rerank q x.txt -m http://": "--model: address is 'http://'",
    "rerank q x.txt -m http://me:secret@h": "holds a user name or password",
    "rerank --queries q.tsv x.txt --to y -m http://h": "which rerank and explain take",
    "index x.txt --to y.sqlite -m http://h": "which rerank and explain take",
    "index x.txt --to http://h": "The index of colbert-rag serve is for search and info",
    "serve --port 0 -m http://h": "which rerank and explain take",
    "search q http://h -m x": "http://h has a model of its own: leave out --model",
    "search q http://h --dtype float32": "--dtype is for a model that is opened here",
    "search q http://h --api-key-env NOT_SET": "environment variable NOT_SET",
    "search q http://me:secret@h": "password",
    "info http://h --verify": "--verify is for files",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_usage_is_said(words: str, facts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.txt").write_text("red", encoding="utf-8")
    Path("q.tsv").write_text("1\tred\n", encoding="utf-8")

    status, err = refused(words.split(), capsys)

    assert status == 2
    assert WRONG[words] in err
    assert "secret" not in err


def test_a_key_that_others_can_read_on_the_way_is_said_so(
    facts: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colbert_rag.remote import RemoteColBERT
    from colbert_rag.remote.ranking import RemoteRanking

    nothing = RemoteRanking([], query=QUERY, texts=[], query_rows=1, explain=lambda place: None)
    monkeypatch.setattr(RemoteColBERT, "rank", lambda *_, **__: nothing)

    assert (
        "sent to there.invalid unencrypted"
        in run("rerank", QUERY, facts, "-m", "http://there.invalid")[2]
    )
    for address in ("https://there.invalid", "http://localhost:1"):
        assert "unencrypted" not in run("rerank", QUERY, facts, "-m", address)[2]
