"""Epsilon of what was done, and the noise that a promise needs.

A promise (epsilon, delta) bounds what anybody can learn about one unit from all that a peer ever publishes: whatever is
seen, its probability with the unit among the data is at most e^epsilon times that without it, plus delta.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from scipy.optimize import brentq

from gossip.errors import LocalError
from peer.privacy import loss_distribution, renyi
from peer.privacy.charge import Charge

Accountant = Literal["pld", "rdp"]

EPSILON_OF: dict[Accountant, Callable[[Sequence[Charge], float], float]] = {
    "pld": loss_distribution.epsilon,
    "rdp": renyi.epsilon,
}
"""Accountant -> epsilon of charges at a delta."""
DELTA_MIN = 1e-12
"""Smallest delta that is counted with; below it, rounding of float64 is no longer small against it. Source: ours."""
NOISE_MIN, NOISE_MAX = 0.2, 10_000.0
"""Least and most noise multiplier that is looked for. With the least, one step without a draw has epsilon above 30."""
NOISE_PRECISION = 5e-4
"""How far the noise may lie above the least that suffices, relatively; never below."""


def epsilon(charges: Sequence[Charge], delta: float, accountant: Accountant = "pld") -> float:
    """Return an epsilon that holds with ``delta`` after all of these steps; 0 if there are none.

    Raises:
        LocalError: delta is out of range.
        ValueError: a charge describes no mechanism.
    """
    if not DELTA_MIN <= delta < 1:
        raise LocalError(f"delta must lie between {DELTA_MIN:g} and 1 (excluded), not {delta!r}")
    return EPSILON_OF[accountant](charges, delta)


def noise_multiplier_for(
    target_epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    spent: Sequence[Charge] = (),
    accountant: Accountant = "pld",
) -> float:
    """Return the least noise with which these steps, after what is spent, keep the promise.

    Args:
        target_epsilon, delta: the promise over everything, what is spent included.
        sampling_rate: probability with which a unit takes part in a step.
        steps: how many are still to come, at least 1.
        spent: what has been done with these data.

    Returns:
        the standard deviation of the noise over the clip.

    Raises:
        LocalError: no noise is enough, because too much is spent or there are too many steps.
    """
    before = epsilon(spent, delta, accountant)
    if before >= target_epsilon:
        raise LocalError(
            f"nothing is left to spend for these data: epsilon {before:.3g} of {target_epsilon:g} is spent at delta "
            f"{delta:g} (see `peer privacy`): mix without training, use other data, or promise less with a larger "
            "--dp-epsilon, which those who read us before have then also been told"
        )

    def excess(log_noise: float) -> float:
        after = [*spent, Charge(math.exp(log_noise), sampling_rate, steps)]
        return epsilon(after, delta, accountant) - target_epsilon

    if excess(math.log(NOISE_MAX)) > 0:
        raise LocalError(
            f"no noise keeps epsilon {target_epsilon:g} over {steps:,} more steps that each take "
            f"{sampling_rate:.2%} of the data, with epsilon {before:.3g} spent: take fewer rounds or local steps, "
            "a smaller --batch-size, more rows, or a larger --dp-epsilon"
        )
    return math.exp(_least(excess))


def _least(excess: Callable[[float], float]) -> float:
    """Return the least logarithm of noise without excess, within ``NOISE_PRECISION``; excess falls with noise."""
    low = math.log(NOISE_MIN)
    if excess(low) <= 0:
        return low
    high = low + math.log(2)
    while high < math.log(NOISE_MAX) and excess(high) > 0:
        low, high = high, high + math.log(2)
    found = float(brentq(excess, low, high, xtol=NOISE_PRECISION / 4))
    while excess(found) > 0:
        found += NOISE_PRECISION / 4
    return found
