"""Runs notebooks as a reader would: in a fresh kernel, in an empty folder, without a model hub.

`python -m tests.helpers.notebooks FILE ...` runs notebooks and keeps their new outputs, leaving out
what differs from one run or machine to the next. `make notebooks` calls it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbformat import NotebookNode

import colbert_rag

KERNEL = "python3"
# Less than an error, such as that messages to this very machine are not encrypted, is no news.
LAUNCH = [sys.executable, "-m", "ipykernel_launcher", "--log-level=ERROR"]
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": KERNEL},
    "language_info": {"name": "python"},
}


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def execute(path: Path, folder: Path) -> NotebookNode:
    """Run a notebook from top to bottom in the folder, and return it with its new outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    work = folder / "work"
    work.mkdir()
    notebook = read(path)
    client = NotebookClient(
        notebook,
        kernel_name=KERNEL,
        timeout=300,
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(work)}},
    )
    # The client's own manager, which it shuts down, but with our kernel.
    client.create_kernel_manager().kernel_spec_manager = _kernels(folder)
    # Not `execute`, which leaves an event loop open in every thread that calls it.
    asyncio.run(client.async_execute())
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def _kernels(folder: Path) -> KernelSpecManager:
    """The Python that runs this, whatever kernels are installed on the machine."""
    spec = {
        "argv": [*LAUNCH, "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
        "env": {
            "HF_HUB_OFFLINE": "1",
            "IPYTHONDIR": str(folder / "ipython"),  # no start-up files, no history
            "OMP_NUM_THREADS": "1",  # several take minutes where the machine is busy
            "PYTHONPATH": str(Path(colbert_rag.__file__).parents[1]),
            # What huggingface_hub says in a kernel without ipywidgets, which nothing here needs.
            "PYTHONWARNINGS": "ignore:IProgress not found",
        },
    }
    home = folder / "kernels" / KERNEL
    home.mkdir(parents=True)
    (home / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    return KernelSpecManager(kernel_dirs=[str(home.parent)])


def main(paths: list[str]) -> None:
    """Run notebooks and keep their new outputs."""
    for path in map(Path, paths):
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        for number, cell in enumerate(notebook.cells, start=1):
            cell.id = f"cell-{number}"
            cell.metadata = NotebookNode()
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main(sys.argv[1:])
