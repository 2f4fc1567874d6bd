"""Matrices by two thin factors: M of m x n as P Q^T, P of m x R with orthonormal columns, Q of n x R.

Source: PowerSGD (arXiv 1905.13727), without its warm start: nothing is remembered between rounds, so that the start
is random, another one in each round. It knows specs and vectors, no bytes.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

from gossip.adapter import AdapterSpec
from topology.draws import Draws

POWER_STEPS = 2
"""Steps of power iteration. Source: our measurement on normally distributed matrices, whose flat spectrum is the
worst case: mean error above the truncated SVD's (8 x 96 and 30 x 50, rank 2) 7 and 5 % with one step, 5 and 2 % with
two, 3 and 1 % with three."""

Shape = tuple[int, ...]


def factors_pay(shape: Shape, rank: int) -> bool:
    """Tell whether a tensor is a matrix whose two factors are smaller than itself."""
    return len(shape) == 2 and rank * (shape[0] + shape[1]) < shape[0] * shape[1]


def compact_size(spec: AdapterSpec, rank: int) -> int:
    """Return the number of values that ``compact`` makes of a vector of this spec."""
    return sum(_compact_count(shape, rank) for _, shape in spec.entries)


def compact(values: Tensor, spec: AdapterSpec, rank: int, round: int) -> Tensor:
    """Put two factors in the place of each matrix for which that pays.

    Args:
        values: float32[P].
        spec: of the vector.
        rank: R >= 1.
        round: seeds the start of the iteration.

    Returns:
        float32[compact_size]: in wire order, each tensor as it is or P row by row, then Q row by row. Q is made for
        P as its readers will see it, in bfloat16, so that P's rounding costs next to nothing.
    """
    pieces: list[Tensor] = [values[place] for place in spec.places.values()]
    for shape, indices in _by_shape(spec, rank).items():
        matrices = torch.stack([pieces[index] for index in indices]).view(len(indices), *shape)
        left = _range(matrices, rank, round).to(torch.bfloat16).to(torch.float32)  # [K, m, R]
        right = matrices.mT @ left  # [K, n, R]
        for position, index in enumerate(indices):
            pieces[index] = torch.cat([left[position].reshape(-1), right[position].reshape(-1)])
    return torch.cat([values[:0], *pieces])


def expand(factors: Tensor, spec: AdapterSpec, rank: int) -> Tensor:
    """Return float32[P] from what ``compact`` made, float32[compact_size]; anything of that length can be expanded."""
    counts = [_compact_count(shape, rank) for _, shape in spec.entries]
    pieces = list(torch.split(factors, counts))
    for (rows, columns), indices in _by_shape(spec, rank).items():
        together = torch.stack([pieces[index] for index in indices])
        left = together[:, : rows * rank].view(-1, rows, rank)
        right = together[:, rows * rank :].view(-1, columns, rank)
        for index, matrix in zip(indices, left @ right.mT, strict=True):
            pieces[index] = matrix.reshape(-1)
    return torch.cat([factors[:0], *pieces])


def _range(matrices: Tensor, rank: int, round: int) -> Tensor:
    """Return orthonormal bases, float32[K, m, R], near the leading left singular vectors of float32[K, m, n]."""
    columns = matrices.shape[2]
    start = Draws("low-rank", columns, rank, round).uniform(columns * rank) - 0.5
    basis = matrices @ torch.from_numpy(start).to(torch.float32).view(columns, rank)
    for _ in range(POWER_STEPS - 1):
        # Orthonormal after each product, so that large or tiny matrices do not run out of float32's range.
        basis = torch.linalg.qr(matrices.mT @ torch.linalg.qr(basis).Q).Q
        basis = matrices @ basis
    bases: Tensor = torch.linalg.qr(basis).Q
    return bases


def _compact_count(shape: Shape, rank: int) -> int:
    return rank * sum(shape) if factors_pay(shape, rank) else math.prod(shape)


def _by_shape(spec: AdapterSpec, rank: int) -> dict[Shape, list[int]]:
    """Return where the matrices to be factored stand in the spec, those of one shape together."""
    indices: dict[Shape, list[int]] = defaultdict(list)
    for index, (_, shape) in enumerate(spec.entries):
        if factors_pay(shape, rank):
            indices[shape].append(index)
    return indices
