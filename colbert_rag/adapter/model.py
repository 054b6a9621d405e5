"""The fields that name a model, and the one model behind them.

Frameworks copy, pickle and rebuild components from their public fields. So a component names its
model in plain values, and asks the process for the shared instance on each call.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import fields as fields_of
from typing import Annotated, Any, Literal, Protocol, Self, TypeGuard, runtime_checkable

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic.json_schema import SkipJsonSchema

from colbert_rag.inputs import is_address
from colbert_rag.model import Model, Ranker
from colbert_rag.registry import Registry
from colbert_rag.remote import RemoteColBERT
from colbert_rag.remote.address import base_of
from colbert_rag.remote.exchange import TIMEOUT
from colbert_rag.settings import DEFAULT_CHECKPOINT, DOCUMENT_CACHE_BYTES, Settings, meant


def path_as_text(value: object) -> object:
    """The text of a path, and anything else as it is."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


PathText = Annotated[str, BeforeValidator(path_as_text)]
"""A path or hub id: text in the field, so that the component can be stored."""


@runtime_checkable
class HasWeights(Protocol):
    """A model whose weights are in this process; one behind a server has none to load."""

    def load(self) -> None:
        """Load the weights."""
        ...

    def unload(self) -> None:
        """Give back their memory."""
        ...


class SharedModel(BaseModel):
    """The public fields that name a model; components that name the same one share it.

    A field left at None follows the checkpoint or the machine.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True,
        extra="forbid",
        protected_namespaces=(),
        use_attribute_docstrings=True,
        validate_assignment=True,
    )

    model: PathText = DEFAULT_CHECKPOINT
    """Hub id or local folder of the checkpoint, or the address of a server, such as
    `"http://127.0.0.1:8000"`, that decides all else about its model."""
    revision: str | None = None
    """Branch, tag or commit of a hub checkpoint."""
    cache_folder: PathText | None = None
    """Where hub downloads are kept."""
    local_files_only: bool = False
    """Never use the network."""
    device: str | None = None
    """Such as `"cpu"` or `"cuda:1"`."""
    dtype: str = "auto"
    """`"auto"`, `"float32"` (exact), `"bfloat16"` or `"float16"`."""
    query_marker: str | None = None
    """Vocabulary entry inserted into queries; `""` for none."""
    document_marker: str | None = None
    """Vocabulary entry inserted into documents; `""` for none."""
    query_length: int | None = None
    """Tokens of a query at most, specials and marker included."""
    document_length: int | None = None
    """Tokens of a document at most, specials and marker included."""
    query_expansion: bool | None = None
    """Whether queries are filled up with the mask token."""
    attend_to_expansion: bool | None = None
    """Whether the encoder sees those tokens."""
    skiplist: tuple[str, ...] | None = None
    """Words of documents that do not count in a score."""
    language: str | None = None
    """Language adapter of a backbone that has several."""
    raw_token_embeddings: bool = False
    """Use a plain encoder's own token vectors, without a projection."""
    allow_pickle: bool = False
    """Read weights that exist only as a pickle, as plain tensors."""
    batch_tokens: int | None = None
    """Tokens encoded at once; bounds memory."""
    document_cache: int | None = DOCUMENT_CACHE_BYTES
    """Bytes of document vectors kept for later calls; None or 0 for none."""
    long_documents: Literal["truncate", "windows"] = "truncate"
    """Score a text that is longer by its beginning, or by the best of overlapping `"windows"`."""
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """Key of the server; None takes that of the environment variable `COLBERT_RAG_API_KEY`. Neither
    pickled nor stored: whoever reads a pickle back has the key from there."""
    timeout: float = Field(default=TIMEOUT, gt=0, allow_inf_nan=False)
    """Seconds that a request to a server may take, with all its tries."""
    colbert: SkipJsonSchema[Ranker | None] = Field(default=None, exclude=True, repr=False)
    """A ready model, instead of a named one."""

    @model_validator(mode="before")
    @classmethod
    def _follow_colbert(cls, data: object) -> object:
        """Name the given model in the public fields, so that what is stored of them opens it again.

        Raises:
            ValueError: a field was chosen that says something else than the given model.
        """
        if not isinstance(data, dict):
            return data
        if isinstance(colbert := data.get("colbert"), RemoteColBERT):
            # Not by its settings: those are a request, and name files that are not here.
            return data | {"model": colbert.address, "timeout": colbert.timeout}
        if not can_encode(colbert):
            return data
        from colbert_rag.device import resolved

        own = _fields(colbert.settings)
        chosen = {name: data[name] for name in own if name in data and _decides(name, data[name])}
        if chosen:  # a model elsewhere may be on a device that is not here
            opened = _fields(resolved(colbert.settings))
            wanted = _fields(resolved(_settings(own | chosen)))
            for name in chosen:
                if wanted[name] != opened[name]:
                    raise ValueError(
                        f"{name} is {wanted[name]!r}, but the given model was opened with "
                        f"{opened[name]!r}: leave one of the two out, or make them equal"
                    )
        return data | own

    # Pydantic runs it behind those of subclasses, which rename old arguments.
    @model_validator(mode="before")
    @classmethod
    def _name_what_was_meant(cls, data: object) -> object:
        """Say of a misspelt field which one it is near; pydantic says only that there is no such.

        Raises:
            ValueError: a field is misspelt.
        """
        if not isinstance(data, dict) or cls.model_config.get("extra") != "forbid":
            return data
        known = {field.alias or name for name, field in cls.model_fields.items()}
        known.update(cls.model_fields)
        for name in data:
            if name not in known and (near := meant(str(name), sorted(known))):
                raise ValueError(f"{name} is no field of {cls.__name__}; did you mean {near}?")
        return data

    @model_validator(mode="after")
    def _refuse_impossible_options(self) -> Self:
        if not is_address(self.model):
            self._settings()
            return self
        for name in OPTIONS:
            if getattr(self, name) != _DEFAULTS[name]:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but model is the address of a server, "
                    "which decides that: leave it out here, and start the server with it"
                )
        base_of(self.model)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field, or raise and leave all of them as they were.

        Pydantic sets it first, and asks the validators of the whole model about what is set.
        """
        fields, chosen = self.__dict__.copy(), self.__pydantic_fields_set__.copy()
        try:
            super().__setattr__(name, value)
        except BaseException:
            object.__setattr__(self, "__dict__", fields)
            object.__setattr__(self, "__pydantic_fields_set__", chosen)
            raise

    @property
    def ranker(self) -> Ranker:
        """The given model, else the process's instance of the named model, loaded if need be.

        Looked up on each call and kept nowhere: frameworks rebuild a component from all its fields,
        and an instance kept in one would outlive a change of `model`.
        """
        if self.colbert is not None:
            return self.colbert
        if is_address(self.model):
            return self._remote()
        from colbert_rag.colbert import shared

        return shared(self._settings())

    def _remote(self) -> RemoteColBERT:
        """The model behind the server that `model` is the address of."""
        return remote_model(self.model, self._key(), self.timeout)

    def _key(self) -> str | None:
        """The key of the server, in plain text."""
        return None if self.api_key is None else self.api_key.get_secret_value()

    def load(self) -> None:
        """Load the weights now instead of at the first query."""
        if isinstance(ranker := self.ranker, HasWeights):
            ranker.load()

    def unload(self) -> None:
        """Give back the memory of the weights, which all components that share them lose.

        The next query loads them again.
        """
        ranker: object = self.colbert
        if ranker is None and not is_address(self.model):
            from colbert_rag.colbert import shared

            # Not `self.ranker`, which would load what is to be unloaded.
            ranker = shared(self._settings(), load=False)
        if isinstance(ranker, HasWeights):
            ranker.unload()

    @property
    def _model(self) -> Model:
        """The same, able to do more than rank.

        Raises:
            TypeError: the given model is not.
        """
        if can_encode(ranker := self.ranker):
            return ranker
        raise TypeError(
            f"colbert is {type(ranker).__name__}, which ranks only; expected a ColBERT, or another "
            "model with what colbert_rag.model.Model lists, such as encode_queries and "
            "encode_documents: an index holds its vectors"
        )

    def _settings(self) -> Settings:
        # A relative path means another folder in another directory.
        directory = os.getcwd()  # noqa: PTH109  # Path.cwd() is slower
        return _remembered_settings(directory, *(self.__dict__[name] for name in FIELDS))


_BESIDE = ("model", "api_key", "timeout", "colbert")
OPTIONS = tuple(name for name in SharedModel.model_fields if name not in _BESIDE)
"""The fields that are called like an option of `ColBERT.from_pretrained`."""

_DEFAULTS = {option.name: option.default for option in fields_of(Settings)}

FIELDS = ("model", *OPTIONS)


MODEL_MEMBERS = ("rank", "encode_queries", "encode_documents", "settings")


def can_encode(ranker: object) -> TypeGuard[Model]:
    """Whether this is a `Model`, told by the members that take no time to look at.

    Not `isinstance(ranker, Model)`: Python 3.11 reads every property for it, and a fingerprint
    reads all weights.
    """
    # Of a class first, since a property of one behind a server is a request.
    return all(hasattr(type(ranker), name) or hasattr(ranker, name) for name in MODEL_MEMBERS)


_REMOTE: Registry[tuple[str, str | None, float], RemoteColBERT] = Registry()


def remote_model(address: str, key: str | None, timeout: float) -> RemoteColBERT:
    """The process's one model at an address: an index that is open knows it by its identity."""
    return _REMOTE.get(
        (address, key, timeout), lambda: RemoteColBERT(address, api_key=key, timeout=timeout)
    )


def _settings(fields: Mapping[str, Any]) -> Settings:
    return Settings.normalised(fields["model"], **{name: fields[name] for name in OPTIONS})


@functools.lru_cache(maxsize=256, typed=True)
def _remembered_settings(directory: str, *values: Any) -> Settings:
    """The settings of one spelling; a query need not look for its folder again."""
    return _settings(dict(zip(FIELDS, values, strict=True)))


def _fields(settings: Settings) -> dict[str, Any]:
    return {"model": settings.checkpoint} | {name: getattr(settings, name) for name in OPTIONS}


def _decides(name: str, value: object) -> bool:
    """Whether a field's value is a choice, and not the freedom to take what is there."""
    return value != "auto" and (value is not None or name == "document_cache")
