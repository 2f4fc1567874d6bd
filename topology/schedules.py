"""Time-varying topologies by name: n peers, a round -> weighted edges. To add one: a function and a line in
``SCHEDULES``.

A schedule brings its own weights. Shared ones draw from ``Draws`` (run seed, n, round), so all peers agree on W;
epidemic ones let each node draw for itself. They are defined for every n >= 1; where a schedule loses a property for
some n, its docstring says so. They know neither peer names nor who is away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from topology.draws import Draws
from topology.edges import WeightedEdges
from topology.finite_time import base_schedule, factors
from topology.graphs import power_of_two_problem
from topology.parameters import Parameter, fraction, positive, whole

LIKENESS_SHARPNESS = 10.0
"""A peer is drawn with a chance that grows as exp(T x likeness); likeness = cosine of what two adapters have learned,
in [-1, 1]. Source: guess; DAC's 30 is for another likeness, the inverse loss."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """One catalogue entry.

    Args:
        build: ``(n, round, draws, *parameters) -> WeightedEdges``, for every n >= 1 and round >= 0.
        period: ``(n, *parameters)`` -> rounds after which it repeats (one sweep); 0 = it never does (random).
        parameters: what may follow the name.
        problem: ``(n, *parameters)`` -> why it is not itself for n and what would be valid, or ``""``.
        symmetric: whether W is symmetric in every round, for every n.
        doubly_stochastic: whether columns sum to 1 in every round, for every n.
        own_draws: each node draws its own row with its own generator; ``build`` is then one such draw for analysis.
    """

    build: Callable[..., WeightedEdges]
    period: Callable[..., int]
    parameters: tuple[Parameter, ...] = ()
    problem: Callable[..., str] = lambda n, *values: ""
    symmetric: bool = False
    doubly_stochastic: bool = True
    own_draws: bool = False


def never(n: int, *values: object) -> int:
    """The period of a random schedule: it has none."""
    return 0


def log2_ceiling(n: int) -> int:
    """Return ceil(log2 n): the rounds of one sweep of one-peer exponential and dimension exchange."""
    return max(n - 1, 0).bit_length()


def epidemic(n: int, round: int, draws: Draws, sample: int) -> WeightedEdges:
    """Each reads S others drawn afresh by itself (Epidemic Learning 2023, pull view); only row-stochastic."""
    sample = min(sample, n - 1)
    reader = np.repeat(np.arange(n), sample)
    return WeightedEdges(
        n, reader, draws.choose_others(n, sample).ravel(), np.full(n * sample, 1.0 / (sample + 1))
    )


def similar(
    n: int, round: int, draws: Draws, sample: int, sharpness: float = LIKENESS_SHARPNESS
) -> WeightedEdges:
    """Each reads S others, those whose adapters are like its own more often (DAC, Zec et al. 2022); row-stochastic."""
    return epidemic(n, round, draws, sample)  # before anything is known of anybody


def epidemic_local(n: int, round: int, draws: Draws, sample: int) -> WeightedEdges:
    """Each is read by S others drawn from the run's seed (EL-Local, push view); only row-stochastic."""
    sample = min(sample, n - 1)
    reader = draws.choose_others(n, sample).ravel()
    weight = 1.0 / (1.0 + np.bincount(reader, minlength=n).astype(np.float64))
    return WeightedEdges(n, reader, np.repeat(np.arange(n), sample), weight[reader])


def epidemic_oracle(n: int, round: int, draws: Draws, sample: int) -> WeightedEdges:
    """Each reads S others and is read by S (EL-Oracle): shuffled peers on a random circulant; doubly stochastic."""
    sample = min(sample, n - 1)
    order = draws.permutation(n)
    shifts = draws.choose(n - 1, sample) + 1 if n > 1 else np.zeros(0, dtype=np.int64)
    read = [np.roll(order, -int(shift)) for shift in shifts]
    columns = np.concatenate(read) if read else np.zeros(0, dtype=np.int64)
    return WeightedEdges(n, np.tile(order, sample), columns, np.full(n * sample, 1.0 / (sample + 1)))


def _circulant(n: int, shifts: list[int], weight: float) -> WeightedEdges:
    """Everyone reads those ``shifts`` places ahead, each with the same weight; equal shifts add up."""
    index = np.arange(n)
    read = [(index + shift) % n for shift in shifts if shift % n]
    columns = np.concatenate(read) if read else np.zeros(0, dtype=np.int64)
    return WeightedEdges(n, np.tile(index, len(read)), columns, np.full(n * len(read), weight))


def one_peer_exponential(n: int, round: int, draws: Draws) -> WeightedEdges:
    """In turn, each reads the one 1, 2, 4 ... places ahead (Ying et al. 2021); exact in one sweep where n = 2^d."""
    sweep = log2_ceiling(n)
    return _circulant(n, [1 << round % sweep] if sweep else [], 0.5)


def dimension_exchange(n: int, round: int, draws: Draws) -> WeightedEdges:
    """Pairs along one axis of the hypercube in turn; exact after d rounds at n = 2^d, else some wait."""
    sweep = log2_ceiling(n)
    index = np.arange(n)
    partner = index ^ (1 << round % sweep) if sweep else index + n
    paired = partner < n
    return WeightedEdges(n, index[paired], partner[paired], np.full(int(paired.sum()), 0.5))


def base(n: int, round: int, draws: Draws, k: int) -> WeightedEdges:
    """Base-(K+1): at most K neighbors a round, the exact average after O(log n) rounds for every n (NeurIPS 2023)."""
    rounds = base_schedule(n, k)
    return rounds[round % len(rounds)] if rounds else _circulant(n, [], 0.0)


def hyper_hypercube_rounds(n: int, round: int, draws: Draws, k: int) -> WeightedEdges:
    """Groups of at most K+1 along the axes of a grid (Moshpit's at equal sides), exact; other n use base:K."""
    return base(n, round, draws, k)


def _hyper_hypercube_problem(n: int, k: int) -> str:
    if factors(n, k + 1) is not None:
        return ""
    return f"n must be a product of factors of at most K + 1 = {k + 1}; 'base:{k}' is exact for every n"


def random_matching(n: int, round: int, draws: Draws) -> WeightedEdges:
    """Random pairs average, drawn afresh from the run's seed each round; one waits where n is odd."""
    order = draws.permutation(n)[: n - n % 2].reshape(-1, 2)
    reader, read = np.concatenate([order[:, 0], order[:, 1]]), np.concatenate([order[:, 1], order[:, 0]])
    return WeightedEdges(n, reader, read, np.full(n - n % 2, 0.5))


def random_pair(n: int, round: int, draws: Draws) -> WeightedEdges:
    """A single random pair averages: one tick of asynchronous gossip (Boyd et al. 2006)."""
    pair = draws.permutation(n)[:2] if n > 1 else np.zeros(0, dtype=np.int64)
    return WeightedEdges(n, pair, pair[::-1].copy(), np.full(len(pair), 0.5))


def equistatic(n: int, round: int, draws: Draws, count: int) -> WeightedEdges:
    """M random circulant shifts drawn once, directed (D-EquiStatic, Song et al. 2022); the gap does not depend on n."""
    shifts = (draws.below(n - 1, count) + 1).tolist() if n > 1 else []
    return _circulant(n, shifts, (n - 1) / (n * count))


def equistatic_undirected(n: int, round: int, draws: Draws, count: int) -> WeightedEdges:
    """M random circulant shifts and their reverses, drawn once (U-EquiStatic, Song et al. 2022); symmetric."""
    shifts = (draws.below(n - 1, count) + 1).tolist() if n > 1 else []
    return _circulant(n, shifts + [n - shift for shift in shifts], (n - 1) / (2 * n * count))


def equidyn(n: int, round: int, draws: Draws, eta: float = 0.5) -> WeightedEdges:
    """All read the one a random number of places ahead with weight ETA (n-1)/n (OD-EquiDyn, Song et al. 2022)."""
    shift = (draws.below(n - 1, 1) + 1).tolist() if n > 1 else []
    return _circulant(n, shift, eta * (n - 1) / n)


def _sample_problem(n: int, sample: int) -> str:
    return (
        ""
        if sample < n
        else f"S = {sample} needs at least {sample + 1} peers; for {n} take S up to {max(n - 1, 1)}"
    )


def _sweep(n: int) -> int:
    return max(1, log2_ceiling(n))


def _base_period(n: int, k: int) -> int:
    return max(1, len(base_schedule(n, k)))


_S = (Parameter("S", "peers read each round, at least 1", whole(1)),)
_K = (Parameter("K", "most neighbors in a round, at least 1", whole(1)),)
_M = (Parameter("M", "shifts drawn, 1 to 10000", whole(1, 10_000)),)
_LIKE = (*_S, Parameter("T", f"sharpness, default {LIKENESS_SHARPNESS:g}", positive(1000.0), required=False))
_ETA = (Parameter("ETA", "step, above 0 to 1, default 0.5", fraction(zero=False), required=False),)

SCHEDULES: dict[str, Schedule] = {
    # Never refused for a small group: with no more than S others it reads them all, which is what was meant.
    "epidemic": Schedule(epidemic, never, _S, doubly_stochastic=False, own_draws=True),
    "similar": Schedule(similar, never, _LIKE, doubly_stochastic=False, own_draws=True),
    "epidemic-local": Schedule(epidemic_local, never, _S, _sample_problem, doubly_stochastic=False),
    "epidemic-oracle": Schedule(epidemic_oracle, never, _S, _sample_problem),
    "base": Schedule(base, _base_period, _K, symmetric=True),
    "hyper-hypercube": Schedule(
        hyper_hypercube_rounds, _base_period, _K, _hyper_hypercube_problem, symmetric=True
    ),
    "one-peer-exponential": Schedule(one_peer_exponential, _sweep),
    "dimension-exchange": Schedule(dimension_exchange, _sweep, problem=power_of_two_problem, symmetric=True),
    "random-matching": Schedule(random_matching, never, symmetric=True),
    "random-pair": Schedule(random_pair, never, symmetric=True),
    "equistatic": Schedule(equistatic, lambda n, count: 1, _M),
    "equistatic-undirected": Schedule(equistatic_undirected, lambda n, count: 1, _M, symmetric=True),
    "equidyn": Schedule(equidyn, never, _ETA),
}
