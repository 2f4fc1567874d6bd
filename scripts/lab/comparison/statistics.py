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
from scripts.lab.comparison.method import Method
from scripts.lab.comparison.trial import TUNING_SEED, Trial
from scripts.lab.comparison.tuning import at_edge, grid_of
from scripts.lab.results import Columns, read_collected
from scripts.lab.statistics import Interval, Values, interval, paired_difference

TARGET_SHARE = 0.95
"""Share of central's best gain that a method shall reach. Source: ours; the figure that gossip is to come to."""

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

    @property
    def what(self) -> Method:
        """What its name says."""
        return Method.parse(self.name)

    @property
    def has_traffic(self) -> bool:
        """It reads anything."""
        return any(run["bytes_per_peer"] for run in self.runs.values())

    def outcome(self, column: str, factor: float = 1.0) -> Interval:
        """Return one outcome over the seeds."""
        return interval([None if run[column] is None else factor * run[column] for run in self.runs.values()])

    def has(self, column: str) -> bool:
        """Tell whether any run has a value."""
        return any(run.get(column) is not None for run in self.runs.values())

    def minus(self, baseline: MethodResults, column: str) -> Interval:
        """Return an outcome of this method minus that of the baseline, seed by seed, over the seeds that both have."""
        return paired_difference(self.by_seed(column), baseline.by_seed(column))

    def by_seed(self, column: str) -> dict[int, float | None]:
        """Return seed -> outcome; None = there is none."""
        return {seed: run[column] for seed, run in self.runs.items()}


@dataclass(frozen=True, slots=True, eq=False)
class ComparisonResults:
    """A comparison, read.

    Args:
        manifest: of the folder.
        methods: those with finished runs, baselines first.
        grid: method -> learning rate -> mean validation loss on the tuning seeds; empty if nothing was tuned.
        rates: method -> the learning rate taken.
    """

    manifest: dict[str, Any]
    methods: tuple[MethodResults, ...]
    grid: Mapping[str, dict[float, float]]
    rates: Mapping[str, float]

    def named(self, name: str) -> MethodResults | None:
        """Return one method's results, if there are any."""
        return next((method for method in self.methods if method.name == name), None)

    @property
    def converges(self) -> bool:
        """Training went on until it had converged."""
        return str(self.manifest["spec"]["comparison"].get("until")) == "converged"

    def strongest_central(self) -> MethodResults | None:
        """Return the central training of equal tokens with the least validation loss, each at its tuned rate.

        That loss is the mean over the seeds compared: they are more than those that rates are tuned on. The rows that
        are reported on have no say in it.
        """
        central = [method for method in self.methods if method.what.regime == "central"]
        return min(central, key=_validation, default=None)


def _validation(method: MethodResults) -> float:
    mean = method.outcome("validation_loss").mean
    return math.inf if mean is None else mean


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
    """Return the trials that tuned learning rates, with their validation losses."""
    fields = [field.name for field in dataclasses.fields(Trial)]
    return [
        (Trial(**{name: run[name] for name in fields if run.get(name) is not None}), run["validation_loss"])
        for run in runs
        if run["seed"] >= TUNING_SEED
    ]


def base_loss(comparison: ComparisonResults) -> Interval:
    """Return the loss of the model before training, over all seeds; it is the same for all methods."""
    losses: dict[int, float | None] = {}
    for method in comparison.methods:
        losses |= method.by_seed("start_loss")
    return interval(list(losses.values()))


def share_of_gain(comparison: ComparisonResults, method: MethodResults) -> Interval:
    """Return (base - method) / (base - strongest central), seed by seed: how much of that gain a method has.

    The base is the model before training. A seed on which central gains nothing has no share, and counts as censored.
    """
    central = comparison.strongest_central()
    if central is None:
        return interval([])
    return _shares(method.by_seed("start_loss"), central.by_seed("final_loss"), method.by_seed("final_loss"))


def gap_closed(comparison: ComparisonResults, method: MethodResults) -> Interval:
    """Return (local - method) / (local - strongest central), seed by seed: 0 = as alone, 1 = as central.

    A seed on which central is not better than local has no gap, and counts as censored.
    """
    local, central = comparison.named("local"), comparison.strongest_central()
    if local is None or central is None:
        return interval([])
    return _shares(local.by_seed("final_loss"), central.by_seed("final_loss"), method.by_seed("final_loss"))


def _shares(
    start: Mapping[int, float | None], end: Mapping[int, float | None], ours: Mapping[int, float | None]
) -> Interval:
    """Return the share of the way from ``start`` down to ``end`` that ``ours`` has gone, over the seeds of all."""
    shares: list[float | None] = []
    for seed in sorted(ours.keys() & start.keys() & end.keys()):
        first, last, reached = start[seed], end[seed], ours[seed]
        if first is None or last is None or reached is None or first <= last:
            shares.append(None)
        else:
            shares.append((first - reached) / (first - last))
    return interval(shares)


def above_central(comparison: ComparisonResults, method: MethodResults, column: str) -> Interval:
    """Return a loss of a method over that of the strongest central, minus 1, seed by seed.

    Args:
        column: of runs.parquet, such as ``final_worst``.
    """
    central = comparison.strongest_central()
    theirs = central.by_seed("final_loss") if central else {}
    ours = {seed: loss for seed, loss in method.by_seed(column).items() if seed in theirs}
    ratios: list[float | None] = []
    for seed, loss in ours.items():
        best = theirs[seed]
        ratios.append(None if loss is None or best is None else loss / best - 1)
    return interval(ratios)


def spent_until_target(comparison: ComparisonResults, method: MethodResults, column: str) -> Interval:
    """Return what a method has spent when it has ``TARGET_SHARE`` of the gain of the strongest central, seed by seed.

    The loss is the mean over peers of their own adapters after mixing, on test rows, taken to fall evenly between two
    measurements; a seed on which it never gets there is censored.

    Args:
        column: of rounds.parquet: ``tokens_per_peer`` or ``bytes_per_peer``.
    """
    central = comparison.strongest_central()
    if central is None:
        return interval([])
    start, ends = central.by_seed("start_loss"), central.by_seed("final_loss")
    spent: list[float | None] = []
    for seed, rounds in method.rounds.items():
        first, last = start.get(seed), ends.get(seed)
        if first is None or last is None or not rounds:
            spent.append(None)
        else:
            spent.append(_spent_until(rounds, column, first - TARGET_SHARE * (first - last)))
    return interval(spent)


def _spent_until(rounds: Columns, column: str, target: float) -> float | None:
    known = np.isfinite(rounds["loss"]) & (rounds["merging"] == 0)
    losses, spent = rounds["loss"][known], rounds[column][known]
    there = np.nonzero(losses <= target)[0]
    if not len(there):
        return None
    after = int(there[0])
    if not after:
        return float(spent[0])
    share = (losses[after - 1] - target) / (losses[after - 1] - losses[after])
    return float(spent[after - 1] + share * (spent[after] - spent[after - 1]))


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
    return at_edge(comparison.grid.get(method, {}), comparison.rates[method])
