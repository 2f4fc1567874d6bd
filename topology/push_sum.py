"""Push-sum: exact averages on directed graphs and under loss, by sending mass along with values (Kempe et al. 2003).

Each peer splits (x, w) by the columns of P and estimates x/w. Plain push-sum loses the mass of lost messages. With
running counters a message carries all that was ever sent on that arc, and the receiver adds what is new since the
last one it got: nothing is lost for good (Vaidya, Hadjicostis & Dominguez-Garcia 2011). It knows no protocol, only
arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from topology.errors import TopologyError

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class PushSumRun:
    """One run.

    Args:
        ratio: ``float64[n, d]``, x/w of each peer at the end.
        error: ``float64[T + 1]``, largest |x/w - mean| after 0..T rounds; the mean is weighted by the first w.
        mass: ``float64[T + 1]``, total w held by peers and under way; n at first, and for ever with counters.
    """

    ratio: Values
    error: Values
    mass: Values


def run_push_sum(
    matrix: csr_array,
    values: Values,
    count: int,
    *,
    loss: float = 0.0,
    counters: bool = True,
    weights: Values | None = None,
    seed: int = 0,
) -> PushSumRun:
    """Run push-sum with each message lost independently.

    Args:
        matrix: P, column-stochastic with positive diagonal (``weights.column_stochastic``).
        values: ``float64[n, d]``.
        count: rounds.
        loss: probability in [0, 1).
        counters: send running sums instead of shares.
        weights: ``float64[n]`` > 0, e.g. data sizes: the result is the mean weighted by them. Default all 1.
        seed: of the losses.

    Raises:
        TopologyError: P is not column-stochastic or has no self-weight somewhere, or loss is out of range.
    """
    _check(matrix, loss)
    n = len(values)
    mass = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    state = np.concatenate([values * mass[:, None], mass[:, None]], axis=1)  # [n, d + 1], last column w
    target = state[:, :-1].sum(axis=0) / mass.sum()
    coo = matrix.tocoo()
    arc = coo.row != coo.col
    to, sender, share = coo.row[arc], coo.col[arc], coo.data[arc, None]
    gather = coo_array((np.ones(len(to)), (to, np.arange(len(to)))), shape=(n, len(to))).tocsr()
    keep = matrix.diagonal()[:, None]
    pending = np.zeros((len(to), state.shape[1]))  # sent on each arc and not yet received
    rng = np.random.default_rng(seed)
    error, total = [_error(state, target)], [float(state[:, -1].sum())]
    for _ in range(count):
        pending = pending + share * state[sender] if counters else share * state[sender]
        arrived = rng.random(len(to)) >= loss
        state = keep * state + gather @ np.where(arrived[:, None], pending, 0.0)
        pending = np.where(arrived[:, None], 0.0, pending)
        error.append(_error(state, target))
        total.append(float(state[:, -1].sum() + (pending[:, -1].sum() if counters else 0.0)))
    return PushSumRun(state[:, :-1] / state[:, -1:], np.asarray(error), np.asarray(total))


def _error(state: Values, target: Values) -> float:
    return float(np.abs(state[:, :-1] / state[:, -1:] - target).max())


def _check(matrix: csr_array, loss: float) -> None:
    sums = np.asarray(matrix.sum(axis=0)).ravel()
    worst = int(np.argmax(np.abs(sums - 1.0)))
    if abs(sums[worst] - 1.0) > 1e-9:
        raise TopologyError(f"push-sum needs columns that sum to 1; column {worst} sums to {sums[worst]:.9g}")
    if (matrix.diagonal() <= 0.0).any():
        raise TopologyError("push-sum needs a positive self-weight of every peer")
    if not 0.0 <= loss < 1.0:
        raise TopologyError(f"loss must be a probability from 0 to below 1, not {loss!r}")
