"""`Checkpoint`: everything a published folder says, as values, before any weight is read."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from colbert_rag.backbones import Backbone, find_backbone
from colbert_rag.checkpoint.files import Folder, Json, join
from colbert_rag.checkpoint.formats import FORMATS, NO_LIMIT, Layout, raw_recipe, read_modules
from colbert_rag.checkpoint.overrides import decided, overridden
from colbert_rag.checkpoint.projection import check_chain
from colbert_rag.checkpoint.recipe import Projection, Recipe
from colbert_rag.checkpoint.source import locate, weights_digest
from colbert_rag.checkpoint.weights import (
    HEAD_NAMES,
    UNUSED,
    Tensors,
    body_prefix,
    find_head,
    index_tensors,
)
from colbert_rag.errors import (
    MetadataError,
    MissingProjectionError,
    NotACheckpointError,
    PickleWeightsError,
    ProjectionError,
)
from colbert_rag.settings import OFFLINE_CHECKPOINT, Settings

RAW = "raw token embeddings"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A published ColBERT model, described by its own files.

    Attributes:
        name: The hub id or folder it was opened by.
        folder: The local folder.
        format: The on-disk format, or "raw token embeddings".
        body: Sub-folder of backbone and tokenizer, "" for the folder itself.
        config: The backbone's `config.json`, without references to remote code.
        backbone: Our row for the architecture; `backbone.refused` says why where it is not hosted.
        tensors: Stored tensors beside the backbone, by stored name.
        projection: The layers from hidden states to token vectors; empty for raw token embeddings.
        duplicate: A second description of the projection, to be compared with the first.
        recipe: How text becomes tokens.
    """

    name: str
    folder: Path
    format: str
    body: str
    config: Json
    backbone: Backbone
    tensors: Tensors
    projection: tuple[Projection, ...]
    duplicate: Projection | None
    recipe: Recipe

    @property
    def model_type(self) -> str:
        """What `config.json` calls the architecture."""
        return str(self.config.get("model_type", ""))

    @property
    def hidden_size(self) -> int:
        """Width of the backbone's hidden states."""
        size = self.config.get("hidden_size", self.config.get("dim"))  # DistilBERT calls it dim
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise MetadataError(
                f"config.json: hidden_size is {size!r}, expected a positive whole number"
            )
        return size

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

    def fingerprint(self) -> str:
        """Identify weights and recipe, wherever the folder lies; reads the weight files once.

        Token vectors made under equal fingerprints may be mixed.
        """
        rules = repr(sorted(asdict(self.recipe).items(), key=lambda item: item[0]))
        weights = weights_digest(self.folder, self.weight_files)
        return hashlib.sha256(f"{weights}\n{rules}\n{self.projection}".encode()).hexdigest()


def open_checkpoint(settings: Settings) -> Checkpoint:
    """Find a checkpoint and read everything but its weights; torch is not needed.

    Raises:
        CheckpointError: the kind of refusal is its subclass; see `colbert_rag.errors`.
    """
    path = locate(settings)
    folder = Folder(path, decided(settings))
    modules = read_modules(folder)
    body = _body(folder, modules, allow_pickle=settings.allow_pickle)
    if not folder.has(join(body, "config.json")):
        raise NotACheckpointError(
            f"{path / body} has no config.json, so it is not a model. Found: "
            f"{sorted(file.name for file in path.iterdir())[:8] or 'an empty folder'}"
        )
    tensors = _tensors(folder, body, allow_pickle=settings.allow_pickle)
    layout = Layout(folder, body, tensors, modules, settings.allow_pickle)
    raw = settings.raw_token_embeddings or settings.checkpoint == OFFLINE_CHECKPOINT
    name, projection, duplicate, recipe = _read(layout, raw=raw)
    config = dict(folder.read(join(body, "config.json")).values)
    remote = config.pop("auto_map", None) is not None
    backbone = find_backbone(str(config.get("model_type", "")), tensors, remote_code=remote)
    checkpoint = Checkpoint(
        settings.checkpoint,
        path,
        name,
        body,
        config,
        backbone,
        tensors,
        projection,
        duplicate,
        overridden(recipe, settings, backbone.positions(config) or NO_LIMIT),
    )
    check_chain(projection, checkpoint.hidden_size)
    return checkpoint


def _body(folder: Folder, modules: tuple[tuple[str, str], ...], *, allow_pickle: bool) -> str:
    """The sub-folder of the backbone: what `modules.json` says, unless the top has a whole model.

    answerai-colbert-small-v1 has both: weights with an inline head at the top, and the same model
    once more as `0_Transformer/` and `1_Dense/`. The inline head decides.
    """
    named = next((sub for name, sub in modules if name == "Transformer"), "")
    at_top = folder.has("config.json") and any(
        folder.has(f"model.safetensors{ending}") for ending in ("", ".index.json")
    )
    if named and at_top and find_head(index_tensors(folder, "", allow_pickle=allow_pickle)):
        return ""
    return named


def _tensors(folder: Folder, body: str, *, allow_pickle: bool) -> Tensors:
    tensors = index_tensors(folder, body, allow_pickle=allow_pickle)
    if not tensors:
        # Imported here because reading a pickle needs torch, which nothing else here does.
        from colbert_rag.checkpoint.pickles import index_pickle

        tensors = index_pickle(folder, body)
    return tensors


def _read(
    layout: Layout, *, raw: bool
) -> tuple[str, tuple[Projection, ...], Projection | None, Recipe]:
    """The format's name, projection, second description of it, and recipe."""
    form = next((form for form in FORMATS if form.matches(layout)), None)
    where = layout.folder.path
    if raw and form is not None:
        raise MissingProjectionError(
            f"{where} is a {form.name} checkpoint with a trained projection, and "
            "raw_token_embeddings=True would ignore it. Open it without that option"
        )
    if raw:
        return RAW, (), None, raw_recipe(layout)
    if form is None:
        if layout.folder.has(join(layout.body, "colbert_linear.pt")):
            raise PickleWeightsError(
                f"{where} keeps its projection as the pickle colbert_linear.pt (BGE-M3), which is "
                "not read. Save it as linear.weight beside the backbone in model.safetensors"
            )
        raise MissingProjectionError(
            f"no late-interaction projection found in {where}: looked for "
            f"{' or '.join(HEAD_NAMES)} in the weights and for Dense layers in modules.json; "
            f"tensors seen: {sorted(layout.tensors)[:4]}. An untrained projection would rank at "
            "random, so none is made up. To use the encoder's own token vectors, pass "
            "raw_token_embeddings=True"
        )
    projection = form.projection(layout)
    duplicate = None
    if form.name == "stanford" and layout.dense:
        duplicate = _same_shape(projection[0], layout.dense_layers())
    elif form.name != "stanford" and (head := find_head(layout.tensors)) is not None:
        duplicate = Projection(head.shape[1], head.shape[0], head.name, head.file)
    return form.name, projection, duplicate, form.recipe(layout)


def _same_shape(inline: Projection, layers: tuple[Projection, ...]) -> Projection:
    """The one Dense layer that says what the inline projection says; its values are compared later.

    Raises:
        ProjectionError: the Dense layers compute something else.
    """
    first = layers[0]
    plain = first.activation == "Identity" and first.residual == "none"
    if len(layers) > 1 or not plain or (first.bias is None) != (inline.bias is None):
        raise ProjectionError(
            f"the checkpoint carries two projections that differ: {inline.weight} beside the "
            f"backbone, and {len(layers)} Dense layer(s) from {first.file} on with activation "
            f"{first.activation}. Remove the one that was not trained with this backbone"
        )
    return first
