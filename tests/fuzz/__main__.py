"""`python -m tests.fuzz`: look for inputs that do what no input may."""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.fuzz.driver import Outcome, Report, fuzz, numbers, targets


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="for all targets together")
    parser.add_argument("--inputs", type=int, help="of each target, at most")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--target", action="append", choices=targets(), help="default: all")
    parser.add_argument("--only", type=int, help="this one input; below zero, a kept one")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run, print a table and every kind of defect; 1 if there is any."""
    options = parse(argv)
    names = options.target or targets()
    at_once = min(len(names), os.cpu_count() or 1)
    sys.stdout.write(f"seed {options.seed}\n")

    def run(name: str) -> Report:
        chosen = numbers(name) if options.only is None else iter([options.only])
        return fuzz(
            name,
            options.seed,
            itertools.islice(chosen, options.inputs),
            seconds=options.minutes * 60 * at_once / len(names),
        )

    with ThreadPoolExecutor(at_once) as pool:
        reports = list(pool.map(run, names))
    sys.stdout.write(table(reports))
    for report in reports:
        sys.stdout.write(listed(report, everything=options.only is not None))
    return int(any(report.defects for report in reports))


def table(reports: Sequence[Report]) -> str:
    rows = [
        f"| {report.target} | {report.inputs:,} | {len(report.defects):,} | {report.slowest:.2f} "
        f"| {report.most:.0f} |"
        for report in reports
    ]
    head = "| target | inputs | defects | slowest, s | most memory, MiB |"
    return "\n".join([head, "| --- | --- | --- | --- | --- |", *rows]) + "\n"


def listed(report: Report, *, everything: bool = False) -> str:
    """Each kind of defect once, with the line that repeats its first input."""
    kinds: dict[str, list[Outcome]] = {}
    for outcome in report.defects:
        kinds.setdefault(outcome.defect, []).append(outcome)
    lines = []
    for defect, outcomes in kinds.items():
        first = outcomes[0]
        account = first.account if everything else first.account.partition("\n")[0][:300]
        lines += [
            f"\n{report.target}: {len(outcomes):,} x {defect}\n  {account}",
            f"  python -m tests.fuzz --target {report.target} --seed {report.seed} "
            f"--only {first.number}",
        ]
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
