"""Means and 95 % intervals over paired seeds.

Runs are compared seed by seed, since equal seeds mean equal starts; intervals are Student's t. A run without a value
(it never got there, or diverged) is censored: it is counted, and no mean is given where one is missing. It reads no
file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
"""Numbers over seeds, rounds or both; NaN = not measured."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval; ``half`` is None for a single value.

    Args:
        mean: over the runs that have a value; None if not all of them have one.
        half: half the width of the interval.
        reached: runs that have a value.
        runs: all runs.
    """

    mean: float | None
    half: float | None
    reached: int
    runs: int

    def times(self, factor: float) -> Interval:
        """Return the interval in another unit."""
        mean = None if self.mean is None else factor * self.mean
        half = None if self.half is None else factor * self.half
        return Interval(mean, half, self.reached, self.runs)

    def __str__(self) -> str:
        if self.mean is None:
            return f"reached by {self.reached} of {self.runs}"
        if self.half is None:
            return f"{self.mean:.4g}"
        half = 0.0 if self.half < 1e-9 * abs(self.mean) else self.half  # equal but for rounding
        return f"{self.mean:.4g} ± {half:.2g}"


def interval(values: Sequence[float | None]) -> Interval:
    """Return mean and 95 % Student interval of values, of which None = censored."""
    known = np.asarray([value for value in values if value is not None], dtype=np.float64)
    if len(known) < len(values) or not len(known):
        return Interval(None, None, len(known), len(values))
    if len(known) == 1:
        return Interval(float(known[0]), None, 1, 1)
    return Interval(float(known.mean()), half_width(known), len(known), len(known))


def half_width(values: Values) -> float:
    """Return half the width of the 95 % Student interval of float64[m], m >= 2."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))


def paired_difference(ours: Mapping[int, float | None], theirs: Mapping[int, float | None]) -> Interval:
    """Return ours minus theirs, seed by seed, over the seeds that both have.

    Args:
        ours, theirs: seed -> value, None = censored.
    """
    differences: list[float | None] = []
    for seed, value in ours.items():
        if seed in theirs:
            baseline = theirs[seed]
            differences.append(None if value is None or baseline is None else value - baseline)
    return interval(differences)
