"""What a sweep of cells came to: groups of runs that differ only in their seed, their outcomes and curves.

Runs that never reached the tolerance are censored: counted, and no mean is given where one is missing. It draws
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gossip.errors import LocalError
from scripts.lab.convergence.cell import DEFAULTS
from scripts.lab.results import Columns, read_collected
from scripts.lab.statistics import Interval, Values, half_width, interval, paired_difference

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

    def minus(self, baseline: Group, column: str) -> Interval:
        """Return an outcome of this group minus that of the baseline, seed by seed, over the seeds that both have."""
        return paired_difference(self._by_seed(column), baseline._by_seed(column))

    def _by_seed(self, column: str) -> dict[int, float | None]:
        return {run["seed"]: run[column] for run in self.runs}

    def has(self, column: str) -> bool:
        """Tell whether an outcome has a meaning here: what was never reached has one, what is not known has none."""
        if column.endswith("to_tolerance") and self.fields["kind"] == "quadratic":
            column = "final_distance_to_stationary"  # the target; unknown where W changes from round to round
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
        manifest: of the folder.
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
        manifest, runs, tables = read_collected(folder, ["rounds"])
    except (OSError, ValueError) as error:
        raise LocalError(
            f"{folder} holds no readable results (runs.parquet, rounds.parquet, manifest.json): {error}; "
            "make some with sweep, consensus or learn"
        ) from error
    if not runs:
        raise LocalError(f"{folder}: no cell of the sweep is finished yet")
    names = [name for name in DEFAULTS if name != "seed"]
    by_fields: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        by_fields.setdefault(tuple(run[name] for name in names), []).append(run)
    groups = []
    for values, members in by_fields.items():
        members.sort(key=lambda run: int(run["seed"]))
        curves = _stack([tables["rounds"][run["cell"]] for run in members])
        groups.append(Group(dict(zip(names, values, strict=True)), tuple(members), curves))
    varied = tuple(name for name in names if len({group.fields[name] for group in groups}) > 1)
    return Results(manifest, tuple(groups), varied)


def _stack(curves: Sequence[Columns]) -> dict[str, Values]:
    shortest = min(len(curve["round"]) for curve in curves)
    return {name: np.stack([curve[name][:shortest] for curve in curves]) for name in curves[0]}


def band(values: Values) -> tuple[Values, Values, Values]:
    """Return (mean, low, high) over seeds of positive values: geometric, because distances fall by factors.

    Args:
        values: float64[seeds, T + 1].
    """
    logarithm = np.log(np.maximum(values, 1e-300))
    mean = logarithm.mean(axis=0)
    if len(values) < 2:
        return np.exp(mean), np.exp(mean), np.exp(mean)
    half = np.asarray([half_width(column) for column in logarithm.T])
    return np.exp(mean), np.exp(mean - half), np.exp(mean + half)
