"""A hub id opens from what an earlier run downloaded, with and without a connection."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from colbert_rag import ColBERT
from colbert_rag.errors import HubUnreachableError
from tests.helpers.answers import open_exactly

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def cache(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A hub cache as huggingface_hub keeps it: snapshots of links into a store of blobs."""
    home = tmp_path / "models--owner--tiny"
    snapshot, blobs = home / "snapshots" / COMMIT, home / "blobs"
    source = checkpoint("pylate-bert")
    blobs.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    for path in (path for path in source.rglob("*") if path.is_file()):
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return tmp_path


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("local_files_only", [True, False])
def test_a_cached_checkpoint_opens_without_a_connection(
    local_files_only: bool, cache: Path, colbert: Callable[..., ColBERT]
) -> None:
    model = open_exactly("owner/tiny", cache_folder=cache, local_files_only=local_files_only)

    texts = ["mars", "venus is a planet"]
    assert model.score("mars", texts) == colbert("pylate-bert").score("mars", texts)


@pytest.mark.usefixtures("no_network")
def test_a_cached_commit_opens_by_its_name(cache: Path) -> None:
    model = open_exactly("owner/tiny", cache_folder=cache, revision=COMMIT)

    assert model.dim == 16


@pytest.mark.usefixtures("no_network")
def test_another_revision_than_the_cached_one_is_not_opened(cache: Path) -> None:
    with pytest.raises(HubUnreachableError, match="owner/tiny"):
        open_exactly("owner/tiny", cache_folder=cache, revision="v2")


@pytest.mark.usefixtures("no_network")
def test_a_checkpoint_that_is_not_cached_is_not_opened(cache: Path) -> None:
    with pytest.raises(HubUnreachableError, match="owner/other"):
        open_exactly("owner/other", cache_folder=cache, local_files_only=True)


@pytest.mark.usefixtures("no_network")
def test_a_cache_and_a_folder_have_the_same_fingerprint(
    cache: Path, colbert: Callable[..., ColBERT]
) -> None:
    model = open_exactly("owner/tiny", cache_folder=cache, local_files_only=True)

    assert model.fingerprint == colbert("pylate-bert").fingerprint
