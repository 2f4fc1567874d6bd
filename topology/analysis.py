"""All figures of one topology for n peers in one record: what ``show --json`` prints and reports tabulate.

Static topologies have a gap and effective neighbors; schedules have a sweep and its contraction; random ones an
expected contraction per round. What has no meaning is None, never a number. It draws nothing and prints nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from topology.cost import LinkModel, round_bytes
from topology.edges import Edges, undirected
from topology.links import Topology
from topology.spectral import (
    effective_neighbors,
    expected_contraction,
    is_symmetric,
    lambda_min,
    mean_drift,
    rounds_to,
    slem,
    sweep_contraction,
)
from topology.structure import diameter

GAMMAS = (0.5, 0.9, 0.99)
"""Memories at which effective neighbors are reported. Source: algorithms.md section 8."""
DRAWS = 32
"""Rounds drawn of a schedule that never repeats. Source: guess; the standard error is reported."""
EXACT = 1e-10
"""A sweep that leaves less than this of the disagreement is the exact average but for rounding."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Figures of one topology for n peers; None = has no meaning for it.

    Args:
        edges: pairs (arcs where W is not symmetric) in the union of one sweep.
        degree_max: most peers that one reads in one round.
        reads_per_round: arcs of a round, averaged over the sweep or draws: what traffic is counted from.
        diameter: of the union of one sweep.
        spectral_gap, slem, lambda_min, effective_neighbors: of W, static topologies only.
        sweep_length: rounds until it repeats.
        sweep_contraction: worst-case shrinking of the disagreement over one sweep.
        expected_contraction: of Xi^2 per round, random schedules only, with its standard error.
        mean_drift: by which one round moves the mean of unit-variance values, averaged over the sweep or draws.
        rounds_to_tolerance: predicted rounds until Xi has shrunk by ``tolerance``.
    """

    name: str
    peers: int
    edges: int | None
    degree_max: int
    reads_per_round: float
    diameter: int | None
    spectral_gap: float | None
    slem: float | None
    lambda_min: float | None
    effective_neighbors: dict[str, float] | None
    doubly_stochastic: bool
    symmetric: bool
    sweep_length: int | None
    sweep_contraction: float | None
    expected_contraction: tuple[float, float] | None
    mean_drift: float
    tolerance: float
    rounds_to_tolerance: float


def measure(topology: Topology, n: int, *, tolerance: float = 1e-6) -> Measures:
    """Measure a topology for n peers, with its weights as the rule gives them, negative ones included.

    Call ``topology.check(n)`` before, to refuse a graph that does not exist for n; here its fallback is measured.

    Raises:
        TopologyError: the weight rule has no answer for these edges.
    """
    period = topology.period(n)
    sweep = [topology.matrix(n, round) for round in range(period or DRAWS)]
    symmetric = all(map(is_symmetric, sweep))
    arcs = [_off_diagonal(matrix) for matrix in sweep]
    union = _union(arcs, symmetric) if period else None
    rho = slem(sweep[0]) if period == 1 else None
    contraction = sweep_contraction(sweep) if period else None
    expected = expected_contraction(sweep) if not period else None
    return Measures(
        name=topology.name,
        peers=n,
        edges=None if union is None else len(union),
        degree_max=max(int(np.bincount(a[:, 0], minlength=1).max(initial=0)) for a in arcs),
        reads_per_round=float(np.mean([len(a) for a in arcs])),
        diameter=None if union is None else diameter(n, np.concatenate(arcs)),
        spectral_gap=None if rho is None else 1.0 - rho,
        slem=rho,
        lambda_min=lambda_min(sweep[0]) if period == 1 and symmetric else None,
        effective_neighbors={f"{g:g}": effective_neighbors(sweep[0], g) for g in GAMMAS}
        if period == 1
        else None,
        doubly_stochastic=all(mean_drift(m) < 1e-9 for m in sweep),
        symmetric=symmetric,
        sweep_length=period or None,
        sweep_contraction=contraction,
        expected_contraction=expected,
        mean_drift=float(np.mean([mean_drift(matrix) for matrix in sweep])),
        tolerance=tolerance,
        rounds_to_tolerance=_predicted_rounds(period, rho, contraction, expected, tolerance),
    )


def _predicted_rounds(
    period: int,
    rho: float | None,
    contraction: float | None,
    expected: tuple[float, float] | None,
    tolerance: float,
) -> float:
    if rho is not None:
        return rounds_to(0.0 if rho < EXACT else rho, tolerance)
    if expected is not None:
        return rounds_to(math.sqrt(max(expected[0], 0.0)), tolerance)
    assert contraction is not None
    return float(period) if contraction < EXACT else period * rounds_to(contraction, tolerance)


def consensus_cost(
    topology: Topology, n: int, rounds: float, payload_bytes: float, link: LinkModel | None = None
) -> tuple[float, float, float]:
    """Return (bytes of all peers together, bytes of the busiest peer, seconds) of so many rounds.

    Averaged over one sweep, or over ``DRAWS`` rounds of a random schedule. Without a link model, seconds are 0.
    """
    model = link or LinkModel()
    sweep = [topology.matrix(n, round) for round in range(topology.period(n) or DRAWS)]
    of_round = np.asarray(
        [(*round_bytes(matrix, payload_bytes), model.round_s(matrix, payload_bytes)) for matrix in sweep]
    )
    total, busiest, seconds = (of_round.mean(axis=0) * rounds).tolist()
    return total, busiest, seconds


def _off_diagonal(matrix: csr_array) -> Edges:
    coo = matrix.tocoo()
    keep = (coo.row != coo.col) & (coo.data != 0)
    return np.stack([coo.row[keep], coo.col[keep]], axis=1).astype(np.int64)


def _union(arcs: list[Edges], symmetric: bool) -> Edges:
    every = np.concatenate(arcs)
    return undirected(every) if symmetric else np.unique(every, axis=0)
