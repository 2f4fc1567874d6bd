"""What a topology gives to methods, for so many peers: ``compatibility.py`` holds their needs against it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from gossip.methods.stability import PAIRS
from topology.errors import TopologyError
from topology.links import Topology
from topology.spectral import isotropic_contraction, lambda_min

ROUNDS_SEEN = 32
"""Rounds of a changing topology that are averaged over. Source: ours, as for its contraction."""
ROUNDING = 1e-9
"""An eigenvalue that should be 0, or a weight that should be 1/n, may be off by so much. Source: ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyFacts:
    """What a topology gives to methods.

    Args:
        name: as written after ``--topology``.
        doubly_stochastic, symmetric, static: of W; see ``Requirements``.
        lambda_min: smallest eigenvalue of a symmetric static W; None where there is none, or not for so many peers.
        uniform: every row of W reads everybody with equal weights.
        omega, kappa: E[W] and E|W z|^2 / |z|^2 on disagreement z, averaged over directions and rounds.
    """

    name: str
    doubly_stochastic: bool
    symmetric: bool
    static: bool
    lambda_min: float | None = None
    uniform: bool = False
    omega: float = PAIRS
    kappa: float = PAIRS


def facts_of(topology: Topology, peers: int) -> TopologyFacts:
    """Return what a topology gives to so many peers; numbers that it does not have for them keep their defaults."""
    smallest, uniform, omega, kappa = None, False, PAIRS, PAIRS
    try:
        rounds = min(topology.period(peers) or ROUNDS_SEEN, ROUNDS_SEEN)
        matrices = [topology.matrix(peers, round) for round in range(rounds)]
        if topology.is_static and topology.is_symmetric:
            smallest = lambda_min(matrices[0])
        uniform = all(_is_uniform(matrix) for matrix in matrices)
        if peers > 1:
            omega = float(np.mean([(matrix.trace() - 1.0) / (peers - 1) for matrix in matrices]))
            kappa = float(np.mean([isotropic_contraction(matrix) for matrix in matrices]))
    except TopologyError:
        pass  # another check says so, if the number of peers is more than a guess
    return TopologyFacts(
        name=topology.name,
        doubly_stochastic=topology.is_doubly_stochastic,
        symmetric=topology.is_symmetric,
        static=topology.is_static,
        lambda_min=smallest,
        uniform=uniform,
        omega=omega,
        kappa=kappa,
    )


def _is_uniform(matrix: csr_array) -> bool:
    """Tell whether every weight of W is 1/n."""
    count = matrix.shape[0]
    return matrix.nnz == count**2 and bool(np.abs(matrix.data - 1.0 / count).max() <= ROUNDING)
