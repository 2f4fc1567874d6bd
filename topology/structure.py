"""What a graph looks like without its weights: degrees, diameter, connectivity, and what is left when nodes vanish.

Memory linear in edges, distances in blocks of nodes. It knows neither weights nor rounds; spectra of W are in
``topology/spectral.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import dijkstra

from topology.edges import Edges, components, is_connected
from topology.errors import TopologyError
from topology.spectral import laplacian_extremes

BLOCK = 256
"""Nodes whose distances are held at once."""


def pattern(n: int, edges: Edges) -> csr_array:
    """Return ``csr_array[n, n]`` with 1 where i reads j."""
    return coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n)).tocsr()


def degrees(n: int, edges: Edges) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (peers each reads, peers each is read by), ``int64[n]`` each, of arcs (reader, read)."""
    return np.bincount(edges[:, 0], minlength=n), np.bincount(edges[:, 1], minlength=n)


def diameter(n: int, edges: Edges) -> int | None:
    """Return the most hops from any peer to any other along arcs (reader, read); None where one is out of reach."""
    arcs, longest = pattern(n, edges), 0
    for start in range(0, n, BLOCK):
        block = np.arange(start, min(start + BLOCK, n))
        hops = dijkstra(arcs, directed=True, indices=block, unweighted=True)
        if not np.isfinite(hops).all():
            return None
        longest = max(longest, int(hops.max()))
    return longest


def algebraic_connectivity(n: int, edges: Edges) -> float:
    """Return l_2 of the Laplacian of undirected edges; 0 = not connected, n for the complete graph."""
    if n < 2 or not is_connected(n, edges):
        return 0.0
    return laplacian_extremes(n, edges)[0]


@dataclass(frozen=True, slots=True)
class Removal:
    """What is left after some nodes have vanished.

    Args:
        removed: how many did.
        connected: whether the others can still all reach each other.
        largest_share: share of the others in the largest component, 0..1.
        algebraic_connectivity: l_2 among the others; 0 where they are not connected.
    """

    removed: int
    connected: bool
    largest_share: float
    algebraic_connectivity: float


def remove_nodes(
    n: int, edges: Edges, count: int, how: Literal["random", "targeted"] = "random", seed: int = 0
) -> Removal:
    """Take away nodes at random, or again and again the one with most neighbors (targeted).

    Args:
        edges: undirected.
        count: 0..n - 1.

    Raises:
        TopologyError: ``count`` out of range.
    """
    if not 0 <= count < n:
        raise TopologyError(f"can remove 0 to {n - 1} of {n} peers, not {count}")
    gone = np.zeros(n, dtype=bool)
    if how == "random":
        gone[np.random.default_rng(seed).choice(n, count, replace=False)] = True
    else:
        for _ in range(count):
            alive = ~(gone[edges[:, 0]] | gone[edges[:, 1]])
            degree = np.bincount(edges[alive].ravel(), minlength=n)
            degree[gone] = -1
            gone[int(np.argmax(degree))] = True
    number = np.cumsum(~gone) - 1
    kept = number[edges[~(gone[edges[:, 0]] | gone[edges[:, 1]])]]
    left = n - count
    share = float(np.bincount(components(left, kept)).max() / left)
    return Removal(count, share == 1.0, share, algebraic_connectivity(left, kept))
