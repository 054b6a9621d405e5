"""`Checkpoint`: everything a published folder says, as values, before any weight is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from colbert_rag.backbone.shape import Shape
from colbert_rag.backbone.table import Backbone, find_backbone
from colbert_rag.checkpoint.border import border
from colbert_rag.checkpoint.config import encoder_shape
from colbert_rag.checkpoint.files import Folder, join
from colbert_rag.checkpoint.formats import NO_LIMIT, Format, find_format
from colbert_rag.checkpoint.layout import Layout, read_modules
from colbert_rag.checkpoint.markers import with_chosen
from colbert_rag.checkpoint.overrides import decided, overridden
from colbert_rag.checkpoint.projection import check_chain
from colbert_rag.checkpoint.recipe import Projection, Recipe
from colbert_rag.checkpoint.source import locate, stored_digests, weights_digest
from colbert_rag.checkpoint.tensors import Tensors
from colbert_rag.checkpoint.vocabulary import Vocabulary, load_vocabulary
from colbert_rag.checkpoint.weights import UNUSED, body_prefix, find_head, index_tensors
from colbert_rag.errors import NotACheckpointError
from colbert_rag.settings import OFFLINE_CHECKPOINT, Settings


@dataclass(frozen=True, kw_only=True)
class Description:
    """A published ColBERT model, described by its own files before its tokenizer is read.

    Attributes:
        name: The hub id or folder it was opened by.
        files: The local folder, and in which state each file of it was read.
        form: The on-disk format, as a row of the table.
        body: Sub-folder of backbone and tokenizer, "" for the folder itself.
        model_type: What `config.json` calls the architecture.
        hidden_size: Width of the backbone's hidden states.
        backbone: Our row for the architecture; `backbone.refused` says why where it is not hosted.
        shape: What the backbone computes; None where it is refused.
        tensors: Stored tensors beside the backbone, by stored name.
        projection: The layers from hidden states to token vectors; empty for raw token embeddings.
        duplicate: A second description of the projection, to be compared with the first.
        recipe: How text becomes tokens; only in a `Checkpoint` are its markers final.
    """

    name: str
    files: Folder = field(repr=False)
    form: Format = field(repr=False)
    body: str
    model_type: str
    hidden_size: int
    backbone: Backbone
    shape: Shape | None = field(repr=False)
    tensors: Tensors = field(repr=False)
    projection: tuple[Projection, ...]
    duplicate: Projection | None
    recipe: Recipe

    @property
    def folder(self) -> Path:
        """The local folder."""
        return self.files.path

    @property
    def format(self) -> str:
        """Name of the on-disk format, or "raw token embeddings"."""
        return self.form.name

    @property
    def dim(self) -> int:
        """Width of a token vector: the rows of the last projection tensor, never a config value."""
        return self.projection[-1].out_features if self.projection else self.hidden_size

    @property
    def backbone_tensors(self) -> dict[str, str]:
        """Tensors of the backbone: name without the body prefix -> stored name."""
        prefix = body_prefix(list(self.tensors))
        head = {layer.weight for layer in self.projection if layer.file in self._body_files}
        head |= {layer.bias for layer in self.projection if layer.bias and layer.weight in head}
        if self.duplicate is not None:
            head.add(self.duplicate.weight)
        names = (name for name in self.tensors if name not in head)
        bare = {name.removeprefix(prefix): name for name in names}
        return {
            name: stored
            for name, stored in bare.items()
            if not name.startswith(UNUSED) and not name.endswith("position_ids")
        }

    @property
    def _body_files(self) -> frozenset[str]:
        return frozenset(tensor.file for tensor in self.tensors.values())

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Every weight file that is read, relative to the folder."""
        return tuple(sorted({*self._body_files, *(layer.file for layer in self.projection)}))

    @property
    def weight_bytes(self) -> int:
        """Bytes of those files on disk."""
        return sum((self.folder / file).stat().st_size for file in self.weight_files)


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Description):
    """A description with its vocabulary; its `recipe` is the one that is used.

    Attributes:
        vocabulary: The tokenizer, and its special tokens.
    """

    vocabulary: Vocabulary

    def fingerprint(self, digests: Mapping[str, str] | None = None) -> str:
        """Identify weights and recipe, wherever the folder lies.

        Token vectors made under equal fingerprints may be mixed.

        Args:
            digests: SHA-256 of the weight files that were loaded; None reads them as they are now.
        """
        rules = repr(sorted(asdict(self.recipe).items(), key=lambda item: item[0]))
        weights = weights_digest(digests or stored_digests(self.files, self.weight_files))
        return hashlib.sha256(f"{weights}\n{rules}\n{self.projection}".encode()).hexdigest()


def open_checkpoint(settings: Settings) -> Checkpoint:
    """Find a checkpoint and read everything but its weights; torch is not needed.

    Raises:
        CheckpointError: the kind of refusal is its subclass; see `colbert_rag.errors`.
    """
    return finish(describe(settings), settings)


def describe(settings: Settings) -> Description:
    """Read what a checkpoint's files say, its tokenizer excepted.

    Raises:
        CheckpointError: as `open_checkpoint`.
    """
    with border(settings.checkpoint):
        return _described(Folder(locate(settings), decided(settings)), settings)


def _described(folder: Folder, settings: Settings) -> Description:
    modules = read_modules(folder)
    body, tensors = _read_body(folder, modules, allow_pickle=settings.allow_pickle)
    layout = Layout(
        folder=folder,
        body=body,
        tensors=tensors,
        modules=modules,
        allow_pickle=settings.allow_pickle,
    )
    raw = settings.raw_token_embeddings or settings.checkpoint == OFFLINE_CHECKPOINT
    form = find_format(layout, raw=raw)
    projection = form.projection(layout)
    duplicate = form.duplicate(layout, projection)
    config = folder.read(join(body, "config.json"))
    backbone = find_backbone(config.values, tensors)
    shape = encoder_shape(
        config.values,
        backbone,
        language=settings.language,
        tensors=len(tensors),
        name=settings.checkpoint,
    )
    longest = NO_LIMIT if shape is None else shape.longest or NO_LIMIT
    recipe = overridden(form.recipe(layout), settings, longest)
    description = Description(
        name=settings.checkpoint,
        files=folder,
        form=form,
        body=body,
        model_type=config.get("model_type", str) or "",
        hidden_size=shape.width if shape is not None else config.length("hidden_size", 0),
        backbone=backbone,
        shape=shape,
        tensors=tensors,
        projection=projection,
        duplicate=duplicate,
        recipe=with_chosen(recipe, settings),  # for those who stop here; `finish` does it again
    )
    if shape is not None:
        check_chain(projection, shape.width)
    return description


def finish(description: Description, settings: Settings) -> Checkpoint:
    """Load the vocabulary, and find the markers that are used with its help.

    The order is: what the files say, what the format makes of it, what the caller says.

    Args:
        description: What `describe` found.
        settings: As given to `describe`.

    Raises:
        TokenizerError: there is no tokenizer, or it is damaged.
    """
    with border(description.name):
        vocabulary = load_vocabulary(description.files, description.body)
        recipe = description.form.markers(description.recipe, vocabulary, description.backbone)
        known = {**vars(description), "recipe": with_chosen(recipe, settings)}
        return Checkpoint(**known, vocabulary=vocabulary)


def _read_body(
    folder: Folder, modules: tuple[tuple[str, str], ...], *, allow_pickle: bool
) -> tuple[str, Tensors]:
    """The backbone's sub-folder and tensors: what `modules.json` says, or a whole model at the top.

    answerai-colbert-small-v1 has both: weights with an inline head at the top, and the same model
    once more as `0_Transformer/` and `1_Dense/`. The inline head decides.
    """
    named = next((sub for name, sub in modules if name == "Transformer"), "")
    at_top = folder.has("config.json") and any(
        folder.has(f"model.safetensors{ending}") for ending in ("", ".index.json")
    )
    if named and at_top:
        tensors = index_tensors(folder, "", allow_pickle=allow_pickle)
        if find_head(tensors) is not None:
            return "", tensors
    if not folder.has(join(named, "config.json")):
        found = sorted(file.name for file in folder.path.iterdir())[:8]
        raise NotACheckpointError(
            f"{folder.path / named} has no config.json, so it is not a model. Found: "
            f"{', '.join(found) or 'an empty folder'}"
        )
    return named, index_tensors(folder, named, allow_pickle=allow_pickle)
