"""Cells of linear consensus: X <- W X in sparse products, with loss and churn, and what each round costs.

It knows neither nodes nor adapters; learning with real nodes is in ``learning.py``.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from scripts.lab.convergence.cell import AWAY, LOST, START, Cell
from scripts.lab.convergence.result import CellResult, outcome_of, rounds_table
from topology.consensus import measured_rate, of_topology, run_consensus
from topology.cost import LinkModel, round_bytes, slem_under_loss
from topology.links import Topology, parse_topology
from topology.loss import LOSS_RULES, Arcs
from topology.spectral import SPECTRUM_MAX, is_symmetric, lambda_min, slem

MATRICES_KEPT = 64
"""Of a sweep, so that each is priced once. Source: guess; sweeps are shorter, and random rounds never come again."""


class _CountedRounds:
    """The source of rounds of one consensus cell, which counts what each of them costs.

    Counted is what is sent: peers that are away send nothing, a lost message was sent.
    """

    def __init__(self, cell: Cell, topology: Topology) -> None:
        self._cell = cell
        self._planned = of_topology(topology, cell.peers)
        self._link = LinkModel(cell.latency_s, cell.bandwidth_mbit, cell.bandwidth_mbit)
        self._drop = LOSS_RULES["symmetric-drop" if topology.is_symmetric else "to-self"]
        self._costs_by_id: dict[int, tuple[csr_array, tuple[float, float]]] = {}
        self.costs: list[tuple[float, float]] = []
        """(bytes that all peers read, seconds) of each round so far."""

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
        known = self._costs_by_id.get(id(matrix)) if keep else None
        if known is not None and known[0] is matrix:
            return known[1]
        payload = self._cell.payload_mb * 1e6
        cost = round_bytes(matrix, payload)[0], self._link.round_s(matrix, payload)
        if keep:
            if len(self._costs_by_id) >= MATRICES_KEPT:
                self._costs_by_id.clear()
            self._costs_by_id[id(matrix)] = matrix, cost  # the matrix is kept too, or its id might come again
        return cost


def run_consensus_cell(cell: Cell) -> CellResult:
    """Average standard normal values float64[n, dimension] until all agree to ``tolerance``.

    Raises:
        TopologyError: the weight rule has no answer for these edges.
    """
    topology = parse_topology(cell.topology, seed=cell.seed, weights=cell.weights)
    values = np.random.default_rng((cell.seed, START)).standard_normal((cell.peers, cell.dimension))
    source = _CountedRounds(cell, topology)
    run = run_consensus(source, values, cell.rounds_max, tolerance=cell.tolerance)
    rows = len(run.distance)
    costs = np.asarray([(0.0, 0.0), *source.costs]).cumsum(axis=0)
    rounds = rounds_table(
        rows,
        peers=np.full(rows, float(cell.peers)),
        consensus_distance=run.distance,
        mean_error=run.drift,
        bytes_per_peer=costs[:, 0] / cell.peers,
        seconds=costs[:, 1],
    )
    measured = measured_rate(run.distance) if run.distance[0] > 0 else None
    return CellResult(
        rounds,
        outcome_of(
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
