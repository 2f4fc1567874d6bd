"""Edges as arrays, with and without weights: what graphs, schedules and weight rules hand to each other.

Memory is linear in edges. scipy is imported only where a matrix is asked for, because ``--help`` reads the catalogues
and must answer at once. Direction everywhere: an edge ``(i, j)`` means that *i reads j*, so it is the entry ``W[i,
j]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Edges = NDArray[np.int64]
"""``int64[E, 2]``, no loops, no duplicates. Undirected: each pair once. Directed: (reader, read)."""

ROUNDING = 1e-12
"""A self-weight this little below zero is rounding of 1 - sum, and is set to zero."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightedEdges:
    """One round's mixing matrix without its diagonal: the self-weight is what each row leaves of 1.

    Args:
        n: number of peers.
        reader: ``int64[E]``, row indices.
        read: ``int64[E]``, column indices, never equal to ``reader``.
        weight: ``float64[E]``.
    """

    n: int
    reader: NDArray[np.int64]
    read: NDArray[np.int64]
    weight: NDArray[np.float64]

    def self_weights(self) -> NDArray[np.float64]:
        """Return ``float64[n]``: 1 minus the sum of each row's weights; negative only where a rule means it so."""
        taken = np.bincount(self.reader, weights=self.weight, minlength=self.n)
        diagonal = np.asarray(1.0 - taken, dtype=np.float64)
        diagonal[np.abs(diagonal) < ROUNDING] = 0.0
        return diagonal

    def matrix(self) -> csr_array:
        """Return W as ``csr_array[n, n]`` with sorted indices and the diagonal stored."""
        from scipy.sparse import coo_array

        every = np.arange(self.n)
        rows, columns = np.concatenate([self.reader, every]), np.concatenate([self.read, every])
        values = np.concatenate([self.weight, self.self_weights()])
        matrix = coo_array((values, (rows, columns)), shape=(self.n, self.n)).tocsr()
        matrix.sort_indices()
        return matrix


def edge_array(pairs: list[tuple[int, int]]) -> Edges:
    """Return a list of pairs as ``int64[E, 2]`` (shaped so even when empty)."""
    return np.asarray(pairs, dtype=np.int64).reshape(-1, 2)


def both_ways(edges: Edges) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return readers and read of undirected edges: each pair once in either direction."""
    return np.concatenate([edges[:, 0], edges[:, 1]]), np.concatenate([edges[:, 1], edges[:, 0]])


def undirected(edges: Edges) -> Edges:
    """Drop loops, duplicates and direction: each pair once, smaller index first, sorted."""
    ordered = np.sort(edges.reshape(-1, 2), axis=1)
    return np.unique(ordered[ordered[:, 0] != ordered[:, 1]], axis=0)


def components(n: int, edges: Edges) -> NDArray[np.int64]:
    """Return ``int64[n]``: for each node the number of its connected component, directions ignored."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pattern = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n))
    return np.asarray(connected_components(pattern, directed=False)[1], dtype=np.int64)


def is_connected(n: int, edges: Edges) -> bool:
    """Tell whether every node reaches every other, directions ignored."""
    return len(edges) >= n - 1 and not components(n, edges).any()
