"""Tables as Markdown and JSON, and one picture of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.timing import Timing


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
        checkpoint: The checkpoint of the jobs that are not about several.
    """

    threads: int
    repeats: int = 5
    quick: bool = False
    queries: int | None = None
    collections: tuple[str, ...] = ()
    dtype: str = "auto"
    checkpoint: str = "minilm-small"

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
        axis: Column to draw along, for growth curves.
        baseline: Whose seconds, divided by a row's own, are its `ratio`.
        drawn: Whether its ratios are bars of the picture, which compares us with others.
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
    """Write `name`.md, .json and, where matplotlib is installed, .png."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = "\n".join(f"- {key}: {value}" for key, value in environment.items())
    body = "\n".join(table.markdown() for table in tables)
    (folder / f"{name}.md").write_text(f"# {name}\n\n{facts}\n\n{body}", encoding="utf-8")
    document = {"environment": environment, "tables": [asdict(table) for table in tables]}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    _plot(folder / f"{name}.png", tables)


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


def _plot(path: Path, tables: Sequence[Table]) -> None:
    """Bars of the speed ratios, and a curve for every table that grows along something."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    compared = [table for table in tables if table.drawn and not table.axis]
    bars = [
        (f"{row['peer']}\n{_short(table.title)}", _ratio(row))
        for table in reversed(compared)
        for row in reversed(table.rows)
        if row.get("ratio") is not None and row["peer"] != table.baseline
    ]
    curves = [table for table in tables if table.axis]
    if not bars and not curves:
        return
    height = max(4.0, 0.5 * len(bars))
    figure = Figure(figsize=(5 * len(curves) + 9 * bool(bars), height), layout="constrained")
    axes = list(figure.subplots(1, len(curves) + bool(bars), squeeze=False)[0])
    if bars:
        axis = axes.pop(0)
        # By place, because bars of one label would lie on each other.
        drawn = axis.barh(range(len(bars)), [ratio for _, ratio in bars])
        axis.bar_label(drawn, [_number(ratio) for _, ratio in bars], padding=2, fontsize=7)
        axis.set_yticks(range(len(bars)), [label for label, _ in bars])
        axis.axvline(1, color="black", linewidth=0.8)
        baselines = dict.fromkeys(table.baseline for table in compared if table.rows)
        axis.set_xlabel(f"speed, as a multiple of {' or '.join(baselines)}", fontsize=8)
        axis.tick_params(axis="y", labelsize=7)
    for axis, table in zip(axes, curves, strict=True):
        for peer in dict.fromkeys(row["peer"] for row in table.rows):
            rows = [row for row in table.rows if row["peer"] == peer]
            axis.loglog(
                [row[table.axis] for row in rows],
                [row["seconds"] for row in rows],
                "o-",
                label=peer,
            )
        points = sorted({int(str(row[table.axis])) for row in table.rows})
        axis.set_xticks(points, [f"{point:,}" for point in points])
        axis.set_xticks([], minor=True)
        axis.set(xlabel=table.axis, ylabel="seconds")
        axis.set_title(table.title.split(":")[0], fontsize=8)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)
