"""``Links``: my row of the mixing matrix in one round, and the topologies that give it, by name.

``parse_topology("random-regular:4", seed=7)`` returns a callable ``(me, members, round, rng) -> Links``. Whatever all
peers must agree on depends only on the run's seed, the round and the sorted member list; only epidemic topologies use
the node's own ``rng``. ``check`` is strict, for a known number of peers or roster; calling never fails for want of a
valid graph, because members come and go (each catalogue entry says what it falls back to). It knows neither adapters
nor the network.
"""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from topology.announced import Announcements
from topology.edges import Edges
from topology.errors import TopologyError, unknown
from topology.given import GivenMatrix, read_matrix
from topology.given_graphs import FORMATS, GivenGraph, read_graph
from topology.graphs import GRAPHS
from topology.parameters import Parameter, canonical, read_values, signature
from topology.plans import Members, Plan, RoundRobin, Scheduled, StaticGraph, WeightRule
from topology.schedules import LIKENESS_SHARPNESS, SCHEDULES
from topology.weights import RULES

if TYPE_CHECKING:
    from networkx import Graph
    from scipy.sparse import csr_array

EDGES_CACHED_MAX = 4_000_000
"""Matrix entries kept per topology (48 MB); the newest matrix is always kept. Source: guess."""
ROSTERS_CACHED_MAX = 64
"""Member lists remembered as sorted. Source: guess."""


@dataclass(frozen=True, slots=True)
class Links:
    """My row of W in one round.

    Args:
        read_from: ``(peer, weight)`` sorted by peer, weights > 0, never myself.
        self_weight: what I keep of my own, >= 0; with the others it sums to 1.
    """

    read_from: tuple[tuple[str, float], ...]
    self_weight: float


@dataclass(frozen=True, slots=True, eq=False)
class Topology:
    """Who reads whom, round by round. Call it for one row; use ``matrix`` for the whole of W.

    Args:
        name: canonical text, such as ``"random-regular:4"``; ``parse_topology`` reads it back.
        plan: what stands behind the name.
    """

    name: str
    plan: Plan
    _matrices: dict[Hashable, csr_array] = field(default_factory=dict, repr=False)
    _rosters: dict[Members, None] = field(default_factory=dict, repr=False)

    @property
    def is_static(self) -> bool:
        """The same W in every round as long as the members are the same."""
        return self.plan.period(2) == 1 and self.plan.period(5) == 1

    @property
    def is_symmetric(self) -> bool:
        """W equals its transpose in every round (given files: with the whole roster there)."""
        return self.plan.symmetric

    @property
    def is_doubly_stochastic(self) -> bool:
        """Columns of W sum to 1 too, so lossless rounds keep the mean (given files: with the whole roster there)."""
        return self.plan.doubly_stochastic

    @property
    def sharpness(self) -> float:
        """How strongly a node's own draws favor those like itself; 0 where it does not matter."""
        plan = self.plan
        if not (isinstance(plan, Scheduled) and plan.name.startswith("similar:")):
            return 0.0
        return float(plan.values[1]) if len(plan.values) > 1 else LIKENESS_SHARPNESS

    @property
    def own_sample(self) -> int:
        """Peers each node draws with its own generator; 0 where all peers agree on W."""
        plan = self.plan
        return int(plan.values[0]) if isinstance(plan, Scheduled) and plan.schedule.own_draws else 0

    @property
    def wants(self) -> frozenset[str]:
        """Fields of ``Announced`` on which W depends: what peers must announce of their data."""
        return self.plan.wants

    def knowing(self, announced: Announcements) -> Topology:
        """Return the topology as it is among peers that have announced this; itself where that makes no difference."""
        if not self.wants:
            return self
        return Topology(self.name, self.plan.knowing(dict(announced)))

    def period(self, n: int) -> int:
        """Return the rounds of one sweep for n peers: 1 = static, 0 = never repeats."""
        return self.plan.period(n)

    def check(self, members: int | Sequence[str]) -> None:
        """Refuse what cannot be for so many peers, or for this roster.

        Raises:
            TopologyError: the graph does not exist, the weight rule has no nonnegative answer, or a given file is
                for other peers; says what would be valid.
        """
        self.plan.check(self._members(members) if isinstance(members, int) else tuple(sorted(members)))

    def __call__(
        self,
        me: str,
        members: Sequence[str],
        round: int,
        rng: random.Random | np.random.Generator,
        likeness: Mapping[str, float] | None = None,
    ) -> Links:
        """Return my row of W this round.

        Args:
            me: my id; one of ``members``.
            members: ids of all live peers, sorted, without duplicates.
            round: >= 0.
            rng: my own generator; used by epidemic topologies only.
            likeness: peer -> how alike our adapters are, in [-1, 1]; used by ``similar`` only. Who is not in it counts
                as most alike, so that everybody is read once.

        Raises:
            TopologyError: ``members`` is not sorted or lacks ``me`` (our bug).
        """
        roster = tuple(members)
        self._require_sorted(roster)
        mine = bisect_left(roster, me)
        if mine == len(roster) or roster[mine] != me:
            raise TopologyError(f"{me!r} is not among the {len(roster)} members")
        if self.own_sample:
            if self.sharpness:
                known = likeness or {}
                scores = [self.sharpness * known.get(peer, 1.0) for peer in roster]
                return _draw_alike(mine, roster, self.own_sample, scores, rng)
            return _draw_row(mine, roster, self.own_sample, rng)
        matrix = self._row_matrix(roster, round)
        start, end = matrix.indptr[mine], matrix.indptr[mine + 1]
        columns, weights = matrix.indices[start:end].tolist(), matrix.data[start:end].tolist()
        read_from = [(roster[j], w) for j, w in zip(columns, weights, strict=True) if j != mine and w > 0.0]
        return Links(tuple(read_from), weights[columns.index(mine)])

    links = __call__

    def readers(self, me: str, members: Sequence[str], round: int) -> int:
        """Return how many others read me this round, where all peers agree on W.

        Raises:
            TopologyError: each peer draws its own neighbors, so nobody knows.
        """
        if self.own_sample:
            raise TopologyError(f"{self.name} is drawn by each peer for itself: nobody knows who reads whom")
        roster = tuple(members)
        self._require_sorted(roster)
        matrix = self._row_matrix(roster, round)
        mine = bisect_left(roster, me)
        column = matrix.indices == mine
        return int(np.count_nonzero(matrix.data[column])) - int(matrix[mine, mine] != 0)

    def matrix(self, members: int | Sequence[str], round: int = 0) -> csr_array:
        """Return W, ``csr_array[n, n]`` float64, rows in sorted order of members, strictly as the weight rule says.

        For epidemic topologies it is one draw, seeded by run and round.

        Raises:
            TopologyError: the weight rule has no answer for these edges (negative weights are no error here).
        """
        return self.plan.matrix(self._members(members), round)

    def edges(self, members: int | Sequence[str], round: int = 0) -> Edges:
        """Return ``int64[E, 2]`` (reader, read): where W of this round is not zero off its diagonal."""
        coo = self.matrix(members, round).tocoo()
        keep = (coo.row != coo.col) & (coo.data != 0)
        return np.stack([coo.row[keep], coo.col[keep]], axis=1).astype(np.int64)

    def graph(self, members: int | Sequence[str], round: int = 0) -> Graph:
        """Return this round's graph for networkx: undirected where W's pattern is, else arcs from reader to read."""
        import networkx as nx

        names = self._members(members)
        matrix = self.matrix(names, round)
        pattern = matrix != 0
        graph = nx.Graph() if (pattern != pattern.T).nnz == 0 else nx.DiGraph()
        graph.add_nodes_from(names)
        coo = matrix.tocoo()
        for i, j, weight in zip(coo.row.tolist(), coo.col.tolist(), coo.data.tolist(), strict=True):
            if i != j and weight != 0.0:
                graph.add_edge(names[i], names[j], weight=weight)
        return graph

    def _members(self, members: int | Sequence[str]) -> Members:
        """Stand-in names for a number of peers: those of the file where it names exactly so many."""
        if not isinstance(members, int):
            return tuple(members)
        names = self.plan.names if isinstance(self.plan, GivenMatrix | GivenGraph) else None
        return tuple(sorted(names)) if names is not None and len(names) == members else numbered(members)

    def _require_sorted(self, roster: Members) -> None:
        if roster in self._rosters:
            return
        if any(peer >= following for peer, following in itertools.pairwise(roster)):
            raise TopologyError("members must be sorted and without duplicates")
        while len(self._rosters) >= ROSTERS_CACHED_MAX:
            del self._rosters[next(iter(self._rosters))]
        self._rosters[roster] = None

    def _row_matrix(self, roster: Members, round: int) -> csr_array:
        """Return a W to mix with: the strict one, or the plan's fallback where that is impossible or negative."""
        key = self.plan.key(roster, round)
        if (matrix := self._matrices.get(key)) is not None:
            return matrix
        try:
            matrix = self.plan.matrix(roster, round)
        except (
            TopologyError
        ):  # check() reports it; a running peer mixes on with what does exist for these members
            matrix = self.plan.fallback(roster, round)
        if matrix.data.min() < 0.0:
            matrix = self.plan.fallback(roster, round)
        while (
            self._matrices
            and sum(kept.nnz for kept in self._matrices.values()) + matrix.nnz > EDGES_CACHED_MAX
        ):
            del self._matrices[next(iter(self._matrices))]
        self._matrices[key] = matrix
        return matrix


def numbered(n: int) -> Members:
    """Return n peer names in sorted order, for analysis: ``("p00000", "p00001", ...)``.

    Raises:
        TopologyError: n is not at least 1.
    """
    if n < 1:
        raise TopologyError(f"the number of peers must be at least 1, not {n}")
    return tuple(f"p{index:05d}" for index in range(n))


def _draw_row(mine: int, roster: Members, sample: int, rng: random.Random | np.random.Generator) -> Links:
    """Draw min(sample, n - 1) others uniformly without replacement; equal weights, one share for myself."""
    others = len(roster) - 1
    size = min(sample, others)
    if isinstance(rng, random.Random):
        drawn = sorted(rng.sample(range(others), size))
    else:
        drawn = sorted(rng.choice(others, size, replace=False).tolist()) if size else []
    weight = 1.0 / (size + 1)
    return Links(tuple((roster[j + (j >= mine)], weight) for j in drawn), 1.0 - size * weight)


def _draw_alike(
    mine: int,
    roster: Members,
    sample: int,
    scores: Sequence[float],
    rng: random.Random | np.random.Generator,
) -> Links:
    """Draw min(sample, n - 1) others without replacement, chances in proportion to exp(score); equal weights.

    The largest of scores with independent Gumbel noise are such a draw (Efraimidis and Spirakis 2006).
    """
    noisy = {
        j: scores[j] - math.log(-math.log(rng.random() or 1e-300)) for j in range(len(roster)) if j != mine
    }
    drawn = sorted(sorted(noisy, key=lambda j: noisy[j], reverse=True)[:sample])
    weight = 1.0 / (len(drawn) + 1)
    return Links(tuple((roster[j], weight) for j in drawn), 1.0 - len(drawn) * weight)


def parse_topology(
    text: str, *, seed: int, weights: str = "metropolis-hastings", roster: Sequence[str] | None = None
) -> Topology:
    """Read a topology's name and parameters, e.g. ``"ring"``, ``"epidemic:3"``, ``"matrix:W.csv"``.

    Args:
        text: name and parameters, separated by colons; ``catalogue()`` lists them.
        seed: the run's seed, equal on all peers.
        weights: rule for static graphs; schedules and matrices bring their own.
        roster: all peers of the run where they are known: owners of a file's rows without names.

    Raises:
        TopologyError: unknown name (lists the known ones), bad parameter or unreadable file; says what would be valid.
    """
    name, _, rest = text.strip().partition(":")
    name = name.strip().lower()
    rule = _parse_weights(weights)
    if name == "matrix":
        if not rest:
            raise TopologyError("write 'matrix:FILE' with a CSV or JSON file holding the mixing matrix")
        return Topology(f"matrix:{rest}", read_matrix(rest, roster))
    if name == "graph":
        if not rest:
            raise TopologyError(f"write 'graph:FILE' with a file ending in {FORMATS}")
        return Topology(f"graph:{rest}", read_graph(rest, rule, roster))
    if name == "round-robin":
        return _parse_round_robin(rest, seed, weights, roster)
    texts = [part.strip() for part in rest.split(":")] if rest else []
    if name in GRAPHS:
        values = read_values(name, GRAPHS[name].parameters, texts)
        full = canonical(name, values)
        return Topology(full, StaticGraph(full, GRAPHS[name], values, rule, seed))
    if name in SCHEDULES:
        values = read_values(name, SCHEDULES[name].parameters, texts)
        full = canonical(name, values)
        return Topology(full, Scheduled(full, SCHEDULES[name], values, seed))
    raise unknown("topology", text, [written.split(":")[0].split("[")[0] for written in catalogue()])


def _parse_weights(text: str) -> WeightRule:
    name, _, rest = text.strip().lower().partition(":")
    if name not in RULES:
        raise unknown("weight rule", text, RULES)
    values = read_values(name, RULES[name].parameters, rest.split(":") if rest else [])
    return WeightRule(canonical(name, values), RULES[name], values)


def _parse_round_robin(rest: str, seed: int, weights: str, roster: Sequence[str] | None) -> Topology:
    parts = [
        parse_topology(part, seed=seed, weights=weights, roster=roster)
        for part in rest.split("+")
        if part.strip()
    ]
    if len(parts) < 2:
        raise TopologyError(
            "write 'round-robin:A+B...' with at least two topologies, e.g. 'round-robin:ring+star'"
        )
    for part in parts:
        if part.own_sample:
            raise TopologyError(
                f"round-robin needs topologies on which all peers agree; {part.name!r} is drawn by each"
            )
    return Topology(
        "round-robin:" + "+".join(part.name for part in parts), RoundRobin(tuple(p.plan for p in parts))
    )


def _first_line(function: object) -> str:
    return (function.__doc__ or "").strip().partition("\n")[0]


def catalogue() -> dict[str, str]:
    """Return how each topology is written and what it is, for ``--help`` and the README table."""
    entries: list[tuple[str, tuple[Parameter, ...], str]] = [
        *((name, graph.parameters, _first_line(graph.build)) for name, graph in GRAPHS.items()),
        *((name, schedule.parameters, _first_line(schedule.build)) for name, schedule in SCHEDULES.items()),
    ]
    return {
        **{signature(name, parameters): line for name, parameters, line in entries},
        "graph:FILE": "A graph of your own: GraphML, GEXF, edge list or adjacency CSV; weights by rule.",
        "matrix:FILE": "The mixing matrix itself, CSV or JSON, for a given roster; rows must sum to 1.",
        "round-robin:A+B": "Several of these in turn, one per round, e.g. round-robin:ring+star.",
    }


def weight_catalogue() -> dict[str, str]:
    """Return how each weight rule is written and what it is; the first is the default."""
    return {signature(name, rule.parameters): _first_line(rule.apply) for name, rule in RULES.items()}


def describe(entries: dict[str, str] | None = None) -> str:
    """Return a catalogue (default: that of topologies) as lines of text, name and description in two columns."""
    entries = catalogue() if entries is None else entries
    width = max(map(len, entries))
    return "\n".join(f"{written:<{width}}  {line}" for written, line in entries.items())
