"""Weight rules: edges -> mixing matrix. A new rule is a function and a line in ``RULES`` at the foot.

Rules see numbers, not peers or rounds. All are given as off-diagonal weights; the self-weight is what is left of 1,
so rows sum to 1 by construction and only columns are in question. Traps (Boyd, Diaconis & Xiao 2004): 1/max(d_i, d_j)
without the +1 never converges on an even ring, and FDLA and best-constant weights may be negative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topology.edges import Edges, WeightedEdges, both_ways
from topology.errors import TopologyError
from topology.parameters import Parameter, fraction

Counts = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rule:
    """One catalogue entry.

    Args:
        apply: ``(n, edges, directed, *parameters) -> WeightedEdges``; raises ``TopologyError`` where the rule has no
            answer for these edges.
        parameters: what may follow the name.
        doubly_stochastic: whether what it returns always has columns that sum to 1 (then symmetric if undirected).
        by_rows: ``apply`` takes the peers' counts of rows, ``float64[n]``, before the parameters.
    """

    apply: Callable[..., WeightedEdges]
    parameters: tuple[Parameter, ...] = ()
    doubly_stochastic: bool = True
    by_rows: bool = False


def metropolis_hastings(n: int, edges: Edges, directed: bool = False) -> WeightedEdges:
    """1/(1 + max(d_i, d_j)): symmetric, needs only neighbor degrees (directed: only where all degrees are equal)."""
    reader, read = _arcs(edges, directed)
    degree = _degrees(n, reader, read, directed, "metropolis-hastings")
    return WeightedEdges(n, reader, read, 1.0 / (1.0 + np.maximum(degree[reader], degree[read])))


def max_degree(n: int, edges: Edges, directed: bool = False) -> WeightedEdges:
    """I - L/(d_max + 1): one weight everywhere; equals Metropolis-Hastings on regular graphs."""
    reader, read = _arcs(edges, directed)
    degree = _degrees(n, reader, read, directed, "max-degree")
    return WeightedEdges(n, reader, read, np.full(len(reader), 1.0 / (1.0 + degree.max(initial=0.0))))


def lazy(n: int, edges: Edges, directed: bool = False, beta: float = 0.5) -> WeightedEdges:
    """(1 - BETA) I + BETA W of Metropolis-Hastings; BETA = 0.5 has no negative eigenvalue."""
    plain = metropolis_hastings(n, edges, directed)
    return WeightedEdges(n, plain.reader, plain.read, beta * plain.weight)


def uniform(n: int, edges: Edges, directed: bool = False) -> WeightedEdges:
    """1/(1 + d_i) for each neighbor and oneself: row-stochastic, so the mean drifts unless degrees are equal."""
    reader, read = _arcs(edges, directed)
    degree = np.bincount(reader, minlength=n).astype(np.float64)
    return WeightedEdges(n, reader, read, 1.0 / (1.0 + degree[reader]))


def best_constant(n: int, edges: Edges, directed: bool = False) -> WeightedEdges:
    """I - a L with a = 2/(l_2 + l_n), the best single weight (Xiao & Boyd 2004); self-weights may be negative."""
    from topology.spectral import laplacian_extremes

    _require_undirected(directed, "best-constant")
    reader, read = both_ways(edges)
    second, largest = laplacian_extremes(n, edges) if n > 1 else (1.0, 1.0)
    return WeightedEdges(n, reader, read, np.full(len(reader), 2.0 / (second + largest)))


def fmmc(n: int, edges: Edges, directed: bool = False) -> WeightedEdges:
    """Fastest mixing with nonnegative weights (Boyd, Diaconis & Xiao 2004); needs the package mixingmatrix."""
    from topology.optimal import optimal_weights

    _require_undirected(directed, "fmmc")
    return optimal_weights(n, edges, allow_negative=False)


def fdla(n: int, edges: Edges, directed: bool = False) -> WeightedEdges:
    """Fastest averaging, negative weights allowed (Xiao & Boyd 2004); for analysis; needs the package mixingmatrix."""
    from topology.optimal import optimal_weights

    _require_undirected(directed, "fdla")
    return optimal_weights(n, edges, allow_negative=True)


def sinkhorn(n: int, edges: Edges, directed: bool = False) -> WeightedEdges:
    """Equal weights on edges and oneself, rows and columns scaled in turn until all sum to 1; also directed."""
    from scipy.sparse import coo_array

    from topology.sinkhorn import scale

    reader, read = _arcs(edges, directed)
    every = np.arange(n)
    places = np.concatenate([reader, every]), np.concatenate([read, every])
    scaled = scale(coo_array((np.ones(len(places[0])), places), shape=(n, n)).tocsr())
    return WeightedEdges(n, reader, read, np.asarray(scaled[reader, read], dtype=np.float64).ravel())


def data_size(n: int, edges: Edges, directed: bool, sizes: Sequence[float] | Counts) -> WeightedEdges:
    """Peers with more rows weigh more, by the counts they announce: the mean over all rows is kept, not over peers.

    W_ij = min(1/(d_i + 1), (s_j/s_i)/(d_j + 1)), so that sum_i s_i x_i is invariant: detailed balance (Hastings 1970).
    Equal sizes give Metropolis-Hastings.

    Args:
        edges: undirected.
        sizes: s, n positive numbers: rows held by each peer.

    Raises:
        TopologyError: directed edges, not n sizes, or one not positive and finite.
    """
    _require_undirected(directed, "data-size")
    share = np.asarray(sizes, dtype=np.float64)
    if share.shape != (n,) or not (np.isfinite(share).all() and (share > 0).all()):
        raise TopologyError(
            f"data-size weights need {n} positive sizes, one for each peer, not {list(sizes)!r}"
        )
    reader, read = both_ways(edges)
    inverse = 1.0 / (1.0 + np.bincount(reader, minlength=n))
    return WeightedEdges(
        n, reader, read, np.minimum(inverse[reader], share[read] / share[reader] * inverse[read])
    )


def _arcs(edges: Edges, directed: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return (edges[:, 0], edges[:, 1]) if directed else both_ways(edges)


def _degrees(
    n: int, reader: NDArray[np.int64], read: NDArray[np.int64], directed: bool, rule: str
) -> NDArray[np.float64]:
    """Peers that each reads; for directed edges refused unless all read, and are read by, equally many."""
    degree, readers = np.bincount(reader, minlength=n), np.bincount(read, minlength=n)
    if directed and len(np.unique(np.concatenate([degree, readers]))) > 1:
        raise TopologyError(
            f"{rule} weights need an undirected graph, or a directed one where every peer reads, and is read by, "
            f"equally many. Take weights 'sinkhorn' (doubly stochastic if every edge lies on a cycle) or 'uniform' "
            f"(the mean drifts)"
        )
    return degree.astype(np.float64)


def _require_undirected(directed: bool, rule: str) -> None:
    if directed:
        raise TopologyError(
            f"{rule} weights need an undirected graph; for directed ones take 'sinkhorn' or 'uniform'"
        )


_BETA = Parameter("BETA", "share of mixing, above 0 to 1, default 0.5", fraction(zero=False), required=False)

RULES: dict[str, Rule] = {
    "metropolis-hastings": Rule(metropolis_hastings),
    "max-degree": Rule(max_degree),
    "lazy": Rule(lazy, (_BETA,)),
    "best-constant": Rule(best_constant),
    "fmmc": Rule(fmmc),
    "fdla": Rule(fdla),
    "sinkhorn": Rule(sinkhorn),
    "uniform": Rule(uniform, doubly_stochastic=False),
    "data-size": Rule(data_size, doubly_stochastic=False, by_rows=True),
}
