"""Where outer momentum on top of mixing is stable: rates without inner steps, in closed form where there is one.

With nothing to learn, outer momentum must still bring peers together. Per direction of disagreement z and momentum m a
round is linear, with d = (W - I) z the pull of the neighbors::

    heavy ball (NoLoCo)    m' = mu m + gamma d      z' = z + m'
    Nesterov (DiLoCo)      m' = mu m + d            z' = z + gamma (d + mu m')

A static W is judged by its eigenvalues, a W drawn anew every round by second moments (E|z|^2, E z.m, E|m|^2), which
follow from E[W] = omega and E|W z|^2 = kappa |z|^2 on disagreement. The bound for random pairs is derived in
algorithms.md section 2 (ours). It knows neither adapters nor rounds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PAIRS = 0.5
"""omega and kappa of random pairs among many peers: half of every difference stays, half of its square too."""


class Outer(NamedTuple):
    """Outer momentum: ``mu`` in [0, 1), step ``gamma`` > 0, and which of the two kinds."""

    mu: float
    gamma: float
    nesterov: bool = False

    @property
    def recursion(self) -> tuple[float, float, float, float]:
        """(p, q, r, s) of z' = z + p d + q m, m' = r d + s m."""
        if self.nesterov:
            return self.gamma * (1.0 + self.mu), self.gamma * self.mu**2, 1.0, self.mu
        return self.gamma, self.mu, self.gamma, self.mu


def second_moments(outer: Outer, omega: float = PAIRS, kappa: float = PAIRS) -> NDArray[np.float64]:
    """Return float64[3, 3], one round of (E|z|^2, E z.m, E|m|^2) for W independent of the past.

    Args:
        omega: E[W] on disagreement, in [-1, 1]; the same in all directions.
        kappa: E|W z|^2 / |z|^2 on disagreement, at least omega^2.
    """
    p, q, r, s = outer.recursion
    pull, square = omega - 1.0, kappa - 2.0 * omega + 1.0  # E z.d and E|d|^2, relative to |z|^2
    return np.array(
        [
            [1.0 + 2.0 * p * pull + p * p * square, 2.0 * q * (1.0 + p * pull), q * q],
            [r * pull + p * r * square, s + (p * s + q * r) * pull, q * s],
            [r * r * square, 2.0 * r * s * pull, s * s],
        ]
    )


def random_rate(outer: Outer, omega: float = PAIRS, kappa: float = PAIRS) -> float:
    """Return the factor by which the mean square of disagreement shrinks in a round in the long run; stable below 1."""
    return float(np.abs(np.linalg.eigvals(second_moments(outer, omega, kappa))).max())


def static_bound(mu: float, eigenvalue: float, *, nesterov: bool = False) -> float:
    """Return the gamma below which outer momentum is stable in an eigenvector of a static W with eigenvalue < 1.

    Heavy ball: gamma (1 - l) < 2 (1 + mu). Nesterov: gamma (1 - l) < 2 (1 + mu) / (1 + 2 mu). From the Jury
    conditions of the recursion's characteristic polynomial with d = (l - 1) z. The smallest eigenvalue decides.
    """
    return 2.0 * (1.0 + mu) / (1.0 + 2.0 * mu if nesterov else 1.0) / (1.0 - eigenvalue)


def random_bound(mu: float, omega: float = PAIRS, kappa: float = PAIRS, *, nesterov: bool = False) -> float:
    """Return the gamma at which ``random_rate`` reaches 1, by bisection to 1e-9; infinite if none up to 1e3 does."""
    low, high = 0.0, 1.0
    while random_rate(Outer(mu, high, nesterov), omega, kappa) < 1.0:
        low, high = high, 2.0 * high
        if high > 1e3:
            return float("inf")
    while high - low > 1e-9:
        middle = (low + high) / 2.0
        if random_rate(Outer(mu, middle, nesterov), omega, kappa) < 1.0:
            low = middle
        else:
            high = middle
    return low
