"""Whether a difference between two systems is more than chance, and whether one could be seen.

The test is Fisher's randomisation test, two-sided and paired by query, which Smucker, Allan and
Carterette recommend for measures of retrieval (CIKM 2007; for few queries, SIGIR 2009). Where all
signs can be tried it is exact. Several systems against one baseline are corrected as Holm does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.05
"""Probability of calling a difference real that is none."""

POWER = 0.8
"""Probability of seeing a difference of the size that is called visible (Cohen 1988)."""

RESAMPLES = 100_000
RESAMPLES_OF_INTERVAL = 10_000

FEWEST, USUAL = 25, 50
"""Queries for a good experiment: at least 25, and 50 are better (Buckley and Voorhees, SIGIR 2000,
https://www.nist.gov/publications/evaluating-evaluation-measure-stability)."""

# Standard normal quantiles of 1 - ALPHA / 2 and of POWER.
_BOTH = 1.959964 + 0.841621
_CHUNK = 2**22  # random signs at a time: 32 MiB


def randomisation_test(differences: Sequence[float], *, seed: int = 0) -> float:
    """How likely a mean at least as far from 0 is, were each difference as likely the other way.

    Args:
        differences: One for each query.
        seed: Of the signs that are tried, where they are too many to try them all.

    Returns:
        The p-value: exact for up to 16 differences that are not 0, else of 100,000 random signs,
        the observed ones among them, so that it is never 0 (Phipson and Smyth 2010).
    """
    values = np.array([value for value in differences if value], dtype=np.float64)
    if len(values) == 0:
        return 1.0
    # Sums that are equal on paper differ in the last bits.
    least = abs(values.sum()) - 1e-12 * np.abs(values).sum()
    if 2 ** len(values) <= RESAMPLES:
        signs = 1 - 2 * (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1)
        return float(np.mean(np.abs(signs @ values) >= least))
    random = np.random.default_rng(seed)
    extreme, done = 1, 1
    while done < RESAMPLES:
        count = min(max(_CHUNK // len(values), 1), RESAMPLES - done)
        signs = 1 - 2 * random.integers(0, 2, (count, len(values)), dtype=np.int8)
        extreme += int(np.count_nonzero(np.abs(signs @ values) >= least))
        done += count
    return extreme / RESAMPLES


def interval(differences: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """The middle 95 % of the mean difference over bootstrap samples of the queries."""
    values = np.asarray(differences, dtype=np.float64)
    random = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    done = 0
    while done < RESAMPLES_OF_INTERVAL:
        count = min(max(_CHUNK // len(values), 1), RESAMPLES_OF_INTERVAL - done)
        means.append(values[random.integers(0, len(values), (count, len(values)))].mean(axis=1))
        done += count
    low, high = np.quantile(np.concatenate(means), [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the order given."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def visible_difference(differences: Sequence[float]) -> float:
    """The smallest true difference that so many queries show four times out of five.

    The normal approximation of a paired test's power: (z of 1 - ALPHA / 2 + z of POWER) times the
    standard error.
    """
    if len(differences) < 2:
        return math.inf
    return _BOTH * float(np.std(differences, ddof=1)) / math.sqrt(len(differences))


def queries_needed(differences: Sequence[float]) -> int | None:
    """How many queries would show the mean difference; None where there is none."""
    mean = abs(float(np.mean(differences)))
    if len(differences) < 2 or mean < 1e-9:
        return None
    return math.ceil((_BOTH * float(np.std(differences, ddof=1)) / mean) ** 2)


def too_few(queries: int) -> str:
    """What to say about a number of queries; "" where it is enough."""
    # All signs alike is the most extreme outcome, and has two of 2**n equally likely ones.
    if 2 / 2**queries > ALPHA:
        return (
            f"{queries} queries cannot show anything: the test's smallest p-value is "
            f"{2 / 2**queries:.2g}, above {ALPHA}. At least 6 are needed, and {USUAL} are usual"
        )
    if queries < FEWEST:
        return (
            f"{queries} queries are few: at least {FEWEST} make a good experiment, and {USUAL} a "
            "better one (Buckley and Voorhees 2000)"
        )
    return ""
