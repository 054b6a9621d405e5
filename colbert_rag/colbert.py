"""`ColBERT`: the class users meet. Texts in, token vectors, scores and rankings out."""

from __future__ import annotations

import os
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Never, Unpack

from colbert_rag.device import resolved
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.explanation import Explanation
from colbert_rag.inputs import TextLike, check_query, read_lists, read_text, read_texts
from colbert_rag.instance import Instance
from colbert_rag.many import rank_in_turn
from colbert_rag.ranking import Ranking, Rankings
from colbert_rag.registry import Registry
from colbert_rag.scoring import KnownVectors
from colbert_rag.settings import ModelOptions, Settings, read_top_k, refuse_unknown


class ColBERT(Instance):
    """A late-interaction model: one vector per token, scored by MaxSim.

    One instance may be used from any number of threads. Copying or unpickling it in the same
    process gives the same instance; unpickled elsewhere, it opens its checkpoint again.

    Attributes:
        settings: What was asked for, with device and dtype resolved.
    """

    def __init__(self, settings: Settings) -> None:
        """Describe a model without loading it; `from_pretrained` is the usual way.

        Raises:
            TypeError: the settings are something else, such as the name of a checkpoint.
            ValueError: the device is not there.
        """
        super().__init__(settings)
        self._identity = uuid.uuid4().hex
        _LIVE[self._identity] = self

    @classmethod
    def from_pretrained(
        cls, checkpoint: str | os.PathLike[str], **options: Unpack[ModelOptions]
    ) -> ColBERT:
        """Open a published checkpoint and load it.

        Use `shared_colbert` instead to get the process's one instance of a configuration.

        Args:
            checkpoint: A hub id, a local folder, or "offline-minilm".
            options: The fields of `Settings`, which explains each. Those that are left out follow
                the checkpoint, or the machine.

        Raises:
            CheckpointError: the checkpoint cannot be opened; its subclass says why.
            TypeError: an option is unknown or has the wrong type.
            ValueError: an option is out of range, or the device is not there.
        """
        colbert = cls(Settings.normalised(checkpoint, **options))
        colbert.load()
        return colbert

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
            InvalidQueryError: a query is blank.
            TypeError: not a list of strings.
        """
        queries = read_texts(texts)
        for query in queries:
            check_query(query)
        return self._loaded().text_encoder.queries(queries, show_progress=show_progress)

    def encode_documents(
        self, texts: Sequence[TextLike], *, show_progress: bool = False
    ) -> TokenEmbeddings:
        """Token vectors of documents, each cut to the document length.

        They are not put into the document cache: the caller holds them already, and a whole corpus
        would push everything else out.

        Args:
            texts: As in `rank`; an empty one is legal and keeps its special tokens.
            show_progress: Draw a progress bar on standard error.

        Returns:
            Unit-length vectors on the model's device, in its dtype, without skipped tokens.

        Raises:
            TypeError: not a list of texts.
        """
        documents = read_texts(texts)
        return self._loaded().text_encoder.documents(documents, show_progress=show_progress)

    def score(
        self, query: str, texts: Sequence[TextLike], *, known: KnownVectors | None = None
    ) -> list[float]:
        """MaxSim of a query with each text, in input order.

        Args:
            query: The query.
            texts: As in `rank`.
            known: As in `rank`.

        Returns:
            For each text, the sum over the query's rows of the best similarity each finds; with
            `long_documents="windows"`, that of its best window.

        Raises:
            InvalidQueryError: the query is blank or not a string.
            TypeError: not a list of texts.
        """
        check_query(query, texts)
        documents = read_texts(texts)
        if not documents:
            return []
        return self._loaded().score(query, documents, known=known).scores

    def rank(
        self,
        query: str,
        texts: Sequence[TextLike],
        *,
        top_k: int | None = None,
        known: KnownVectors | None = None,
        show_progress: bool = False,
        **unknown: Never,
    ) -> Ranking:
        """Texts in the order of their MaxSim with a query, best first.

        Args:
            query: The query.
            texts: Strings, mappings with a `text`, or objects with one, such as an index's
                `Document`. Equal texts are encoded once and all ranked.
            top_k: Places to return; None for all.
            known: Finds vectors that this model made earlier, such as the `embeddings_for` of an
                index; asked for texts that are not in the document cache.
            show_progress: Draw a progress bar on standard error.
            unknown: Refused, with the name that was probably meant.

        Raises:
            IndexMismatchError: `known` is the method of an index that another model made.
            InvalidQueryError: the query is blank or not a string.
            ScoringError: not one text received a score that is a number.
            TypeError: not a list of texts.
            ValueError: `top_k` is below 1, and there are texts.
        """
        refuse_unknown("an argument of rank", unknown, known=("top_k", "known", "show_progress"))
        check_query(query, texts)
        documents, items = read_texts(texts), tuple(texts)
        top_k = read_top_k(top_k, texts=len(documents))
        if not documents:
            return Ranking([], query=query, texts=documents, query_rows=0)
        scorer = self._loaded()
        scored = scorer.score(query, documents, known=known, show_progress=show_progress)
        tokenizer = scorer.text_encoder.tokenizer
        return scored.ranking(items, top_k=top_k, tokenizer=tokenizer, explain=self.explain)

    def rank_many(
        self,
        queries: Sequence[str],
        texts: Sequence[TextLike | Sequence[TextLike]],
        *,
        top_k: int | None = None,
        known: KnownVectors | None = None,
        ready: Callable[[int, Ranking], object] | None = None,
        show_progress: bool = False,
        **unknown: Never,
    ) -> list[Ranking]:
        """Rank for many queries as `rank` does for one, but encode each distinct text once.

        That holds whatever is in the document cache. What is new enters it only where there is
        room, so that the texts of other callers stay. Texts that the same queries need come
        together, as many at a time as `many.WAVE_BYTES` says, and only their scores are kept.

        Args:
            queries: The queries; an empty list gives an empty list.
            texts: One list of texts for all queries, each as in `rank`; or a list of such lists,
                one for each query. In which of the two forms they are is told by whether the
                items are lists.
            top_k: Places of each ranking; None for all.
            known: As in `rank`; asked once for each wave of texts.
            ready: Told the place of a query and its ranking as soon as there is one, so that it can
                be written down while others go on; roughly in the order of the queries.
            show_progress: Draw a progress bar on standard error, over the distinct texts.
            unknown: Refused, with the name that was probably meant.

        Returns:
            Rankings in the order of the queries, in a list that prints as a short table of each.
            They hold no vectors, so that explaining a place takes these from the document cache, or
            encodes the text again.

        Raises:
            InvalidQueryError: a query is blank or not a string.
            ScoringError: not one text of a query received a score that is a number.
            TypeError: neither a list of texts nor a list of lists, or a mixture of both.
            ValueError: there are more or fewer lists than queries, or `top_k` is below 1.
        """
        names = ("top_k", "known", "ready", "show_progress")
        refuse_unknown("an argument of rank_many", unknown, known=names)
        read, lists = read_lists(queries, texts)
        top_k = read_top_k(top_k, texts=sum(len(documents) for documents, _ in lists))
        rankings = Rankings(Ranking([], query=query, texts=[], query_rows=0) for query in read)
        told = ready or (lambda *_: None)
        for place, (documents, _) in enumerate(lists):
            if not documents:
                told(place, rankings[place])
        asked = [place for place, (documents, _) in enumerate(lists) if documents]
        if not asked:
            return rankings
        in_turn = rank_in_turn(
            self._loaded(),
            [read[place] for place in asked],
            [lists[place] for place in asked],
            top_k=top_k,
            known=known,
            explain=self.explain,
            show_progress=show_progress,
        )
        for number, ranking in in_turn:
            rankings[asked[number]] = ranking
            told(asked[number], ranking)
        return rankings

    def explain(self, query: str, text: TextLike) -> Explanation:
        """Which token of a document each token of a query matched, and what that adds up to.

        For the places of a ranking, `Ranking.explain` re-uses the vectors that ranked them.

        Raises:
            InvalidQueryError: the query is blank or not a string.
            TypeError: the document has no text.
        """
        check_query(query, text, "text")
        scorer = self._loaded()
        scored = scorer.score(query, [read_text(text)])
        return scored.explanation(0, scorer.text_encoder.tokenizer)

    def cache_documents(self, texts: Sequence[TextLike], *, show_progress: bool = False) -> None:
        """Encode texts into the document cache ahead of the first query.

        Raises:
            TypeError: not a list of texts.
            ValueError: the model has no document cache.
        """
        documents = read_texts(texts)
        if not self.settings.document_cache:
            raise ValueError("this model was opened with document_cache=None, so nothing is kept")
        self._loaded().cache_documents(documents, show_progress=show_progress)

    def __reduce__(self) -> tuple[object, ...]:
        """Copy and pickle by description: never the weights, nor the access token."""
        return (_restored, (self._asked, self._identity))


_LIVE: weakref.WeakValueDictionary[str, ColBERT] = weakref.WeakValueDictionary()
SHARED: Registry[Settings, ColBERT] = Registry()


def shared_colbert(checkpoint: str | os.PathLike[str], **options: Unpack[ModelOptions]) -> ColBERT:
    """The process's one instance of a model, loaded by whoever asks first.

    Two calls mean the same instance where they mean the same configuration: `device=None` and the
    device it resolves to, a relative and an absolute path, a string and a `Path`. Other threads
    that ask while it loads wait for it.

    Args:
        checkpoint: As in `ColBERT.from_pretrained`.
        options: As in `ColBERT.from_pretrained`.

    Raises:
        CheckpointError: the checkpoint cannot be opened; its subclass says why.
        TypeError: an option is unknown or has the wrong type.
        ValueError: an option is out of range, or the device is not there.
    """
    return shared(Settings.normalised(checkpoint, **options))


def shared(settings: Settings, *, load: bool = True) -> ColBERT:
    """`shared_colbert` for settings; `load=False` leaves the weights where they are."""

    def build() -> ColBERT:
        colbert = ColBERT(settings)
        if load:
            colbert.load()
        return colbert

    return SHARED.get(resolved(settings), build)


def clear_cache() -> None:
    """Forget every shared instance and give back the memory of its weights.

    Instances that somebody still holds go on working, and load again at their next call.
    """
    for colbert in SHARED.clear():
        colbert.unload()


def _restored(settings: Settings, identity: str) -> ColBERT:
    """The very instance where it still lives, else the shared one."""
    return _LIVE.get(identity) or shared(settings)
