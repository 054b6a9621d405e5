"""Names and shapes of the tensors in a checkpoint, read from file headers alone."""

from __future__ import annotations

from colbert_rag.checkpoint.files import Folder, join
from colbert_rag.checkpoint.header import read_header
from colbert_rag.checkpoint.tensors import TensorInfo, Tensors
from colbert_rag.errors import CorruptWeightsError, NotACheckpointError, PickleWeightsError

BODY_PREFIXES = (
    "bert.",
    "roberta.",
    "model.",
    "distilbert.",
    "electra.",
    "deberta.",
    "xlm_roberta.",
)
"""How `save_pretrained` of a model with a head names the tensors of its backbone."""

HEAD_NAMES = ("linear.weight", "colbert_linear.weight")
"""The inline projection: outside the body prefix in every published checkpoint."""

SEPARATE_HEADS = ("colbert_linear.safetensors", "colbert_linear.pt")
"""The projection in a file of its own: as a user has converted it, and as FlagEmbedding saves it.
The `sparse_linear.pt` beside it weighs words for another kind of search, and is never read."""

MAX_SHARDS = 100

UNUSED = ("pooler.", "cls.", "lm_head.")
"""Tensors that published checkpoints carry and late interaction never uses."""


def index_tensors(folder: Folder, sub: str, *, allow_pickle: bool) -> Tensors:
    """Every tensor of the weights in a sub-folder, by name as stored.

    Args:
        folder: The checkpoint.
        sub: The sub-folder that holds the weights, "" for the checkpoint itself.
        allow_pickle: Accept `pytorch_model.bin`, which is loaded whole to see what it holds.

    Raises:
        NotACheckpointError: there are no weights.
        PickleWeightsError: there is only a pickle, and `allow_pickle` is false.
        CorruptWeightsError: a file or the shard index is damaged.
    """
    single, index = join(sub, "model.safetensors"), join(sub, "model.safetensors.index.json")
    if folder.has(single):
        return _header(folder, single)
    if folder.has(index):
        return _read_shards(folder, sub, index)
    pickles = sorted(
        file.name for file in (folder.path / sub).glob("*.bin") if file.name.startswith("pytorch")
    )
    if pickles and not allow_pickle:
        raise PickleWeightsError(
            f"{folder.path / sub} holds its weights only as a pickle ({', '.join(pickles)}), which "
            "could run code when read. Convert it once with "
            "safetensors.torch.save_file(torch.load('pytorch_model.bin', weights_only=True), "
            "'model.safetensors'), or pass allow_pickle=True to read it with weights_only=True"
        )
    if pickles:
        return {
            name: tensor
            for file in pickles
            for name, tensor in _unpickled(folder, join(sub, file)).items()
        }
    raise NotACheckpointError(
        f"{folder.path / sub} has no model weights: looked for model.safetensors and "
        "model.safetensors.index.json. Is the download complete?"
    )


def _read_shards(folder: Folder, sub: str, index: str) -> Tensors:
    places = folder.read(index).section("weight_map").values
    if not places:
        raise CorruptWeightsError(f"{index} has no weight_map")
    # With the sub-folder in front, or a link inside it would lead out unseen.
    shards = {folder.inside(join(sub, str(shard)), named_in=index) for shard in places.values()}
    if len(shards) > MAX_SHARDS:
        raise CorruptWeightsError(
            f"{index} names {len(shards):,} shards, expected {MAX_SHARDS} at most"
        )
    tensors: Tensors = {}
    for shard in sorted(shards):
        if not folder.has(shard):
            raise CorruptWeightsError(
                f"{index} names the shard {shard}, which is not there. Is the download complete?"
            )
        tensors |= _header(folder, shard)
    lost = sorted(set(places) - set(tensors))
    if lost:
        shown = ", ".join(lost[:5])
        raise CorruptWeightsError(f"{index} promises tensors that no shard holds: {shown}")
    return tensors


def index_separate_head(folder: Folder, sub: str, *, allow_pickle: bool) -> tuple[str, Tensors]:
    """FlagEmbedding's head, in a file of its own beside the backbone: that file and its tensors.

    Args:
        folder: The checkpoint.
        sub: The sub-folder of the backbone.
        allow_pickle: Accept the published file, which is a pickle.

    Raises:
        PickleWeightsError: there is only the pickle, and `allow_pickle` is false.
        CorruptWeightsError: the file is damaged.
    """
    converted, published = (join(sub, name) for name in SEPARATE_HEADS)
    if folder.has(converted):
        return converted, _header(folder, converted)
    if not allow_pickle:
        raise PickleWeightsError(
            f"{folder.path} keeps its projection as the pickle {published}, which could run code "
            "when read. Convert it once with "
            "safetensors.torch.save_file(torch.load('colbert_linear.pt', weights_only=True), "
            "'colbert_linear.safetensors'), or pass allow_pickle=True to read it with "
            "weights_only=True"
        )
    return published, _unpickled(folder, published)


def _unpickled(folder: Folder, file: str) -> Tensors:
    # Imported here because reading a pickle needs torch, which nothing else here does.
    from colbert_rag.checkpoint.pickles import index_pickle

    return index_pickle(folder, file)


def _header(folder: Folder, file: str) -> Tensors:
    with folder.open(file) as stream:
        tensors, _ = read_header(stream, file)
    return tensors


def body_prefix(names: list[str]) -> str:
    """The prefix that at least nine tenths of the backbone's tensors share, or "".

    The head lies outside it, and so may a pooler, hence not all.
    """
    body = [name for name in names if name not in HEAD_NAMES]
    for prefix in BODY_PREFIXES:
        if body and sum(name.startswith(prefix) for name in body) >= 0.9 * len(body):
            return prefix
    return ""


def find_head(tensors: Tensors) -> TensorInfo | None:
    """The inline projection among the tensors, wherever the prefix put it.

    Matched exactly: by suffix alone, every `...linear.weight` of a backbone would do.
    """
    prefix = body_prefix(list(tensors))
    for name in HEAD_NAMES:
        for stored in (name, prefix + name):
            if stored in tensors and len(tensors[stored].shape) == 2:
                return tensors[stored]
    return None
