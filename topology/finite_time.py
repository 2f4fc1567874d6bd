"""Finite-time schedules: rounds of small groups whose product is the exact average, for every number of peers.

Hyper-hypercube: n = n_1 x ... x n_L with factors of at most k + 1; round l averages along axis l. Base-(k+1): for any
n, from its digits in base k + 1 (Takezawa et al., "Beyond Exponential Graph", NeurIPS 2023). Here n is split into p
equal parts, the simple schedule runs in each and a hyper-hypercube across them, for the p that gives the fewest
rounds (ours; the paper tries two). Indices only: it knows no peers, no seeds, and all W are symmetric.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from topology.edges import WeightedEdges

Index = NDArray[np.int64]
Arcs = tuple[Index, Index, NDArray[np.float64]]
"""(reader, read, weight) of one part of one round, both directions of each pair."""


@lru_cache(maxsize=16)
def base_schedule(n: int, k: int) -> tuple[WeightedEdges, ...]:
    """Return the rounds of Base-(k+1) for n peers; their product is J = 11^T/n exactly (to rounding).

    Args:
        n: number of peers, >= 1.
        k: most neighbors of a peer in a round, >= 1.

    Returns:
        m(n, k) rounds, at most 2 log_{k+1}(n) + 2 of them; none for n = 1.
    """
    across, inside = min(_splits(n, k), key=lambda split: (_length(split[0], split[1], k), split[0]))
    places = np.arange(n).reshape(across, inside)
    rounds = simple_base(places, k)
    rounds += [[arcs] for arcs in hyper_hypercube(places.T, factors(across, k + 1) or ())]
    return tuple(_joined(n, arcs) for arcs in rounds)


def _splits(n: int, k: int) -> Iterator[tuple[int, int]]:
    """All (p, n/p) with p a product of factors of at most k + 1."""
    for across in range(1, n + 1):
        if n % across == 0 and factors(across, k + 1) is not None:
            yield across, n // across


def _length(across: int, inside: int, k: int) -> int:
    digits = base_digits(inside, k + 1)
    head, power = digits[0]
    simple = power + (head > 1) if len(digits) == 1 else 2 * power + 1 + (head > 1)
    return simple + len(factors(across, k + 1) or ())


@lru_cache(maxsize=4096)
def factors(n: int, largest: int) -> tuple[int, ...] | None:
    """Return the fewest factors of n, each of 2..largest, or None where there are none (``()`` for n = 1)."""
    if n == 1:
        return ()
    best: tuple[int, ...] | None = None
    for factor in range(min(largest, n), 1, -1):
        if n % factor == 0:
            rest = factors(n // factor, largest)
            if rest is not None and (best is None or len(rest) + 1 < len(best)):
                best = (factor, *rest)
    return best


def base_digits(n: int, base: int) -> list[tuple[int, int]]:
    """Return the nonzero digits of n as (digit, power), highest power first."""
    digits: list[tuple[int, int]] = []
    power = 0
    while n:
        n, digit = divmod(n, base)
        if digit:
            digits.append((digit, power))
        power += 1
    return digits[::-1]


def hyper_hypercube(places: Index, sizes: Sequence[int]) -> Iterator[Arcs]:
    """Yield one round per factor: every row of ``places`` reshaped to ``sizes``, averaged along one axis.

    Args:
        places: ``int64[R, prod(sizes)]``, R independent sets of nodes.
        sizes: factors, each >= 1; a factor of 1 gives a round without edges.
    """
    cube = places.reshape(len(places), *sizes)
    for axis, size in enumerate(sizes, 1):
        groups = np.moveaxis(cube, axis, -1).reshape(-1, size)
        row, column = np.nonzero(~np.eye(size, dtype=bool))
        reader = groups[:, row].ravel()
        yield reader, groups[:, column].ravel(), np.full(len(reader), 1.0 / size)


def simple_base(places: Index, k: int) -> list[list[Arcs]]:
    """Return the simple Base-(k+1) rounds, in each row of ``places`` at once.

    The row is cut into V_1, V_2, ... by the digits of its length, V_l into a_l cubes of (k+1)^p_l nodes. (1) Each V_l
    averages inside. (2) For l = 1, 2, ...: every node behind V_l mixes with one node of each cube of V_l, weighted so
    that each cube of V_l and all that is behind it now has the global mean; (3) each cube of V_l averages inside.

    Args:
        places: ``int64[R, n]``.
    """
    digits = base_digits(places.shape[1], k + 1)
    sizes = [digit * (k + 1) ** power for digit, power in digits]
    parts = np.split(places, np.cumsum(sizes)[:-1], axis=1)
    head, power = digits[0]
    first = power + (head > 1)
    rounds: list[list[Arcs]] = [[] for _ in range(first if len(digits) == 1 else first + 1 + power)]
    for part, (digit, exponent) in zip(parts, digits, strict=True):
        inner = ([digit] if digit > 1 else []) + [k + 1] * exponent
        for t, arcs in enumerate(hyper_hypercube(part, inner)):
            rounds[t].append(arcs)
    for level, (part, (digit, exponent)) in enumerate(zip(parts[:-1], digits[:-1], strict=True)):
        behind = np.concatenate(parts[level + 1 :], axis=1)
        weight = sizes[level] / (digit * sum(sizes[level:]))
        cubes = part.reshape(len(part), digit, -1)
        for cube in range(digit):
            ahead, waiting = cubes[:, cube, : behind.shape[1]].ravel(), behind.ravel()
            both = np.concatenate([ahead, waiting]), np.concatenate([waiting, ahead])
            rounds[first + level].append((*both, np.full(2 * len(ahead), weight)))
        for t, arcs in enumerate(hyper_hypercube(cubes.reshape(-1, cubes.shape[2]), [k + 1] * exponent)):
            rounds[first + level + 1 + t].append(arcs)
    return rounds


def _joined(n: int, arcs: list[Arcs]) -> WeightedEdges:
    """Put the parts of one round together; they never share a pair."""
    if not arcs:
        none = np.zeros(0, dtype=np.int64)
        return WeightedEdges(n, none, none, np.zeros(0))
    return WeightedEdges(n, *(np.concatenate(column) for column in zip(*arcs, strict=True)))
