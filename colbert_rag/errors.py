"""Every error this package raises on purpose, as one tree.

* ColBERTRagError
  * CheckpointError (ValueError)             a folder or hub id we cannot open as a ColBERT model
    + NotACheckpointError                    nothing there that looks like a model
    + HubUnreachableError (ConnectionError)  the download failed; says how to go offline
    + MetadataError                          a file of the checkpoint says something impossible
    + MissingProjectionError                 no trained projection, and none is ever invented
    + ProjectionError                        the projection does not fit the backbone or itself
    + TensorMismatchError                    tensors missing from or left over in the weights
    + CorruptWeightsError                    the weight file is truncated or not what it claims
    + PickleWeightsError                     weights only as a pickle, which could run code
    + UnsupportedBackboneError               an architecture we do not host
    + UnsupportedModuleError                 a module or activation outside the allowlist
    + UnsafePathError                        a path in the checkpoint leads out of it
    + MarkerError                            a marker that is not one entry of the vocabulary
    + TokenizerError                         no tokenizer, or one that does not fit the weights
  * ReadingError (ValueError)                a file that cannot be read as what it should hold
  * EvaluationError (ValueError)             runs, judgements and texts that do not belong together
  * InvalidQueryError (ValueError)           an empty query, or not a string
  * ScoringError (RuntimeError)              no document received a finite score
  * DeviceMemoryError (RuntimeError)         the device is full even for one text at a time
  * IndexMismatchError (ValueError)          an index made by another model or recipe
  * IndexCorruptError (ValueError)           an index file that is damaged or not an index
  * IndexBusyError (RuntimeError)            another process is writing to the index
  * IndexStorageError (OSError)              the disk is full or the file cannot be written
  * InvalidFilterError (ValueError)          a metadata filter that cannot be read
  * ServerError (RuntimeError)               a server did not do what it was asked to
    + ServerUnreachableError (ConnectionError)  nothing answers at its address
    + ServerTimeoutError (TimeoutError)      no answer in time
    + ServerBusyError                        it has more to do than it takes on
    + ServerAccessError (PermissionError)    no key, or a wrong one
    + ServerAnswerError (ValueError)         an answer that no server of ours gives
  * MissingExtraError (ImportError)          an optional package is not installed

Each also inherits from the built-in a caller would expect to catch. Messages say what was found,
what was expected and what to do.
"""

from __future__ import annotations

from functools import partial


def install_command(extra: str) -> str:
    """What to type to get an extra: with a release of this package, and inside a checkout of it."""
    return (
        f"pip install 'colbert-rag-components[{extra}]', or in a checkout: pip install '.[{extra}]'"
    )


class ColBERTRagError(Exception):
    """The root of every error this package raises on purpose."""


class CheckpointError(ColBERTRagError, ValueError):
    """A folder or hub id that cannot be opened as a ColBERT model."""


class NotACheckpointError(CheckpointError):
    """Nothing at the given place looks like a model."""


class HubUnreachableError(CheckpointError, ConnectionError):
    """The model hub could not be reached, and the checkpoint is not cached."""


class MetadataError(CheckpointError):
    """A file of the checkpoint is unreadable or holds a value of the wrong type."""


class MissingProjectionError(CheckpointError):
    """The checkpoint carries no trained projection."""


class ProjectionError(CheckpointError):
    """The projection fits neither the backbone nor itself."""


class TensorMismatchError(CheckpointError):
    """Tensors are missing from the weights, or left over in them."""


class CorruptWeightsError(CheckpointError):
    """The weight file is truncated or not what it claims to be."""


class PickleWeightsError(CheckpointError):
    """The weights exist only as a pickle, which could run code when read."""


class UnsupportedBackboneError(CheckpointError):
    """The architecture is not one this package hosts."""


class UnsupportedModuleError(CheckpointError):
    """A module class or activation outside the allowlist."""


class UnsafePathError(CheckpointError):
    """A path inside the checkpoint leads out of it."""


class MarkerError(CheckpointError):
    """A query or document marker is not a single entry of the vocabulary."""


class TokenizerError(CheckpointError):
    """There is no usable tokenizer, or it does not fit the weights."""


class ReadingError(ColBERTRagError, ValueError):
    """A file cannot be read as documents, or as what a collection is judged by."""


class EvaluationError(ColBERTRagError, ValueError):
    """Runs, judgements and texts do not belong together, or there is nothing to compare."""


class InvalidQueryError(ColBERTRagError, ValueError):
    """The query is empty or not a string."""


class ScoringError(ColBERTRagError, RuntimeError):
    """No document received a finite score."""


class DeviceMemoryError(ColBERTRagError, RuntimeError):
    """The device ran out of memory even for the smallest batch."""


class IndexMismatchError(ColBERTRagError, ValueError):
    """The index was made by another model or recipe than the one opening it."""


class IndexCorruptError(ColBERTRagError, ValueError):
    """The index file is damaged, or not an index at all."""


class IndexBusyError(ColBERTRagError, RuntimeError):
    """Another process holds the index for writing."""


class IndexStorageError(ColBERTRagError, OSError):
    """The index could not be written: disk full, read-only, or no permission."""


class InvalidFilterError(ColBERTRagError, ValueError):
    """A metadata filter is not in the filter language."""


class ServerError(ColBERTRagError, RuntimeError):
    """A server did not do what it was asked to, and says why."""


class ServerUnreachableError(ServerError, ConnectionError):
    """Nothing answers at the address, or the connection broke."""


class ServerTimeoutError(ServerError, TimeoutError):
    """There was no answer in time."""


class ServerBusyError(ServerError):
    """The server has more to do than it takes on, or is about to stop."""


class ServerAccessError(ServerError, PermissionError):
    """The server wants a key, and was given none or a wrong one."""


class ServerAnswerError(ServerError, ValueError):
    """What answers is no server of ours, or one of another version."""


class MissingExtraError(ColBERTRagError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, *, extra: str) -> None:
        """Say which package is missing and which extra brings it."""
        self.package = package
        self.extra = extra
        super().__init__(
            f"{package} is not installed, and colbert_rag needs it here. Install it with: "
            + install_command(extra)
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by arguments: BaseException would replay the message as `package`."""
        return (partial(MissingExtraError, extra=self.extra), (self.package,))
