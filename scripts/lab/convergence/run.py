"""Runs one cell: from a spec to a table of rounds and one record of outcomes. Pure: equal specs, equal results.

Linear consensus runs here in sparse products; learning with real nodes is in ``learning.py``. It writes no
file, reads no clock and prints nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from scripts.lab.convergence.cell import Cell, topology_errors
from topology.consensus import measured_rate, of_topology, run_consensus
from topology.cost import LinkModel, round_bytes, slem_under_loss
from topology.links import Topology, parse_topology
from topology.loss import LOSS_RULES, Arcs
from topology.spectral import SPECTRUM_MAX, is_symmetric, lambda_min, slem

Column = NDArray[np.float64]

START, LOST, AWAY = 1, 2, 3
"""Names of the independent streams of random numbers that a cell's seed is the root of."""

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


def run_cell(cell: Cell) -> CellResult:
    """Run one cell, whatever its kind.

    Raises:
        LocalError: the spec cannot run; ``Cell.check`` tells before.
    """
    with topology_errors():
        if cell.kind == "consensus":
            return _consensus(cell)
        if cell.kind == "quadratic":
            from scripts.lab.convergence.learning import run_quadratic

            return run_quadratic(cell)
        from scripts.lab.convergence.tiny import run_tiny

        return run_tiny(cell)


class _Rounds:
    """The source of rounds of one consensus cell, which counts what each of them costs.

    Counted is what is sent: peers that are away send nothing, a lost message was sent.
    """

    def __init__(self, cell: Cell, topology: Topology) -> None:
        self._cell = cell
        self._planned = of_topology(topology, cell.peers)
        self._link = LinkModel(cell.latency_s, cell.bandwidth_mbit, cell.bandwidth_mbit)
        self._drop = LOSS_RULES["symmetric-drop" if topology.is_symmetric else "to-self"]
        self._known: dict[int, tuple[csr_array, tuple[float, float]]] = {}
        self.costs: list[tuple[float, float]] = []

    def __call__(self, round: int) -> csr_array:
        cell, matrix = self._cell, self._planned(round)
        if cell.loss == cell.churn == 0.0:
            self.costs.append(self._cost(matrix, keep=True))
            return matrix
        arcs = Arcs.of(matrix)
        reader, read = arcs.edges.reader, arcs.edges.read
        here = np.random.default_rng((cell.seed, AWAY, round)).random(cell.peers) >= cell.churn
        arrived = np.random.default_rng((cell.seed, LOST, round)).random(len(reader)) >= cell.loss
        asked = here[reader] & here[read]
        if cell.churn == 0.0:
            self.costs.append(self._cost(matrix, keep=True))
        else:
            self.costs.append(self._cost(LOSS_RULES["to-self"](arcs, asked), keep=False))
        return self._drop(arcs, arrived & asked)

    def _cost(self, matrix: csr_array, *, keep: bool) -> tuple[float, float]:
        """Return (bytes all peers read, seconds); a sweep that repeats hands out the same matrix again."""
        known = self._known.get(id(matrix)) if keep else None
        if known is not None and known[0] is matrix:
            return known[1]
        payload = self._cell.payload_mb * 1e6
        cost = round_bytes(matrix, payload)[0], self._link.round_s(matrix, payload)
        if keep:
            if len(self._known) >= 64:
                self._known.clear()
            self._known[id(matrix)] = matrix, cost  # the matrix is kept too, or its id might come again
        return cost


def _consensus(cell: Cell) -> CellResult:
    topology = parse_topology(cell.topology, seed=cell.seed, weights=cell.weights)
    values = np.random.default_rng((cell.seed, START)).standard_normal((cell.peers, cell.dimension))
    source = _Rounds(cell, topology)
    run = run_consensus(source, values, cell.rounds_max, tolerance=cell.tolerance)
    count = len(run.distance)
    costs = np.asarray([(0.0, 0.0), *source.costs]).cumsum(axis=0)
    rounds = table(
        count,
        peers=np.full(count, float(cell.peers)),
        consensus_distance=run.distance,
        mean_error=run.drift,
        bytes_per_peer=costs[:, 0] / cell.peers,
        seconds=costs[:, 1],
    )
    measured = measured_rate(run.distance) if run.distance[0] > 0 else None
    return CellResult(
        rounds,
        outcome(
            rounds,
            run.rounds_to(cell.tolerance),
            measured_rate=measured,
            predicted_rate=_predicted(cell, topology),
        ),
    )


def _predicted(cell: Cell, topology: Topology) -> float | None:
    """Return the SLEM, of the expected W under loss; None where no one matrix governs the run, or it is too large."""
    if not topology.is_static or cell.churn or cell.peers > SPECTRUM_MAX:
        return None
    matrix = topology.matrix(cell.peers)
    rho = slem(matrix)
    if cell.loss == 0.0:
        return rho
    if not is_symmetric(matrix) or cell.peers < 2:
        return None
    second = float(np.linalg.eigvalsh(matrix.toarray())[-2])
    return slem_under_loss(second, lambda_min(matrix), cell.loss)


def table(count: int, **columns: Column) -> dict[str, Column]:
    """Return all ``COLUMNS`` for ``count`` rows, the ones not given filled with NaN."""
    absent = np.full(count, math.nan)
    every = {"round": np.arange(count, dtype=np.float64), **columns}
    return {name: np.asarray(every.get(name, absent), dtype=np.float64) for name in COLUMNS}


def outcome(rounds: dict[str, Column], reached: int | None, **known: Any) -> dict[str, Any]:
    """Return all ``OUTCOMES`` of a table of rounds: its last row, and the row in which the tolerance was reached."""

    def at(column: str, row: int | None) -> float | None:
        if row is None or math.isnan(value := float(rounds[column][row])):
            return None
        return value

    made: dict[str, Any] = {
        "rounds_done": len(rounds["round"]) - 1,
        "rounds_to_tolerance": reached,
        "bytes_per_peer_to_tolerance": at("bytes_per_peer", reached),
        "seconds_to_tolerance": at("seconds", reached),
        "final_distance": at("consensus_distance", -1),
        "final_mean_error": at("mean_error", -1),
        "final_distance_to_optimum": at("distance_to_optimum", -1),
        "final_distance_to_stationary": at("distance_to_stationary", -1),
        "final_loss": at("loss", -1),
        **known,
    }
    return {name: made.get(name) for name in OUTCOMES}


def reached_first(distance: Column, tolerance: float) -> int | None:
    """Return the first row at most ``tolerance`` times row 0, or None."""
    below = np.nonzero(distance <= tolerance * distance[0])[0]
    return int(below[0]) if len(below) else None
