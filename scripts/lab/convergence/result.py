"""What comes out of one cell: a table of rounds and one record of outcomes, whatever its kind.

Equal cells have equal results. It knows columns and their meaning, and neither files nor how they are filled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]
"""float64[T + 1], a number a round; NaN = no value."""

COLUMNS = (
    "round",
    "peers",
    "consensus_distance",
    "mean_error",
    "distance_to_optimum",
    "distance_to_stationary",
    "loss",
    "bytes_per_peer",
    "seconds",
)
"""Columns of the table of rounds; NaN where a kind does not have one.

``peers`` took part in the row. ``mean_error`` is how far the mean lies from where it belongs: the first mean, or the
mean of the optima. Distances are roots of means over peers; ``bytes_per_peer`` and ``seconds`` count from the start.
"""

OUTCOMES = (
    "rounds_done",
    "rounds_to_tolerance",
    "bytes_per_peer_to_tolerance",
    "seconds_to_tolerance",
    "final_distance",
    "final_mean_error",
    "final_distance_to_optimum",
    "final_distance_to_stationary",
    "final_loss",
    "measured_rate",
    "predicted_rate",
    "events",
    "log_hash",
)
"""Fields of the record of a run; None where it has no meaning or was not reached (the run is then censored)."""


@dataclass(frozen=True, slots=True, eq=False)
class CellResult:
    """What came out of one cell.

    Args:
        rounds: ``COLUMNS`` -> float64[T + 1], row 0 before the first round.
        outcome: ``OUTCOMES`` -> value.
    """

    rounds: dict[str, Column]
    outcome: dict[str, Any]

    @property
    def tables(self) -> dict[str, dict[str, Column]]:
        """The tables to keep, by name."""
        return {"rounds": self.rounds}


def rounds_table(rows: int, **columns: Column) -> dict[str, Column]:
    """Return all ``COLUMNS``, float64[rows], the ones not given filled with NaN."""
    absent = np.full(rows, math.nan)
    given = {"round": np.arange(rows, dtype=np.float64), **columns}
    return {name: np.asarray(given.get(name, absent), dtype=np.float64) for name in COLUMNS}


def outcome_of(rounds: dict[str, Column], reached: int | None, **others: object) -> dict[str, Any]:
    """Return all ``OUTCOMES`` of a table of rounds.

    Args:
        reached: row in which the tolerance was reached, if any.
        others: outcomes that a table does not tell.
    """

    def at(column: str, row: int | None) -> float | None:
        if row is None or math.isnan(value := float(rounds[column][row])):
            return None
        return value

    known: dict[str, object] = {
        "rounds_done": len(rounds["round"]) - 1,
        "rounds_to_tolerance": reached,
        "bytes_per_peer_to_tolerance": at("bytes_per_peer", reached),
        "seconds_to_tolerance": at("seconds", reached),
        "final_distance": at("consensus_distance", -1),
        "final_mean_error": at("mean_error", -1),
        "final_distance_to_optimum": at("distance_to_optimum", -1),
        "final_distance_to_stationary": at("distance_to_stationary", -1),
        "final_loss": at("loss", -1),
        **others,
    }
    return {name: known.get(name) for name in OUTCOMES}


def first_within(distance: Column, tolerance: float) -> int | None:
    """Return the first row at most ``tolerance`` times row 0, or None."""
    below = np.nonzero(distance <= tolerance * distance[0])[0]
    return int(below[0]) if len(below) else None
