"""How fast a topology averages, measured: the one number that methods adapt to."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from topology.consensus import of_topology, run_consensus
from topology.links import Topology

ROUNDS = 32
"""Rounds of averaging that are watched. Source: ours; a whole sweep of every finite-time schedule up to 1,000 peers."""
DIMENSION = 16
TINY = 1e-9
"""Averaged exactly, but for rounding."""


@lru_cache(maxsize=64)
def measured_contraction(topology: Topology, n: int) -> float:
    """Return p in [0, 1]: a round leaves 1 - p of the squared distance to the mean, geometric mean over rounds.

    All peers that see the same number of members find the same. 1 = exact within a few rounds, or nobody to mix with.

    Args:
        topology: who reads whom.
        n: members, >= 1.
    """
    if n == 1:
        return 1.0
    values = np.random.default_rng(0).standard_normal((n, DIMENSION))
    run = run_consensus(of_topology(topology, n), values, ROUNDS, tolerance=TINY)
    rounds = len(run.distance) - 1
    left = max(float(run.distance[-1] / run.distance[0]), TINY)
    return float(1.0 - left ** (2.0 / max(rounds, 1)))
