"""Downloads a checkpoint from the model hub: only the files that are read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from textwrap import shorten

from huggingface_hub import HfApi, snapshot_download

# HTTPError is that of httpx or httpx2, whichever the installed hub client speaks through.
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from colbert_rag.checkpoint.weights import SEPARATE_HEADS
from colbert_rag.errors import (
    HubUnreachableError,
    NotACheckpointError,
    PickleWeightsError,
    install_command,
)
from colbert_rag.settings import OFFLINE_CHECKPOINT, Settings

WEIGHTS = re.compile(r"(.*/)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
PICKLES = re.compile(r"(.*/)?pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?")
TEXTS = re.compile(r"(.*/)?([^/]+\.json|artifact\.metadata|vocab\.txt)")
OTHER_RUNTIMES = re.compile(r"(.*/)?(onnx|openvino|coreml|tf|flax|gguf|training)[^/]*/.*")


def download(settings: Settings) -> Path:
    """The folder of a hub repository's snapshot, from the cache or fetched now.

    Raises:
        NotACheckpointError: there is no such repository, or nothing in it that we read.
        HubUnreachableError: the hub cannot be reached and the checkpoint is not cached.
        PickleWeightsError: the repository has its weights only as a pickle.
    """
    name, cache, token = settings.checkpoint, settings.cache_folder, settings.token
    try:
        if settings.local_files_only:
            return _cached(settings)
        try:
            info = HfApi(token=token).model_info(name, revision=settings.revision)
        except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError):
            raise
        except (OSError, HTTPError) as no_connection:
            # What an earlier run downloaded still works.
            try:
                return _cached(settings)
            except (EntryNotFoundError, OSError):
                raise no_connection from None  # and not that nothing is kept: that follows from it
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
            f"spelling, or pass token={_form(name)}"
        ) from error
    except (HFValidationError, EntryNotFoundError, OSError, HTTPError) as error:
        kept = cache or "the default hub cache"
        raise HubUnreachableError(
            f"{name!r} is not a folder here, is not in {kept}, and could not be downloaded "
            f"({type(error).__name__}: {_first_line(error)}). Without a connection, give the path "
            f"of a local folder instead, or use checkpoint={OFFLINE_CHECKPOINT!r} after "
            f"{install_command('offline')}{_form(name)}"
        ) from error


def _form(name: str) -> str:
    return "" if "/" in name else ". A checkpoint of the hub is named owner/name"


def _cached(settings: Settings) -> Path:
    return Path(
        snapshot_download(
            settings.checkpoint,
            revision=settings.revision,
            cache_dir=settings.cache_folder,
            local_files_only=True,
        )
    )


def needed_files(names: Iterable[str], *, allow_pickle: bool, name: str) -> list[str]:
    """Which files of a repository are downloaded.

    Raises:
        PickleWeightsError: there are weights, or a projection, but only pickled ones, and they are
            not allowed.
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
            f"{', '.join(sorted(names)[:8]) or 'none'}"
        )
    texts = [file for file in names if TEXTS.fullmatch(file)]
    heads = _separate_heads(names, allow_pickle=allow_pickle, name=name)
    return sorted({*texts, *weights, *heads, *(() if body else pickles)})


def _separate_heads(names: list[str], *, allow_pickle: bool, name: str) -> list[str]:
    """FlagEmbedding's projection; a safetensors file of it makes the pickle superfluous."""
    heads = [file for file in names if file.rpartition("/")[2] in SEPARATE_HEADS]
    converted = [file for file in heads if file.endswith(".safetensors")]
    # Known before gigabytes of a backbone are downloaded in vain; what says otherwise how its
    # tokens become vectors does not need the file.
    described = any(file == "artifact.metadata" or "Dense" in file for file in names)
    if heads and not converted and not allow_pickle and not described:
        raise PickleWeightsError(
            f"{name} publishes its projection only as a pickle ({heads[0]}), which could run code "
            "when read. Pass allow_pickle=True to read it with weights_only=True"
        )
    return converted or (heads if allow_pickle else [])


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or ["no details"])[0]
    return shorten(line, 200, placeholder=" ...")
