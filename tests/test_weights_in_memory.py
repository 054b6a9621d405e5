"""What was loaded stays what it is, whatever becomes of the files; and it knows what it is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import load_file, save_file

from colbert_rag import ColBERT, LocalIndex
from colbert_rag.checkpoint import loading
from colbert_rag.checkpoint.files import Folder
from colbert_rag.checkpoint.header import read_header
from colbert_rag.errors import CheckpointError, CorruptWeightsError, IndexMismatchError
from tests.helpers.answers import open_exactly

Copy = Callable[[str], Path]
WEIGHTS = "model.safetensors"
TEXTS = ["mars is a planet", "venus", "a river"]

# In a process of its own, since what is tested would kill it.
SPOILED = """
import json, os, sys
from pathlib import Path
from colbert_rag import ColBERT

texts, *folders = sys.argv[1:]
for folder in map(Path, folders):
    model = ColBERT.from_pretrained(
        folder, device="cpu", dtype="float32", allow_pickle=True, document_cache=None
    )
    before = model.score("mars", json.loads(texts))
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        size = path.stat().st_size
        with open(path, "r+b") as file:
            file.truncate(0) if "truncated" in folder.name else file.write(os.urandom(size))
            os.fsync(file.fileno())
    assert model.score("mars", json.loads(texts)) == before, folder.name
print("alive")
"""


def test_loaded_models_outlive_their_files(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folders = [
        shutil.copytree(checkpoint(name), tmp_path / f"{name}-{how}")
        for name in ("stanford-bert", "stanford-bert-half", "pylate-bert", "stanford-bert-pickled")
        for how in ("truncated", "overwritten")
    ]

    run = subprocess.run(
        [sys.executable, "-c", SPOILED, json.dumps(TEXTS), *map(str, folders)],
        capture_output=True,
        text=True,
    )

    assert (run.returncode, run.stdout) == (0, "alive\n"), run.stderr[-500:]


def test_nothing_that_was_loaded_is_mapped_from_a_file(copy_of: Copy) -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("only Linux says what a process has mapped")
    folder = copy_of("stanford-bert")

    model = open_exactly(folder)

    assert model.loaded
    assert str(folder) not in Path("/proc/self/maps").read_text()


def _other_weights(folder: Path, checkpoint: Callable[[str], Path]) -> None:
    """The same names and shapes, other numbers."""
    shutil.copyfile(checkpoint("stanford-bert-other-seed") / WEIGHTS, folder / WEIGHTS)


def test_a_fingerprint_is_that_of_the_weights_in_memory(
    copy_of: Copy, checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    folder = copy_of("stanford-bert")
    model = open_exactly(folder)
    before = model.score("mars", TEXTS)

    _other_weights(folder, checkpoint)

    assert model.score("mars", TEXTS) == before
    assert model.fingerprint == colbert("stanford-bert").fingerprint

    model.unload()

    other = colbert("stanford-bert-other-seed")
    assert model.fingerprint == other.fingerprint
    assert model.score("mars", TEXTS) == other.score("mars", TEXTS)
    assert model.fingerprint == other.fingerprint


def test_a_fingerprint_told_before_loading_is_renewed_by_it(
    copy_of: Copy, checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    folder = copy_of("stanford-bert")
    model = open_exactly(folder)
    model.unload()
    assert model.fingerprint == colbert("stanford-bert").fingerprint

    _other_weights(folder, checkpoint)
    model.load()

    assert model.fingerprint == colbert("stanford-bert-other-seed").fingerprint


def test_a_reload_reads_configuration_and_tokenizer_again(
    copy_of: Copy, checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    folder = copy_of("stanford-bert")
    model = open_exactly(folder)
    model.unload()
    shutil.rmtree(folder)
    shutil.copytree(checkpoint("stanford-electra"), folder)

    other = colbert("stanford-electra")

    assert model.score("mars", TEXTS) == other.score("mars", TEXTS)
    assert model.checkpoint.backbone.name == "ELECTRA"
    assert model.fingerprint == other.fingerprint


@pytest.mark.parametrize("call", ["add", "search"])
def test_an_open_index_refuses_a_model_that_was_loaded_from_other_files(
    call: str, copy_of: Copy, checkpoint: Callable[[str], Path]
) -> None:
    folder = copy_of("stanford-bert")
    model = open_exactly(folder)
    with LocalIndex(":memory:", model) as index:
        index.add(["mars"])
        _other_weights(folder, checkpoint)
        index.add(["venus"])  # the weights in memory are still the same
        model.unload()

        with pytest.raises(IndexMismatchError, match="loaded again"):
            getattr(index, call)("pluto" if call == "search" else ["pluto"])

        assert index.count() == 2


def test_a_reranker_refuses_vectors_of_the_model_that_was(
    copy_of: Copy, checkpoint: Callable[[str], Path]
) -> None:
    from langchain_core.documents import Document

    from colbert_rag.langchain import ColBERTRerank

    folder = copy_of("stanford-bert")
    model = open_exactly(folder)
    with LocalIndex(":memory:", model) as index:
        index.add(TEXTS)
        reranker = ColBERTRerank(colbert=model, index=index)
        documents = [Document(text) for text in TEXTS]
        reranker.compress_documents(documents, "mars")
        _other_weights(folder, checkpoint)
        model.unload()

        with pytest.raises(IndexMismatchError):
            reranker.compress_documents(documents, "mars")


def test_vectors_of_the_old_weights_do_not_enter_the_new_cache(
    copy_of: Copy, checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    folder = copy_of("stanford-bert")
    model = open_exactly(folder)
    _other_weights(folder, checkpoint)

    def unloads_meanwhile(texts: object) -> dict[str, torch.Tensor]:
        model.unload()
        return {}

    model.score("mars", TEXTS, known=unloads_meanwhile)

    other = colbert("stanford-bert-other-seed")
    assert model.score("mars", TEXTS) == other.score("mars", TEXTS)


# Files that change while they are read


@pytest.mark.parametrize("file", [WEIGHTS, "config.json", "tokenizer.json", "added_tokens.json"])
def test_a_file_that_changes_while_it_is_opened_is_noticed(
    file: str, copy_of: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of("stanford-bert")
    load = loading.load_weights

    def swap_and_load(*args: object) -> str:
        content = b"{}" if file.startswith("added") else (folder / file).read_bytes()
        (folder / "new").write_bytes(content)
        (folder / "new").replace(folder / file)
        return load(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("colbert_rag.hosting.load_weights", swap_and_load)
    with pytest.raises(CorruptWeightsError, match="changed while it was being opened"):
        open_exactly(folder)

    monkeypatch.undo()
    assert open_exactly(folder).score("mars", TEXTS)


def test_weights_that_end_while_they_are_read_are_refused(
    copy_of: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of("stanford-bert")

    def read_and_truncate(stream: object, file: str) -> object:
        found = read_header(stream, file)  # type: ignore[arg-type]
        os.truncate(folder / WEIGHTS, 30_000)
        return found

    monkeypatch.setattr(loading, "read_header", read_and_truncate)

    with pytest.raises(CorruptWeightsError, match="ends inside"):
        open_exactly(folder)


# The reader, beside the library of the format


def test_tensors_are_read_as_the_library_of_the_format_reads_them(tmp_path: Path) -> None:
    types = [*loading.TORCH_TYPES.values()]
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in types}
    tensors |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5)}
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})

    found: dict[str, torch.Tensor] = {}
    digest = loading.load_weights(Folder(tmp_path), WEIGHTS, found.__setitem__)

    assert digest == hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest()
    expected = load_file(tmp_path / WEIGHTS)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].double().tolist() == tensor.double().tolist()


def test_headers_are_refused_where_the_library_of_the_format_refuses_them(tmp_path: Path) -> None:
    """Bytes of a small file are changed one after another; whoever opens it must mean the same."""
    path = tmp_path / WEIGHTS
    save_file({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.int64)}, path)
    whole = path.read_bytes()
    opened = 0
    for place in range(len(whole) - 56):
        for byte in b'"]0,7':
            changed = whole[:place] + bytes([byte]) + whole[place + 1 :]
            path.write_bytes(changed)
            try:
                with path.open("rb") as stream:
                    ours, _ = read_header(stream, WEIGHTS)
            except CheckpointError:
                continue
            opened += 1
            try:
                theirs = dict(deserialize(changed))
            except SafetensorError as error:
                pytest.fail(f"byte {place} as {byte:c}: {error}, but it was opened")
            assert {name: tuple(entry["shape"]) for name, entry in theirs.items()} == {
                name: info.shape for name, info in ours.items()
            }
    assert opened > 20
