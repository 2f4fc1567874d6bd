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
from topology.parameters import Parameter, whole


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


def epidemic(n: int, round: int, draws: Draws, sample: int) -> WeightedEdges:
    """Each reads S others drawn afresh by itself (Epidemic Learning 2023, pull view); only row-stochastic."""
    sample = min(sample, n - 1)
    reads = [np.delete(np.arange(n), i)[draws.choose(n - 1, sample)] for i in range(n)] if sample else []
    read = np.concatenate(reads) if reads else np.zeros(0, dtype=np.int64)
    return WeightedEdges(n, np.repeat(np.arange(n), sample), read, np.full(n * sample, 1.0 / (sample + 1)))


_S = Parameter("S", "peers read each round, at least 1", whole(1))


def _sample_problem(n: int, sample: int) -> str:
    return (
        ""
        if sample < n
        else f"S = {sample} needs at least {sample + 1} peers; for {n} take S up to {max(n - 1, 1)}"
    )


SCHEDULES: dict[str, Schedule] = {
    "epidemic": Schedule(epidemic, never, (_S,), _sample_problem, doubly_stochastic=False, own_draws=True),
}
