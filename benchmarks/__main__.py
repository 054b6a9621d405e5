"""`python -m benchmarks`: measure, print, write `results/`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import available_cpus, describe, pin, restart_with
from benchmarks.report import Plan, Table, write

RESULTS = Path(__file__).parent / "results"
CPU_JOBS = (
    "roofline",
    "encode",
    "maxsim",
    "rerank",
    "explain",
    "cold_start",
    "memory",
    "growth",
    "index",
)
OTHER_JOBS = ("many", "serve", "quality", "codings", "efforts", "scale", "changes", "gpu", "soak")
NO_GPU = 2
"""Exit status of `gpu` on a machine without CUDA, so that nobody takes its silence for a result."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument(
        "jobs",
        nargs="*",
        metavar="job",
        help=f"{', '.join(CPU_JOBS)} (all of these by default), {', '.join(OTHER_JOBS)}",
    )
    parser.add_argument("--threads", type=int, default=len(available_cpus()))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="toy sizes: shows that all runs, nothing to quote"
    )
    parser.add_argument(
        "--queries",
        type=int,
        help="many, quality, codings, efforts: of each collection; default all",
    )
    parser.add_argument(
        "--collections",
        default="",
        help="quality, codings, efforts, scale: comma-separated; default all",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float16"),
        default="auto",
        help="quality: compared with float32; default the device's own",
    )
    parser.add_argument(
        "--depth", type=int, help="quality: rerank so many of BM25's best, and encode nothing else"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="soak: how long")
    parser.add_argument(
        "--seed", type=int, help="soak: of what is drawn; default another each time"
    )
    parser.add_argument(
        "--without",
        default="",
        help="to leave out, comma-separated; soak: calls and disturbances, serve, scale: packages",
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the results; default benchmarks/results, quick: none"
    )
    options = parser.parse_args(argv)
    unknown = set(options.jobs) - {*CPU_JOBS, *OTHER_JOBS}
    if unknown:
        parser.error(f"unknown job: {', '.join(sorted(unknown))}")
    return options


def main(argv: Sequence[str]) -> int:
    """Run jobs one after another, writing what is there after each of them."""
    options = parse(argv)
    jobs = options.jobs or list(CPU_JOBS)
    if "gpu" in jobs:
        import torch

        if not torch.cuda.is_available():
            print("benchmarks gpu: no CUDA device here, nothing was measured")
            return NO_GPU
    plan = Plan(
        options.threads,
        options.repeats,
        options.quick,
        options.queries,
        _listed(options.collections),
        options.dtype,
        depth=options.depth,
        minutes=options.minutes,
        seed=options.seed,
        without=_listed(options.without),
    )
    environment = describe(options.threads)
    pin(options.threads)
    print("\n".join(f"{key}: {value}" for key, value in environment.items()), flush=True)
    folders = [options.out] if options.out else [] if options.quick else [RESULTS]
    if "gpu" in jobs and "OUT" in os.environ:
        # A machine that is given back after the run returns only what lies here.
        folders.append(Path(os.environ["OUT"]))
    # A part of the collections, or another dtype, does not take the place of the whole.
    parts = [*plan.collections, *([] if plan.dtype == "auto" else [plan.dtype])]
    parts += [] if plan.depth is None else [f"top{plan.depth}"]
    name = "-".join([*(options.jobs or ["cpu"]), *parts])
    tables: list[Table] = []
    for job in jobs:
        for table in importlib.import_module(f"benchmarks.{job}").run(plan):
            print(f"\n{table.markdown()}", flush=True)
            tables.append(table)
            for folder in folders:
                write(folder, name, environment, tables)
    return 0


def _listed(names: str) -> tuple[str, ...]:
    return tuple(filter(None, names.split(",")))


def start(*argv: str) -> None:
    """Run as a program, every library with the same number of threads."""
    arguments = [*argv, *sys.argv[1:]]
    restart_with(parse(arguments).threads)
    raise SystemExit(main(arguments))


if __name__ == "__main__":
    start()
