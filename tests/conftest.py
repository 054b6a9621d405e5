"""Fixtures shared by all tests: tiny checkpoints, models on them, and their references."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

    from colbert_rag import ColBERT
    from tests.helpers.oracle import SentenceTransformersOracle

# Imports that load torch stay inside the functions: some tests check that ours does not.

FLOAT_TYPES = ("float32", "bfloat16")
"""What `dtype="auto"` means on one machine or another. Where bfloat16 is not native it is emulated,
which is slow, and gives the same numbers."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that is marked `both_dtypes` as on either kind of machine."""
    if metafunc.definition.get_closest_marker("both_dtypes") is not None:
        metafunc.parametrize("auto_dtype", FLOAT_TYPES, indirect=True)


@pytest.fixture(autouse=True)
def auto_dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What `dtype="auto"` means in this process and those it starts; None leaves it open."""
    dtype: str | None = getattr(request, "param", None)
    if dtype is not None:
        monkeypatch.setenv("COLBERT_RAG_AUTO_DTYPE", dtype)
    return dtype


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the tests ran on: which numbers they saw depends on it."""
    from tests.helpers.machine import machine

    terminalreporter.write_line(machine())


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models are slower on many threads, and the machine may be shared."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Build a tiny checkpoint of `tests/helpers/variants.py`, once; do not write into it."""
    from tests.helpers.tiny import build
    from tests.helpers.variants import VARIANTS

    root = tmp_path_factory.mktemp("checkpoints")
    return functools.cache(lambda name: build(VARIANTS[name], root / name))


@pytest.fixture
def copy_of(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a tiny checkpoint that the test may spoil."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(checkpoint(name), tmp_path / name))

    return copy


@pytest.fixture(scope="session")
def colbert(checkpoint: Callable[[str], Path]) -> Iterator[Callable[..., ColBERT]]:
    """Open a tiny checkpoint by name, exactly (float32), once per set of options."""
    from tests.helpers.answers import open_exactly

    @functools.cache
    def open_cached(name: str, **options: Any) -> ColBERT:
        return open_exactly(checkpoint(name), **options)

    yield open_cached
    open_cached.cache_clear()


@pytest.fixture(scope="session")
def tiny_checkpoint(checkpoint: Callable[[str], Path]) -> Path:
    """An unremarkable checkpoint, for tests that are not about checkpoints."""
    return checkpoint("stanford-bert")


@pytest.fixture(scope="session")
def tiny_colbert(colbert: Callable[..., ColBERT]) -> ColBERT:
    """A model on it."""
    return colbert("stanford-bert")


@pytest.fixture(scope="session")
def minilm() -> ColBERT:
    """Real weights that need no network, for tests about meaning."""
    from colbert_rag import ColBERT

    return ColBERT.from_pretrained("offline-minilm", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def sentence_transformers(
    checkpoint: Callable[[str], Path],
) -> Callable[[str], SentenceTransformersOracle]:
    """sentence-transformers 6.2 on a tiny checkpoint, by name."""
    from tests.helpers.oracle import SentenceTransformersOracle

    return functools.cache(lambda name: SentenceTransformersOracle(checkpoint(name)))


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Forks processes of which `tests.helpers.index_processes` says what they do."""
    from tests.helpers.index_processes import fork_server

    return fork_server()
