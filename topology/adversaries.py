"""What liars and colluders can do on a topology: rows with more liars than a rule bears, adapters that sums give away.

*Liars* send what harms. ``trim-clip`` drops the ceil(k/4) farthest of the k adapters of a row, so a row with more liars
than that is *overrun*. How many stand in the row of an honest peer is hypergeometric while they are placed at random.
*Colluders* are members that follow the protocol and share what they read. Under pairwise masks each learns one number
per value and round, the weighted sum of its row; an honest peer is *isolated* where its unit vector lies in the span of
those sums. It knows no adapter and no key: what a peer that lies about dropouts learns is not counted. Source: ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order

from topology.errors import TopologyError
from topology.links import Topology

GUARDED_READS = 4
"""Reads from which on ``--robust auto`` guards a row. Source: of fewer, one cannot tell one liar from the others."""
PLACEMENTS_MAX = 5000
"""Placements tried one by one; of more, so many are drawn. Source: a share is then right to 1.4 points (95 %)."""
PLACEMENTS_MIN = 20
"""Placements drawn at least, however large the case. Source: guess."""
WORK_MAX = 100_000_000
"""Multiplications over all placements tried, about. Source: our measurement, a second or two for a topology."""
ENTRIES_MAX = 4_000_000
"""Matrix entries held at once: 32 MB."""
RANK_TOLERANCE = 1e-9
"""Singular values below this share of the largest, and distances of unit vectors from a span, count as 0."""
SUM_ERROR = 1e-5
"""Error of a masked sum, relative to the spread of adapters. Source: 1.2e-7 of fixed point against values of 0.01."""
KNOWN = 0.99
"""An adapter of whose variance so much follows from sums with that error counts as given away. Source: guess."""

Sets = NDArray[np.int64]


def borne(reads: int, *, asked: bool = False) -> int:
    """Return how many liars ``trim-clip`` drops from a row of so many reads and still leaves somebody to mix with.

    In rows of fewer than 4 it works only if it is asked for, and of a single read it leaves nothing.
    """
    return math.ceil(reads / 4) if reads >= GUARDED_READS or (asked and reads > 1) else 0


def bounded(reads: int) -> int:
    """Return up to how many liars the default rule clips to a distance no greater than that of an honest peer.

    The lower median of what is not dropped is that as long as half of it, rounded up, is honest or nearer than such.
    """
    return reads - math.ceil((reads - borne(reads)) / 2) if reads >= GUARDED_READS else 0


@lru_cache(maxsize=4096)
def chance_of_more(n: int, liars: int, reads: int, bound: int) -> float:
    """Return the chance that more than ``bound`` of an honest peer's ``reads`` others lie; exact (hypergeometric).

    Args:
        n: peers, the honest reader among them; ``liars`` of the other n - 1 lie, all placements equally likely.
    """
    more = range(bound + 1, min(liars, reads) + 1)
    ways = sum(math.comb(liars, count) * math.comb(n - 1 - liars, reads - count) for count in more)
    return ways / math.comb(n - 1, reads)


@dataclass(frozen=True, slots=True)
class LiarExposure:
    """What so many liars can reach. Shares are of honest peers, means over placements at random, all in 0..1.

    Args:
        liars, rounds: what was asked: adversaries, and rounds looked at where rows are drawn.
        reads_least: fewest peers that one reads in a round.
        reads_most: most.
        lied_to: a row, in one round, holds a liar; exact.
        overrun: it holds more than the default rule bears, which is none in rows of fewer than 4; exact.
        overrun_asked: the same with ``--robust trim-clip``, which guards shorter rows too; exact.
        unbounded: it holds so many that they choose how far they move its reader, by the default rule; exact.
        overrun_ever: in some of the rounds a row is overrun; with a fixed graph as in one.
        overrun_worst: the same as ``overrun_ever`` at the worst placement tried; None where rows are drawn.
        joined: chance that honest peers still reach each other through honest peers, over the rounds.
        joined_worst: whether they do at every placement tried.
        placements: how many were tried at random, and whether these are all; else clusters were tried besides.
    """

    liars: int
    rounds: int
    reads_least: int
    reads_most: int
    lied_to: float
    overrun: float
    overrun_asked: float
    unbounded: float
    overrun_ever: float
    overrun_worst: float | None
    joined: float
    joined_worst: bool
    placements: int
    is_exhaustive: bool

    @property
    def is_guarded(self) -> bool:
        """Whether the default rule guards every row."""
        return self.reads_least >= GUARDED_READS


@dataclass(frozen=True, slots=True)
class ColluderExposure:
    """What so many colluders learn. Shares are of honest peers, means over placements at random, all in 0..1.

    Args:
        colluders, rounds: what was asked: adversaries, and rounds looked at where rows change.
        in_rows: stand in some row of theirs: read in the clear without masks, if only rows may read.
        isolated: masks on, the sums of a single round give the adapter away, in some of the rounds.
        isolated_worst: the same at the worst placement tried; None where rows are drawn.
        isolated_still: from the sums of all rounds together, if adapters stand still meanwhile.
        isolated_idle: in a single round, or from all together if nobody trains meanwhile and all mix on with the
            plain rows of W, which colluders can compute; with sums in fixed point.
        group_least: fewest honest adapters in one sum that colluders read, over all placements tried; 1 where several
            sums of a round together give one away.
        is_maskable: the graph is fixed and every row reads at least 4, which masks ask for.
        placements: how many were tried at random, and whether these are all; else clusters were tried besides.
    """

    colluders: int
    rounds: int
    in_rows: float
    isolated: float
    isolated_worst: float | None
    isolated_still: float
    isolated_idle: float
    group_least: int
    is_maskable: bool
    placements: int
    is_exhaustive: bool


def liar_exposure(topology: Topology, n: int, liars: int, *, rounds: int, seed: int = 0) -> LiarExposure:
    """Count what ``liars`` of n peers can reach.

    Raises:
        TopologyError: not 1..n - 1 liars, or less than one round.
    """
    _check("liars", n, liars, rounds)
    period = topology.period(n)
    patterns = [_pattern(matrix) for matrix in _matrices(topology, n, rounds)]
    reads = np.stack([np.diff(pattern.indptr) for pattern in patterns])
    default = _chances(n, liars, reads, borne)
    most = _tries(n * n)
    placed, is_exhaustive = placements(n, liars, most, seed)
    tried = placed if is_exhaustive else np.concatenate([placed, clusters(patterns[0], liars, most)])
    bounds = np.vectorize(borne, otypes=[np.int64])(reads)
    overrun = _overrun_shares(patterns, bounds, tried)
    joined = _joined(patterns, tried)
    if period == 0:  # rows are drawn afresh each round, and liars do not move
        ever = float(np.mean(1.0 - np.prod(1.0 - default, axis=0)))
    else:
        ever = float(default.mean()) if period == 1 else float(overrun[: len(placed)].mean())
    return LiarExposure(
        liars=liars,
        rounds=rounds,
        reads_least=int(reads.min()),
        reads_most=int(reads.max()),
        lied_to=float(_chances(n, liars, reads, lambda reads: 0).mean()),
        overrun=float(default.mean()),
        overrun_asked=float(_chances(n, liars, reads, partial(borne, asked=True)).mean()),
        unbounded=float(_chances(n, liars, reads, bounded).mean()),
        overrun_ever=ever,
        overrun_worst=float(overrun.max()) if period else None,
        joined=float(joined[: len(placed)].mean()),
        joined_worst=bool(joined.all()),
        placements=len(placed),
        is_exhaustive=is_exhaustive,
    )


def colluder_exposure(
    topology: Topology, n: int, colluders: int, *, rounds: int, seed: int = 0
) -> ColluderExposure:
    """Count what ``colluders`` of n peers learn of the adapters of the others.

    Raises:
        TopologyError: not 1..n - 1 colluders, less than one round, or a W that the weight rule does not give.
    """
    _check("colluders", n, colluders, rounds)
    matrices = _matrices(topology, n, rounds)
    sums = rounds * colluders
    most = _tries(sums * min(sums, n) * n)
    placed, is_exhaustive = placements(n, colluders, most, seed)
    tried = placed if is_exhaustive else np.concatenate([placed, clusters(matrices[0], colluders, most)])
    at_once = max(1, ENTRIES_MAX // (sums * n))
    shares, groups = [], []
    for start in range(0, len(tried), at_once):
        found, group = _learned(matrices, tried[start : start + at_once], rounds)
        shares.append(found)
        groups.append(group)
    in_rows, isolated, still, idle = np.concatenate(shares, axis=1)
    reads = min(int(_reads(matrix).min()) for matrix in matrices)
    return ColluderExposure(
        colluders=colluders,
        rounds=rounds,
        in_rows=float(in_rows[: len(placed)].mean()),
        isolated=float(isolated[: len(placed)].mean()),
        isolated_worst=float(isolated.max()) if topology.period(n) else None,
        isolated_still=float(still[: len(placed)].mean()),
        isolated_idle=float(idle[: len(placed)].mean()),
        group_least=min(groups),
        is_maskable=topology.is_static and reads >= GUARDED_READS,
        placements=len(placed),
        is_exhaustive=is_exhaustive,
    )


def placements(n: int, size: int, most: int, seed: int) -> tuple[Sets, bool]:
    """Return sets of ``size`` of n peers, ``int64[sets, size]``: all of them, or ``most`` drawn; and whether all."""
    if math.comb(n, size) <= most:
        return np.asarray(list(itertools.combinations(range(n), size)), dtype=np.int64), True
    rng = np.random.default_rng((seed, 3))
    drawn = [rng.choice(n, size, replace=False) for _ in range(most)]
    return np.asarray(drawn, dtype=np.int64), False


def clusters(matrix: csr_array, size: int, most: int) -> Sets:
    """Return sets of peers that stand together: some with those they read, and those they read without them.

    Random sets of a large group hardly ever fill a row, which is what an adversary who may choose would do.
    """
    n = matrix.shape[0]
    found: list[NDArray[np.int64]] = []
    for start in np.unique(np.linspace(0, n - 1, max(1, most // 2)).astype(int)).tolist():
        near = breadth_first_order(matrix, start, directed=True, return_predecessors=False)
        found += [near[first : first + size] for first in (0, 1) if len(near) >= first + size]
    return np.asarray(found, dtype=np.int64).reshape(-1, size)


def known_share(sums: NDArray[np.float64], error: float = 0.0) -> NDArray[np.float64]:
    """Return how much of the variance of each adapter follows from these sums, 0..1; 1 = it is given away.

    That is the squared length of its unit vector's projection onto the span of the rows, and with an error the
    posterior of independent normal adapters of variance 1.

    Args:
        sums: ``float64[..., sums, peers]``, the weights of each sum; columns that the reader knows anyway are 0.
        error: standard deviation of what is added to each sum, relative to the spread of adapters.

    Returns:
        ``float64[..., peers]``.
    """
    _, sigma, right = np.linalg.svd(sums, full_matrices=False)
    kept = sigma > RANK_TOLERANCE * np.maximum(sigma[..., :1], np.finfo(np.float64).tiny)
    power = np.square(np.where(kept, sigma, 0.0))
    gain = np.divide(power, power + error**2, out=np.zeros_like(power), where=kept)
    return np.asarray(np.sum(np.square(right) * gain[..., None], axis=-2))


def _check(who: str, n: int, count: int, rounds: int) -> None:
    if not 1 <= count < n:
        raise TopologyError(
            f"{who} must be from 1 to {n - 1} of {n} peers, so that an honest one is left, not {count}"
        )
    if rounds < 1:
        raise TopologyError(f"rounds must be at least 1, not {rounds}")


def _tries(work: int) -> int:
    """Return how many placements of so much work each may be tried."""
    return min(PLACEMENTS_MAX, max(PLACEMENTS_MIN, WORK_MAX // work))


def _matrices(topology: Topology, n: int, rounds: int) -> list[csr_array]:
    """Return W of one sweep, of so many rounds at most, or of so many rounds where rows are drawn."""
    period = topology.period(n)
    return [topology.matrix(n, round) for round in range(min(period, rounds) if period else rounds)]


def _pattern(matrix: csr_array) -> csr_array:
    """Return ``csr_array[n, n]`` with 1 where a peer reads another."""
    coo = matrix.tocoo()
    keep = (coo.row != coo.col) & (coo.data != 0)
    return csr_array((np.ones(int(keep.sum())), (coo.row[keep], coo.col[keep])), shape=matrix.shape)


def _reads(matrix: csr_array) -> NDArray[np.int64]:
    """Return how many others each peer reads, ``int64[n]``."""
    return np.asarray(np.diff(_pattern(matrix).indptr), dtype=np.int64)


def _chances(n: int, liars: int, reads: NDArray[np.int64], most: Callable[[int], int]) -> NDArray[np.float64]:
    """Return for each row (``[rounds, n]``) the chance of more liars than ``most`` of so many reads."""
    chance = [chance_of_more(n, liars, count, most(count)) for count in reads.ravel().tolist()]
    return np.asarray(chance).reshape(reads.shape)


def _members(sets: Sets, n: int) -> NDArray[np.float64]:
    """Return ``float64[n, sets]``: 1 where a peer belongs to a set."""
    inside = np.zeros((n, len(sets)))
    inside[sets.T, np.arange(len(sets))] = 1.0
    return inside


def _overrun_shares(patterns: list[csr_array], bounds: NDArray[np.int64], sets: Sets) -> NDArray[np.float64]:
    """Return for each set of liars the share of honest peers that are overrun in some of the rounds."""
    n = patterns[0].shape[0]
    liars = _members(sets, n)
    overrun = np.zeros(liars.shape, dtype=bool)
    for pattern, bound in zip(patterns, bounds, strict=True):
        overrun |= pattern @ liars > bound[:, None]
    return np.asarray((overrun & (liars == 0)).sum(axis=0) / (n - sets.shape[1]))


def _joined(patterns: list[csr_array], sets: Sets) -> NDArray[np.bool_]:
    """Tell for each set of liars whether every honest peer reaches every other through honest reads of the rounds."""
    union = sum(patterns[1:], start=patterns[0])
    honest = _members(sets, union.shape[0]) == 0
    return _all_reached(union, honest) & _all_reached(union.T.tocsr(), honest)


def _all_reached(matrix: csr_array, honest: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell for each column whether its first honest peer reaches all honest ones along the transposed arcs."""
    reached = np.zeros(honest.shape, dtype=bool)
    reached[honest.argmax(axis=0), np.arange(honest.shape[1])] = True
    while True:
        further = reached | ((matrix @ reached.astype(np.float64) > 0) & honest)
        if (further == reached).all():
            return np.asarray((reached == honest).all(axis=0))
        reached = further


def _learned(matrices: list[csr_array], sets: Sets, rounds: int) -> tuple[NDArray[np.float64], int]:
    """Return for each set of colluders the shares in rows, isolated, while still, while idle; and the least group."""
    n, (count, size) = matrices[0].shape[0], sets.shape
    honest = (_members(sets, n).T == 0)[:, None, :]
    sums = np.stack([_rows(matrix, sets) * honest for matrix in matrices], axis=1)
    isolated = known_share(sums) > 1.0 - RANK_TOLERANCE
    still = known_share(sums.reshape(count, -1, n)) > 1.0 - RANK_TOLERANCE
    idle = np.stack([_traced(matrices, sets, honest, round) for round in range(rounds)], axis=1)
    seen = (
        (sums != 0).any(axis=(1, 2)),
        isolated.any(axis=1),
        still,
        isolated.any(axis=1) | (known_share(idle.reshape(count, -1, n), SUM_ERROR) > KNOWN),
    )
    groups = np.count_nonzero(sums, axis=-1)
    group = 1 if isolated.any() else int(groups.min(where=groups > 0, initial=n))
    return np.stack([found.sum(axis=1) / (n - size) for found in seen]), group


def _rows(matrix: csr_array, sets: Sets) -> NDArray[np.float64]:
    """Return the rows of the members of each set, ``float64[sets, size, n]``."""
    return np.asarray(matrix[sets.ravel()].toarray().reshape(*sets.shape, -1))


def _traced(
    matrices: list[csr_array], sets: Sets, honest: NDArray[np.bool_], round: int
) -> NDArray[np.float64]:
    """Return the sums of a round in terms of the first round's adapters of honest peers, which only mix meanwhile."""
    sums = _rows(matrices[round % len(matrices)], sets) * honest
    for earlier in reversed(range(round)):
        mixed = sums.reshape(-1, sums.shape[-1]) @ matrices[earlier % len(matrices)]
        sums = mixed.reshape(sums.shape) * honest
    return sums
