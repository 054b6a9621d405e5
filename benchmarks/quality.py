"""Whether reranking helps: nDCG@10 and Recall@100 on judged collections."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from benchmarks.corpora import DATA, Collection, collection
from benchmarks.machine import installed
from benchmarks.peers import ST, quiet
from benchmarks.report import Plan, Table
from colbert_rag import ColBERT
from colbert_rag.device import resolve_device, resolve_dtype
from colbert_rag.maxsim import maxsim
from colbert_rag.settings import OFFLINE_CHECKPOINT

# nDCG@10 of BM25, of the mean-pooled model and of its token vectors under MaxSim, as the README of
# the collections gives them: by collection, number of queries, and whether the whole corpus was
# ranked instead of BM25's top 100.
PUBLISHED: dict[tuple[str, int, bool], tuple[float | None, float | None, float | None]] = {
    ("scifact", 150, False): (0.697, 0.663, 0.724),
    ("lfrqa", 150, False): (0.719, 0.839, 0.840),
    ("cosqa", 150, False): (0.356, 0.535, 0.522),
    ("squadshift-wiki", 150, False): (0.869, 0.839, 0.927),
    ("xquad-en", 150, False): (0.974, 0.950, 0.985),
    ("xquad-de", 150, False): (0.915, 0.752, 0.915),
    ("xquad-zh", 150, False): (0.969, 0.457, 0.613),
    ("scifact", 300, False): (0.679, None, None),
    ("lfrqa", 500, False): (0.685, None, None),
    ("cosqa", 500, False): (0.391, None, None),
    ("squadshift-wiki", 500, False): (0.880, None, None),
    ("scifact", 300, True): (0.679, 0.6451, 0.7120),
}
COLLECTIONS = tuple(dict.fromkeys(name for name, *_ in PUBLISHED))
DTYPE_TOLERANCE = 0.002
"""How much nDCG@10 may change from float32 to the default dtype."""

NOTES = (
    "offline-minilm: all-MiniLM-L6-v2, its token vectors under MaxSim, never trained for it; "
    "mean-pooled: the same model as it was trained to be used. 256 tokens a document for both.",
    "gain: mean difference to BM25 query by query, with its standard error.",
    "published: in the README of the collections. Which 150 queries those were is not known: "
    "BM25's own figure, which no model enters, differs on the first 150 of the file.",
)

Run = dict[str, list[str]]


Score = Callable[[str, list[str]], list[float]]


@dataclass(frozen=True, slots=True)
class Quality:
    """Measures of one run, query by query."""

    ndcgs: tuple[float, ...]
    recalls: tuple[float, ...]

    @property
    def ndcg(self) -> float:
        """Mean nDCG@10."""
        return statistics.mean(self.ndcgs)

    @property
    def recall(self) -> float:
        """Mean Recall@100."""
        return statistics.mean(self.recalls)

    def gain(self, other: Quality) -> str:
        """How much better than another run on the same queries, and how sure that is."""
        changes = [ours - theirs for ours, theirs in zip(self.ndcgs, other.ndcgs, strict=True)]
        error = statistics.stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else 0.0
        return f"{statistics.mean(changes):+.4f} ± {error:.4f}"


def ndcg(ranked: Sequence[str], grades: Mapping[str, int], *, depth: int = 10) -> float:
    """Normalised discounted cumulative gain with linear gains, as trec_eval computes it."""
    gains = [grades.get(document, 0) for document in ranked[:depth]]
    ideal = sorted(grades.values(), reverse=True)[:depth]
    best = _discounted(ideal)
    return _discounted(gains) / best if best else 0.0


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))


def recall(ranked: Sequence[str], grades: Mapping[str, int], *, depth: int = 100) -> float:
    """Share of the relevant documents that are among the first."""
    relevant = {document for document, grade in grades.items() if grade > 0}
    return len(relevant & set(ranked[:depth])) / len(relevant) if relevant else 0.0


def judge(run: Run, judgements: Mapping[str, Mapping[str, int]]) -> Quality:
    """Measure a run."""
    return Quality(
        tuple(ndcg(ranked, judgements[query]) for query, ranked in run.items()),
        tuple(recall(ranked, judgements[query]) for query, ranked in run.items()),
    )


def run(plan: Plan) -> Iterator[Table]:
    """One table per collection."""
    count = plan.size(plan.queries, 3)
    for name in plan.collections or COLLECTIONS:
        ranked = "The whole corpus ranked" if plan.whole else "BM25's top 100 reranked"
        table = Table("quality", f"{ranked}, first {count} queries: {name}")
        if (DATA / name).is_dir():
            _measure(table, name, collection(name), count, whole=plan.whole)
            table.notes += NOTES
        else:
            table.notes.append(f"{name}: not found under {DATA}")
        yield table


def rerank(found: Collection, candidates: Run, score: Score) -> Run:
    """Reorder the candidates of each query; ties keep their order."""
    ranked = {}
    for query, names in candidates.items():
        scores = score(found.queries[query], names) if names else []
        order = sorted(range(len(names)), key=lambda place: -scores[place])
        ranked[query] = [names[place] for place in order]
    return ranked


def late_interaction(found: Collection, documents: list[str], dtype: str) -> Score:
    """Scores by offline-minilm's token vectors, every candidate encoded once."""
    model = ColBERT.from_pretrained(OFFLINE_CHECKPOINT, raw_token_embeddings=True, dtype=dtype)
    vectors = model.encode_documents([found.documents[name] for name in documents])
    places = {name: place for place, name in enumerate(documents)}

    def score(query: str, candidates: list[str]) -> list[float]:
        rows = model.encode_queries([query])[0]
        # Choosing copies rows, which for the whole corpus would take longer than scoring them.
        if candidates is documents:
            chosen = vectors
        else:
            chosen = vectors[[places[name] for name in candidates]]
        scores: list[float] = maxsim(rows, chosen).tolist()
        return scores

    return score


def mean_pooled(found: Collection, documents: list[str]) -> Score:
    """Scores by the cosine of mean-pooled vectors, as sentence-transformers computes them."""
    from sentence_transformers import SentenceTransformer

    from colbert_rag.checkpoint.source import locate
    from colbert_rag.settings import Settings

    quiet()
    folder = locate(Settings.normalised(OFFLINE_CHECKPOINT))
    model = SentenceTransformer(str(folder), local_files_only=True)
    model.max_seq_length = 256
    texts = [found.documents[name] for name in documents]
    vectors = model.encode(texts, convert_to_tensor=True, normalize_embeddings=True)
    places = {name: place for place, name in enumerate(documents)}

    def score(query: str, candidates: list[str]) -> list[float]:
        row = model.encode(query, convert_to_tensor=True, normalize_embeddings=True)
        chosen = vectors[torch.tensor([places[name] for name in candidates])]
        scores: list[float] = (chosen @ row).tolist()
        return scores

    return score


def _measure(table: Table, name: str, found: Collection, count: int, *, whole: bool) -> None:
    queries = [query for query in found.queries if query in found.judgements][:count]
    # BM25 finds nothing at all for some queries; they count as misses.
    first = {query: found.candidates.get(query, []) for query in queries}
    documents = sorted(found.documents if whole else set(chain.from_iterable(first.values())))
    candidates = dict.fromkeys(queries, documents) if whole else first
    published = PUBLISHED.get((name, len(queries), whole), (None, None, None))
    runs = {"BM25": first}
    if installed(ST):
        score = mean_pooled(found, documents)
        runs["mean-pooled float32"] = rerank(found, candidates, score)
    score = late_interaction(found, documents, "float32")
    runs["offline-minilm float32"] = rerank(found, candidates, score)
    default = resolve_dtype("auto", resolve_device(None))
    if default != "float32":
        score = late_interaction(found, documents, "auto")
        runs[f"offline-minilm {default}"] = rerank(found, candidates, score)
    results = {label: judge(ranked, found.judgements) for label, ranked in runs.items()}
    for label, quality in results.items():
        kinds = ("BM25", "mean-pooled float32", "offline-minilm float32")
        wanted = published[kinds.index(label)] if label in kinds else None
        table.rows.append(
            {
                "ranking": label,
                "queries": len(queries),
                "documents": len(documents),
                "nDCG@10": f"{quality.ndcg:.4f}",
                "gain": None if label == "BM25" else quality.gain(results["BM25"]),
                "Recall@100": f"{quality.recall:.4f}",
                "published nDCG@10": wanted,
                "difference": None if wanted is None else f"{quality.ndcg - wanted:+.4f}",
            }
        )
    table.notes.append(_dtype_note(results, default))


def _dtype_note(results: dict[str, Quality], default: str) -> str:
    if default == "float32":
        return "The default dtype here is float32, so that there is none to compare with it"
    change = results[f"offline-minilm {default}"].ndcg - results["offline-minilm float32"].ndcg
    verdict = "within" if abs(change) <= DTYPE_TOLERANCE else "NOT within"
    return f"{default} changes nDCG@10 by {change:+.4f}, {verdict} {DTYPE_TOLERANCE}"
