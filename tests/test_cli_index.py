"""The commands on indexes: `index`, `search` and `info`, in files and on a Qdrant server."""

from __future__ import annotations

import io
import json
import os
import re
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient

from colbert_rag import ColBERT, shared_colbert
from colbert_rag.cli import index as index_command
from colbert_rag.cli import indexes, main, search
from colbert_rag.index import LocalIndex, QdrantIndex
from colbert_rag.index.local import snapshot
from tests.helpers.qdrant_http import API_KEY, serve
from tests.helpers.shell import Run, runner
from tests.test_cli import CONTENTS, CUT, FACTS, QUERY, loaded_by, records, refused


@pytest.fixture
def facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    path = Path("facts.jsonl")
    path.write_text("".join(f"{json.dumps(fact)}\n" for fact in FACTS), encoding="utf-8")
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture
def make(run: Run, facts: Path, tiny_checkpoint: Path) -> Run:
    """Run `index` on the tiny model."""

    def run_index(*arguments: object) -> tuple[int, str, str]:
        exact = ("-m", tiny_checkpoint, "--device", "cpu", "--dtype", "float32")
        return run("index", *arguments, *exact)

    return run_index


@pytest.fixture
def made(make: Run, facts: Path) -> str:
    """An index of the facts."""
    assert make(facts, "--to", "facts.sqlite")[0] == 0
    return "facts.sqlite"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str | None]]]:
    """A server at any URL; yields what clients were made with."""
    client = QdrantClient(":memory:")
    calls: list[tuple[str, str | None]] = []

    def connect(url: str, api_key: str | None) -> QdrantClient:
        calls.append((url, api_key))
        return client

    really_close = client.close
    monkeypatch.setattr(client, "close", lambda: None)
    monkeypatch.setattr(indexes, "connect", connect)
    yield calls
    really_close()


def changed(out: str) -> tuple[int, ...]:
    """Added, updated, unchanged."""
    found = re.match(r"(\d+) added, (\d+) updated, (\d+) unchanged in \d+\.\d s\n", out)
    return tuple(map(int, found.groups()))


# index


def test_a_file_that_a_full_disk_left_without_an_index_becomes_one(
    make: Run, run: Run, facts: Path
) -> None:
    connection = sqlite3.connect("x.sqlite")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert Path("x.sqlite").stat().st_size > 0

    for command in (["info", "x.sqlite"], ["search", QUERY, "x.sqlite"]):
        status, _, err = run(*command)
        assert (status, err.splitlines()[-1]) == (
            1,
            "error: x.sqlite: there is no index here; make one with: colbert-rag index FILE --to "
            "x.sqlite",
        )
    status, out, _ = make(facts, "--to", "x.sqlite")
    assert (status, changed(out)) == (0, (len(FACTS), 0, 0))


def test_index_stores_what_is_read_with_where_it_was_read(make: Run, facts: Path) -> None:
    status, out, err = make(facts, "--to", "x.sqlite")

    with LocalIndex("x.sqlite") as index:
        documents = {document.text: document for document in index}
    mars = documents["Mars Mars is known as the Red Planet."]
    assert (status, err, changed(out)) == (0, f"{CUT}\n", (5, 0, 0))
    assert out.splitlines()[1].startswith("x.sqlite holds 5 documents by ")
    assert list(documents) == CONTENTS
    assert mars.id == "mars"
    assert mars.metadata == {"source": "facts.jsonl", "line": 2, "title": "Mars", "moons": 2}


def test_index_again_encodes_only_what_is_new(
    make: Run, made: str, facts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colbert_rag import ColBERT

    encoded: list[str] = []
    encode = ColBERT.encode_documents

    def noted(self: ColBERT, texts: list[str], **options: Any) -> Any:
        encoded.extend(texts)
        return encode(self, texts, **options)

    monkeypatch.setattr(ColBERT, "encode_documents", noted)
    more = '{"id": "venus", "text": "Venus is hot."}\n{"text": "Pluto is far."}\n'
    Path("more.jsonl").write_text(more, encoding="utf-8")

    again = make(facts, "--to", made)
    news = make("more.jsonl", "--to", made)

    assert (changed(again[1]), changed(news[1])) == ((0, 0, 5), (1, 1, 0))
    assert encoded == ["Venus is hot.", "Pluto is far."]


def test_index_follows_the_model_of_an_index_that_is_there(
    make: Run, run: Run, facts: Path
) -> None:
    make(facts, "--to", "x.sqlite", "--query-length", "8", "--token-pooling", "2")

    # Without a model named, the default would have to be downloaded.
    status, out, _ = run("index", facts, "--to", "x.sqlite", "--device", "cpu")

    assert (status, changed(out)) == (0, (0, 0, 5))


def test_ctrl_c_keeps_what_is_committed_and_the_same_command_goes_on(
    make: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("lines.txt").write_text("\n".join(f"line {n}" for n in range(600)), encoding="utf-8")
    whole = index_command._Given.__iter__

    def interrupted(self: Any) -> Iterator[Any]:
        for number, document in enumerate(whole(self)):
            if number == 300:
                raise KeyboardInterrupt
            yield document

    with monkeypatch.context() as patch:
        patch.setattr(index_command._Given, "__iter__", interrupted)
        first = make("lines.txt", "--split", "lines", "--to", "x.sqlite")
    second = make("lines.txt", "--split", "lines", "--to", "x.sqlite")

    # 256 documents are committed at a time.
    kept = "x.sqlite keeps 256 documents; the same command goes on from there\ninterrupted\n"
    assert first == (130, "", kept)
    assert changed(second[1]) == (344, 0, 256)


def test_a_flaw_in_a_file_is_named_with_what_is_kept(make: Run) -> None:
    Path("x.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text":\n', encoding="utf-8")

    status, _, err = make("x.jsonl", "--to", "x.sqlite")

    assert status == 1
    assert err.splitlines()[0].endswith("goes on from there once the file is mended")
    assert err.splitlines()[1].startswith("error: x.jsonl:3: not JSON")


def test_a_number_that_json_cannot_express_is_named_with_its_line(make: Run) -> None:
    Path("x.jsonl").write_text('{"text": "a"}\n{"text": "b", "n": NaN}\n', encoding="utf-8")

    _, _, err = make("x.jsonl", "--to", "x.sqlite")

    assert "error: x.jsonl:2: not JSON: NaN" in err


def test_ids_and_texts_that_come_again_are_said(make: Run) -> None:
    lines = [{"id": 1, "text": "a"}, {"id": 1, "text": "b"}, {"text": "c"}, {"text": "c"}]
    Path("x.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")

    _, out, err = make("x.jsonl", "--to", "x.sqlite")
    _, again, _ = make("x.jsonl", "--to", "y.sqlite", "--id-field", "")

    assert changed(out) == (2, 1, 0)
    assert "1 ids came again, and the last document of each was kept, such as 1 at x.jsonl:2" in err
    assert "1 texts came again and were left out, such as x.jsonl:4" in err
    assert changed(again) == (3, 0, 0)


@pytest.fixture
def pages(make: Run) -> Path:
    """A folder of three files, which is indexed together with the facts."""
    folder = Path("pages")
    folder.mkdir()
    for name in ("one", "two", "three"):
        (folder / f"{name}.txt").write_text(f"{name} mars\n\n{name} venus\n", encoding="utf-8")
    make(folder, "facts.jsonl", "--to", "x.sqlite")
    return folder


def held(path: str) -> set[str]:
    with LocalIndex(path, read_only=True) as index:
        return {document.text for document in index}


def test_what_vanished_from_the_named_files_is_removed_on_request(make: Run, pages: Path) -> None:
    (pages / "one.txt").write_text("one mars\n\none pluto\n", encoding="utf-8")
    (pages / "two.txt").unlink()

    kept = make(pages, "--to", "x.sqlite")
    pruned = make(pages, "--to", "x.sqlite", "--prune")

    assert kept[1].startswith("1 added, 0 updated, 3 unchanged in ")
    assert pruned[1].startswith("0 added, 0 updated, 4 unchanged, 3 removed in ")
    assert held("x.sqlite") == {
        *CONTENTS,
        *("one mars", "one pluto", "three mars", "three venus"),
    }


def test_pruning_one_file_leaves_the_other_files_of_its_folder(make: Run, pages: Path) -> None:
    (pages / "one.txt").write_text("one mars\n", encoding="utf-8")
    (pages / "two.txt").unlink()

    _, out, _ = make(pages / "one.txt", "--to", "x.sqlite", "--prune")

    assert out.startswith("0 added, 0 updated, 1 unchanged, 1 removed in ")
    assert {"two mars", "two venus", "three mars"} <= held("x.sqlite")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text":\n', "error: pages/one.jsonl:1: not JSON"),
        ('{"text": "a", "source": "b"}', "the record has a field 'source' of its own"),
    ],
)
def test_nothing_is_removed_where_reading_fails(
    content: str, message: str, make: Run, pages: Path
) -> None:
    before = held("x.sqlite")
    for page in pages.iterdir():
        page.unlink()
    (pages / "one.jsonl").write_text(content, encoding="utf-8")

    status, _, err = make(pages, "--to", "x.sqlite", "--prune")

    assert status == 1
    assert message in err
    assert held("x.sqlite") == before


def test_nothing_is_removed_where_nothing_was_read(make: Run, pages: Path) -> None:
    before = held("x.sqlite")
    for page in pages.iterdir():
        page.write_text("\n", encoding="utf-8")

    status, _, err = make(pages, "--to", "x.sqlite", "--prune")

    assert status == 1
    assert err.startswith("error: no documents found in pages, so that --prune would remove all")
    assert held("x.sqlite") == before


def test_an_index_is_copied_without_a_model(made: str, run: Run) -> None:
    status, out, _ = run("index", made, "--to", "copy.sqlite")

    with LocalIndex(made) as source, LocalIndex("copy.sqlite") as copy:
        assert list(copy) == list(source)
        assert copy.embeddings(["mars"]).values.equal(source.embeddings(["mars"]).values)
    assert (status, changed(out)) == (0, (5, 0, 0))


def test_standard_input_is_indexed(make: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "red"}\n')))

    assert changed(make("--to", "x.sqlite")[1]) == (1, 0, 0)


def test_no_documents_make_no_index(make: Run) -> None:
    Path("empty.txt").write_text("\n", encoding="utf-8")

    assert make("empty.txt", "--to", "x.sqlite") == (0, "", "no documents found in empty.txt\n")
    assert not Path("x.sqlite").exists()


def test_another_model_is_refused(made: str, facts: Path, run: Run) -> None:
    status, out, err = run("index", facts, "--to", made, "--document-length", "20")

    assert (status, out) == (1, "")
    assert err.startswith("error: facts.sqlite was made by ")
    assert err.count("\n") == 1


def test_what_is_no_index_is_left_as_it_is(make: Run, facts: Path) -> None:
    before = facts.read_bytes()

    status, _, err = make(facts, "--to", facts)

    assert (status, facts.read_bytes()) == (1, before)
    assert err.startswith("error: facts.jsonl is not an index, or its beginning is damaged")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["facts.jsonl"], "required: --to", id="no target"),
        pytest.param(["facts.jsonl", "--to", "."], ". is a folder", id="a folder"),
        pytest.param(["facts.jsonl", "--to", ":memory:"], "is ':memory:'", id="memory"),
        pytest.param(["x", "--to", "y", "--token-pooling", "0.5"], "at least 1", id="pooling"),
        pytest.param(["x", "--to", "y", "--collection", "c"], "for a Qdrant server", id="a file"),
        pytest.param(["x", "--to", "ftp://host/c"], "is no server", id="scheme"),
        pytest.param(["x", "--to", "http://host:x/c"], "URL of the index is not", id="port"),
        pytest.param(["x", "--to", "http://host"], "names no collection", id="collection"),
        pytest.param(
            ["x", "--to", "http://host/c", "--api-key-env", "NONE_SUCH"],
            "variable NONE_SUCH of --api-key-env is not set",
            id="key",
        ),
        pytest.param(["facts.sqlite", "--to", "facts.sqlite"], "copied to itself", id="itself"),
        pytest.param(["facts.sqlite", "facts.jsonl", "--to", "y"], "one call each", id="both"),
        pytest.param(
            ["facts.sqlite", "--to", "y", "--token-pooling", "2"], "vectors it has", id="copy"
        ),
        pytest.param(["facts.sqlite", "--to", "y", "--prune"], "for documents", id="prune a copy"),
        pytest.param(["-", "--to", "y", "--prune"], "files and folders", id="prune stdin"),
    ],
)
def test_wrong_usage_of_index_is_said_in_two_lines(
    made: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, err = refused(["index", *arguments], capsys)

    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 2


def test_one_document_is_counted_as_one(make: Run) -> None:
    Path("x.txt").write_text("Mars is red.", encoding="utf-8")

    assert (
        make("x.txt", "--to", "x.sqlite")[1]
        .splitlines()[1]
        .startswith("x.sqlite holds 1 document by ")
    )


def test_a_missing_file_is_said_before_the_model_is_looked_for(facts: Path, run: Run) -> None:
    called = run("index", "nowhere.txt", "--to", "x.sqlite", "-m", "./no/such")

    assert called == (1, "", "error: nowhere.txt: no such file or folder\n")


# search


@pytest.mark.both_dtypes
def test_search_finds_what_the_library_ranks(facts: Path, run: Run, tiny_checkpoint: Path) -> None:
    # The last has no words, and no search finds it.
    expected = shared_colbert(tiny_checkpoint, device="cpu").rank(QUERY, CONTENTS)[:-1]
    on_cpu = ("-m", tiny_checkpoint, "--device", "cpu")
    assert run("index", facts, "--to", "facts.sqlite", *on_cpu)[0] == 0

    status, out, err = run("search", QUERY, "facts.sqlite", "--json", "--score", "sum", *on_cpu)

    found = records(out)
    assert (status, err) == (0, "")
    assert [at["text"] for at in found] == [CONTENTS[at.index] for at in expected]
    # Stored vectors are float16.
    assert [at["score"] for at in found] == pytest.approx([at.score for at in expected], abs=2e-3)
    assert [at["rank"] for at in found] == [1, 2, 3, 4]
    assert {at["query"] for at in found} == {QUERY}


def test_the_mean_is_the_sum_over_the_rows_of_the_query(made: str, run: Run) -> None:
    means = records(run("search", QUERY, made, "--json")[1])
    sums = records(run("search", QUERY, made, "--json", "--score", "sum")[1])

    assert [at["score"] * 32 for at in means] == pytest.approx([at["score"] for at in sums])


def test_search_opens_the_model_with_the_recipe_of_the_index(
    make: Run, run: Run, facts: Path, colbert
) -> None:
    make(facts, "--to", "x.sqlite", "--query-length", "8", "--no-query-expansion")
    plain = colbert("stanford-bert", query_length=8, query_expansion=False)

    _, out, _ = run("search", QUERY, "x.sqlite", "--json", "--score", "sum", "-k", "1")

    assert records(out)[0]["score"] == pytest.approx(plain.rank(QUERY, CONTENTS)[0].score, abs=0.02)


def test_a_filter_leaves_documents_out(made: str, run: Run) -> None:
    _, out, _ = run("search", QUERY, made, "--json", "--filter", '{"moons": {"$gte": 2}}')

    assert [at["id"] for at in records(out)] == ["mars"]


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        ("{year: 2020}", "--filter is not JSON: Expecting property name"),
        ("[1]", "--filter is no JSON object"),
        ('{"year": {"$near": 1}}', "--filter: 'year' has '$near', expected one of $eq"),
        ("[" * 100_000, "--filter is n"),
        ("9" * 5000, "--filter is not JSON: Exceeds the limit"),
        ('{"n": {"$gt": 1e400}}', "--filter: $gt of 'n' has inf"),
    ],
    ids=["no JSON", "a list", "operator", "deep", "digits", "infinity"],
)
def test_a_filter_that_cannot_be_read_is_wrong_usage(
    filter: str, message: str, made: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, err = refused(["search", "q", made, "--filter", filter], capsys)

    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 2


def test_all_of_an_empty_index_is_nothing(run: Run, tiny_colbert: ColBERT, tmp_path: Path) -> None:
    with LocalIndex(tmp_path / "empty.sqlite", tiny_colbert):
        pass

    status, out, _ = run("search", QUERY, str(tmp_path / "empty.sqlite"), "-k", "0")

    assert status == 0
    assert out.startswith("0 of 0 documents by ")


def test_the_table_names_file_line_id_and_title(made: str, run: Run) -> None:
    _, out, _ = run("search", QUERY, made, "-k", "0")

    assert out.startswith("4 of 5 documents by ")
    assert re.search(r"^   \d  +0\.\d{4}  facts\.jsonl:2 \(mars\): Mars$", out, re.MULTILINE)
    # The title is ranked with the text, and shown once.
    assert f"{' ' * 15}Mars is known as the Red Planet.\n" in out
    assert max(map(len, out.splitlines()[1:])) <= 80


def test_of_several_queries_each_has_so_many_documents(
    made: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"red planet\nrings\nice\n")))

    _, out, _ = run("search", "-", made, "-k", "2")

    assert out.startswith("2 of 5 documents for each of 3 queries by ")  # not 6 of 5


def test_a_document_without_an_id_is_named_by_its_place_alone(make: Run, run: Run) -> None:
    Path("x.txt").write_text("Mars is red.", encoding="utf-8")
    make("x.txt", "--to", "x.sqlite")

    assert run("search", QUERY, "x.sqlite")[1].splitlines()[2].endswith("  x.txt:1")


def test_a_document_of_another_program_is_named_by_its_id(tiny_colbert, run: Run, facts) -> None:
    with LocalIndex("x.sqlite", tiny_colbert) as index:
        index.add([{"id": "seven", "text": "Mars", "metadata": {"title": 7}}])

    _, out, _ = run("search", QUERY, "x.sqlite", "--device", "cpu", "--dtype", "float32")

    assert out.splitlines()[2].endswith("  seven")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders")
@pytest.mark.parametrize("words", [["info"], ["search", "q"], ["index", "facts.jsonl", "--to"]])
def test_a_pipe_is_no_index(words: list[str], facts: Path, capsys) -> None:
    os.mkfifo("pipe.sqlite")

    status, err = refused([*words, "pipe.sqlite"], capsys)

    assert status == 2
    assert "pipe.sqlite is no regular file, expected the file of an index" in err


def test_queries_without_an_end_are_wrong_usage(made: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(search, "LARGEST", 1000)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"mars " * 10**6)))

    status, err = refused(["search", "-", made], capsys)

    assert (status, sys.stdin.buffer.tell()) == (2, 1001)
    assert "standard input goes on beyond" in err


def test_an_index_beside_a_missing_one_is_named_where_it_was_meant(made: str, run: Run) -> None:
    # Nearer by its name, but no index.
    Path(f"{made}x").write_text("Mars is red.")
    missing = f"{made}xx"

    assert run("search", QUERY, missing) == (
        1,
        "",
        f"error: {missing}: there is no index here; did you mean {made!r}? Or make one with: "
        f"colbert-rag index FILE --to {missing}\n",
    )


def test_queries_in_another_encoding_are_told_what_to_do(made: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n")))

    status, err = refused(["search", "-", made], capsys)

    assert status == 2
    assert (
        "standard input is not UTF-8 at byte 4. Convert it first, as with: iconv -f LATIN1" in err
    )


def test_queries_are_read_from_standard_input(
    made: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"red planet\n\nrings\n")))

    _, out, _ = run("search", "-", made, "-k", "1", "--json")

    alone = [
        records(run("search", query, made, "-k", "1", "--json")[1])[0]
        for query in ("red planet", "rings")
    ]
    found = records(out)
    assert [at["query"] for at in found] == ["red planet", "rings"]
    assert [at["text"] for at in found] == [at["text"] for at in alone]


@pytest.mark.parametrize("command", [["search", "q"], ["info"]], ids=["search", "info"])
def test_an_index_that_is_not_there_is_one_line(command: list[str], run: Run, facts: Path) -> None:
    said = (
        "error: x.sqlite: there is no index here; make one with: colbert-rag index FILE --to "
        "x.sqlite\n"
    )
    assert run(*command, "x.sqlite") == (1, "", said)
    assert not Path("x.sqlite").exists()


def test_search_changes_nothing(made: str, run: Run) -> None:
    before = Path(made).read_bytes()

    run("search", QUERY, made)
    run("info", made)

    assert Path(made).read_bytes() == before
    assert list(Path().glob(f"{made}?*")) == []


# Vectors


@pytest.mark.parametrize(("name", "row"), [("float16", 32), ("int8", 17), ("int4", 9)])
def test_a_new_file_stores_vectors_as_asked(
    make: Run, run: Run, facts: Path, name: str, row: int
) -> None:
    assert make(facts, "--to", "x.sqlite", "--vectors", name)[0] == 0

    (found,) = records(run("info", "x.sqlite", "--json")[1])
    assert (found["vectors"], found["vector_bytes"]) == (name, row)
    _, out, _ = run("info", "x.sqlite")
    assert f"({row} of them its vector)" in out
    assert f"16 wide, {name}" in out


def test_an_existing_file_keeps_its_coding(make: Run, run: Run, facts: Path) -> None:
    make(facts, "--to", "x.sqlite", "--vectors", "int8")

    assert make(facts, "--to", "x.sqlite")[0] == 0
    status, _, err = make(facts, "--to", "x.sqlite", "--vectors", "int4")

    assert status == 1
    assert "vectors='int8', found vectors='int4'" in err
    assert "colbert-rag index --convert int4 --to x.sqlite" in err


def test_convert_changes_the_vectors_and_keeps_the_documents(made: str, run: Run) -> None:
    with LocalIndex(made) as index:
        before = list(index)

    status, out, err = run("index", "--convert", "int8", "--to", made)

    assert (status, err) == (0, "")
    assert re.fullmatch(
        r"facts\.sqlite stores vectors as int8: \S+ KiB before, \S+ KiB now, in [\d.]+ s\n", out
    )
    with LocalIndex(made) as index:
        assert (index.vectors, list(index)) == ("int8", before)
    assert run("info", made, "--verify")[0] == 0


def test_a_copy_stores_vectors_as_its_source_or_as_asked(made: str, run: Run) -> None:
    run("index", "--convert", "int4", "--to", made)

    run("index", made, "--to", "same.sqlite")
    run("index", made, "--to", "other.sqlite", "--vectors", "float16")

    with LocalIndex(made) as one, LocalIndex("same.sqlite") as same:
        assert same.vectors == "int4"
        with LocalIndex("other.sqlite") as other:
            assert other.vectors == "float16"
            for page, vectors in one.encoded():
                names = [document.id for document in page]
                assert same.embeddings(names).values.equal(vectors.values)
                assert other.embeddings(names).values.equal(vectors.values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.jsonl", "--convert", "int8", "--to", "x.sqlite"], "takes no FILE"),
        (["--convert", "int8", "--vectors", "int8", "--to", "x.sqlite"], "no --vectors"),
        (["--convert", "int8", "--to", "http://localhost:6333/x"], "a server stores float16"),
        (["--convert", "int2", "--to", "x.sqlite"], "invalid choice: 'int2'"),
    ],
)
def test_a_conversion_that_cannot_be_is_wrong_usage(
    facts: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    status, said = refused(["index", *arguments], capsys)

    assert status == 2
    assert message in said


def test_a_conversion_makes_no_index(facts: Path, run: Run) -> None:
    status, _, err = run("index", "--convert", "int8", "--to", "none.sqlite")

    assert status == 1
    assert "no index here" in err
    assert not Path("none.sqlite").exists()


# info


def test_info_says_what_the_index_says(made: str, run: Run) -> None:
    with LocalIndex(made) as index:
        held, tokens = index.info, len(index.embeddings(at.id for at in index).values)

    status, out, err = run("info", made, "--json")

    (found,) = records(out)
    assert (status, err) == (0, "")
    assert (found["documents"], found["tokens"]) == (5, tokens)
    assert found["bytes"] == Path(made).stat().st_size
    assert found["bytes_per_token"] == pytest.approx(found["bytes"] / tokens, abs=0.1)
    assert {name: found[name] for name in held.to_json()} == held.to_json()


def test_info_is_readable(make: Run, run: Run, facts: Path) -> None:
    make(facts, "--to", "x.sqlite", "--token-pooling", "2", "--query-length", "8")

    _, out, _ = run("info", "x.sqlite", "--verify")

    said = dict(re.findall(r"^(\S+(?: \w+)?) {2,}(.*)$", out, re.MULTILINE))
    assert said["Documents"] == "5"
    assert said["Pooling"] == "to 1/2 of the vectors"
    assert said["Recipe"] == "query_length 8"
    assert said["Token vector"] == "16 wide, float16"
    assert said["Verified"] == "yes: everything in it is what was written"


def test_info_mentions_the_copy_that_processes_share(
    made: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "SHARED_FROM", 1)
    run("search", QUERY, made)

    _, out, _ = run("info", made)

    assert re.search(r"^Shared +[\d.]+ \w+ beside it, which processes", out, re.MULTILINE)
    (found,) = records(run("info", made, "--json")[1])
    assert found["shared_bytes"] == Path(f"{made}-vectors").stat().st_size


def test_info_of_an_empty_index_divides_by_nothing(tiny_colbert, run: Run, facts: Path) -> None:
    LocalIndex("x.sqlite", tiny_colbert).close()

    assert records(run("info", "x.sqlite", "--json")[1])[0]["bytes_per_token"] is None
    assert re.search(r"^Tokens +0$", run("info", "x.sqlite")[1], re.MULTILINE)


def test_verify_finds_a_changed_letter(made: str, run: Run) -> None:
    content = Path(made).read_bytes()
    assert b"Jupiter has" in content
    Path(made).write_bytes(content.replace(b"Jupiter has", b"Jupiter had"))

    status, out, err = run("info", made, "--verify")

    assert (status, out) == (1, "")
    assert err.startswith("error: facts.sqlite is damaged")
    assert run("info", made)[0] == 0


def test_info_loads_no_model(made: str) -> None:
    assert loaded_by("info", str(Path(made).resolve())).isdisjoint({"transformers", "tokenizers"})


# Qdrant


def test_a_server_is_filled_and_searched_like_a_file(
    make: Run, made: str, run: Run, facts: Path, server: list
) -> None:
    url = "http://localhost:6333/facts"

    status, out, err = make(facts, "--to", url)
    there = run("search", QUERY, url, "--json", "--filter", '{"line": {"$gt": 1}}')
    here = run("search", QUERY, made, "--json", "--filter", '{"line": {"$gt": 1}}')

    assert (status, err, changed(out)) == (0, f"{CUT}\n", (5, 0, 0))
    assert [at["id"] for at in records(there[1])] == [at["id"] for at in records(here[1])]
    assert [at["score"] for at in records(there[1])] == pytest.approx(
        [at["score"] for at in records(here[1])], abs=1e-3
    )
    assert set(server) == {("http://localhost:6333", None)}


def test_an_index_is_copied_to_a_server(made: str, run: Run, server: list) -> None:
    run("index", made, "--to", "https://host/prefix", "--collection", "c")

    client = indexes.connect("", None)
    with LocalIndex(made) as source:
        assert list(QdrantIndex(client, "c")) == list(source)
    assert server[0] == ("https://host/prefix", None)


def test_a_collection_on_a_server_is_tuned(made: str, run: Run, server: list) -> None:
    run("index", made, "--to", "https://host/c")

    status, out, _ = run("tune", "https://host/c", "--json", "--k", "2")

    assert status == 0
    assert records(out)[0]["chosen"] == 1  # it looks at more documents than there are
    client = indexes.connect("", None)
    assert client.get_collection("c").config.metadata["colbert_rag_effort"]["effort"] == 1


def test_info_of_a_server_leaves_out_what_it_does_not_count(
    made: str, run: Run, server: list
) -> None:
    run("index", made, "--to", "http://localhost/c")

    (found,) = records(run("info", "http://localhost/c", "--json")[1])
    text = run("info", "http://localhost/c")[1]

    assert (found["documents"], found["tokens"], found["bytes"]) == (5, None, None)
    assert "Tokens" not in text


def test_a_collection_that_is_not_there_is_one_line(run: Run, server: list) -> None:
    assert run("info", "http://localhost/c") == (
        1,
        "",
        "error: http://localhost/c: there is no index here; make one with: colbert-rag index FILE "
        "--to http://localhost/c\n",
    )


@pytest.mark.parametrize("variable", ["QDRANT_API_KEY", "MY_KEY"])
def test_the_key_comes_from_the_environment_and_is_never_shown(
    variable: str, made: str, run: Run, server: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "s3cret")
    option = ["--api-key-env", variable] if variable == "MY_KEY" else []

    _, out, err = run("index", made, "--to", "https://host/c", *option)

    assert server == [("https://host", "s3cret")]
    assert "s3cret" not in out + err
    assert "s3cret" not in repr(indexes.Server("https://host", "c", "s3cret"))


def test_a_key_goes_over_the_wire(made: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as http:
        monkeypatch.setenv("QDRANT_API_KEY", API_KEY)
        status, out, err = run("index", made, "--to", f"{http.url}/c")
        monkeypatch.setenv("QDRANT_API_KEY", "wrong")
        refusal = run("info", f"{http.url}/c")
        monkeypatch.delenv("QDRANT_API_KEY")
        missing = run("info", f"{http.url}/c")

    hint = (
        "Pass api_key to QdrantClient; on the command line, set QDRANT_API_KEY or name a variable "
        "with --api-key-env\n"
    )
    assert (status, err, changed(out)) == (0, "", (5, 0, 0))
    assert refusal == (1, "", f"error: {http.url}: the API key was refused. {hint}")
    assert missing == (1, "", f"error: {http.url}: it asks for an API key. {hint}")


def test_a_server_that_does_not_answer_is_one_line(run: Run, facts: Path) -> None:
    # Nothing listens on port 1.
    status, out, err = run("info", "http://127.0.0.1:1/c")

    assert (status, out) == (1, "")
    assert err.startswith("error: http://127.0.0.1:1 does not answer as a Qdrant server does (")
    assert err.count("\n") == 1


def test_a_key_without_encryption_is_warned_of(
    facts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    indexes.connect("http://qdrant.example:6333", "s3cret").close()
    indexes.connect("http://localhost:6333", "s3cret").close()

    err = capsys.readouterr().err
    assert err.startswith("note: the API key is sent to qdrant.example unencrypted")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://user:s3cret@host/c", ""),
        ("http://host/c?api_key=s3cret", ""),
        ("http://host/c", "s3cret\u00fc"),
        ("http://host/c", "s3cret\n"),
    ],
    ids=["password", "parameter", "not ASCII", "line end"],
)
def test_a_secret_in_the_wrong_place_is_refused_without_showing_it(
    url: str, key: str, facts: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", key)

    status, err = refused(["info", url], capsys)

    assert status == 2
    assert "s3cret" not in err


def test_a_secret_in_swapped_arguments_is_not_shown(facts: Path, capsys) -> None:
    status, err = refused(["search", "http://user:s3cret@host/c", "red planet"], capsys)

    assert status == 2
    assert "s3cret" not in err


def test_verify_is_for_files(facts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, err = refused(["info", "http://host/c", "--verify"], capsys)

    assert status == 2
    assert "--verify is for files" in err


def test_an_index_in_the_place_of_the_query_is_noticed(made: str, run: Run, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["search", made, "red planet"])

    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert f"colbert-rag search 'red planet' {made}" in err


def test_a_query_that_looks_like_an_index_is_no_mistake(made: str, run: Run) -> None:
    assert run("search", "http://mars/planet", made, "--device", "cpu")[0] == 0


def test_a_query_longer_than_the_name_of_a_file_is_looked_for_and_cut(made: str, run: Run) -> None:
    status, _, err = run("search", "red planet " * 400, made)

    assert status == 0
    assert err == "note: a query is longer than 32 tokens and was cut there\n"
