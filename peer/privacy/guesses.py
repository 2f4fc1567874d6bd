"""What a promise means for who guesses: how often at most membership is told right, at a rate of wrong alarms.

Whoever has all that a peer ever published and must say of one unit whether it was among the data, raises an alarm on
some that were (true positives) and on some that were not (false positives). A pair (epsilon, delta) bounds the first by
the second (Kairouz, Oh, Viswanath, arXiv 1311.0776): true <= e^epsilon false + delta, and the same of the two rates of
being wrong about silence. What has really been done holds for many pairs at once, and all of them bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from peer.privacy.accounting import epsilon
from peer.privacy.charge import Charge

Pairs = Sequence[tuple[float, float]]

DELTAS = (
    1e-9,
    1e-7,
    1e-6,
    1e-5,
    1e-4,
    1e-3,
    0.003,
    0.01,
    0.02,
    0.04,
    0.07,
    0.1,
    0.15,
    0.2,
    0.25,
    0.3,
    0.4,
    0.5,
)
"""Deltas at which epsilon is counted for the bounds; more of them would only sharpen these by a percent."""


def profile(charges: Sequence[Charge]) -> Pairs:
    """Return pairs (epsilon, delta) that all hold after these steps."""
    return [(epsilon(charges, delta), delta) for delta in DELTAS]


def true_positives(pairs: Pairs, false_positives: float) -> float:
    """Return the largest rate of true positives that goes with this rate of false ones.

    Args:
        pairs: (epsilon, delta) that hold.
        false_positives: in [0, 1].
    """
    bounds = [1.0]
    for eps, delta in pairs:
        ratio = math.exp(min(eps, 700.0))
        bounds += [ratio * false_positives + delta, 1 - (1 - delta - false_positives) / ratio]
    return max(false_positives, min(bounds))


def area_under_curve(pairs: Pairs) -> float:
    """Return the largest area under the curve of true over false positives; 0.5 is a coin, 1 is certainty."""
    # the bound is concave in the false positives: what lies over a chord is less than what the next point adds
    at = np.concatenate([[0.0], np.geomspace(1e-6, 1, 400)])
    heights = np.array([true_positives(pairs, float(rate)) for rate in at])
    return float(min(1.0, np.diff(at) @ heights[1:]))
