"""`Layout`: what a checkpoint's files show before any format is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from colbert_rag.checkpoint.files import Folder, Section
from colbert_rag.checkpoint.projection import dense_projection
from colbert_rag.checkpoint.recipe import Projection
from colbert_rag.checkpoint.tensors import Tensors
from colbert_rag.errors import MetadataError, UnsupportedModuleError

ST_CONFIG = "config_sentence_transformers.json"
MODULE_CLASSES = (
    "Transformer",
    "Dense",
    "MultiVectorMask",
    "Normalize",
    "Pooling",
    "HierarchicalTokenPooling",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What the files show before any format is chosen.

    Attributes:
        folder: The checkpoint.
        body: Sub-folder of the backbone, "" for the checkpoint itself.
        tensors: Tensors stored with the backbone.
        modules: `(class name, sub-folder)` of every entry in `modules.json`.
        allow_pickle: Whether pickled weights may be read.
    """

    folder: Folder
    body: str
    tensors: Tensors
    modules: tuple[tuple[str, str], ...]
    allow_pickle: bool

    @property
    def st_config(self) -> Section:
        """What sentence-transformers and PyLate say about the whole model."""
        return self.folder.read(ST_CONFIG)

    @property
    def dense(self) -> tuple[str, ...]:
        """Sub-folders of the Dense layers, in order."""
        return self.paths("Dense")

    def paths(self, module: str) -> tuple[str, ...]:
        """Sub-folders of the modules of one class, in order."""
        return tuple(path for name, path in self.modules if name == module)

    def dense_layers(self) -> tuple[Projection, ...]:
        """The Dense layers, read."""
        return tuple(
            dense_projection(self.folder, sub, allow_pickle=self.allow_pickle) for sub in self.dense
        )


def read_modules(folder: Folder) -> tuple[tuple[str, str], ...]:
    """Class names and sub-folders in `modules.json`; only the last part of a class path counts.

    Raises:
        UnsupportedModuleError: a class outside the allowlist.
        UnsafePathError: a path that leaves the checkpoint.
        MetadataError: the file is not a list of modules.
    """
    modules = []
    for entry in folder.read_list("modules.json"):
        class_path = entry.get("type", str)
        path = entry.get("path", str)
        if class_path is None or path is None:
            raise MetadataError("modules.json has an entry without type or path")
        name = class_path.rsplit(".", 1)[-1]
        if name not in MODULE_CLASSES:
            raise UnsupportedModuleError(
                f"modules.json names the module {class_path!r}, expected one of "
                f"{', '.join(MODULE_CLASSES)}. No other class is imported, because importing a "
                "name from a checkpoint would run its code"
            )
        modules.append((name, folder.inside(path, named_in="modules.json")))
    return tuple(modules)
