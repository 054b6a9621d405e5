"""Files that are written whole: a disk that fills up leaves what was there, and is named."""

from __future__ import annotations

import errno
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.evaluation import write_run
from colbert_rag.written import named, write_whole

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file limits or modes")
LIMIT = 8_192
LONG = "x" * (3 * LIMIT)


@pytest.fixture
def file_limit() -> Iterator[None]:
    """As on a disk that holds no file above `LIMIT` bytes."""
    import resource  # not on Windows

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@posix
@pytest.mark.parametrize("before", [None, "what was there"])
def test_what_cannot_be_written_whole_leaves_what_was_there(
    tmp_path: Path, file_limit: None, before: str | None
) -> None:
    path = tmp_path / "page.html"
    if before is not None:
        path.write_text(before, encoding="utf-8")

    with pytest.raises(OSError, match="File too large: free some space") as caught:
        write_whole(path, LONG)

    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert {entry.name: entry.read_text(encoding="utf-8") for entry in tmp_path.iterdir()} == (
        {} if before is None else {"page.html": before}
    )


@posix
def test_a_run_is_there_whole_or_as_it_was(tmp_path: Path, file_limit: None) -> None:
    path = tmp_path / "1.trec"
    write_run(path, {"q": {"d": 1.0}}, "system")

    with pytest.raises(OSError, match=r"1\.trec"):
        write_run(path, {"q": {f"d{at}": 1.0 for at in range(1_000)}}, "system")

    assert path.read_bytes() == b"q Q0 d 1 1.0 system\n"
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_vectors_are_there_whole_or_as_they_were(tmp_path: Path, file_limit: None) -> None:
    path = tmp_path / "vectors.safetensors"
    small, large = (TokenEmbeddings.from_list([torch.ones(rows, 16)]) for rows in (2, 1_000))
    small.save(path)

    with pytest.raises(OSError, match=r"vectors.safetensors could not be written .*has space"):
        large.save(path)

    assert torch.equal(TokenEmbeddings.load(path).values, small.values)
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_a_link_a_mode_and_a_pipe_are_kept(tmp_path: Path) -> None:
    target, link, pipe = (tmp_path / name for name in ("target", "link", "pipe"))
    target.write_text("before", encoding="utf-8")
    target.chmod(0o640)
    link.symlink_to(target)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    write_whole(link, "ä\n")
    write_whole(pipe, "b\n")

    assert link.is_symlink()
    assert (target.read_bytes(), os.read(reader, 10)) == ("ä\n".encode(), b"b\n")
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    os.close(reader)


@pytest.mark.parametrize(
    ("number", "advised"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False)]
)
def test_an_error_names_the_file_and_asks_for_space_where_that_helps(
    number: int, advised: bool
) -> None:
    error = named(OSError(number, os.strerror(number)), "run.trec")

    assert (error.errno, error.filename) == (number, "run.trec")
    assert error.strerror == os.strerror(number) + ": free some space, and try again" * advised


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="a Unix name")
@pytest.mark.parametrize("to_file", [False, True])
def test_what_the_shell_has_open_is_written_to_and_not_replaced(
    tmp_path: Path, to_file: bool
) -> None:
    code = "from colbert_rag.written import write_whole; write_whole('/dev/stdout', 'page')"
    run = f"{sys.executable} -c {shlex.quote(code)}"
    out = tmp_path / "out"
    command = f"({run}; echo last) {'>>' if to_file else '| cat >'} {out}"

    subprocess.run(command, shell=True, check=True)

    assert "last" in out.read_text()
    assert to_file or out.read_text() == "pagelast\n"


def test_other_names_of_a_file_keep_what_is_written(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("old")
    other.hardlink_to(one)

    write_whole(one, "new")

    assert other.read_text() == "new"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everything")
def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "page"
    path.write_text("old")
    path.chmod(0o444)

    with pytest.raises(PermissionError):
        write_whole(path, "new")

    assert path.read_text() == "old"
