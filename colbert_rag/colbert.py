"""`ColBERT`: the class users meet. Texts in, token vectors, scores and rankings out."""

from __future__ import annotations

import logging
import math
import os
import threading
import uuid
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch

from colbert_rag.cache import CacheInfo, DocumentCache
from colbert_rag.checkpoint import Checkpoint, open_checkpoint
from colbert_rag.device import DTYPES, resolve_device, resolve_dtype
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.encoder import Encoder
from colbert_rag.errors import InvalidQueryError, ScoringError
from colbert_rag.explanation import Explainer, Explanation
from colbert_rag.hosting import host
from colbert_rag.ranking import Ranking
from colbert_rag.registry import Registry
from colbert_rag.scoring import Known, Scored, Scorer
from colbert_rag.settings import DOCUMENT_CACHE_BYTES, Settings, whole_number
from colbert_rag.text_encoder import TextEncoder
from colbert_rag.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

KEPT_PLACES = 10
"""Places at the top of a ranking whose vectors it keeps, so as to explain them."""


class ColBERT:
    """A late-interaction model: one vector per token, scored by MaxSim.

    One instance may be used from any number of threads. Copying or unpickling it in the same
    process gives the same instance; unpickled elsewhere, it opens its checkpoint again.

    Attributes:
        settings: What was asked for, with device and dtype resolved.
    """

    def __init__(self, settings: Settings) -> None:
        """Describe a model without loading it; `from_pretrained` is the usual way.

        Args:
            settings: As `resolved` gives them.

        Raises:
            TypeError: the settings are something else, such as the name of a checkpoint.
        """
        if not isinstance(settings, Settings):
            raise TypeError(
                f"settings is {settings!r}, expected Settings. To open a checkpoint: "
                "ColBERT.from_pretrained(...)"
            )
        self.settings = settings
        self._lock = threading.RLock()
        self._checkpoint: Checkpoint | None = None
        self._text_encoder: TextEncoder | None = None
        self._fingerprint: str | None = None
        limit = settings.document_cache
        self._cache = DocumentCache(limit) if limit else None
        self._identity = uuid.uuid4().hex
        _LIVE[self._identity] = self

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        device: str | None = None,
        dtype: str = "auto",
        query_marker: str | None = None,
        document_marker: str | None = None,
        query_length: int | None = None,
        document_length: int | None = None,
        query_expansion: bool | None = None,
        attend_to_expansion: bool | None = None,
        skiplist: Sequence[str] | None = None,
        language: str | None = None,
        raw_token_embeddings: bool = False,
        allow_pickle: bool = False,
        batch_tokens: int | None = None,
        document_cache: int | None = DOCUMENT_CACHE_BYTES,
        long_documents: str = "truncate",
    ) -> ColBERT:
        """Open a published checkpoint and load it; options left at None follow the checkpoint.

        Use `shared_colbert` instead to get the process's one instance of a configuration.

        Args:
            checkpoint: A hub id, a local folder, or "offline-minilm".
            revision: Branch, tag or commit of the hub repository.
            cache_folder: Where downloads are kept; None is the hub's own cache.
            token: Access token of the hub; None uses the one you logged in with.
            local_files_only: Never use the network.
            device: Such as "cpu", "cuda:1" or "mps"; None takes CUDA, else MPS, else the CPU.
            dtype: "auto" is the fastest type the device computes natively (bfloat16 or float32);
                "float32" is exact.
            query_marker: Vocabulary entry inserted into queries; "" for none.
            document_marker: Vocabulary entry inserted into documents; "" for none.
            query_length: Tokens of a query at most, specials and marker included.
            document_length: Tokens of a document at most, specials and marker included.
            query_expansion: Whether queries are filled up with the mask token.
            attend_to_expansion: Whether the encoder sees those tokens.
            skiplist: Words of documents that do not count in a score.
            language: Language adapter of an XMOD backbone, such as "en_XX".
            raw_token_embeddings: Use a plain encoder's own token vectors, without a projection.
            allow_pickle: Read `pytorch_model.bin`, as plain tensors only.
            batch_tokens: Tokens per forward pass; bounds memory.
            document_cache: Bytes of document vectors kept for later calls; None or 0 for none.
            long_documents: What `score` and `rank` do with a document longer than the document
                length: "truncate" it, or score it by its best overlapping piece ("windows").

        Raises:
            CheckpointError: the checkpoint cannot be opened; its subclass says why.
            TypeError: an option has the wrong type.
            ValueError: an option is out of range, or the device is not there.
        """
        settings = Settings.normalised(
            checkpoint,
            revision=revision,
            cache_folder=cache_folder,
            token=token,
            local_files_only=local_files_only,
            device=device,
            dtype=dtype,
            query_marker=query_marker,
            document_marker=document_marker,
            query_length=query_length,
            document_length=document_length,
            query_expansion=query_expansion,
            attend_to_expansion=attend_to_expansion,
            skiplist=skiplist,
            language=language,
            raw_token_embeddings=raw_token_embeddings,
            allow_pickle=allow_pickle,
            batch_tokens=batch_tokens,
            document_cache=document_cache,
            long_documents=long_documents,
        )
        model = cls(resolved(settings))
        model.load()
        return model

    @property
    def checkpoint(self) -> Checkpoint:
        """What the checkpoint's files say."""
        with self._lock:
            if self._checkpoint is None:
                self._checkpoint = open_checkpoint(self.settings)
            return self._checkpoint

    @property
    def tokenizer(self) -> TextTokenizer:
        """Text to ids and masks, by the checkpoint's recipe; loads the model if need be."""
        return self._load().tokenizer

    @property
    def dim(self) -> int:
        """Width of a token vector."""
        return self.checkpoint.dim

    @property
    def device(self) -> str:
        """Where the model runs."""
        return str(self.settings.device)

    @property
    def dtype(self) -> torch.dtype:
        """Float type of weights and vectors."""
        return DTYPES[self.settings.dtype]

    @property
    def fingerprint(self) -> str:
        """Identifies weights and recipe: vectors made under equal fingerprints may be mixed."""
        with self._lock:
            if self._fingerprint is None:
                self._fingerprint = self.checkpoint.fingerprint()
            return self._fingerprint

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._text_encoder is not None

    def load(self) -> None:
        """Load the weights now instead of at the first call."""
        self._load()

    def unload(self) -> None:
        """Give the memory of weights and cached vectors back; the next call loads again."""
        with self._lock:
            self._text_encoder = None
            if self._cache is not None:
                self._cache.clear()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def encode_queries(
        self, texts: Sequence[str], *, show_progress: bool = False
    ) -> TokenEmbeddings:
        """Token vectors of queries.

        Args:
            texts: The queries; a list, also for one.
            show_progress: Draw a progress bar on standard error.

        Returns:
            Unit-length vectors on the model's device, in its dtype, expansion rows included.

        Raises:
            InvalidQueryError: a query is empty or blank.
            TypeError: not a list of strings.
        """
        texts = _listed(texts)
        for text in texts:
            _check_query(text)
        return self._load().queries(texts, show_progress=show_progress)

    def encode_documents(
        self, texts: Sequence[str], *, show_progress: bool = False
    ) -> TokenEmbeddings:
        """Token vectors of documents, each cut to the document length.

        They are not put into the document cache: the caller holds them already, and a whole corpus
        would push everything else out.

        Args:
            texts: The documents; an empty one is legal and keeps its special tokens.
            show_progress: Draw a progress bar on standard error.

        Returns:
            Unit-length vectors on the model's device, in its dtype, without skipped tokens.

        Raises:
            TypeError: not a list of strings.
        """
        return self._load().documents(_listed(texts), show_progress=show_progress)

    def score(self, query: str, texts: Sequence[str], *, known: Known | None = None) -> list[float]:
        """MaxSim of a query with each text, in input order.

        Args:
            query: The query.
            texts: The documents.
            known: As in `rank`.

        Returns:
            For each text, the sum over the query's rows of the best similarity each finds; with
            `long_documents="windows"`, that of its best window.

        Raises:
            InvalidQueryError: the query is empty, blank or not a string.
            TypeError: not a list of strings.
        """
        scored = self._score(query, _listed(texts), known, show_progress=False)
        return [] if scored is None else scored.scores

    def rank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        top_k: int | None = None,
        known: Known | None = None,
        show_progress: bool = False,
    ) -> Ranking:
        """Texts in the order of their MaxSim with a query, best first.

        Args:
            query: The query.
            texts: The documents; equal ones are encoded once and all ranked.
            top_k: Places to return; None for all.
            known: Finds vectors that this model made earlier, such as the `embeddings_for` of an
                index; asked for texts that are not in the document cache.
            show_progress: Draw a progress bar on standard error.

        Raises:
            InvalidQueryError: the query is empty, blank or not a string.
            ScoringError: not one text received a score that is a number.
            TypeError: not a list of strings.
            ValueError: `top_k` is negative.
        """
        if top_k is not None:
            top_k = whole_number("top_k", top_k, least=0)
        texts = _listed(texts)
        scored = self._score(query, texts, known, show_progress=show_progress)
        if scored is None:
            return Ranking([], query=query, texts=texts, query_rows=0)
        lost = sum(math.isnan(score) for score in scored.scores)
        if lost == len(texts):
            raise ScoringError(
                f"none of the {lost} texts has a score that is a number: the model's weights, or "
                f"its arithmetic in {self.settings.dtype}, give NaN. Try dtype='float32'"
            )
        if lost:
            logger.warning("%d of %d texts have no score and are ranked last", lost, len(texts))
        ranking = Ranking.from_scores(
            scored.scores,
            query=query,
            texts=texts,
            query_rows=len(scored.query),
            spans=scored.spans,
            top_k=top_k,
        )
        best = [place.index for place in ranking[:KEPT_PLACES]]
        vectors = scored.documents[[scored.winners[index] for index in best]]
        kept = dict(zip(best, vectors, strict=True))
        return ranking.explained_by(Explainer(self, query, scored.query, kept))

    def explain(self, query: str, text: str) -> Explanation:
        """Which token of a document each token of a query matched, and what that adds up to.

        For the places of a ranking, `Ranking.explain` re-uses the vectors that ranked them.

        Args:
            query: The query.
            text: The document.

        Raises:
            InvalidQueryError: the query is empty, blank or not a string.
            TypeError: the document is not a string.
        """
        _check_query(query)
        if not isinstance(text, str):
            raise TypeError(f"text is {type(text).__name__}, expected a string")
        scored = self._scorer().score(query, [text])
        vectors = scored.query, scored.documents[scored.winners[0]]
        return Explanation.of(
            query, text, vectors=vectors, tokenizer=self.tokenizer, window=scored.spans[0]
        )

    def cache_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> None:
        """Encode texts into the document cache ahead of the first query.

        Raises:
            TypeError: not a list of strings.
            ValueError: the model has no document cache.
        """
        texts = _listed(texts)
        if self._cache is None:
            raise ValueError("this model was opened with document_cache=None, so nothing is kept")
        self._scorer().cache_documents(texts, show_progress=show_progress)

    def cache_info(self) -> CacheInfo:
        """Hits, misses and size of the document cache."""
        return CacheInfo(0, 0, 0, 0, 0) if self._cache is None else self._cache.info()

    def _load(self) -> TextEncoder:
        text_encoder = self._text_encoder
        if text_encoder is not None:
            return text_encoder
        with self._lock:
            if self._text_encoder is None:
                self._text_encoder = self._load_now()
            return self._text_encoder

    def _load_now(self) -> TextEncoder:
        checkpoint, settings = self.checkpoint, self.settings
        model, projection = host(
            checkpoint, device=self.device, dtype=self.dtype, language=settings.language
        )
        table = cast(torch.nn.Embedding, model.get_input_embeddings())
        encoder = Encoder(
            model,
            projection,
            backbone=checkpoint.backbone,
            dim=checkpoint.dim,
            batch_tokens=settings.batch_tokens,
        )
        return TextEncoder(TextTokenizer.of(checkpoint, rows=table.num_embeddings), encoder)

    def _score(
        self, query: str, texts: list[str], known: Known | None, *, show_progress: bool
    ) -> Scored | None:
        """Score one query; None where there is nothing to score, and nothing needs loading."""
        _check_query(query)
        if not texts:
            return None
        return self._scorer().score(query, texts, known=known, show_progress=show_progress)

    def _scorer(self) -> Scorer:
        windows = self.settings.long_documents == "windows"
        return Scorer(self._load(), self._cache, windows=windows)

    def __copy__(self) -> ColBERT:
        """The same instance: weights are shared, never doubled."""
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> ColBERT:
        """The same instance: pydantic and both frameworks copy components deeply."""
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by description, without weights and without the access token."""
        return (_restore, (replace(self.settings, token=None), self._identity))

    def __repr__(self) -> str:
        """Name, place and state."""
        state = "loaded" if self.loaded else "not loaded"
        return (
            f"ColBERT({self.settings.checkpoint!r}, device={self.device!r}, "
            f"dtype={self.settings.dtype!r}, {state})"
        )


_LIVE: weakref.WeakValueDictionary[str, ColBERT] = weakref.WeakValueDictionary()
SHARED: Registry[Settings, ColBERT] = Registry()
"""The process's instances, by resolved settings; `shared.py` is the way in."""


def resolved(settings: Settings) -> Settings:
    """The same settings with device and dtype decided, so that equal choices are equal values.

    Raises:
        ValueError: the device is not there.
    """
    device = resolve_device(settings.device)
    return settings.with_device(device, resolve_dtype(settings.dtype, device))


def shared(settings: Settings) -> ColBERT:
    """The one instance for resolved settings, loaded by whoever asks first."""

    def build() -> ColBERT:
        model = ColBERT(settings)
        model.load()
        return model

    return SHARED.get(settings, build)


def _restore(settings: Settings, identity: str) -> ColBERT:
    """Unpickle: the very instance where it still lives, else the shared one."""
    return _LIVE.get(identity) or shared(settings)


def _check_query(query: object) -> None:
    if not isinstance(query, str):
        raise InvalidQueryError(f"query is {type(query).__name__}, expected a string")
    if not query.strip():
        raise InvalidQueryError("query is empty or blank, expected some text to search for")


def _listed(texts: object) -> list[str]:
    """The caller's texts as a list of our own, which stays as it is when his changes."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        raise TypeError(f"texts is {type(texts).__name__}, expected a list of strings")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}] is {type(text).__name__}, expected a string")
    return list(texts)
