"""Sinkhorn-Knopp: scale rows and columns of a nonnegative matrix until all sum to 1, or say why that cannot be.

A scaling exists exactly if the pattern has total support: every entry that is not zero lies on a positive diagonal,
that is, in some assignment of rows to columns (Sinkhorn & Knopp 1967). We decide that by combinatorics before
iterating, so the refusal names nodes instead of giving up after many rounds. It knows no graphs, only the matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array
from scipy.sparse.csgraph import connected_components, maximum_bipartite_matching

from topology.errors import TopologyError

if TYPE_CHECKING:
    from collections.abc import Iterable

TOLERANCE = 1e-13
"""Largest error of a column sum at which iteration stops."""
ROUNDS_MAX = 100_000
"""Rounds before giving up: convergence is geometric, so this is reached only near loss of support. Source: guess."""


def scale(matrix: csr_array) -> csr_array:
    """Return D1 A D2 with all rows and columns summing to 1; symmetric where A is.

    Args:
        matrix: ``csr_array[n, n]``, finite, entries >= 0.

    Raises:
        TopologyError: an entry negative or not finite, the pattern lacks total support (names the nodes), or no
            convergence within ``ROUNDS_MAX`` rounds.
    """
    if not (np.isfinite(matrix.data).all() and (matrix.data >= 0).all()):
        raise TopologyError("Sinkhorn scaling needs finite entries of at least 0")
    require_total_support(matrix)
    transposed, columns = matrix.T.tocsr(), np.ones(matrix.shape[0])
    for _ in range(ROUNDS_MAX):
        rows = 1.0 / (matrix @ columns)
        sums = columns * (transposed @ rows)
        if np.abs(sums - 1.0).max(initial=0.0) < TOLERANCE:
            break
        columns = columns / sums
    else:
        raise TopologyError(
            f"Sinkhorn scaling did not settle in {ROUNDS_MAX} rounds: weights differ by too much"
        )
    scaled = csr_array(diags_array(rows) @ matrix @ diags_array(columns))
    if (matrix != transposed).nnz == 0:  # D1 A D2 is then symmetric but for rounding
        scaled = csr_array((scaled + scaled.T) / 2.0)
    return scaled


def require_total_support(matrix: csr_array) -> None:
    """Refuse a pattern that no scaling makes doubly stochastic.

    With a perfect matching put on the diagonal, an entry lies on a positive diagonal exactly if it joins two nodes of
    the same strongly connected component.

    Raises:
        TopologyError: names the nodes (0-based rows) whose entries cannot all be kept.
    """
    pattern = csr_array((matrix != 0).astype(np.int8))
    match: NDArray[np.int32] = maximum_bipartite_matching(
        pattern, perm_type="column"
    )  # column of each row, -1 = none
    if (match < 0).any():
        raise TopologyError(
            f"no doubly stochastic W has this pattern: too few columns to serve rows "
            f"{_listed(np.nonzero(match < 0)[0])}; give every node a self-loop"
        )
    component = connected_components(pattern[:, match], directed=True, connection="strong")[1]
    coo = pattern[:, match].tocoo()
    stuck = component[coo.row] != component[coo.col]
    if stuck.any():
        nodes = np.unique(np.concatenate([coo.row[stuck], match[coo.col[stuck]]]))
        raise TopologyError(
            f"no doubly stochastic W keeps all of this pattern (no total support): some edges between nodes "
            f"{_listed(nodes)} lie on no cycle and would have to be zero"
        )


def _listed(nodes: Iterable[int], most: int = 10) -> str:
    numbers = [str(int(node)) for node in nodes]
    return ", ".join(numbers[:most]) + (f" and {len(numbers) - most} more" if len(numbers) > most else "")
