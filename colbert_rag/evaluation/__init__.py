"""Whether a reranker helps: systems side by side on judged queries.

A `JudgedCollection` is read from a folder in BEIR's layout, or made of dictionaries; systems are
made by `run_file`, `bm25`, `searched` and `reranked`; `evaluate` compares them. It needs the extra
`evaluate`: trec_eval computes the measures, bm25s is the first stage for those who have none.
"""

from colbert_rag.evaluation.collection import JudgedCollection
from colbert_rag.evaluation.demo import demo_collection
from colbert_rag.evaluation.evaluation import evaluate
from colbert_rag.evaluation.files import (
    read_corpus,
    read_judgements,
    read_queries,
    read_run,
    write_run,
)
from colbert_rag.evaluation.results import Comparison, Evaluation, Point, Result
from colbert_rag.evaluation.systems import Cost, Run, System, bm25, reranked, run_file, searched

__all__ = [
    "Comparison",
    "Cost",
    "Evaluation",
    "JudgedCollection",
    "Point",
    "Result",
    "Run",
    "System",
    "bm25",
    "demo_collection",
    "evaluate",
    "read_corpus",
    "read_judgements",
    "read_queries",
    "read_run",
    "reranked",
    "run_file",
    "searched",
    "write_run",
]
