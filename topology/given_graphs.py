"""``graph:FILE``: a graph given by the user, weighted by a rule of the catalogue.

GraphML, GEXF (networkx reads both), an edge list (two names a line) or an adjacency matrix as CSV (not 0 = edge).
Labels that are just 0..n-1 or 1..n are numbers, for the roster in sorted order; all others are peer names. When
members are away the rule is applied to the graph among those who are there, on which all peers agree; newcomers stand
alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import ParseError

import numpy as np

from topology.announced import Announcements
from topology.edges import Edges, edge_array, is_connected, undirected
from topology.errors import TopologyError
from topology.given import check_names, read_table, read_text
from topology.plans import Members, WeightRule, fallback_weights

if TYPE_CHECKING:
    from scipy.sparse import csr_array

FORMATS = ".graphml, .gexf, .csv (adjacency), .edges, .edgelist or .txt (two names a line)"


@dataclass(frozen=True, slots=True, eq=False)
class GivenGraph:
    """A graph from a file with a weight rule.

    Args:
        file: where it came from, for messages.
        names: peer of each node; None = the members in sorted order, as long as exactly as many are there.
        size: number of nodes.
        directed: whether edges are (reader, read).
    """

    file: str
    names: tuple[str, ...] | None
    size: int
    edges: Edges
    directed: bool
    rule: WeightRule
    announced: Announcements = field(default_factory=dict)

    @property
    def wants(self) -> frozenset[str]:
        return self.rule.wants

    def knowing(self, announced: Announcements) -> GivenGraph:
        return replace(self, announced=announced)

    @property
    def symmetric(self) -> bool:
        return self.rule.rule.doubly_stochastic and not self.directed

    @property
    def doubly_stochastic(self) -> bool:
        return self.rule.rule.doubly_stochastic

    def period(self, n: int) -> int:
        return 1

    def key(self, members: Members, round: int) -> Hashable:
        return members if self.names is not None or self.wants else len(members)

    def _among(self, members: Members) -> Edges:
        """Edges between those who are there, in their numbering."""
        if self.names is None and len(members) != self.size:
            return edge_array([])
        place = {peer: index for index, peer in enumerate(members)}
        of_node = np.asarray([place.get(name, -1) for name in self.names or members], dtype=np.int64)
        edges = of_node[self.edges]
        return edges[(edges >= 0).all(axis=1)]

    def matrix(self, members: Members, round: int) -> csr_array:
        return self.rule(members, self._among(members), self.directed, self.announced).matrix()

    def fallback(self, members: Members, round: int) -> csr_array:
        return fallback_weights(len(members), self._among(members), self.directed).matrix()

    def check(self, members: Members) -> None:
        if len(members) != self.size:
            raise TopologyError(
                f"{self.file}: the graph has {self.size} nodes, the roster {len(members)} peers"
            )
        check_names(self.file, self.names, members)
        self.rule.check(members, self._among(members), self.directed)


def read_graph(file: str, rule: WeightRule, roster: Sequence[str] | None = None) -> GivenGraph:
    """Read a graph and check that it is connected.

    Raises:
        TopologyError: unreadable, unknown format, empty or disconnected graph, or not for this roster.
    """
    suffix = Path(file).suffix.lower()
    if suffix in (".graphml", ".gexf"):
        labels, edges, directed = _read_xml(file, suffix)
    elif suffix == ".csv":
        labels, edges, directed = _read_adjacency(file)
    elif suffix in (".edges", ".edgelist", ".txt"):
        labels, edges, directed = _read_edge_list(file)
    else:
        raise TopologyError(f"{file}: unknown graph format {suffix!r}; known: {FORMATS}")
    edges = edges[edges[:, 0] != edges[:, 1]]
    edges = np.unique(edges, axis=0) if directed else undirected(edges)
    if not labels:
        raise TopologyError(f"{file}: holds no nodes")
    if not is_connected(len(labels), edges) and len(labels) > 1:
        raise TopologyError(
            f"{file}: the graph is not connected, so its parts would never learn from each other"
        )
    names, edges = _numbers_or_names(labels, edges)
    given = GivenGraph(file, names, len(labels), edges, directed, rule)
    if roster is None:
        return given
    given = replace(given, names=names if names is not None else tuple(sorted(roster)))
    given.check(tuple(sorted(roster)))
    return given


def _numbers_or_names(labels: list[str], edges: Edges) -> tuple[tuple[str, ...] | None, Edges]:
    """Return names, or None and edges renumbered where the labels are just 0..n-1 or 1..n in any order."""
    if all(label.isdecimal() for label in labels):
        numbers = np.asarray([int(label) for label in labels], dtype=np.int64)
        first = int(numbers.min())
        if first in (0, 1) and (np.sort(numbers) == np.arange(first, first + len(labels))).all():
            return None, numbers[edges] - first
    return tuple(labels), edges


def _read_xml(file: str, suffix: str) -> tuple[list[str], Edges, bool]:
    import networkx as nx

    read_text(file, "graph")
    try:
        graph = nx.read_graphml(file) if suffix == ".graphml" else nx.read_gexf(file)
    except (nx.NetworkXError, ParseError, ValueError, KeyError) as error:
        raise TopologyError(f"{file}: not a {suffix[1:]} file that networkx can read: {error}") from error
    place = {node: index for index, node in enumerate(graph.nodes)}
    pairs = [(place[tail], place[head]) for tail, head in graph.edges()]
    return [str(node) for node in graph.nodes], edge_array(pairs), bool(graph.is_directed())


def _read_adjacency(file: str) -> tuple[list[str], Edges, bool]:
    """Row i, column j not 0: i reads j. A symmetric pattern is an undirected graph."""
    names, rows = read_table(file, "graph")
    pattern = np.asarray(rows) != 0
    labels = list(names) if names is not None else [str(index) for index in range(len(rows))]
    edges = np.stack(np.nonzero(pattern), axis=1).astype(np.int64)
    return labels, edges, bool((pattern != pattern.T).any())


def _read_edge_list(file: str) -> tuple[list[str], Edges, bool]:
    """Two names a line, separated by blanks or a comma; what follows (weights) and ``#`` comments are left out."""
    place: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    for number, line in enumerate(read_text(file, "graph").splitlines(), 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        if len(words) < 2:
            raise TopologyError(f"{file}: line {number}: expected two names, got {line.strip()!r}")
        pairs.append((place.setdefault(words[0], len(place)), place.setdefault(words[1], len(place))))
    return list(place), edge_array(pairs), False
