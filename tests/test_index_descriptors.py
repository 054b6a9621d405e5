"""Too many open files: an index says so and what to do, and reading ahead is never the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import index_levels

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux lists what a process has open"
)

HEAD = """
import json, os, resource, sys
from itertools import count
from pathlib import Path

from colbert_rag.index import LocalIndex
from colbert_rag.index.local import ahead, descriptors, snapshot
from tests.helpers.index_levels import ROWS, documents, make_small, topics

path = Path(sys.argv[1])
before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
queries = topics(1, rows=ROWS, seed=0)
make_small()

def leave(left):
    # A new file has the lowest number that is free, and the limit is one on numbers.
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + left, most))

def relax():
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
"""

WALK = """
opened, reads_ahead = sys.argv[2] == "opened", sys.argv[3] == "ahead"
snapshot.SHARED_FROM = 1000
moments = count(0, 10_000)
ahead.reads = lambda: (moment := next(moments), moment)  # as if a disk were waited for
if not reads_ahead:
    ahead.read_vectors = lambda *_: None

def work(index):
    for exact in (False, True):
        assert index.search_embeddings(queries, 300, exact=exact)[0][0].id == "d0"
    more, vectors = documents(3, seed=5, prefix="z")
    index.add_encoded(more, vectors)
    index.delete([document.id for document in more])

def trial(left):
    try:
        if not opened:
            leave(left)
        with LocalIndex(path) as index:
            if opened:
                leave(left)
            work(index)
            relax()
        return ["worked", ""]
    except OSError as error:
        return [type(error).__name__, str(error)]
    finally:
        relax()

with LocalIndex(path) as index:
    work(index)  # imports what it needs
print(json.dumps([trial(left) for left in range(24)]))
with LocalIndex(path) as index:
    work(index)
    index.verify()
"""

AGAIN = """
found = []
with LocalIndex(path) as index:
    leave(0)
    try:
        index.search_embeddings(queries, 10, exact=False)
    except OSError as error:
        found.append(str(error))
    relax()
    found.append(index.search_embeddings(queries, 10, exact=False)[0][0].id)
    found.append(index.stats().held_bytes)
    found.append(index.stats().mapped_bytes)
print(json.dumps(found))
"""

SPARE = """
found = []
for left in (0, 1, 2, 7):
    leave(left)
    told, opened = descriptors.spare(), []
    try:
        while True:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        found.append([told, len(opened)])
    for descriptor in opened:
        os.close(descriptor)
    relax()
print(json.dumps(found))
"""

QUIET = """
descriptors.spare = ahead.spare = lambda: None
leave(3)
ahead.read_vectors(str(path), list(range(1, 300)))
relax()
print(json.dumps("quiet"))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with a level."""
    path = tmp_path_factory.mktemp("descriptors") / "x.sqlite"
    code = (
        "import sys; from pathlib import Path; from tests.helpers.index_levels import *;"
        "make_small(); path = Path(sys.argv[1]); fill(path, 1500)\n"
        "with LocalIndex(path) as index: index.optimize()\nprint(0)"
    )
    run(code, str(path))
    return path


def run(code: str, *arguments: str) -> Any:
    """What a process of its own prints; limits cannot be raised again everywhere."""
    root = str(Path(index_levels.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr
    assert "in the way" not in done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("when", ["opened", "closed"])
def test_too_few_files_are_said_and_reading_ahead_takes_none_of_them(path: Path, when: str) -> None:
    found = run(HEAD + WALK, str(path), when, "ahead")

    kinds = [kind for kind, _ in found]
    assert kinds[-1] == "worked"
    first = kinds.index("worked")
    assert set(kinds[first:]) == {"worked"}  # more are never worse
    assert 0 < first < 10
    for kind, message in found[:first]:
        assert kind == "IndexStorageError"
        assert "x.sqlite could not be " in message
        assert "(too many open files)" in message
        assert "raise the limit of " in message
        assert "(ulimit -n), or close indexes and other files" in message
    assert run(HEAD + WALK, str(path), when, "no") == found


def test_a_level_that_could_not_be_opened_is_opened_by_the_next_search(path: Path) -> None:
    """Without it, all vectors would be held or mapped."""
    message, *rest = run(HEAD + AGAIN, str(path))

    assert "(too many open files)" in message
    assert rest == ["d0", 0, 0]


def test_how_many_are_left_is_what_can_be_opened(path: Path) -> None:
    found = run(HEAD + SPARE, str(path))

    assert [told for told, _ in found] == [opened for _, opened in found]
    assert [opened for _, opened in found] == [0, 1, 2, 7]


def test_what_cannot_be_opened_is_not_read_ahead(path: Path) -> None:
    assert run(HEAD + QUIET, str(path)) == "quiet"
