"""D-Cliques: cliques whose pooled labels look like everyone's, joined sparsely (Bellet et al., SRDS 2022).

For data that is split by label: inside a clique gradients are nearly unbiased. All peers find the same cliques from
the label counts that each has announced (``announced.py``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from topology.draws import Draws
from topology.edges import Edges, edge_array, undirected
from topology.errors import TopologyError
from topology.parameters import Value

Counts = NDArray[np.float64]

BETWEEN = ("ring", "complete")
"""How cliques are joined: in a ring, or by one edge between any two."""
SWAPS_PER_PEER = 10
"""Pairs of cliques tried, for each peer. Source: the paper's 1,000 for 100 peers."""


def between(text: str) -> Value:
    """Read how cliques are joined."""
    if text not in BETWEEN:
        raise ValueError(" or ".join(BETWEEN))
    return text


def d_cliques(n: int, draws: Draws, counts: Counts, size: int, join: str = "ring") -> Edges:
    """D-Cliques: cliques of SIZE peers whose pooled labels, by the counts they announce, look like everyone's.

    Args:
        counts: float64[n, labels], rows of each label that each peer has.
        size: peers in a clique, >= 2; the last may be smaller.
        join: one of ``BETWEEN``; edges are dealt to the members of a clique in turn.

    Raises:
        TopologyError: counts that are not n rows of numbers of at least 0, none of them all 0.
    """
    if counts.ndim != 2 or len(counts) != n or not _are_counts(counts):
        raise TopologyError("D-Cliques need one row of label counts for each peer, at least 0 and not all 0")
    cliques = draw_cliques(draws, counts, size)
    inside = [(i, j) for clique in cliques for i in clique for j in clique if i < j]
    return undirected(edge_array(inside + _joins(cliques, join)))


def _are_counts(counts: Counts) -> bool:
    return bool(np.isfinite(counts).all() and (counts >= 0).all() and (counts.sum(axis=1) > 0).all())


def draw_cliques(draws: Draws, counts: Counts, size: int) -> list[list[int]]:
    """Return cliques as sorted lists of peers, improved by greedy random swaps (the paper's algorithm 1)."""
    n = len(counts)
    order = draws.permutation(n).tolist()
    cliques = [order[start : start + size] for start in range(0, n, size)]
    for _ in range(SWAPS_PER_PEER * n if len(cliques) > 1 else 0):
        first, second = draws.permutation(len(cliques))[:2].tolist()
        _swap(cliques[first], cliques[second], counts, draws)
    return [sorted(clique) for clique in cliques]


def skew(clique: list[int], counts: Counts) -> float:
    """Return the L1 distance between a clique's label shares and everyone's, 0..2."""
    pooled, everyone = counts[clique].sum(axis=0), counts.sum(axis=0)
    return float(np.abs(pooled / pooled.sum() - everyone / everyone.sum()).sum())


def _swap(left: list[int], right: list[int], counts: Counts, draws: Draws) -> None:
    """Exchange one pair of members, at random among those pairs that lower the sum of both skews; in place."""
    now = skew(left, counts) + skew(right, counts)
    better: list[tuple[int, int]] = []
    for i in range(len(left)):
        for j in range(len(right)):
            new_left = [*left[:i], right[j], *left[i + 1 :]]
            new_right = [*right[:j], left[i], *right[j + 1 :]]
            if skew(new_left, counts) + skew(new_right, counts) < now - 1e-12:
                better.append((i, j))
    if better:
        i, j = better[int(draws.below(len(better), 1)[0])]
        left[i], right[j] = right[j], left[i]


def _joins(cliques: list[list[int]], join: str) -> list[tuple[int, int]]:
    """One edge for each joined pair of cliques; each clique deals its ends to its members in turn."""
    count = len(cliques)
    ring = [(c, (c + 1) % count) for c in range(count if count > 2 else count - 1)]
    pairs = ring if join == "ring" else [(c, d) for c in range(count) for d in range(c + 1, count)]
    dealt = [0] * count
    edges: list[tuple[int, int]] = []
    for pair in pairs:
        ends = [cliques[c][dealt[c] % len(cliques[c])] for c in pair]
        for c in pair:
            dealt[c] += 1
        edges.append((ends[0], ends[1]))
    return edges
