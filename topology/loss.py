"""What becomes of W when messages are lost: three rules, one of which keeps the mean.

Symmetric drop uses an edge only if both directions arrived and gives the missing weight to oneself: the realized W
stays symmetric, so the mean does not drift. The others need no acknowledgement, and drift (algorithms.md section 7).
To add a rule: a function and a line in ``LOSS_RULES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from topology.edges import WeightedEdges
from topology.errors import TopologyError, unknown

Arrived = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Arcs:
    """W's off-diagonal entries, prepared for dropping some of them round after round.

    Args:
        edges: the arcs (reader, read, weight).
        reverse: ``int64[E]``, place of the arc in the other direction, or -1.
        self_weight: ``float64[n]``.
    """

    edges: WeightedEdges
    reverse: NDArray[np.int64]
    self_weight: NDArray[np.float64]

    @staticmethod
    def of(matrix: csr_array) -> Arcs:
        """Take W apart; it must be row-stochastic."""
        coo, n = matrix.tocoo(), matrix.shape[0]
        keep = (coo.row != coo.col) & (coo.data != 0)
        reader, read = coo.row[keep].astype(np.int64), coo.col[keep].astype(np.int64)
        key, back = reader * n + read, read * n + reader
        order = np.argsort(key)
        place = np.minimum(np.searchsorted(key, back, sorter=order), max(len(key) - 1, 0))
        candidate = order[place] if len(key) else place
        reverse = np.where(key[candidate] == back, candidate, -1)
        return Arcs(WeightedEdges(n, reader, read, coo.data[keep]), reverse, matrix.diagonal())


def symmetric_drop(arcs: Arcs, arrived: Arrived) -> csr_array:
    """An edge counts only if both directions arrived; its weight returns to oneself. Keeps the mean."""
    return _kept(arcs, arrived & (arcs.reverse >= 0) & arrived[arcs.reverse])


def to_self(arcs: Arcs, arrived: Arrived) -> csr_array:
    """Each reader for itself: the weight of what did not come returns to oneself. The mean drifts."""
    return _kept(arcs, arrived)


def renormalize(arcs: Arcs, arrived: Arrived) -> csr_array:
    """Each reader divides by the weight that did come, its own included. The mean drifts more."""
    edges = arcs.edges
    weight = np.where(arrived, edges.weight, 0.0)
    total = arcs.self_weight + np.bincount(edges.reader, weights=weight, minlength=edges.n)
    if (total <= 0.0).any():
        raise TopologyError(
            "renormalizing needs self-weights above 0: a peer that received nothing has nothing to keep"
        )
    return _kept(Arcs(WeightedEdges(edges.n, edges.reader, edges.read, weight / total[edges.reader]),
                      arcs.reverse, arcs.self_weight), arrived)  # fmt: skip


def _kept(arcs: Arcs, keep: Arrived) -> csr_array:
    edges = arcs.edges
    return WeightedEdges(edges.n, edges.reader[keep], edges.read[keep], edges.weight[keep]).matrix()


def lossy(matrix: csr_array, loss: float, rule: str, seed: int) -> Callable[[int], csr_array]:
    """Return a source of rounds for ``run_consensus``: W with each message lost independently.

    Args:
        matrix: row-stochastic.
        loss: probability in [0, 1).
        rule: a name of ``LOSS_RULES``.
        seed: of the losses; round t is the same whenever it is asked for.

    Raises:
        TopologyError: loss out of range, or unknown rule.
    """
    if not 0.0 <= loss < 1.0:
        raise TopologyError(f"loss must be a probability from 0 to below 1, not {loss!r}")
    if rule not in LOSS_RULES:
        raise unknown("loss rule", rule, LOSS_RULES)
    arcs, apply = Arcs.of(matrix), LOSS_RULES[rule]

    def rounds(round: int) -> csr_array:
        arrived = np.random.default_rng((seed, round)).random(len(arcs.reverse)) >= loss
        return apply(arcs, arrived)

    return rounds


LOSS_RULES: dict[str, Callable[[Arcs, Arrived], csr_array]] = {
    "symmetric-drop": symmetric_drop,
    "to-self": to_self,
    "renormalize": renormalize,
}
