"""FMMC and FDLA weights through the optional package ``mixingmatrix``, imported only when asked for.

It needs pandas and osqp, too much for a peer. Our contract with it is the closed forms in the tests: FMMC on a path
has SLEM cos(pi/n), on a star 1 - 1/(n-1); FDLA on a star (n-1)/(n+1). Solutions agree between machines only to its
tolerance (about 1e-6), so for peers of a real run solve once and hand W round as ``matrix:FILE``.
"""

from __future__ import annotations

import numpy as np

from topology.edges import Edges, WeightedEdges, is_connected
from topology.errors import TopologyError

TIME_MAX_S = 120.0
"""Longest a solve may take. Source: guess; mixingmatrix reports about 77 s at 400 nodes."""


def optimal_weights(n: int, edges: Edges, *, allow_negative: bool) -> WeightedEdges:
    """Return the symmetric weights with the smallest SLEM on these undirected edges.

    Args:
        allow_negative: FDLA if true, else FMMC.

    Raises:
        TopologyError: the package is absent, or the graph is not connected.
    """
    pairs = np.concatenate([edges, edges[:, ::-1]])
    if n == 1:
        return WeightedEdges(n, pairs[:, 0], pairs[:, 1], np.zeros(0))
    if not is_connected(n, edges):
        raise TopologyError("optimal weights need a connected graph")
    try:
        import mixingmatrix
    except ImportError as error:
        raise TopologyError(
            "weights 'fmmc' and 'fdla' need the package mixingmatrix: pip install 'gossip-peer[mixingmatrix]'; "
            "without it take 'best-constant' or 'metropolis-hastings'"
        ) from error
    import networkx as nx

    graph = nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(edges.tolist())
    weights = mixingmatrix.solve(graph, time_limit=TIME_MAX_S, allow_negative=allow_negative).weights
    of_edge = np.asarray([weights[i, j] for i, j in edges.tolist()], dtype=np.float64)
    if not np.isfinite(of_edge).all():
        raise TopologyError("mixingmatrix returned weights that are not finite; take 'best-constant'")
    if not allow_negative:
        of_edge = np.maximum(of_edge, 0.0)
    return WeightedEdges(n, pairs[:, 0], pairs[:, 1], np.concatenate([of_edge, of_edge]))
