"""The fuzz driver finds what is planted, and its targets find nothing in a few hundred inputs."""

from __future__ import annotations

import itertools
import re
import sys

import pytest

from tests.fuzz.__main__ import listed, table
from tests.fuzz.driver import Report, case, fuzz, load, numbers, targets
from tests.helpers import planted_defects

PLANTED = planted_defects.__name__
SEED, INPUTS = 1, 200


@pytest.fixture(scope="module")
def planted() -> Report:
    return fuzz(PLANTED, SEED, itertools.islice(numbers(PLANTED), 40), stuck=3.0)


def test_every_planted_defect_is_found_and_nothing_else(planted: Report):
    found = {outcome.number: outcome.defect for outcome in planted.defects}
    kept = {case(planted_defects, SEED, number): found.pop(number, "") for number in range(-8, 0)}

    assert kept.pop("sound") == kept.pop("leaves a file") == ""
    assert "KeyError at planted_defects.py:" in kept.pop("raises")
    assert "SystemExit" in kept.pop("exits")
    assert kept.pop("slow") == "took more than 0.6 s"
    if sys.platform == "linux":
        assert kept.pop("large") == "took more than 50 MiB"
        assert planted.most > 95
    assert kept.pop("dies") == "the process died with 7"
    assert kept.pop("endless") == "no end after 3 s"
    assert planted.inputs == 40
    drawn = [number for number in range(32) if case(planted_defects, SEED, number) == "raises"]
    assert sorted(found) == drawn


def test_a_defect_is_listed_once_with_the_line_that_repeats_it(planted: Report):
    text = listed(planted)
    first = min(outcome.number for outcome in planted.defects if outcome.number >= 0)

    raised = [outcome for outcome in planted.defects if "KeyError" in outcome.defect]
    assert f"{PLANTED}: {len(raised)} x KeyError" in text
    assert re.search(r"--seed 1 --only -2$", text, re.MULTILINE)
    assert f"| {PLANTED} | 40 | {len(planted.defects)} |" in table([planted])
    (again,) = fuzz(PLANTED, SEED, [first]).defects
    assert again.defect == raised[0].defect
    assert "'raises'\nTraceback" in again.account


@pytest.mark.parametrize("name", targets())
def test_no_input_of_a_target_is_a_defect(name: str):
    report = fuzz(name, SEED, itertools.islice(numbers(name), INPUTS))

    assert report.inputs == INPUTS
    assert listed(report) == ""


@pytest.mark.parametrize("name", targets())
def test_an_input_follows_from_its_seed_and_number_alone(name: str):
    target = load(name)

    drawn = [repr(case(target, SEED, number)) for number in range(50)]

    assert drawn == [repr(case(target, SEED, number)) for number in range(50)]
    assert drawn != [repr(case(target, SEED + 1, number)) for number in range(50)]
