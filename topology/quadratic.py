"""Decentralized SGD on heterogeneous quadratics, whose fixed point is known: the test of mixing with local steps.

Peer i minimizes (1/2)||x - b_i||^2. H local steps of rate eta pull x_i towards b_i by 1 - a, a = (1 - eta)^H. Adapt
then combine (ATC) x <- W (a x + (1 - a) b) rests at (I - aW)^-1 (1 - a) W b; combine then adapt (CTA, the original
D-PSGD) x <- W x - eta (x - b) at eta ((1 + eta) I - W)^-1 b. For doubly stochastic W both have the exact mean.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array, eye_array
from scipy.sparse.linalg import splu

from topology.errors import TopologyError

Values = NDArray[np.float64]
Order = Literal["atc", "cta"]


def fixed_point(
    matrix: csr_array, targets: Values, eta: float, local_steps: int = 1, order: Order = "atc"
) -> Values:
    """Return where ``run`` comes to rest, ``float64[n, d]``, by one sparse solve.

    Args:
        matrix: W, ``csr_array[n, n]``, row-stochastic.
        targets: ``float64[n, d]``, the b_i.
        eta: learning rate, 0 < eta < 1.
        local_steps: H >= 1; CTA is defined for 1 only.

    Raises:
        TopologyError: a parameter out of range.
    """
    _check(eta, local_steps, order)
    identity = eye_array(matrix.shape[0])
    if order == "cta":
        return np.asarray(splu(csc_array((1.0 + eta) * identity - matrix)).solve(eta * targets))
    keep = (1.0 - eta) ** local_steps
    return np.asarray(splu(csc_array(identity - keep * matrix)).solve((1.0 - keep) * (matrix @ targets)))


def run(
    rounds: Callable[[int], csr_array],
    targets: Values,
    eta: float,
    count: int,
    local_steps: int = 1,
    order: Order = "atc",
) -> Values:
    """Run ``count`` rounds from zero, step by step as a peer would, and return ``float64[n, d]``.

    Raises:
        TopologyError: a parameter out of range.
    """
    _check(eta, local_steps, order)
    x = np.zeros_like(targets)
    for round in range(count):
        if order == "cta":
            x = rounds(round) @ x - eta * (x - targets)
            continue
        for _ in range(local_steps):
            x = x - eta * (x - targets)
        x = rounds(round) @ x
    return x


def _check(eta: float, local_steps: int, order: Order) -> None:
    if not 0.0 < eta < 1.0:
        raise TopologyError(f"eta must lie between 0 and 1 (both excluded), not {eta!r}")
    if local_steps < 1 or (order == "cta" and local_steps != 1):
        raise TopologyError(f"local steps must be at least 1, and exactly 1 for CTA, not {local_steps}")
