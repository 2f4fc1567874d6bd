"""Which guarantees a mixing matrix gives, and which it does not, in the words of the field.

``validate(W)`` never refuses: it says what holds, and ``failures`` says in a sentence each what does not, where and
what follows. Refusing is for those who need a guarantee (``require``). The table of who needs what: Koloskova et al.
2020 for averaging, Tang et al. 2018 for D^2, Nedic & Olshevsky 2015 for push-sum. It knows nothing of how W came to
be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from topology.errors import TopologyError
from topology.spectral import is_symmetric, lambda_min

TOLERANCE = 1e-9
"""How far a sum may be from 1."""


@dataclass(frozen=True, slots=True)
class Guarantees:
    """What holds for one W.

    Args:
        n: number of peers.
        row_stochastic: rows sum to 1: identical adapters stay as they are.
        column_stochastic: columns sum to 1: lossless rounds keep the sum.
        doubly_stochastic: both: D-PSGD, CHOCO and gradient tracking converge to the plain mean.
        nonnegative: no negative entry: each result lies between its inputs, so clipping and privacy proofs apply.
        symmetric: W equals its transpose.
        primitive: strongly connected and not periodic: repeated rounds reach consensus (for nonnegative W).
        lambda_min: smallest eigenvalue; None where W is not symmetric.
        failures: one sentence for each guarantee that does not hold.
    """

    n: int
    row_stochastic: bool
    column_stochastic: bool
    doubly_stochastic: bool
    nonnegative: bool
    symmetric: bool
    primitive: bool
    lambda_min: float | None
    failures: tuple[str, ...]

    def require(self, *names: str) -> None:
        """Refuse a W that lacks one of the named guarantees, e.g. ``require("doubly_stochastic", "primitive")``.

        Raises:
            TopologyError: lists all failures.
        """
        lacking = [name for name in names if not getattr(self, name)]
        if lacking:
            needed = ", ".join(name.replace("_", "-") for name in lacking)
            raise TopologyError(f"the mixing matrix is not {needed}: " + "; ".join(self.failures))


def validate(matrix: csr_array) -> Guarantees:
    """Check one W, ``csr_array[n, n]``. Cost linear in entries, but for lambda_min of a symmetric one."""
    rows, columns = (np.asarray(matrix.sum(axis=axis)).ravel() for axis in (1, 0))
    failures = _sum_failures("row", rows, "identical adapters would change by mixing")
    failures += _sum_failures("column", columns, "the mean drifts")
    negative = matrix.data < 0
    if negative.any():
        coo = matrix.tocoo()
        place = int(np.argmin(coo.data))
        failures.append(
            f"{int(negative.sum())} negative entries, the smallest W[{coo.row[place]}, {coo.col[place]}] = "
            f"{coo.data[place]:.6g}: results may leave the range of their inputs"
        )
    symmetric = is_symmetric(matrix)
    if not symmetric:
        failures.append("not symmetric: pairwise exchanges, D^2 and PowerGossip do not apply")
    reason = _why_not_primitive(matrix)
    failures += [reason] if reason else []
    smallest = lambda_min(matrix) if symmetric else None
    if smallest is not None and smallest <= -1.0 / 3.0 + 1e-12:
        failures.append(
            f"smallest eigenvalue {smallest:.6g} is not above -1/3: D^2 diverges; take lazy weights"
        )
    row, column = (bool((np.abs(sums - 1.0) <= TOLERANCE).all()) for sums in (rows, columns))
    return Guarantees(
        n=matrix.shape[0],
        row_stochastic=row,
        column_stochastic=column,
        doubly_stochastic=row and column,
        nonnegative=not negative.any(),
        symmetric=symmetric,
        primitive=not reason,
        lambda_min=smallest,
        failures=tuple(failures),
    )


def _sum_failures(kind: str, sums: NDArray[np.float64], consequence: str) -> list[str]:
    """Name the worst row or column whose sum is not 1."""
    error = np.abs(sums - 1.0)
    wrong = int((error > TOLERANCE).sum())
    if not wrong:
        return []
    worst = int(np.argmax(error))
    return [
        f"{wrong} of {len(sums)} {kind}s do not sum to 1, worst {kind} {worst} with {sums[worst]:.9g}: {consequence}"
    ]


def _why_not_primitive(matrix: csr_array) -> str:
    """Return why W's pattern never mixes everyone with everyone, or ``""``."""
    pattern = csr_array((matrix != 0).astype(np.int8))
    parts, label = connected_components(pattern, directed=True, connection="strong")
    if parts > 1:
        smallest = np.nonzero(label == np.argmin(np.bincount(label)))[0]
        return (
            f"not strongly connected: {parts} parts, the smallest holds {len(smallest)} peer(s) beginning with "
            f"{int(smallest[0])}"
        )
    if (period := _period(pattern)) > 1:
        return f"periodic with period {period}: values swing for ever; give self-weight, as 1/(1 + max degree) does"
    return ""


def _period(pattern: csr_array) -> int:
    """Return the period of a strongly connected pattern: the greatest common divisor of its cycle lengths."""
    if pattern.diagonal().any():
        return 1
    order, before = breadth_first_order(pattern, 0, directed=True)
    level = np.zeros(pattern.shape[0], dtype=np.int64)
    for node in order[1:]:
        level[node] = level[before[node]] + 1
    coo = pattern.tocoo()
    return int(np.gcd.reduce(np.abs(level[coo.row] + 1 - level[coo.col]))) if coo.nnz else 1
