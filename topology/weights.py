"""Weight rules: edges -> mixing matrix. A new rule is a function and a line in ``RULES`` at the foot.

Rules see numbers, not peers or rounds. All are given as off-diagonal weights; the self-weight is what is left of 1,
so rows sum to 1 by construction and only columns are in question. Traps (Boyd, Diaconis & Xiao 2004): 1/max(d_i, d_j)
without the +1 never converges on an even ring, and FDLA and best-constant weights may be negative.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topology.edges import Edges, WeightedEdges, both_ways
from topology.errors import TopologyError
from topology.parameters import Parameter


@dataclass(frozen=True, slots=True)
class Rule:
    """One catalogue entry.

    Args:
        apply: ``(n, edges, directed, *parameters) -> WeightedEdges``; raises ``TopologyError`` where the rule has no
            answer for these edges.
        parameters: what may follow the name.
        doubly_stochastic: whether what it returns always has columns that sum to 1.
    """

    apply: Callable[..., WeightedEdges]
    parameters: tuple[Parameter, ...] = ()
    doubly_stochastic: bool = True


def metropolis_hastings(n: int, edges: Edges, directed: bool) -> WeightedEdges:
    """1/(1 + max(d_i, d_j)): symmetric, needs only neighbor degrees (directed: only where all degrees are equal)."""
    reader, read = _arcs(edges, directed)
    degree, readers = np.bincount(reader, minlength=n), np.bincount(read, minlength=n)
    if directed and len(np.unique(np.concatenate([degree, readers]))) > 1:
        raise _not_regular("metropolis-hastings")
    return WeightedEdges(n, reader, read, 1.0 / (1.0 + np.maximum(degree[reader], degree[read])))


def uniform(n: int, edges: Edges, directed: bool) -> WeightedEdges:
    """1/(1 + d_i) for each neighbor and oneself: row-stochastic, so the mean drifts unless degrees are equal."""
    reader, read = _arcs(edges, directed)
    degree = np.bincount(reader, minlength=n).astype(np.float64)
    return WeightedEdges(n, reader, read, 1.0 / (1.0 + degree[reader]))


def _arcs(edges: Edges, directed: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return (edges[:, 0], edges[:, 1]) if directed else both_ways(edges)


def _not_regular(rule: str) -> TopologyError:
    return TopologyError(
        f"{rule} weights need an undirected graph, or a directed one where every peer reads, and is read by, equally "
        f"many. Take weights 'sinkhorn' (doubly stochastic if every edge lies on a cycle) or 'uniform' (mean drifts)"
    )


RULES: dict[str, Rule] = {
    "metropolis-hastings": Rule(metropolis_hastings),
    "uniform": Rule(uniform, doubly_stochastic=False),
}
