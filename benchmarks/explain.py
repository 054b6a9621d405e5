"""What an explanation costs beside the score that it explains."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks import checkpoints, corpora
from benchmarks.report import Plan, Table
from benchmarks.timing import interleave
from colbert_rag import ColBERT
from colbert_rag.ranking import Ranking


def run(plan: Plan) -> list[Table]:
    """Time a pair scored and explained, and the top of a ranking explained."""
    folder = checkpoints.build(plan.checkpoint)
    texts = corpora.documents(plan.size(100, 6), checkpoints.open_tokenizer(folder))
    query, title = corpora.questions(1)[0], checkpoints.title(plan.checkpoint, folder)
    forgetful = ColBERT.from_pretrained(folder, device="cpu", document_cache=None)
    model = ColBERT.from_pretrained(folder, device="cpu")
    middle = sorted(texts, key=len)[len(texts) // 2]
    ranking = model.rank(query, texts)
    top = _table(
        f"Rank {len(texts)} and explain the top 10: {title}",
        {
            "rank": lambda: forgetful.rank(query, texts),
            "explain the top 10 of it": lambda: _explain_top(ranking),
        },
        plan.repeats,
    )
    top.notes.append("Explaining re-uses the vectors that ranked, so that nothing is encoded.")
    return [
        _pair(f"Explain 1 pair, nothing known: {title}", forgetful, query, middle, plan.repeats),
        _pair(f"Explain 1 pair, document known: {title}", model, query, middle, plan.repeats),
        top,
    ]


def _pair(title: str, model: ColBERT, query: str, text: str, repeats: int) -> Table:
    jobs = {
        "score": lambda: model.score(query, [text]),
        "explain": lambda: model.explain(query, text),
        "explain, and draw it in HTML": lambda: model.explain(query, text)._repr_html_(),
    }
    return _table(title, jobs, repeats)


def _table(title: str, jobs: Mapping[str, Callable[[], object]], repeats: int) -> Table:
    """Time jobs against the first of them."""
    for job in jobs.values():
        job()
    timings = interleave(jobs, repeats=repeats)
    baseline = next(iter(jobs))
    table = Table("explain", title, baseline=baseline, drawn=False)
    for name, timing in timings.items():
        table.timed(name, timing, timings[baseline].seconds, {})
    return table


def _explain_top(ranking: Ranking) -> None:
    for place in range(min(10, len(ranking))):
        ranking.explain(place)
