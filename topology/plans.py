"""What stands behind a topology's name: a static graph, a schedule, a given matrix or graph, or several in turn.

A plan says which mixing matrix W belongs to (members, round), strictly or with a fallback, and which claims hold for
it. It does not cache, parse text or know who "I" am: ``topology/links.py`` does.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from topology.announced import NOTHING, WANTS_NOTHING, Announcements, label_counts, row_counts
from topology.draws import Draws
from topology.edges import Edges, WeightedEdges
from topology.errors import TopologyError
from topology.graphs import Graph
from topology.parameters import Value
from topology.schedules import Schedule
from topology.weights import Rule, metropolis_hastings, uniform

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Members = tuple[str, ...]


class Plan(Protocol):
    """Which W belongs to (members, round). Implementations are frozen values.

    ``matrix`` may raise ``TopologyError`` (a weight rule without an answer for these edges); ``fallback`` never does.
    ``key`` names the matrix in a cache: equal keys, equal matrices. ``period``: 1 = static, 0 = never repeats.
    ``wants``: fields of ``Announced`` on which W depends; ``knowing`` returns the plan that knows them.
    """

    @property
    def symmetric(self) -> bool: ...
    @property
    def doubly_stochastic(self) -> bool: ...
    @property
    def wants(self) -> frozenset[str]: ...
    def knowing(self, announced: Announcements) -> Plan: ...
    def period(self, n: int) -> int: ...
    def key(self, members: Members, round: int) -> Hashable: ...
    def matrix(self, members: Members, round: int) -> csr_array: ...
    def fallback(self, members: Members, round: int) -> csr_array: ...
    def check(self, members: Members) -> None: ...


@dataclass(frozen=True, slots=True)
class WeightRule:
    """A rule of ``weights.RULES`` with its parameters: edges -> weighted edges."""

    name: str
    rule: Rule
    values: tuple[Value, ...] = ()

    @property
    def wants(self) -> frozenset[str]:
        """Fields of ``Announced`` that it goes by."""
        return frozenset({"rows"}) if self.rule.by_rows else WANTS_NOTHING

    def __call__(
        self, members: Members, edges: Edges, directed: bool, announced: Announcements = NOTHING
    ) -> WeightedEdges:
        rows = (row_counts(members, announced),) if self.rule.by_rows else ()
        return self.rule.apply(len(members), edges, directed, *rows, *self.values)

    def check(self, members: Members, edges: Edges, directed: bool) -> None:
        """Refuse what cannot be a row of reading weights: no answer, or a negative weight."""
        weighted = self(members, edges, directed)
        if len(weighted.weight) and min(weighted.weight.min(), weighted.self_weights().min()) < 0:
            raise TopologyError(
                f"{self.name} weights are negative somewhere on this graph, which peers cannot mix with; "
                f"take 'fmmc' (the fastest nonnegative weights) or 'metropolis-hastings'"
            )


def fallback_weights(n: int, edges: Edges, directed: bool) -> WeightedEdges:
    """Return weights that exist for all edges: Metropolis-Hastings, or uniform rows where edges are directed."""
    return (uniform if directed else metropolis_hastings)(n, edges, directed)


@dataclass(frozen=True, slots=True)
class StaticGraph:
    """A graph of the catalogue with a weight rule.

    Depends on how many members there are and, where it wants that, on what they have announced; not on who they are.
    """

    name: str
    graph: Graph
    values: tuple[Value, ...]
    rule: WeightRule
    seed: int
    announced: Announcements = field(default_factory=dict, hash=False)

    @property
    def wants(self) -> frozenset[str]:
        return self.rule.wants | ({"labels"} if self.graph.by_labels else WANTS_NOTHING)

    def knowing(self, announced: Announcements) -> Plan:
        return replace(self, announced=announced)

    @property
    def symmetric(self) -> bool:
        return self.rule.rule.doubly_stochastic and not self.graph.directed

    @property
    def doubly_stochastic(self) -> bool:
        return self.rule.rule.doubly_stochastic

    def period(self, n: int) -> int:
        return 1

    def key(self, members: Members, round: int) -> Hashable:
        return members if self.wants else len(members)

    def edges(self, members: Members) -> Edges:
        """Return the graph; the same for all peers with the same seed that know the same announcements."""
        n = len(members)
        labels = (label_counts(members, self.announced),) if self.graph.by_labels else ()
        return self.graph.build(n, Draws(self.seed, self.name, n), *labels, *self.values)

    def matrix(self, members: Members, round: int) -> csr_array:
        return self.rule(members, self.edges(members), self.graph.directed, self.announced).matrix()

    def fallback(self, members: Members, round: int) -> csr_array:
        return fallback_weights(len(members), self.edges(members), self.graph.directed).matrix()

    def check(self, members: Members) -> None:
        n = len(members)
        if problem := self.graph.problem(n, *self.values):
            raise TopologyError(f"topology {self.name!r} does not exist for {n} peer(s): {problem}")
        self.rule.check(members, self.edges(members), self.graph.directed)


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A schedule of the catalogue; brings its own weights."""

    name: str
    schedule: Schedule
    values: tuple[Value, ...]
    seed: int

    @property
    def wants(self) -> frozenset[str]:
        return WANTS_NOTHING

    def knowing(self, announced: Announcements) -> Plan:
        return self

    @property
    def symmetric(self) -> bool:
        return self.schedule.symmetric

    @property
    def doubly_stochastic(self) -> bool:
        return self.schedule.doubly_stochastic

    def period(self, n: int) -> int:
        return self.schedule.period(n, *self.values)

    def key(self, members: Members, round: int) -> Hashable:
        return len(members), self._phase(len(members), round)

    def _phase(self, n: int, round: int) -> int:
        period = self.period(n)
        return round % period if period else round

    def matrix(self, members: Members, round: int) -> csr_array:
        n, phase = len(members), self._phase(len(members), round)
        draws = Draws(self.seed, self.name, n, phase)
        return self.schedule.build(n, phase, draws, *self.values).matrix()

    def fallback(self, members: Members, round: int) -> csr_array:
        return self.matrix(members, round)

    def check(self, members: Members) -> None:
        n = len(members)
        if problem := self.schedule.problem(n, *self.values):
            raise TopologyError(f"topology {self.name!r} is not possible for {n} peer(s): {problem}")


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Several topologies in turn: round t uses the (t mod L)-th, in that one's round t // L."""

    parts: tuple[Plan, ...]

    @property
    def wants(self) -> frozenset[str]:
        return WANTS_NOTHING.union(*(part.wants for part in self.parts))

    def knowing(self, announced: Announcements) -> Plan:
        return RoundRobin(tuple(part.knowing(announced) for part in self.parts))

    @property
    def symmetric(self) -> bool:
        return all(part.symmetric for part in self.parts)

    @property
    def doubly_stochastic(self) -> bool:
        return all(part.doubly_stochastic for part in self.parts)

    def period(self, n: int) -> int:
        inner = [part.period(n) for part in self.parts]
        if 0 in inner:
            return 0
        return len(self.parts) * math.lcm(*inner)

    def _part(self, round: int) -> tuple[Plan, int]:
        return self.parts[round % len(self.parts)], round // len(self.parts)

    def key(self, members: Members, round: int) -> Hashable:
        part, inner = self._part(round)
        return round % len(self.parts), part.key(members, inner)

    def matrix(self, members: Members, round: int) -> csr_array:
        part, inner = self._part(round)
        return part.matrix(members, inner)

    def fallback(self, members: Members, round: int) -> csr_array:
        part, inner = self._part(round)
        return part.fallback(members, inner)

    def check(self, members: Members) -> None:
        for part in self.parts:
            part.check(members)
