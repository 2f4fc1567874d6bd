"""What a comparison found: means, 95 % intervals and paired differences, from the Parquet files it left.

Every method has the same seeds, and equal seeds mean equal text, splits and initial adapters; so differences are taken
seed by seed, and intervals are Student's t. It draws nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gossip.errors import LocalError
from scripts.lab.comparison.trial import TUNING_SEED, Trial
from scripts.lab.comparison.tuning import grid_of
from scripts.lab.statistics import Interval, interval

Values = NDArray[np.float64]
Run = dict[str, Any]

BUDGETS_MAX = 6
"""Byte budgets of the frontier. Source: ours; what a table holds."""


@dataclass(frozen=True, slots=True, eq=False)
class MethodResults:
    """One method on all seeds, with the learning rate chosen for it.

    Args:
        method: in canonical writing.
        runs: rows of runs.parquet by seed.
        rounds: seed -> column of rounds.parquet -> float64[rows].
        peers: seed -> column of peers.parquet -> float64[rows].
    """

    method: str
    runs: dict[int, Run]
    rounds: dict[int, dict[str, Values]]
    peers: dict[int, dict[str, Values]]

    def outcome(self, column: str, factor: float = 1.0) -> Interval:
        """Return one outcome over the seeds."""
        return interval([None if run[column] is None else factor * run[column] for run in self.runs.values()])

    def has(self, column: str) -> bool:
        """Tell whether any run has a value."""
        return any(run[column] is not None for run in self.runs.values())


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A comparison, read.

    Args:
        manifest: of the folder.
        methods: those with finished runs, baselines first.
        grid: method -> learning rate -> mean final loss on the tuning seeds; empty if nothing was tuned.
        rates: method -> the learning rate taken.
    """

    manifest: dict[str, Any]
    methods: tuple[MethodResults, ...]
    grid: dict[str, dict[float, float]]
    rates: dict[str, float]

    def named(self, method: str) -> MethodResults | None:
        """Return one method's results, if there are any."""
        return next((one for one in self.methods if one.method == method), None)


def read_found(folder: Path) -> Found:
    """Read what a comparison has written.

    Raises:
        LocalError: the folder holds no results of a comparison.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        runs = pq.read_table(folder / "runs.parquet").to_pylist()
        tables = [_by_cell(pq.read_table(folder / f"{name}.parquet")) for name in ("rounds", "peers")]
        asked = manifest["spec"]["comparison"]
    except (OSError, pa.ArrowInvalid, ValueError, KeyError) as error:
        raise LocalError(
            f"{folder} holds no readable comparison (manifest.json, runs, rounds and peers.parquet): {error}; make "
            "one with compare.py run"
        ) from error
    grouped: dict[str, dict[int, Run]] = {}
    finals = []
    fields = Trial(workload="").fields()
    for run in runs:
        if run["seed"] < TUNING_SEED:
            grouped.setdefault(run["method"], {})[run["seed"]] = run
        else:
            finals.append((Trial(**{name: run[name] for name in fields}), run["final_loss"]))
    if not grouped:
        raise LocalError(f"{folder}: no run of the comparison is finished yet; give the same command again")
    methods = tuple(
        MethodResults(
            method,
            dict(sorted(by_seed.items())),
            *(
                {seed: table.get(run["cell"], {}) for seed, run in sorted(by_seed.items())}
                for table in tables
            ),
        )
        for method, by_seed in grouped.items()
    )
    rates = manifest["spec"].get("learning_rates", {}) or dict.fromkeys(grouped, asked["learning_rates"][0])
    return Found(manifest, methods, dict(grid_of(finals)), rates)


def _by_cell(table: pa.Table) -> dict[str, dict[str, Values]]:
    cells = table.column("cell").to_numpy(zero_copy_only=False)
    columns = {
        name: table.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
        for name in table.column_names
        if name != "cell"
    }
    return {
        str(cell): {name: values[cells == cell] for name, values in columns.items()}
        for cell in dict.fromkeys(cells.tolist())
    }


def paired(method: MethodResults, baseline: MethodResults, value: Callable[[Run], float | None]) -> Interval:
    """Return method minus baseline, seed by seed, over the seeds that both have."""
    differences = []
    for seed, run in method.runs.items():
        if seed in baseline.runs:
            ours, theirs = value(run), value(baseline.runs[seed])
            differences.append(None if ours is None or theirs is None else ours - theirs)
    return interval(differences)


def gap_closed(found: Found, method: MethodResults, column: str = "final_loss") -> Interval:
    """Return (local - method) / (local - centralized), seed by seed: 0 = as alone, 1 = as with all text in one place.

    A seed on which centralized is not better than local has no gap, and counts as censored.
    """
    local, centralized = found.named("local"), found.named("centralized")
    if local is None or centralized is None:
        return interval([])
    shares: list[float | None] = []
    for seed, run in method.runs.items():
        if seed in local.runs and seed in centralized.runs:
            alone, together, ours = (one[column] for one in (local.runs[seed], centralized.runs[seed], run))
            gap = None if alone is None or together is None else alone - together
            shares.append(None if gap is None or gap <= 0 or ours is None else (alone - ours) / gap)
    return interval(shares)


def budgets(found: Found) -> list[float]:
    """Return byte budgets that methods can be compared at: the 1-2-5 series from the cheapest to the dearest run."""
    totals = [
        run["bytes_per_peer"] for one in found.methods for run in one.runs.values() if run["bytes_per_peer"]
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


def _within(rounds: dict[str, Values], budget: float) -> float | None:
    known = np.isfinite(rounds["loss"])
    spent, best = rounds["bytes_per_peer"][known], np.minimum.accumulate(rounds["loss"][known])
    if not len(spent):
        return None
    if budget >= spent[-1]:
        return float(best[-1])
    after = int(np.searchsorted(spent, budget, side="right"))
    share = (budget - spent[after - 1]) / (spent[after] - spent[after - 1])
    return float(best[after - 1] + share * (best[after] - best[after - 1]))


def mean_curve(curves: Sequence[dict[str, Values]], column: str) -> tuple[Values, Values, Values, Values]:
    """Return (row numbers, mean, low, high) of a column over seeds, where all seeds have it; 95 % Student intervals."""
    shortest = min(len(curve["round"]) for curve in curves)
    values = np.stack([curve[column][:shortest] for curve in curves])
    rows = np.nonzero(np.isfinite(values).all(axis=0))[0]
    mean = values[:, rows].mean(axis=0)
    halves = np.asarray([interval(list(values[:, row])).half or 0.0 for row in rows])
    return rows, mean, mean - halves, mean + halves


def on_edge(found: Found, method: str) -> bool:
    """Tell whether the learning rate taken is the least or the greatest of the grid: a better one may lie outside."""
    rates = list(found.grid.get(method, {}))
    return len(rates) > 1 and found.rates[method] in (rates[0], rates[-1])
