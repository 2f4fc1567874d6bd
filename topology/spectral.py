"""Spectra of mixing matrices and what they predict: gap, SLEM, effective neighbors, contraction, rounds to a tolerance.

Sparse for many peers: Lanczos where the spectrum is kind (expanders), shift-invert where it crowds at 1 (rings,
grids). The spectral gap alone misleads: a star beats a ring by gap and loses by effective neighbors (Vogels et al.
2022), so show both. Here SLEM is the second largest eigenvalue modulus; for symmetric and circulant W it equals ||W -
J||_2, J = 11^T/n.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs, eigsh

from topology.edges import Edges, both_ways
from topology.errors import TopologyError

DENSE_MAX = 400
"""Up to so many peers dense eigenvalues are as fast as sparse ones. Source: our measurement on 2 cores."""
SPECTRUM_MAX = 4096
"""Largest n for a whole spectrum: n^3 work and n^2 memory (134 MB)."""
LANCZOS_RESTARTS = 60
"""Restarts after which crowded eigenvalues are left to shift-invert. Source: guess, about 1 s at 10,000 peers."""


def is_symmetric(matrix: csr_array) -> bool:
    """Tell whether W equals its transpose exactly."""
    difference = matrix - matrix.T
    return difference.nnz == 0 or not difference.data.any()


def spectrum(matrix: csr_array) -> NDArray[np.float64] | NDArray[np.complex128]:
    """Return all n eigenvalues, largest modulus first; real where W is symmetric.

    Raises:
        TopologyError: more than ``SPECTRUM_MAX`` peers.
    """
    n = matrix.shape[0]
    if n > SPECTRUM_MAX:
        raise TopologyError(
            f"a whole spectrum is for at most {SPECTRUM_MAX} peers, not {n}; ask for slem or lambda_min"
        )
    dense = matrix.toarray()
    values = np.linalg.eigvalsh(dense) if is_symmetric(matrix) else np.linalg.eigvals(dense)
    return np.asarray(values[np.argsort(-np.abs(values), kind="stable")])


def slem(matrix: csr_array) -> float:
    """Return the second largest eigenvalue modulus of a row-stochastic W, in 0..1; 0 for one peer.

    Raises:
        TopologyError: a large directed W whose eigenvalues do not settle.
    """
    n = matrix.shape[0]
    if n == 1:
        return 0.0
    if is_symmetric(matrix):
        if n <= DENSE_MAX:
            values = np.linalg.eigvalsh(matrix.toarray())
            return float(max(values[-2], -values[0], 0.0))
        second = _largest_two(matrix)[1]
        # Gershgorin: no eigenvalue lies below 2 min W_ii - 1, so mostly the other end need not be computed.
        return max(second, 0.0 if 2.0 * matrix.diagonal().min() - 1.0 >= -second else -lambda_min(matrix))
    if n <= 2 * DENSE_MAX:
        return float(np.sort(np.abs(np.linalg.eigvals(matrix.toarray())))[-2])
    try:
        values = eigs(_without_mean(matrix), k=2, which="LM", v0=_start(n), return_eigenvectors=False)
    except ArpackNoConvergence as error:
        raise TopologyError(
            f"the eigenvalues of this directed W for {n} peers do not settle; take fewer peers"
        ) from error
    return float(np.abs(values).max())


def spectral_gap(matrix: csr_array) -> float:
    """Return 1 - SLEM."""
    return 1.0 - slem(matrix)


def lambda_min(matrix: csr_array) -> float:
    """Return the smallest eigenvalue of a symmetric W; D^2 and exact diffusion need it above -1/3.

    Raises:
        TopologyError: W is not symmetric.
    """
    if not is_symmetric(matrix):
        raise TopologyError("the smallest eigenvalue is asked of a W that is not symmetric")
    if matrix.shape[0] <= DENSE_MAX:
        return float(np.linalg.eigvalsh(matrix.toarray())[0])
    return -_largest_two(-matrix)[0]


def contraction(matrix: csr_array) -> float:
    """Return ||(I - J) W||_2 on vectors without mean: how much one round shrinks disagreement at worst."""
    return sweep_contraction([matrix])


def sweep_contraction(matrices: Sequence[csr_array]) -> float:
    """Return ||(I - J) W_L ... W_1 (I - J)||_2 of one sweep of a schedule; 0 = the exact average.

    Args:
        matrices: W of rounds 1..L in that order, all ``csr_array[n, n]``.
    """
    n = matrices[0].shape[0]
    if n == 1:
        return 0.0
    if n <= DENSE_MAX:
        product = np.eye(n) - 1.0 / n
        for matrix in matrices:
            product = matrix @ product
        return float(np.linalg.norm(product - product.mean(axis=0), 2))
    transposes = [matrix.T.tocsr() for matrix in matrices]

    def there_and_back(x: NDArray[np.float64]) -> NDArray[np.float64]:
        x = x.ravel() - x.mean()
        for matrix in matrices:
            x = matrix @ x
        x = x - x.mean()
        for matrix in reversed(transposes):
            x = matrix @ x
        return np.asarray(x - x.mean(), dtype=np.float64)

    operator = LinearOperator((n, n), matvec=there_and_back, dtype=np.float64)
    if (
        np.linalg.norm(there_and_back(_start(n))) < 1e-20
    ):  # exact average: nothing is left for Lanczos to find
        return 0.0
    top = eigsh(operator, k=1, which="LA", v0=_start(n), return_eigenvectors=False, tol=1e-9)
    return math.sqrt(max(float(top[0]), 0.0))


def isotropic_contraction(matrix: csr_array) -> float:
    """Return E||(W - JW) X||^2 / E||X - JX||^2 for X with independent entries: Koloskova's 1 - p, averaged over X.

    For W whose nodes are exchangeable (matchings, epidemic rounds) this is the factor for *any* X, averaged over draws.
    W must be row-stochastic. Formula: (||W||_F^2 - n ||c||^2) / (n - 1), c the column means. Source: ours.
    """
    n = matrix.shape[0]
    means = np.asarray(matrix.sum(axis=0)).ravel() / n
    return float((matrix.data @ matrix.data - n * (means @ means)) / (n - 1)) if n > 1 else 0.0


def mean_drift(matrix: csr_array) -> float:
    """Return the standard deviation by which one round moves the mean of independent unit-variance values; 0 = kept."""
    n = matrix.shape[0]
    means = np.asarray(matrix.sum(axis=0)).ravel() / n
    return float(np.linalg.norm(means - 1.0 / n))


def expected_contraction(matrices: Iterable[csr_array]) -> tuple[float, float]:
    """Return mean and standard error of ``isotropic_contraction`` over draws of a random schedule (two at least)."""
    values = np.asarray([isotropic_contraction(matrix) for matrix in matrices])
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def rounds_to(rho: float, tolerance: float) -> float:
    """Return rounds until the consensus distance Xi has shrunk by ``tolerance``: ln(1/tolerance) / -ln(rho).

    1 where rho is 0 (exact in one round), infinite where rho is 1 or more.
    """
    if rho <= 0.0:
        return 1.0
    return math.inf if rho >= 1.0 else max(1.0, math.log(1.0 / tolerance) / -math.log(rho))


def effective_neighbors(matrix: csr_array, gamma: float, *, probes: int = 64, seed: int = 0) -> float:
    """Return n_W(gamma), 1..n: how many peers' noise a node averages at memory gamma (Vogels et al., NeurIPS 2022).

    n_W = (1/(1-gamma)) / ((1/n) sum_k gamma^(k-1) ||W^k||_F^2). Exact up to 400 peers, and to 4096 where W is
    symmetric; beyond, ||W^k||_F^2 is estimated from ``probes`` random sign vectors (error about sqrt(2/(probes n))).

    Args:
        gamma: in [0, 1).
    """
    n = matrix.shape[0]
    if is_symmetric(matrix) and n <= SPECTRUM_MAX:
        squares = np.linalg.eigvalsh(matrix.toarray()) ** 2
        return float(1.0 / (1.0 - gamma) / np.mean(squares / (1.0 - gamma * squares)))
    if n <= DENSE_MAX:
        vectors, scale = np.asarray(np.eye(n), dtype=np.float64), 1.0
    else:
        signs = np.random.default_rng(seed).integers(0, 2, size=(n, probes))
        vectors, scale = np.asarray(2.0 * signs - 1.0, dtype=np.float64), 1.0 / probes
    total, factor = 0.0, scale / n
    while True:
        vectors = np.asarray(matrix @ vectors, dtype=np.float64)
        term = factor * float(np.vdot(vectors, vectors))
        total, factor = total + term, factor * gamma
        if term * gamma <= 1e-13 * total * (1.0 - gamma):
            return float(1.0 / (1.0 - gamma) / total)


def laplacian_extremes(n: int, edges: Edges) -> tuple[float, float]:
    """Return (l_2, l_n), the algebraic connectivity and the largest eigenvalue of L = D - A. Requirements n >= 2."""
    reader, read = both_ways(edges)
    adjacency = coo_array((np.ones(len(reader)), (reader, read)), shape=(n, n)).tocsr()
    degrees = np.asarray(adjacency.sum(axis=1)).ravel()
    laplacian = csr_array(diags_array(degrees) - adjacency)
    if n <= DENSE_MAX:
        values = np.linalg.eigvalsh(laplacian.toarray())
        return float(values[1]), float(values[-1])
    return -_largest_two(-laplacian)[1], _largest_two(laplacian)[0]


def _largest_two(matrix: csr_array) -> tuple[float, float]:
    """Return the two largest eigenvalues of a symmetric matrix, largest first."""
    n = matrix.shape[0]
    ask = {"k": 2, "v0": _start(n), "return_eigenvectors": False}
    try:
        values = eigsh(matrix, which="LA", ncv=48, maxiter=LANCZOS_RESTARTS, **ask)
    except ArpackNoConvergence:
        # Crowded at the edge: invert around a point just outside the spectrum (Gershgorin) instead.
        diagonal, rows = matrix.diagonal(), np.asarray(abs(matrix).sum(axis=1)).ravel()
        bound = float((rows - np.abs(diagonal) + diagonal).max())
        values = eigsh(matrix.tocsc(), sigma=bound + 1e-9 * max(1.0, abs(bound)), which="LM", **ask)
    values = np.sort(values)
    return float(values[1]), float(values[0])


def _without_mean(matrix: csr_array) -> LinearOperator:
    """W - 1 m^T with m uniform: the eigenvalue 1 of the constant vector becomes 0, the others stay."""
    n = matrix.shape[0]

    def apply(x: NDArray[np.float64]) -> NDArray[np.float64]:
        x = x.ravel()
        return np.asarray(matrix @ x - x.mean(), dtype=np.float64)

    return LinearOperator((n, n), matvec=apply, dtype=np.float64)


def _start(n: int) -> NDArray[np.float64]:
    """A fixed generic start, so that results do not depend on global random state."""
    return np.random.default_rng(0).standard_normal(n)
