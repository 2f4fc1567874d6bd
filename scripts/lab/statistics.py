"""Means and 95 % intervals over paired seeds, from the Parquet files of a sweep.

Runs that differ only in their seed are one group. Runs that never reached the tolerance are censored: counted, and no
mean is given where one is missing. Groups are compared seed by seed, since equal seeds mean equal starts; intervals are
Student's t. It draws nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gossip.errors import LocalError
from scripts.lab.convergence.cell import DEFAULTS

Values = NDArray[np.float64]

OUTCOMES_SHOWN = (
    ("rounds_to_tolerance", "rounds", 1.0),
    ("bytes_per_peer_to_tolerance", "MB per peer", 1e-6),
    ("seconds_to_tolerance", "seconds", 1.0),
    ("final_distance", "final consensus distance", 1.0),
    ("final_mean_error", "error of the mean", 1.0),
    ("final_distance_to_stationary", "distance to theory's point", 1.0),
    ("final_distance_to_optimum", "distance to the optimum", 1.0),
    ("final_loss", "final loss (nats)", 1.0),
)
"""(column of runs.parquet, heading, factor) of the table."""

METRICS = (
    ("consensus_distance", "consensus distance"),
    ("distance_to_stationary", "distance to theory's stationary point"),
    ("distance_to_optimum", "distance to the common optimum"),
    ("loss", "loss (nats)"),
)
"""(column of rounds.parquet, label) of the plots."""


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
    return Interval(float(known.mean()), _half(known), len(known), len(known))


def _half(values: Values) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Runs that differ only in their seed.

    Args:
        fields: the spec they share.
        runs: rows of runs.parquet, by seed.
        curves: column of rounds.parquet -> float64[seeds, T + 1], cut to the shortest run.
    """

    fields: dict[str, Any]
    runs: tuple[dict[str, Any], ...]
    curves: dict[str, Values]

    def outcome(self, column: str, factor: float = 1.0) -> Interval:
        """Return one outcome over the seeds."""
        return interval([None if run[column] is None else factor * run[column] for run in self.runs])

    def has(self, column: str) -> bool:
        """Tell whether an outcome has a meaning here: what was never reached has one, what is not known has none."""
        if column.endswith("to_tolerance") and self.fields["kind"] == "quadratic":
            column = (
                "final_distance_to_stationary"  # the target; not known where W changes from round to round
            )
        return column.endswith("to_tolerance") or any(run[column] is not None for run in self.runs)

    def label(self, varied: Sequence[str]) -> str:
        """Return what tells this group from the others."""
        named = [
            str(self.fields[name]) if name in ("topology", "kind") else f"{name} {self.fields[name]}"
            for name in varied
        ]
        return ", ".join(named) or str(self.fields["topology"])


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """A folder of results, read.

    Args:
        varied: fields of the spec, seed aside, that take more than one value.
    """

    manifest: dict[str, Any]
    groups: tuple[Group, ...]
    varied: tuple[str, ...]


def read_results(folder: Path) -> Results:
    """Read what a sweep has written.

    Raises:
        LocalError: the folder holds no results.
    """
    try:
        runs = pq.read_table(folder / "runs.parquet").to_pylist()
        rounds = pq.read_table(folder / "rounds.parquet")
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, pa.ArrowInvalid, ValueError) as error:
        raise LocalError(
            f"{folder} holds no readable results (runs.parquet, rounds.parquet, manifest.json): {error}; "
            "make some with sweep, consensus or learn"
        ) from error
    if not runs:
        raise LocalError(f"{folder}: no cell of the sweep is finished yet")
    curves = _curves(rounds)
    grouped: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    names = [name for name in DEFAULTS if name != "seed"]
    for run in runs:
        grouped.setdefault(tuple(run[name] for name in names), []).append(run)
    groups = []
    for key, members in grouped.items():
        ordered = tuple(sorted(members, key=lambda run: int(run["seed"])))
        groups.append(
            Group(
                dict(zip(names, key, strict=True)), ordered, _stack([curves[run["cell"]] for run in ordered])
            )
        )
    varied = tuple(name for name in names if len({group.fields[name] for group in groups}) > 1)
    return Results(manifest, tuple(groups), varied)


def _curves(rounds: pa.Table) -> dict[str, dict[str, Values]]:
    """Cut the table of rounds into cell -> column -> values; the rows of a cell stand together."""
    cells = rounds.column("cell").to_numpy(zero_copy_only=False)
    columns = {
        name: rounds.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
        for name in rounds.column_names
        if name != "cell"
    }
    starts = np.concatenate([[0], np.nonzero(cells[1:] != cells[:-1])[0] + 1, [len(cells)]])
    return {
        str(cells[start]): {name: values[start:end] for name, values in columns.items()}
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    }


def _stack(curves: list[dict[str, Values]]) -> dict[str, Values]:
    shortest = min(len(curve["round"]) for curve in curves)
    return {name: np.stack([curve[name][:shortest] for curve in curves]) for name in curves[0]}


def paired_difference(group: Group, baseline: Group, column: str) -> Interval:
    """Return this group minus the baseline, seed by seed, over the seeds that both have."""
    theirs = {run["seed"]: run[column] for run in baseline.runs}
    differences = [
        None if run[column] is None or theirs[run["seed"]] is None else run[column] - theirs[run["seed"]]
        for run in group.runs
        if run["seed"] in theirs
    ]
    return interval(differences)


def band(values: Values) -> tuple[Values, Values, Values]:
    """Return (mean, low, high) over seeds of positive values: geometric, because distances fall by factors.

    Args:
        values: float64[seeds, T + 1].
    """
    logarithm = np.log(np.maximum(values, 1e-300))
    mean = logarithm.mean(axis=0)
    if len(values) < 2:
        return np.exp(mean), np.exp(mean), np.exp(mean)
    half = np.asarray([_half(column) for column in logarithm.T])
    return np.exp(mean), np.exp(mean - half), np.exp(mean + half)
