"""One piece of training with noise, as accountants count it: steps of the subsampled Gaussian mechanism.

In one step every unit (a row, or all rows of an author) is drawn by itself with the same probability, which nobody else
learns; the sum of the drawn units' gradients, each of Euclidean norm at most the clip, is published with Gaussian noise
of standard deviation ``noise_multiplier * clip`` added. Two data sets are neighbors if one has one unit more.
Source: Abadi et al., Deep Learning with Differential Privacy (arXiv 1607.00133).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple


class Charge(NamedTuple):
    """Steps of one kind.

    Attributes:
        noise_multiplier: standard deviation of the noise over the clip, positive.
        sampling_rate: probability with which a unit takes part in a step, in (0, 1].
        steps: how many, at least 0.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int


def check(charge: Charge) -> None:
    """Refuse a charge that describes no mechanism.

    Raises:
        ValueError: names the field.
    """
    if not (math.isfinite(charge.noise_multiplier) and charge.noise_multiplier > 0):
        raise ValueError(f"noise_multiplier must be positive and finite, not {charge.noise_multiplier!r}")
    if not 0 < charge.sampling_rate <= 1:
        raise ValueError(f"sampling_rate must lie in (0, 1], not {charge.sampling_rate!r}")
    if charge.steps < 0:
        raise ValueError(f"steps must be at least 0, not {charge.steps!r}")


def merged(charges: Iterable[Charge]) -> list[Charge]:
    """Return the same steps with one charge for each kind, in a fixed order; kinds without steps are left out.

    Raises:
        ValueError: one of them describes no mechanism.
    """
    steps: defaultdict[tuple[float, float], int] = defaultdict(int)
    for charge in charges:
        check(charge)
        steps[charge.noise_multiplier, charge.sampling_rate] += charge.steps
    return [Charge(*kind, count) for kind, count in sorted(steps.items()) if count]
