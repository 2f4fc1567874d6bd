"""Linear consensus X <- W X in sparse products, with the consensus distance and the drift of the mean, round by round.

The pure question "which topology averages how fast", without learning, network or codec. The mean is taken out at the
start (W keeps constants, rows sum to 1), so that distances stay exact down to rounding even far from zero. Source:
ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from topology.errors import TopologyError
from topology.links import Topology
from topology.spectral import mean_drift

Values = NDArray[np.float64]

MEAN_EVERY = 32
"""Rounds between two looks at the mean where W is doubly stochastic: there it moves by rounding only."""
CONTRACTION_ROUNDS = 32
"""Rounds of averaging that are watched. Source: ours; a whole sweep of every finite-time schedule up to 1,000 peers."""
CONTRACTION_DIMENSION = 16
AVERAGED = 1e-9
"""Averaged exactly, but for rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class ConsensusRun:
    """One run.

    Args:
        distance: ``float64[T + 1]``, Xi after 0..T rounds: root of the mean over peers of ||x_i - mean||^2.
        drift: ``float64[T + 1]``, ||mean - first mean||; 0 to rounding where all W are doubly stochastic.
        values: ``float64[n, d]`` at the end.
    """

    distance: Values
    drift: Values
    values: Values

    def rounds_to(self, tolerance: float) -> int | None:
        """Return the first round with Xi <= tolerance x Xi_0, or None where the run did not get there."""
        below = np.nonzero(self.distance <= tolerance * self.distance[0])[0]
        return int(below[0]) if len(below) else None


def run_consensus(
    rounds: Callable[[int], csr_array], values: Values, count: int, *, tolerance: float = 0.0
) -> ConsensusRun:
    """Mix ``count`` rounds, or until Xi <= tolerance x Xi_0.

    Args:
        rounds: round -> W, row-stochastic ``csr_array[n, n]``; ``static(W)`` and ``of_topology`` make one.
        values: ``float64[n, d]``, finite; not written to.
        count: >= 0.

    Raises:
        TopologyError: ``values`` is not two-dimensional or not finite.
    """
    if values.ndim != 2 or not np.isfinite(values).all():
        raise TopologyError("consensus starts from finite values of shape [peers, values per peer]")
    offset = values.mean(axis=0)
    first, x = offset, np.ascontiguousarray(values - offset)
    n = len(x)
    share, mean = np.full(n, 1.0 / n), np.zeros_like(offset)
    matrix: csr_array | None = None
    keeps_mean = False
    distance, drift = [math.sqrt(float(np.vdot(x, x)) / n)], [0.0]
    for round in range(count):
        if distance[-1] <= tolerance * distance[0]:
            break
        before, matrix = matrix, rounds(round)
        if matrix is not before:
            keeps_mean = mean_drift(matrix) < 1e-12
        x = matrix @ x
        if not keeps_mean or round % MEAN_EVERY == 0 or round == count - 1:
            mean = share @ x
        square, of_mean = float(np.vdot(x, x)) / n, float(np.vdot(mean, mean))
        if of_mean > 1e-3 * square:
            # The difference below would cancel: move the origin to where the mean now is.
            mean = share @ x
            x, offset, mean = x - mean, offset + mean, np.zeros_like(mean)
            square, of_mean = float(np.vdot(x, x)) / n, 0.0
        distance.append(math.sqrt(max(square - of_mean, 0.0)))
        drift.append(float(np.linalg.norm(offset + mean - first)))
    return ConsensusRun(np.asarray(distance), np.asarray(drift), x + offset)


def static(matrix: csr_array) -> Callable[[int], csr_array]:
    """Return the source of rounds that always gives the same W."""
    return lambda round: matrix


def of_topology(topology: Topology, n: int) -> Callable[[int], csr_array]:
    """Return the source of rounds of a topology for n peers; a sweep that repeats is built once."""
    period = topology.period(n)
    kept: dict[int, csr_array] = {}

    def rounds(round: int) -> csr_array:
        if period == 0:
            return topology.matrix(n, round)
        if round % period not in kept:
            kept[round % period] = topology.matrix(n, round % period)
        return kept[round % period]

    return rounds


def measured_rate(distance: Values, window: tuple[float, float] = (1e-12, 1e-1)) -> float | None:
    """Return exp of half the slope of ln Xi^2: the measured rho, to hold against the predicted SLEM.

    Least squares over rounds where Xi^2/Xi_0^2 lies in the window, of which only the later half (in rounds) is used:
    early rounds still hold modes that die faster. None where fewer than 3 rounds are left.

    Args:
        distance: Xi of rounds 0..T.
        window: relative squares. Source: algorithms.md section 8.
    """
    with np.errstate(divide="ignore"):
        logarithm = 2.0 * np.log(distance / distance[0])
    inside = np.nonzero((logarithm > math.log(window[0])) & (logarithm < math.log(window[1])))[0]
    late = inside[len(inside) // 2 :]
    if len(late) < 3:
        return None
    return math.exp(float(np.polyfit(late, logarithm[late], 1)[0]) / 2.0)


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
    values = np.random.default_rng(0).standard_normal((n, CONTRACTION_DIMENSION))
    run = run_consensus(of_topology(topology, n), values, CONTRACTION_ROUNDS, tolerance=AVERAGED)
    rounds = len(run.distance) - 1
    left = max(float(run.distance[-1] / run.distance[0]), AVERAGED)
    return float(1.0 - left ** (2.0 / max(rounds, 1)))
