"""Peak memory of whole processes: one rerank, and a corpus encoded and held."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import checkpoints, corpora
from benchmarks.cold_start import PROGRAMS, child, label, runnable, write_texts
from benchmarks.report import Plan, Table


def run(plan: Plan) -> Iterator[Table]:
    """Measure each job once per peer: memory, unlike time, is not disturbed by others."""
    folder = checkpoints.build(plan.checkpoint)
    tokenizer = checkpoints.open_tokenizer(folder)
    query = corpora.questions(1)[0]
    few = write_texts(corpora.documents(1, tokenizer), "one")
    programs, skipped = runnable(PROGRAMS, folder, query, few)
    for job, count in (("rerank", plan.size(100, 4)), ("encode", plan.size(5000, 8))):
        texts = corpora.documents(count, tokenizer)
        path = write_texts(texts, job)
        done = "Rerank 1 query x" if job == "rerank" else "Encode and hold"
        table = Table(
            "memory",
            f"Peak memory, {done} {count:,} documents, "
            f"{checkpoints.count_tokens(texts, folder):,} tokens: "
            f"{checkpoints.title(plan.checkpoint, folder)}",
            notes=[*skipped, "One process each; seconds are of that single run, load excluded."],
        )
        for name, program in programs.items():
            statement = program.rerank if job == "rerank" else program.encode
            if not statement:
                continue
            found = child(program, statement, folder, query, path)
            table.rows.append(
                {
                    "peer": label(name),
                    "peak MiB": found["peak_mib"],
                    "after load MiB": found["loaded_mib"],
                    "the job's share MiB": found["peak_mib"] - found["loaded_mib"],
                    "seconds": found["job_seconds"],
                }
            )
        yield table
