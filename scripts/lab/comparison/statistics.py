"""What a comparison came to: means, 95 % intervals and paired differences, from the Parquet files it left.

Every method has the same seeds, and equal seeds mean equal text, splits and initial adapters; so differences are taken
seed by seed, and intervals are Student's t. It draws nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gossip.errors import LocalError
from scripts.lab.comparison.design import TUNING_SEED
from scripts.lab.comparison.trial import Trial
from scripts.lab.comparison.tuning import grid_of
from scripts.lab.results import Columns, read_collected
from scripts.lab.statistics import Interval, Values, interval, paired_difference

BUDGETS_MAX = 6
"""Byte budgets of the frontier. Source: ours; what a table holds."""


@dataclass(frozen=True, slots=True, eq=False)
class MethodResults:
    """One method on all seeds, with the learning rate chosen for it.

    Args:
        name: the method in canonical writing.
        runs: seed -> row of runs.parquet, seeds ascending.
        rounds: seed -> column of rounds.parquet -> float64[rows].
        peers: seed -> column of peers.parquet -> float64[rows].
    """

    name: str
    runs: Mapping[int, dict[str, Any]]
    rounds: Mapping[int, Columns]
    peers: Mapping[int, Columns]

    def outcome(self, column: str, factor: float = 1.0) -> Interval:
        """Return one outcome over the seeds."""
        return interval([None if run[column] is None else factor * run[column] for run in self.runs.values()])

    def has(self, column: str) -> bool:
        """Tell whether any run has a value."""
        return any(run[column] is not None for run in self.runs.values())

    def minus(self, baseline: MethodResults, column: str) -> Interval:
        """Return an outcome of this method minus that of the baseline, seed by seed, over the seeds that both have."""
        return paired_difference(self._by_seed(column), baseline._by_seed(column))

    def _by_seed(self, column: str) -> dict[int, float | None]:
        return {seed: run[column] for seed, run in self.runs.items()}


@dataclass(frozen=True, slots=True, eq=False)
class ComparisonResults:
    """A comparison, read.

    Args:
        manifest: of the folder.
        methods: those with finished runs, baselines first.
        grid: method -> learning rate -> mean final loss on the tuning seeds; empty if nothing was tuned.
        rates: method -> the learning rate taken.
    """

    manifest: dict[str, Any]
    methods: tuple[MethodResults, ...]
    grid: Mapping[str, dict[float, float]]
    rates: Mapping[str, float]

    def named(self, name: str) -> MethodResults | None:
        """Return one method's results, if there are any."""
        return next((method for method in self.methods if method.name == name), None)


def read_comparison_results(folder: Path) -> ComparisonResults:
    """Read what a comparison has written.

    Raises:
        LocalError: the folder holds no results of a comparison.
    """
    try:
        manifest, runs, tables = read_collected(folder, ["rounds", "peers"])
        request = manifest["spec"]["comparison"]
    except (OSError, ValueError, KeyError) as error:
        raise LocalError(
            f"{folder} holds no readable comparison (manifest.json, runs, rounds and peers.parquet): {error}; make "
            "one with compare.py run"
        ) from error
    compared: dict[str, dict[int, dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: int(run["seed"])):
        if run["seed"] < TUNING_SEED:
            compared.setdefault(run["method"], {})[run["seed"]] = run
    if not compared:
        raise LocalError(f"{folder}: no run of the comparison is finished yet; give the same command again")
    methods = [
        MethodResults(
            name,
            by_seed,
            {seed: tables["rounds"].get(run["cell"], {}) for seed, run in by_seed.items()},
            {seed: tables["peers"].get(run["cell"], {}) for seed, run in by_seed.items()},
        )
        for name, by_seed in compared.items()
    ]
    rates = manifest["spec"].get("learning_rates") or dict.fromkeys(compared, request["learning_rates"][0])
    return ComparisonResults(manifest, tuple(methods), grid_of(_tuned(runs)), rates)


def _tuned(runs: Sequence[dict[str, Any]]) -> list[tuple[Trial, float | None]]:
    """Return the trials that tuned learning rates, with their final losses."""
    fields = [field.name for field in dataclasses.fields(Trial)]
    return [
        (Trial(**{name: run[name] for name in fields}), run["final_loss"])
        for run in runs
        if run["seed"] >= TUNING_SEED
    ]


def gap_closed(comparison: ComparisonResults, method: MethodResults, column: str = "final_loss") -> Interval:
    """Return (local - method) / (local - centralized), seed by seed: 0 = as alone, 1 = as with all text in one place.

    A seed on which centralized is not better than local has no gap, and counts as censored.
    """
    local, centralized = comparison.named("local"), comparison.named("centralized")
    if local is None or centralized is None:
        return interval([])
    shares: list[float | None] = []
    for seed, run in method.runs.items():
        if seed in local.runs and seed in centralized.runs:
            alone, together = local.runs[seed][column], centralized.runs[seed][column]
            ours = run[column]
            gap = None if alone is None or together is None else alone - together
            shares.append(None if gap is None or gap <= 0 or ours is None else (alone - ours) / gap)
    return interval(shares)


def budgets(comparison: ComparisonResults) -> list[float]:
    """Return byte budgets that methods can be compared at: the 1-2-5 series from the cheapest to the dearest run."""
    totals = [
        run["bytes_per_peer"]
        for method in comparison.methods
        for run in method.runs.values()
        if run["bytes_per_peer"]
    ]
    if not totals:
        return []
    low, high = math.log10(min(totals) / 2), math.log10(max(totals))
    series = [
        factor * 10.0**power
        for power in range(math.floor(low) - 1, math.ceil(high) + 1)
        for factor in (1, 2, 5)
    ]
    inside = [value for value in series if low <= math.log10(value) <= high + 0.3]
    while len(inside) > BUDGETS_MAX:
        inside = inside[::2]
    return inside


def loss_within(method: MethodResults, budget: float) -> Interval:
    """Return the best loss that a method comes to with at most ``budget`` bytes read per peer.

    Between two measurements the loss is taken to fall evenly with the bytes.
    """
    return interval([_within(rounds, budget) for rounds in method.rounds.values()])


def _within(rounds: Columns, budget: float) -> float | None:
    known = np.isfinite(rounds["loss"])
    spent, best = rounds["bytes_per_peer"][known], np.minimum.accumulate(rounds["loss"][known])
    if not len(spent):
        return None
    if budget >= spent[-1]:
        return float(best[-1])
    after = int(np.searchsorted(spent, budget, side="right"))
    share = (budget - spent[after - 1]) / (spent[after] - spent[after - 1])
    return float(best[after - 1] + share * (best[after] - best[after - 1]))


class MeanCurve(NamedTuple):
    """A column over seeds, at the rows in which all seeds have it.

    Args:
        rows: int64[m], row numbers.
        mean, low, high: float64[m], with 95 % Student intervals.
    """

    rows: NDArray[np.int64]
    mean: Values
    low: Values
    high: Values


def mean_curve(curves: Sequence[Columns], column: str) -> MeanCurve:
    """Return the mean over seeds of one column of their tables of rounds."""
    shortest = min(len(curve["round"]) for curve in curves)
    values = np.stack([curve[column][:shortest] for curve in curves])
    rows = np.nonzero(np.isfinite(values).all(axis=0))[0].astype(np.int64)
    mean: Values = values[:, rows].mean(axis=0)
    halves = np.asarray([interval(list(values[:, row])).half or 0.0 for row in rows])
    return MeanCurve(rows, mean, mean - halves, mean + halves)


def on_edge(comparison: ComparisonResults, method: str) -> bool:
    """Tell whether the learning rate taken is the least or the greatest of the grid: a better one may lie outside."""
    rates = list(comparison.grid.get(method, {}))
    return len(rates) > 1 and comparison.rates[method] in (rates[0], rates[-1])
