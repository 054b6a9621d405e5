"""What only a file can promise or suffer: size, memory, other processes, damage, a full disk."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from colbert_rag.codings import CodedEmbeddings
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import (
    IndexBusyError,
    IndexCorruptError,
    IndexStorageError,
)
from colbert_rag.index import Changes, Document, LocalIndex
from colbert_rag.index.info import IndexInfo
from colbert_rag.index.local import snapshot
from colbert_rag.index.local.database import Database
from colbert_rag.index.local.rows import Rows
from tests.helpers.index_fakes import WordEncoder, naive_maxsim, sentences


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


def fill(path: Path, count: int = 60) -> None:
    with LocalIndex(path, WordEncoder()) as index:
        index.add([Document(f"d{at}", text) for at, text in enumerate(sentences(count))])


def found(index: LocalIndex, query: str = "mars storm", k: int = 10) -> list[tuple[str, float]]:
    return [(hit.id, round(hit.score, 5)) for hit in index.search(query, k)]


def test_a_closed_index_is_one_file(path: Path):
    fill(path)

    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_an_index_that_was_read_is_one_file_as_it_was(path: Path):
    fill(path)
    before = path.read_bytes(), path.stat().st_mtime_ns

    with LocalIndex(path, WordEncoder(), read_only=True) as index:
        assert len(index.search("mars")) == 10
        LocalIndex(path, read_only=True).close()
        assert len(index.search("mars storm")) == 10

    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_a_reader_leaves_the_log_of_whoever_has_the_index_open(path: Path):
    fill(path, 5)
    with LocalIndex(path, WordEncoder()) as writer:
        LocalIndex(path, read_only=True).close()  # its log is empty yet
        writer.add(["venus"])
        with LocalIndex(path, WordEncoder(), read_only=True) as reader:
            assert reader.count() == 6
        log = Path(f"{path}-wal")
        assert log.stat().st_size > 0
        writer.add(["saturn"])
        with LocalIndex(path, read_only=True) as reader:
            assert reader.count() == 7


def test_a_reader_leaves_what_a_killed_writer_left(path: Path, tmp_path: Path):
    fill(path, 5)
    crashed = [tmp_path / name for name in ("crashed", "crashed-wal")]
    with LocalIndex(path, WordEncoder()) as writer:
        writer.add(["venus"])
        for file in crashed:
            shutil.copy(f"{path}{file.name[7:]}", file)
    before = [file.read_bytes() for file in crashed]

    with LocalIndex(crashed[0], WordEncoder(), read_only=True) as reader:
        assert reader.count() == 6

    assert [file.read_bytes() for file in crashed] == before


@pytest.mark.parametrize("name", ["a b.sqlite", "what?.sqlite", "50%#1.sqlite", "größe 日本.db"])
def test_a_path_may_hold_any_characters(tmp_path: Path, name: str):
    fill(tmp_path / name, 3)

    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert LocalIndex(str(tmp_path / name)).count() == 3


def test_a_token_of_width_96_takes_at_most_210_bytes_on_disk(path: Path):
    lengths = torch.arange(60, 141).repeat(5)  # documents of 100 tokens, with text and metadata
    vectors = torch.nn.functional.normalize(torch.randn(int(lengths.sum()), 96), dim=-1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    documents = [
        Document(f"handbook/{at}", ("word " * int(length))[:-1] + f" {at}", {"page": at})
        for at, length in enumerate(lengths)
    ]

    with LocalIndex(path, WordEncoder(dim=96)) as index:
        index.add_encoded(documents, TokenEmbeddings(vectors, offsets))

    assert path.stat().st_size / len(vectors) <= 210


def test_compacting_gives_the_space_of_deleted_documents_back(path: Path):
    fill(path, 400)
    before = path.stat().st_size

    with LocalIndex(path, WordEncoder()) as index:
        index.delete([f"d{at}" for at in range(390)])
        expected = found(index)
        index.compact()
        after = path.stat().st_size
        assert found(index) == expected

    assert after < before / 4


def test_without_a_model_there_must_be_an_index(path: Path):
    with pytest.raises(FileNotFoundError, match="pass a model to create"):
        LocalIndex(path)
    assert not path.exists()

    path.touch()
    with pytest.raises(FileNotFoundError, match="is empty"):
        LocalIndex(path)


def test_an_empty_file_becomes_an_index(path: Path):
    path.touch()
    fill(path, 3)

    assert LocalIndex(path).count() == 3


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises(IndexStorageError, match=r"nowhere.*could not be opened.*folder exists"):
        LocalIndex(tmp_path / "nowhere" / "index.sqlite", WordEncoder())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the open file in /proc")
def test_a_disk_that_fails_during_a_read_is_not_blamed_for_a_write(path: Path):
    fill(path)
    index = LocalIndex(path, WordEncoder())
    unreadable = os.open(path, os.O_WRONLY)
    opened = [int(entry.name) for entry in Path("/proc/self/fd").iterdir() if entry.exists()]
    for number in opened:
        if number != unreadable and os.path.sameopenfile(number, unreadable):
            os.dup2(unreadable, number)

    with pytest.raises(IndexStorageError, match=r"could not be read .*the disk works") as caught:
        index.search("mars")

    assert "written" not in str(caught.value)
    os.close(unreadable)


def test_a_pickle_holds_the_path_and_not_the_documents(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fill(path, 200)
    monkeypatch.chdir(path.parent)
    index = LocalIndex(path.name, WordEncoder(), memory_budget=4096, read_only=True)

    pickled = pickle.dumps(index)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    opened = pickle.loads(pickled)

    assert len(pickled) < 2000
    assert found(opened) == found(index)
    assert not opened._searcher._snapshot.is_resident
    with pytest.raises(IndexStorageError, match="for reading only"):
        opened.delete(["d0"])


def test_a_pickle_opens_in_another_process(path: Path):
    fill(path)
    index = LocalIndex(path, WordEncoder())

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        assert processes.submit(found, index).result(120) == found(index)


def test_a_pickle_of_a_file_that_is_gone_makes_no_new_one(path: Path):
    fill(path)
    with LocalIndex(path, WordEncoder()) as index:
        pickled = pickle.dumps(index)
    path.unlink()

    with pytest.raises(FileNotFoundError, match="where the pickled one was"):
        pickle.loads(pickled)
    assert not path.exists()


def test_an_index_in_memory_cannot_be_pickled_and_says_what_to_do():
    index = LocalIndex(":memory:", WordEncoder())

    with pytest.raises(TypeError, match=r"':memory:'.*cannot be pickled.*copy_index"):
        pickle.dumps(index)


def test_a_closed_index_says_so(path: Path):
    index = LocalIndex(path, WordEncoder())
    index.close()
    index.close()

    with pytest.raises(ValueError, match="is closed"):
        index.search("mars")


def test_an_inherited_index_is_refused_in_a_forked_process(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    index = LocalIndex(path, WordEncoder())
    monkeypatch.setattr(os, "getpid", lambda: -1)

    with pytest.raises(RuntimeError, match="open it again"):
        index.count()


def test_an_index_beyond_its_memory_budget_streams_and_finds_the_same(
    path: Path, caplog: pytest.LogCaptureFixture
):
    fill(path, 200)
    held = LocalIndex(path, WordEncoder())
    streamed = LocalIndex(path, WordEncoder(), memory_budget=4096)

    queries = sentences(5, seed=9)
    expected = [found(held, query, 20) for query in queries]

    assert [found(streamed, query, 20) for query in queries] == expected
    assert held._searcher._snapshot.is_resident
    assert not streamed._searcher._snapshot.is_resident
    assert "Raise memory_budget" in caplog.text


def test_vectors_are_held_in_two_bytes_a_number(path: Path):
    index = LocalIndex(path, WordEncoder())
    fill(path, 200)
    index.search("mars")

    held = [block.embeddings.values for block in index._searcher._snapshot.blocks()]

    assert sum(values.nbytes for values in held) == sum(len(values) for values in held) * 16 * 2


def test_streaming_reads_no_more_than_a_block_at_a_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    fill(path, 200)
    rows = record_reads(monkeypatch)

    LocalIndex(path, WordEncoder(), memory_budget=4096).search("mars")

    assert max(rows) <= 4096 // (16 * 2)
    assert len(rows) > 10


def test_a_filtered_stream_reads_only_what_passes(path: Path, monkeypatch: pytest.MonkeyPatch):
    index = LocalIndex(path, WordEncoder(), memory_budget=4096)
    index.add([Document(f"d{at}", t, {"n": at % 50}) for at, t in enumerate(sentences(200))])
    reads = record_reads(monkeypatch)

    hits = index.search("mars", 10, {"n": 7})

    assert sorted(hit.id for hit in hits) == ["d107", "d157", "d57", "d7"]
    assert sum(reads) == sum(len(hit.text.split()) + 1 for hit in hits)


def test_an_index_that_shrinks_below_its_budget_is_held_again(path: Path):
    index = LocalIndex(path, WordEncoder(), memory_budget=16_384)
    index.add([Document(f"d{at}", text) for at, text in enumerate(sentences(100))])
    assert index.search("mars")
    assert not index._searcher._snapshot.is_resident

    index.delete([f"d{at}" for at in range(80)])

    assert len(index.search("mars", 50)) == 20
    assert index._searcher._snapshot.is_resident


def test_blocks_do_not_change_what_is_found(path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(path, 200)
    expected = found(LocalIndex(path, WordEncoder()), k=30)
    monkeypatch.setattr(snapshot, "BLOCK_BYTES", 2048)

    index = LocalIndex(path, WordEncoder())

    assert found(index, k=30) == expected
    assert len(index._searcher._snapshot._blocks) > 10


def test_scores_are_exact_for_the_stored_vectors(path: Path):
    fill(path)
    index = LocalIndex(path, WordEncoder())

    hits = index.search("red storm on mars", 60)

    (query,) = WordEncoder().encode_queries(["red storm on mars"])
    stored = index.embeddings([hit.id for hit in hits])
    expected = [naive_maxsim(query, rows) for rows in stored]
    assert [hit.score for hit in hits] == pytest.approx(expected, abs=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("memory_budget", [2**30, 4096])
def test_a_gpu_finds_what_the_cpu_finds(path: Path, memory_budget: int):
    index = LocalIndex(path, WordEncoder())
    index.add([Document(f"d{at}", t, {"n": at % 9}) for at, t in enumerate(sentences(200))])
    model = WordEncoder()
    model.device = "cuda"
    on_gpu = LocalIndex(path, model, memory_budget=memory_budget)

    for filter in (None, {"n": 3}, {"n": {"$ne": 3}}):
        expected = index.search("mars storm", 20, filter)
        hits = on_gpu.search("mars storm", 20, filter)

        # The GPU rounds the query to float16 as well: near ties may change places.
        assert [hit.score for hit in hits] == pytest.approx(
            [hit.score for hit in expected], abs=2e-3
        )
        assert {hit.id for hit in hits[:10]} <= {hit.id for hit in expected}


def record_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many vectors each read of the file gives from now on."""
    reads: list[int] = []
    original = Rows.coded

    def recording(self: Rows, positions: torch.Tensor) -> CodedEmbeddings:
        vectors = original(self, positions)
        reads.append(len(vectors.values))
        return vectors

    monkeypatch.setattr(Rows, "coded", recording)
    return reads


def test_a_reader_sees_the_commits_of_another_and_reads_only_what_is_new(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    fill(path, 30)
    reader, writer = LocalIndex(path, WordEncoder()), LocalIndex(path, WordEncoder())
    reader.search("mars")
    reads = record_reads(monkeypatch)

    writer.add([Document("new", "mars mars")])
    writer.delete(["d1", "d2"])
    writer.update([Document("d3", sentences(30)[3], {"n": 1})])
    hits = reader.search("mars", 100)

    assert len(hits) == 29
    assert {"new", "d3"} <= {hit.id for hit in hits}
    assert not {"d1", "d2"} & {hit.id for hit in hits}
    assert [read for read in reads if read] == [3]
    assert found(reader) == found(LocalIndex(path, WordEncoder()))
    assert [hit.id for hit in reader.search("mars", filter={"n": 1})] == ["d3"]


def test_a_replaced_text_is_found_with_its_new_vectors_by_a_reader(path: Path):
    fill(path, 10)
    reader, writer = LocalIndex(path, WordEncoder()), LocalIndex(path, WordEncoder())
    reader.search("mars")

    writer.add([Document("d4", "a comet and a crater")])

    assert reader.search("a comet and a crater", 1)[0].id == "d4"


def test_nothing_is_read_again_while_nothing_changes(path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(path, 10)
    index = LocalIndex(path, WordEncoder())
    index.search("mars")
    reads = record_reads(monkeypatch)

    index.search("venus", 5, {"n": None})
    index.search("venus", 5, {"n": None})

    assert reads == []


class Twin:
    """An index opened three times, and the dict that it should be."""

    def __init__(self, path: Path, seed: int, memory_budget: int) -> None:
        self.handles = [
            LocalIndex(path, WordEncoder(), memory_budget=memory_budget) for _ in range(3)
        ]
        self.expected: dict[str, Document] = {}
        self.random = random.Random(seed)

    def change(self) -> None:
        """Add, replace, edit or delete some documents through one of the handles."""
        index = self.random.choice(self.handles[:2])
        ids = [f"d{self.random.randrange(30)}" for _ in range(self.random.randrange(1, 9))]
        if self.random.random() < 0.3:
            index.delete(ids)
            for name in ids:
                self.expected.pop(name, None)
            return
        documents = [
            Document(name, self.random.choice(TEXTS), {"n": self.random.randrange(3)})
            for name in ids
        ]
        index.add(documents, batch_size=self.random.randrange(1, 5))
        for document in documents:
            before = self.expected.get(document.id)
            if before is None or before.text != document.text:
                self.expected.pop(document.id, None)  # a new text counts as inserted anew
            self.expected[document.id] = document

    def check(self) -> None:
        """Every handle gives back and finds what the dict holds."""
        query = WordEncoder().encode_queries(["red storm on mars"])
        vectors = WordEncoder().encode_documents([d.text for d in self.expected.values()])
        scores = [naive_maxsim(query[0], rows.half()) for rows in vectors]
        ranked = sorted(zip(scores, self.expected.values(), strict=True), key=lambda pair: -pair[0])
        for index in self.handles:
            assert list(index) == list(self.expected.values())
            assert [h.document for h in index.search_embeddings(query, 100)[0]] == [
                document for _, document in ranked
            ]
            assert [h.id for h in index.search_embeddings(query, 5, {"n": 1})[0]] == [
                document.id for _, document in ranked if document.metadata["n"] == 1
            ][:5]


TEXTS = sentences(40, seed=2)


@pytest.mark.parametrize("memory_budget", [2**30, 2000])
@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_changes_leaves_what_a_dict_would_hold(
    path: Path, seed: int, memory_budget: int
):
    twin = Twin(path, seed, memory_budget)

    for _ in range(15):
        twin.change()
        twin.check()


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda index: index.add(["venus"]), id="add"),
        pytest.param(lambda index: index.delete(["d1"]), id="delete"),
        pytest.param(lambda index: index.compact(), id="compact"),
    ],
)
def test_a_second_writer_is_told_to_wait_or_to_take_a_server(
    path: Path, write: Callable[[LocalIndex], object]
):
    fill(path, 5)
    second = LocalIndex(path, WordEncoder(), busy_timeout=0.1)

    with LocalIndex(path, WordEncoder()) as first:
        first.add(refusing(second, write))

    write(second)  # the first has finished


def refusing(index: LocalIndex, write: Callable[[LocalIndex], object]) -> Iterator[str]:
    """Texts for one writer, during which another one tries."""
    yield "mars"
    assert len(index.search("mars")) == 5  # reading goes on
    with pytest.raises(IndexBusyError, match=r"one writer at a time.*QdrantIndex"):
        write(index)
    yield "saturn"


def test_a_foreign_lock_on_the_file_is_an_error_in_our_words(path: Path):
    fill(path, 5)
    foreign = sqlite3.connect(path, isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    index = LocalIndex(path, WordEncoder(), busy_timeout=0.1)

    with pytest.raises(IndexBusyError, match="one writer at a time"):
        index.add(["venus"])

    foreign.close()
    assert index.add(["venus"]) == Changes(added=1)


def test_threads_may_search_while_one_adds(path: Path):
    fill(path, 50)
    index = LocalIndex(path, WordEncoder())
    failures: list[object] = []
    done = threading.Event()

    def search() -> None:
        while not done.is_set():
            hits = index.search("mars storm", 5)
            scores = [hit.score for hit in hits]
            if len(hits) != 5 or scores != sorted(scores, reverse=True):
                failures.append(hits)

    threads = [threading.Thread(target=search) for _ in range(3)]
    [thread.start() for thread in threads]
    index.add(sentences(100, seed=4), batch_size=5)
    done.set()
    [thread.join() for thread in threads]

    assert failures == []
    assert found(index) == found(LocalIndex(path, WordEncoder()))


def overwrite(path: Path, pattern: bytes) -> None:
    """Flip one bit in the middle of the first place where `pattern` stands."""
    content = bytearray(path.read_bytes())
    at = content.index(pattern) + len(pattern) // 2
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda index: index.search("mars"), id="search"),
        pytest.param(lambda index: index.embeddings(["d3"]), id="embeddings"),
        pytest.param(lambda index: index.verify(), id="verify"),
    ],
)
def test_a_flipped_bit_in_a_vector_is_noticed(path: Path, use: Callable[[LocalIndex], object]):
    fill(path)
    index = LocalIndex(path, WordEncoder())
    stored = index.embeddings(["d3"])[0].numpy().tobytes()
    index.close()
    overwrite(path, stored[:64])

    with pytest.raises(IndexCorruptError, match=r"vectors at position 4.*Restore it from a copy"):
        use(LocalIndex(path, WordEncoder()))


def test_a_flipped_bit_in_a_text_is_noticed(path: Path):
    fill(path)
    overwrite(path, sentences(60)[3].encode())

    with pytest.raises(IndexCorruptError, match=r"text or metadata \('d3'\)"):
        LocalIndex(path, WordEncoder()).get(["d3"])
    with pytest.raises(IndexCorruptError, match="damaged"):
        LocalIndex(path, WordEncoder()).search("mars", 60)


@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.95])
def test_a_truncated_file_is_noticed(path: Path, part: float):
    fill(path, 300)
    os.truncate(path, int(path.stat().st_size * part))

    with pytest.raises(IndexCorruptError, match="damaged"):
        LocalIndex(path, WordEncoder()).verify()


@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.8])
def test_a_page_of_noise_is_noticed(path: Path, part: float):
    fill(path, 300)
    with path.open("r+b") as file:
        file.seek(int(path.stat().st_size * part) // 4096 * 4096)
        file.write(bytes(range(256)) * 16)

    with pytest.raises(IndexCorruptError, match=r"damaged|another program"):
        LocalIndex(path, WordEncoder()).verify()


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path):
    path.write_text("id,text\n1,mars\n" * 100)
    before = path.read_bytes()

    with pytest.raises(IndexCorruptError, match="not a database"):
        LocalIndex(path, WordEncoder())

    assert path.read_bytes() == before


def test_the_database_of_another_program_is_refused_and_left_alone(path: Path):
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE documents (id TEXT)")
    foreign.close()
    before = path.read_bytes()

    with pytest.raises(IndexCorruptError, match=r"another program.*left untouched"):
        LocalIndex(path, WordEncoder())

    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_file_of_a_newer_format_asks_for_an_upgrade(path: Path):
    fill(path)
    alter(path, "PRAGMA user_version = 99")

    with pytest.raises(IndexCorruptError, match=r"format 99.*upgrade"):
        LocalIndex(path, WordEncoder())


@pytest.mark.parametrize(
    ("statement", "help"),
    [
        pytest.param("DELETE FROM vectors WHERE position = 3", "1 documents are missing", id="row"),
        pytest.param("DROP TABLE vectors", "no such table", id="table"),
        pytest.param("DELETE FROM settings", "settings are unreadable", id="settings"),
        pytest.param(
            "UPDATE settings SET value = '{}' WHERE name = 'model'", "which model", id="model"
        ),
        pytest.param(
            "UPDATE settings SET value = 'x' WHERE name = 'edits'", "counters", id="counters"
        ),
        pytest.param(
            "UPDATE settings SET value = 'x' WHERE name = 'documents'", "counters", id="documents"
        ),
        pytest.param("UPDATE documents SET metadata = '{'", "differ|not what was", id="metadata"),
    ],
)
def test_an_index_with_parts_missing_is_noticed(path: Path, statement: str, help: str):
    fill(path)
    alter(path, statement)

    with pytest.raises(IndexCorruptError, match=help):
        LocalIndex(path, WordEncoder()).search("mars", 100, {"n": None})


def test_a_publication_names_the_file_that_is_damaged(path: Path, tmp_path: Path):
    fill(path)
    alter(path, "DROP TABLE vectors")

    with LocalIndex(path) as index, pytest.raises(IndexCorruptError, match="no such table") as told:
        index.publish(tmp_path / "other.sqlite")

    assert str(told.value).startswith(str(path))


def alter(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_full_disk_loses_nothing_and_the_run_can_be_repeated(path: Path):
    index = LocalIndex(path, WordEncoder())
    index.add(sentences(40), batch_size=10)
    pages = index._database.connection.execute("PRAGMA page_count").fetchone()[0]
    index._database.connection.execute(f"PRAGMA max_page_count = {pages + 5}")

    with pytest.raises(IndexStorageError, match=r"full.*is intact; free some space.*continues"):
        index.add(sentences(400), batch_size=10)

    committed = index.count()
    index.verify()
    assert 40 <= committed < 400
    assert committed % 10 == 0
    assert len(index.search("mars", 1000)) == committed
    index._database.connection.execute("PRAGMA max_page_count = 100000")
    assert index.add(sentences(400)) == Changes(added=400 - committed, unchanged=committed)


def test_an_index_opened_for_reading_refuses_every_write(path: Path):
    fill(path, 5)
    index = LocalIndex(path, WordEncoder(), read_only=True)

    for write in (
        lambda: index.add(["venus"]),
        lambda: index.delete(["d1"]),
        lambda: index.compact(),
    ):
        with pytest.raises(IndexStorageError, match=r"reading only; open it without read_only$"):
            write()

    assert len(index.search("mars")) == 5


def test_the_disk_image_of_an_index_can_be_copied_while_it_is_closed(path: Path, tmp_path: Path):
    fill(path)
    shutil.copy(path, tmp_path / "copy.sqlite")

    copied, original = (
        LocalIndex(p, WordEncoder(), read_only=True) for p in (tmp_path / "copy.sqlite", path)
    )

    assert found(copied) == found(original)


def test_messages_name_the_file(path: Path):
    fill(path, 1)

    with pytest.raises(KeyError, match=re.escape(str(path))):
        LocalIndex(path).get(["zz"])


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1, 10**12, True, "5", None])
def test_a_busy_timeout_that_is_no_time_to_wait_is_named(path: Path, value: object):
    with pytest.raises((TypeError, ValueError), match=r"busy_timeout is .*expected"):
        LocalIndex(path, WordEncoder(), busy_timeout=value)

    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("value", [float("inf"), -1, True, "5", None, 1.5])
def test_a_memory_budget_that_is_no_number_of_bytes_is_named(path: Path, value: object):
    with pytest.raises((TypeError, ValueError), match=r"memory_budget is .*expected"):
        LocalIndex(path, WordEncoder(), memory_budget=value)

    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "file/below", "."])
def test_a_path_where_no_index_can_be_is_named(tmp_path: Path, name: str):
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())

    for model in (None, WordEncoder()):
        with pytest.raises(IndexStorageError, match="choose another path"):
            LocalIndex(tmp_path / name, model)

    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(IndexStorageError, match="no regular file"):
        LocalIndex(tmp_path / "pipe", WordEncoder())


def test_a_path_of_bytes_is_named():
    with pytest.raises(TypeError, match=r"path is b'x'.*expected text or a Path"):
        LocalIndex(b"x", WordEncoder())


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0, True])
def test_a_token_pooling_that_is_no_share_is_named(path: Path, value: object):
    with pytest.raises(ValueError, match="token_pooling is"):
        LocalIndex(path, WordEncoder(), token_pooling=value)


def test_an_empty_file_that_another_process_fills_while_it_is_opened_is_read(path: Path):
    info = IndexInfo.of(WordEncoder())
    opened = Database(str(path), read_only=False, create=True, busy_timeout=5)

    LocalIndex(path, WordEncoder()).close()  # the first commit, and no second

    assert opened.begin(info) == info
    opened.close()


def test_threads_that_make_a_file_at_once_get_one_index(tmp_path: Path) -> None:
    """Each opens it by itself, as processes do."""
    info = IndexInfo(checkpoint="tests/random", fingerprint="b" * 64, dim=8, recipe={})
    together = threading.Barrier(4)

    def made(path: Path) -> str:
        together.wait()
        with LocalIndex(path, like=info) as index:
            index.verify()
            return index.info.fingerprint

    with ThreadPoolExecutor(4) as threads:
        for number in range(60):  # one thread of nine failed
            paths = [tmp_path / f"{number}.sqlite"] * 4
            assert list(threads.map(made, paths)) == ["b" * 64] * 4
