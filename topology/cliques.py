"""D-Cliques: cliques whose pooled labels look like everyone's, joined sparsely (Bellet et al., SRDS 2022).

For data that is split by label: inside a clique gradients are nearly unbiased. Needs each peer's label histogram,
which tells others something about private data; so it is a function for studies, not a name a peer can be started
with.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from topology.draws import Draws
from topology.edges import Edges, edge_array, undirected
from topology.errors import TopologyError

Between = Literal["ring", "complete"]


def d_cliques(
    histograms: NDArray[np.float64], size: int, *, seed: int, between: Between = "ring", swaps: int = 1000
) -> tuple[Edges, list[list[int]]]:
    """Return undirected edges and the cliques, by greedy random swaps.

    Args:
        histograms: ``[n, labels]`` counts >= 0, each row with at least one example.
        size: peers in a clique, >= 2; the last may be smaller.
        seed: of the swaps.
        between: cliques in a ring, or one edge between any two; edges are dealt to the members in turn.
        swaps: pairs of cliques tried. Source: the paper's 1,000 for 100 peers.

    Raises:
        TopologyError: histograms that are not n rows of counts, or an unknown ``between``.
    """
    counts = np.asarray(histograms, dtype=np.float64)
    if counts.ndim != 2 or not (
        np.isfinite(counts).all() and (counts >= 0).all() and (counts.sum(axis=1) > 0).all()
    ):
        raise TopologyError("D-Cliques need one row of label counts for each peer, at least 0 and not all 0")
    if size < 2:
        raise TopologyError(f"a clique needs at least 2 peers, not {size}")
    if between not in ("ring", "complete"):
        raise TopologyError(f"cliques are joined by 'ring' or 'complete', not {between!r}")
    draws = Draws(seed, "d-cliques", len(counts), size)
    order = draws.permutation(len(counts)).tolist()
    cliques = [order[start : start + size] for start in range(0, len(order), size)]
    for _ in range(swaps if len(cliques) > 1 else 0):
        one, other = draws.permutation(len(cliques))[:2].tolist()
        _swap(cliques[one], cliques[other], counts, draws)
    cliques = [sorted(clique) for clique in cliques]
    inside = [(i, j) for clique in cliques for i in clique for j in clique if i < j]
    return undirected(edge_array(inside + _joins(cliques, between))), cliques


def skew(clique: list[int], counts: NDArray[np.float64]) -> float:
    """Return the L1 distance between a clique's label shares and everyone's, 0..2."""
    pooled, everyone = counts[clique].sum(axis=0), counts.sum(axis=0)
    return float(np.abs(pooled / pooled.sum() - everyone / everyone.sum()).sum())


def _swap(one: list[int], other: list[int], counts: NDArray[np.float64], draws: Draws) -> None:
    """Exchange one pair of members, at random among those pairs that lower the sum of both skews; in place."""
    now = skew(one, counts) + skew(other, counts)
    better: list[tuple[int, int]] = []
    for i in range(len(one)):
        for j in range(len(other)):
            first, second = [*one[:i], other[j], *one[i + 1 :]], [*other[:j], one[i], *other[j + 1 :]]
            if skew(first, counts) + skew(second, counts) < now - 1e-12:
                better.append((i, j))
    if better:
        i, j = better[int(draws.below(len(better), 1)[0])]
        one[i], other[j] = other[j], one[i]


def _joins(cliques: list[list[int]], between: Between) -> list[tuple[int, int]]:
    """One edge for each joined pair of cliques; each clique deals its ends to its members in turn."""
    count = len(cliques)
    ring = [(c, (c + 1) % count) for c in range(count if count > 2 else count - 1)]
    pairs = ring if between == "ring" else [(c, d) for c in range(count) for d in range(c + 1, count)]
    dealt = [0] * count
    edges: list[tuple[int, int]] = []
    for pair in pairs:
        ends = [cliques[c][dealt[c] % len(cliques[c])] for c in pair]
        for c in pair:
            dealt[c] += 1
        edges.append((ends[0], ends[1]))
    return edges
