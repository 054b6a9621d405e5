"""Ranking where vectors of some texts are here, and the model is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index.info import IndexInfo
from colbert_rag.inputs import TextLike, check_query, read_texts
from colbert_rag.maxsim import maxsim
from colbert_rag.remote.answers import Found, Scores
from colbert_rag.remote.ranking import RemoteRanking
from colbert_rag.scoring import KnownVectors
from colbert_rag.settings import read_top_k

if TYPE_CHECKING:
    from colbert_rag.remote.model import RemoteColBERT


def rank_known(
    model: RemoteColBERT,
    query: str,
    texts: Sequence[TextLike],
    *,
    known: KnownVectors,
    top_k: int | None,
) -> RemoteRanking:
    """`RemoteColBERT.rank`, scoring here what `known` finds, and there what it does not.

    Raises:
        IndexMismatchError: `known` is the method of an index that another model made.
    """
    check_query(query, texts)
    documents = read_texts(texts)
    top_k = read_top_k(top_k, texts=len(documents))
    _check_maker(known, model)
    if model.settings.long_documents == "windows":  # vectors of a text are not those of its windows
        return model.rank(query, texts, top_k=top_k)
    held = dict(known(list(dict.fromkeys(documents))))
    if not held:
        return model.rank(query, texts, top_k=top_k)
    new = [text for text in dict.fromkeys(documents) if text not in held]
    scores = dict(zip(new, model.score(query, new), strict=True))
    vectors = model.encode_queries([query])[0]
    stored = TokenEmbeddings.from_list(list(held.values()))
    scores |= zip(held, maxsim(vectors, stored).tolist(), strict=True)
    found = [Found(index, scores[text]) for index, text in enumerate(documents)]
    return RemoteRanking.of(
        Scores(len(vectors), found),
        query=query,
        texts=documents,
        items=tuple(texts),
        top_k=top_k,
        explain=model.explain,
    )


def _check_maker(known: KnownVectors, model: RemoteColBERT) -> None:
    info = getattr(getattr(known, "__self__", None), "info", None)
    if isinstance(info, IndexInfo):
        info.check_model(model)
