"""Tables as Markdown, JSON and figures.

`python -m benchmarks.report results/cpu.json` draws the figures again, measuring nothing.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.figures import Bar, Figure
from benchmarks.timing import Timing

OURS = ("colbert_rag", "LocalIndex")
"""How the names of our rows begin."""

QUESTIONS = {
    "encode": "How fast are documents encoded?",
    "rerank": "How fast are 100 documents reranked?",
    "maxsim": "How fast are known vectors scored?",
    "cold_start": "How soon does a new process give a score?",
    "index": "How fast is exact search in an index?",
    "documents": "What do more documents cost?",
    "tokens per document": "What do longer documents cost?",
    "queries": "What do more queries cost?",
}
"""What a figure answers, by job or by axis."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the caller asked for.

    Attributes:
        threads: Threads of every library.
        repeats: Repetitions of every timed job.
        quick: Sizes that only show that everything runs; nothing to quote.
        queries: Queries of each collection, for quality; None for all.
        collections: Names of collections, for quality; none for all.
        dtype: Compared with float32, for quality; "auto" is the default one of the device.
        depth: How many of BM25's best are reranked, for quality, with no other document encoded;
            None for 100, and the whole corpus besides.
        checkpoint: The checkpoint of the jobs that are not about several.
        minutes: How long to soak.
        seed: Of a soak; None draws one.
        without: Disturbances that a soak leaves out.
    """

    threads: int
    repeats: int = 5
    quick: bool = False
    queries: int | None = None
    collections: tuple[str, ...] = ()
    dtype: str = "auto"
    depth: int | None = None
    checkpoint: str = "minilm-small"
    minutes: float = 10.0
    seed: int | None = None
    without: tuple[str, ...] = ()

    def size(self, full: int, quick: int) -> int:
        """A job's size under this plan."""
        return quick if self.quick else full


@dataclass(slots=True)
class Table:
    """One job's results.

    Attributes:
        job: The command that made it.
        title: What was done, with size and checkpoint.
        rows: Cells by column; `repetitions` is kept in the JSON only.
        notes: Sentences under the table.
        axis: Column that grows; its seconds are drawn along it.
        baseline: Whose seconds, divided by a row's own, are its `ratio`.
        drawn: Whether its ratios are bars of a figure, which compares us with others.
    """

    job: str
    title: str
    rows: list[dict[str, object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    axis: str = ""
    baseline: str = "sentence-transformers float32"
    drawn: bool = True

    def timed(
        self, peer: str, timing: Timing, baseline: float | None, cells: Mapping[str, object]
    ) -> dict[str, object]:
        """Append the row of a timed job.

        Args:
            peer: Who.
            timing: Its repetitions.
            baseline: Seconds of the baseline; None for a row that may not be compared.
            cells: Further columns, after the time.
        """
        row: dict[str, object] = {
            "peer": peer,
            "seconds": timing.seconds,
            "best": timing.best,
            "ratio": None if baseline is None else baseline / timing.seconds,
            **cells,
            "CPU/wall": timing.busy,
            "disturbed": timing.disturbed,
            "repetitions": [asdict(repetition) for repetition in timing.repetitions],
        }
        self.rows.append(row)
        return row

    def compare_best(self) -> None:
        """Add a note on us against the fastest form of sentence-transformers, not as shipped."""
        rows = [row for row in self.rows if row["ratio"] is not None]
        theirs = [row for row in rows if str(row["peer"]).startswith("sentence-transformers")]
        ours = [row for row in rows if str(row["peer"]).startswith("colbert_rag")]
        if len(theirs) > 1 and ours:
            fast, slow = (max(group, key=_ratio) for group in (ours, theirs))
            times = _number(_ratio(fast) / _ratio(slow))
            self.notes.append(f"{fast['peer']} has {times} times the speed of {slow['peer']}.")

    def markdown(self) -> str:
        """The table as text."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        columns = [column for column in columns if column != "repetitions"]
        lines = [f"### {self.title}", ""]
        if self.rows:
            named = {"ratio": f"speed / {self.baseline}"}
            heads = [named.get(column, column) for column in columns]
            lines += [f"| {' | '.join(heads)} |", f"|{' --- |' * len(columns)}"]
            for row in self.rows:
                cells = (_cell(row.get(column)) for column in columns)
                lines.append(f"| {' | '.join(cells)} |")
            lines.append("")
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines).rstrip() + "\n"


def write(folder: Path, name: str, environment: dict[str, str], tables: Sequence[Table]) -> None:
    """Write `name`.md, `name`.json and a figure `name`-QUESTION.svg for each question."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = "\n".join(f"- {key}: {value}" for key, value in environment.items())
    body = "\n".join(table.markdown() for table in tables)
    (folder / f"{name}.md").write_text(f"# {name}\n\n{facts}\n\n{body}", encoding="utf-8")
    document = {"environment": environment, "tables": [asdict(table) for table in tables]}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draw(folder, name, tables)


def draw(folder: Path, name: str, tables: Sequence[Table]) -> None:
    """Write a figure for each question that the tables answer."""
    for question, figure in figures(tables).items():
        (folder / f"{name}-{question}.svg").write_text(figure.svg(), encoding="utf-8")


def _short(title: str) -> str:
    """What was done, and with which checkpoint."""
    job, _, checkpoint = title.partition(":")
    name = checkpoint.split(",")[0].strip()
    return f"{job}: {name}" if name else job


def _ratio(row: dict[str, object]) -> float:
    return float(str(row["ratio"]))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return _number(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _number(value: float) -> str:
    """Three significant digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{digits}f}"


def figures(tables: Sequence[Table]) -> dict[str, Figure]:
    """One figure per question, by what it is called in a file's name.

    Jobs that compare peers become bars of their ratios, a job's tables together; a table that
    grows along an axis becomes bars of seconds. Rows without such a number are not drawn.
    """
    compared: dict[str, list[Table]] = {}
    for table in tables:
        if table.drawn and not table.axis and _drawn(table, "ratio"):
            compared.setdefault(table.job, []).append(table)
    drawn = {job: _ratios(job, of_job) for job, of_job in compared.items()}
    growing = [table for table in tables if table.axis and _drawn(table, "seconds")]
    return drawn | {table.axis.replace(" ", "_"): _growth(table) for table in growing}


def _ratios(job: str, tables: Sequence[Table]) -> Figure:
    baselines = " or ".join(dict.fromkeys(table.baseline for table in tables))
    return Figure(
        QUESTIONS.get(job, job),
        f"Speed / {baselines}; longer is better",
        {_short(table.title): _bars(_drawn(table, "ratio"), "ratio", "") for table in tables},
    )


def _growth(table: Table) -> Figure:
    groups: dict[str, list[dict[str, object]]] = {}
    for row in _drawn(table, "seconds"):
        groups.setdefault(f"{table.axis}: {_cell(row[table.axis])}", []).append(row)
    return Figure(
        QUESTIONS.get(table.axis, table.axis),
        "Seconds; shorter is better",
        {heading: _bars(rows, "seconds", " s") for heading, rows in groups.items()},
    )


def _drawn(table: Table, column: str) -> list[dict[str, object]]:
    return [row for row in table.rows if row.get(column) is not None]


def _bars(rows: Sequence[dict[str, object]], column: str, unit: str) -> list[Bar]:
    return [
        Bar(
            label=str(row["peer"]),
            value=float(str(row[column])),
            number=_cell(row[column]) + unit,
            ours=str(row["peer"]).startswith(OURS),
        )
        for row in rows
    ]


if __name__ == "__main__":
    for results in map(Path, sys.argv[1:]):
        document = json.loads(results.read_text(encoding="utf-8"))
        draw(results.parent, results.stem, [Table(**table) for table in document["tables"]])
