"""An accountant by Rényi divergences: one number for each order, which add up over steps.

Of the two directions between neighbors the one with the unit in the first place is the larger (Mironov, Talwar, Zhang:
Rényi Differential Privacy of the Sampled Gaussian Mechanism, arXiv 1908.10530), so only that is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from peer.privacy.charge import Charge, merged

Vector = NDArray[np.floating[Any]]

ORDERS: Vector = np.concatenate(
    [np.arange(1.05, 2, 0.05), np.arange(2, 11, 0.25), np.arange(11, 64), 2.0 ** np.arange(6, 11.5, 0.5)]
)
"""Orders that are tried; the best one for usual budgets lies between 2 and 50. Source: as in Opacus, and finer."""
FULL_BELOW = 0.25
"""With less noise than this the draw is left out of the count, which is valid and, so far from private, no loss."""
REACH = 14.0
"""Standard deviations beyond the last centre at which integration ends; what lies there has mass below 1e-43."""


def epsilon(charges: Sequence[Charge], delta: float) -> float:
    """Return an epsilon that holds with ``delta`` after all of these steps; 0 if there are none.

    The conversion is Proposition 12 of Canonne, Kamath, Steinke (arXiv 2004.00010).

    Args:
        delta: in (0, 1).
    """
    kinds = merged(charges)
    if not kinds:
        return 0.0
    total = sum(
        (charge.steps * divergences(charge.noise_multiplier, charge.sampling_rate) for charge in kinds),
        np.zeros_like(ORDERS),
    )
    found = total + np.log1p(-1 / ORDERS) - (np.log(delta) + np.log(ORDERS)) / (ORDERS - 1)
    return max(0.0, float(found.min()))


@lru_cache(maxsize=256)
def divergences(noise_multiplier: float, sampling_rate: float) -> Vector:
    """Return the Rényi divergence of one step at each of ``ORDERS``."""
    return np.array([divergence(noise_multiplier, sampling_rate, float(order)) for order in ORDERS])


def divergence(noise_multiplier: float, sampling_rate: float, order: float) -> float:
    """Return the Rényi divergence of one step at one order above 1.

    With a draw it is the logarithm of the mean of (1 - q + q e^((2x - 1) / 2s^2))^order over x ~ N(0, s^2), by the
    trapezoid rule, whose error falls exponentially with the spacing for such functions: far below 1e-11.
    """
    variance = noise_multiplier**2
    if sampling_rate == 1 or noise_multiplier < FULL_BELOW:
        return float(order / (2 * variance))
    # singularities lie pi s^2 from the real line; the error is exp(-2 pi * pi s^2 / spacing)
    spacing = min(noise_multiplier / 4, variance / 2)
    reach = REACH * noise_multiplier
    x = np.arange(-reach, order + reach, spacing)
    log_ratio = np.logaddexp(np.log1p(-sampling_rate), np.log(sampling_rate) + (2 * x - 1) / (2 * variance))
    log_normal = -(x**2) / (2 * variance) - 0.5 * np.log(2 * np.pi * variance)
    mean = float(logsumexp(log_normal + order * log_ratio)) + np.log(spacing)
    return float(max(0.0, mean) / (order - 1))
