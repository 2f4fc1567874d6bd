"""Static graphs by name: n peers -> edges. A new one is a function and a line in ``GRAPHS`` at the foot.

Every function is defined for every n >= 1: where the graph itself does not exist it falls back to the nearest one
that does (its docstring says which), because peers come and go. ``Graph.problem`` is the strict check for a known n.
Random ones draw from ``Draws``, so all peers build the same graph; they know neither peer names nor weights.
Definitions: the cited papers and networkx's documentation; generators are ours because networkx's draws may change
between versions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from topology.cliques import between, d_cliques
from topology.draws import Draws
from topology.edges import Edges, components, edge_array, is_connected, undirected
from topology.parameters import Parameter, fraction, grid, whole

TRIES = 100
"""Draws of a random graph before its components are joined by force. Source: guess."""


@dataclass(frozen=True, slots=True)
class Graph:
    """One catalogue entry.

    Args:
        build: ``(n, draws, *parameters) -> Edges``, for every n >= 1.
        parameters: what may follow the name.
        problem: ``(n, *parameters)`` -> why the graph does not exist for n and what would be valid, or ``""``.
        directed: whether edges are (reader, read); else each pair stands once.
        by_labels: ``build`` takes the peers' label counts, ``float64[n, labels]``, before the parameters.
    """

    build: Callable[..., Edges]
    parameters: tuple[Parameter, ...] = ()
    problem: Callable[..., str] = lambda n, *values: ""
    directed: bool = False
    by_labels: bool = False


def ring(n: int, draws: Draws) -> Edges:
    """Each reads its two neighbors on a circle; gap (2/3)(1 - cos(2 pi/n))."""
    index = np.arange(n)
    return undirected(np.stack([index, (index + 1) % n], axis=1))


def path(n: int, draws: Draws) -> Edges:
    """A line; gap (2/3)(1 - cos(pi/n)), that of a ring twice as long."""
    index = np.arange(n - 1)
    return np.stack([index, index + 1], axis=1)


def star(n: int, draws: Draws) -> Edges:
    """Everyone reads the first peer and it reads everyone; gap 1/n, and the hub carries all traffic."""
    return np.stack([np.zeros(n - 1, dtype=np.int64), np.arange(1, n)], axis=1)


def complete(n: int, draws: Draws) -> Edges:
    """Everyone reads everyone; exact average in one round at n - 1 adapters per peer."""
    return np.stack(np.triu_indices(n, 1), axis=1).astype(np.int64)


def torus(n: int, draws: Draws, shape: str = "") -> Edges:
    """A grid closed in both directions, as square as n allows (also where RxC is not n; prime n gives a ring)."""
    rows, columns = torus_shape(n, shape)
    index = np.arange(n).reshape(rows, columns)
    down, right = np.roll(index, -1, axis=0), np.roll(index, -1, axis=1)
    pairs = [np.stack([index.ravel(), neighbor.ravel()], axis=1) for neighbor in (down, right)]
    return undirected(np.concatenate(pairs))


def torus_shape(n: int, shape: str = "") -> tuple[int, int]:
    """Return (rows, columns): the given shape if it has n places, else the most square factorization of n."""
    if shape:
        rows, columns = (int(side) for side in shape.split("x"))
        if rows * columns == n:
            return rows, columns
    rows = next(side for side in range(math.isqrt(n), 0, -1) if n % side == 0)
    return rows, n // rows


def _torus_problem(n: int, shape: str = "") -> str:
    if shape:
        rows, columns = (int(side) for side in shape.split("x"))
        return "" if rows * columns == n else f"a torus {shape} has {rows * columns} places"
    if torus_shape(n)[0] > 1:
        return ""
    return f"a torus needs n = rows x columns, both at least 2, e.g. {max(4, n - 1)} or {max(4, n + 1)}"


def hypercube(n: int, draws: Draws) -> Edges:
    """Peers whose numbers differ in one bit; gap 2/(d+1) for n = 2^d. Else the corner of the next cube (connected)."""
    index = np.arange(n)
    bits = [1 << bit for bit in range(max(n - 1, 0).bit_length())]
    pairs = [np.stack([index, index ^ bit], axis=1) for bit in bits]
    edges = np.concatenate(pairs) if pairs else edge_array([])
    return undirected(edges[edges[:, 1] < n])


def power_of_two_problem(n: int) -> str:
    """Say which counts are valid where n must be a power of two."""
    return (
        ""
        if n & (n - 1) == 0
        else f"needs a power of two, e.g. {1 << (n.bit_length() - 1)} or {1 << n.bit_length()}"
    )


def exponential(n: int, draws: Draws) -> Edges:
    """Each reads those 1, 2, 4, 8 ... places ahead (directed; Ying et al. 2021); gap 2/(1+ceil(log2 n)) for even n."""
    index = np.arange(n)
    shifts = [1 << bit for bit in range(max(n - 1, 0).bit_length())]
    pairs = [np.stack([index, (index + shift) % n], axis=1) for shift in shifts]
    return np.concatenate(pairs) if pairs else edge_array([])


def random_regular(n: int, draws: Draws, degree: int) -> Edges:
    """K neighbors each, drawn from the run's seed, connected; K is reduced to n - 1, and by one where n x K is odd."""
    degree = min(degree, n - 1)
    degree -= n * degree % 2
    if (
        degree == 2
    ):  # the only connected 2-regular graphs are cycles, and drawing until connected would take long
        order = draws.permutation(n)
        return undirected(np.stack([order, np.roll(order, -1)], axis=1))
    return _until_connected(n, lambda: _regular(n, degree, draws))


def _regular(n: int, degree: int, draws: Draws) -> Edges:
    """Draw a simple regular graph by pairing stubs (Steger & Wormald 1999); dense ones as a complement."""
    if 2 * degree > n - 1:
        dense = np.ones((n, n), dtype=bool)
        holes = _regular(n, n - 1 - degree, draws)
        dense[holes[:, 0], holes[:, 1]] = False
        return np.stack(np.nonzero(np.triu(dense, 1)), axis=1).astype(np.int64)
    while True:
        edges = _pair_stubs(n, degree, draws)
        if edges is not None:
            return edge_array(sorted(edges))


def _pair_stubs(n: int, degree: int, draws: Draws) -> set[tuple[int, int]] | None:
    """Pair stubs at random, keep what is simple, pair the rest again; None where the rest cannot be paired."""
    edges: set[tuple[int, int]] = set()
    stubs = np.repeat(np.arange(n), degree)
    while len(stubs):
        order = stubs[draws.permutation(len(stubs))].tolist()
        rest: list[int] = []
        for first, second in zip(order[::2], order[1::2], strict=True):
            pair = (first, second) if first < second else (second, first)
            if first == second or pair in edges:
                rest += pair
            else:
                edges.add(pair)
        if len(rest) == len(stubs):
            left = sorted(set(rest))
            if all((a, b) in edges for place, a in enumerate(left) for b in left[place + 1 :]):
                return None
        stubs = np.asarray(rest, dtype=np.int64)
    return edges


def _regular_problem(n: int, degree: int) -> str:
    if degree >= n:
        return f"K = {degree} needs at least {degree + 1 + degree % 2} peers; for {n} take K up to {max(n - 1, 1)}"
    if n * degree % 2:
        return f"n x K must be even; take K = {degree - 1} or {degree + 1}, or one peer more or less"
    return ""


def erdos_renyi(n: int, draws: Draws, probability: float | None = None) -> Edges:
    """Each pair with probability P (default 2 ln n / n), drawn again until connected; else components are joined."""
    chance = edge_probability(n) if probability is None else probability

    def draw() -> Edges:
        rows = [np.nonzero(draws.uniform(n - 1 - i) < chance)[0] + i + 1 for i in range(n - 1)]
        readers = np.repeat(np.arange(n - 1), [len(row) for row in rows])
        read = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
        return np.stack([readers, read], axis=1).astype(np.int64)

    return _until_connected(n, draw, tries=1 if _erdos_renyi_problem(n, chance) else TRIES)


def edge_probability(n: int) -> float:
    """Return 2 ln n / n, twice the threshold of connectivity, at most 1."""
    return min(1.0, 2 * math.log(n) / n) if n > 1 else 1.0


def _erdos_renyi_problem(n: int, probability: float | None = None) -> str:
    if n == 1 or probability is None:
        return ""
    connected = math.exp(-n * (1 - probability) ** (n - 1))  # no isolated node, asymptotically the same thing
    if connected * TRIES >= 5:
        return ""
    least = f"2 ln n / n = {edge_probability(n):.3g}"
    return f"P = {probability:g} hardly ever gives a connected graph; take at least {least}"


def watts_strogatz(n: int, draws: Draws, degree: int, probability: float) -> Edges:
    """Ring lattice of degree K, each edge rewired with probability P (1998); K is reduced to the largest even < n."""
    half = min(degree, n - 1) // 2
    if half == 0:
        return ring(n, draws)

    def draw() -> Edges:
        edges = {(i, (i + d) % n) for d in range(1, half + 1) for i in range(n)}
        edges = {(min(edge), max(edge)) for edge in edges}
        rewired = draws.uniform(n * half).tolist()
        for d in range(1, half + 1):
            for i in range(n):
                old = (min(i, (i + d) % n), max(i, (i + d) % n))
                if rewired[(d - 1) * n + i] < probability and old in edges:
                    target = int(draws.below(n, 1)[0])
                    new = (min(i, target), max(i, target))
                    if target != i and new not in edges:
                        edges.remove(old)
                        edges.add(new)
        return edge_array(sorted(edges))

    return _until_connected(n, draw)


def _watts_strogatz_problem(n: int, degree: int, probability: float) -> str:
    if degree % 2:
        return f"K must be even (K/2 neighbors to either side); take {degree - 1 or 2} or {degree + 1}"
    return "" if degree < n else f"K = {degree} needs at least {degree + 1} peers"


def barabasi_albert(n: int, draws: Draws, links: int) -> Edges:
    """Each newcomer links to M older peers, the well connected ones more often (1999); M is reduced to n - 1."""
    links = min(links, n - 1)
    pairs = [(0, node) for node in range(1, links + 1)]  # a star to begin with, as networkx does
    ends = [node for pair in pairs for node in pair]  # each node as often as its degree
    for node in range(links + 1, n):
        chosen: set[int] = set()
        while len(chosen) < links:
            chosen.update(ends[place] for place in draws.below(len(ends), links - len(chosen)).tolist())
        new = [(target, node) for target in sorted(chosen)]
        pairs += new
        ends += [end for pair in new for end in pair]
    return edge_array(sorted(pairs))


def barbell(n: int, draws: Draws) -> Edges:
    """Two cliques of a third of the peers each, joined by a path of the rest: a hard case, gap of order n^-2."""
    clique = max(1, n // 3)
    between = np.arange(clique - 1, n - clique)
    joins = np.stack([between, between + 1], axis=1)
    right = complete(clique, draws) + n - clique
    return undirected(
        np.concatenate([complete(clique, draws), joins[joins[:, 1] < n], right[right[:, 1] < n]])
    )


def two_cliques(n: int, draws: Draws) -> Edges:
    """Two cliques of half the peers each, joined by one edge: a hard case, as two sites with one line between."""
    half = n // 2
    bridge = edge_array([(half - 1, half)] if half else [])
    return undirected(
        np.concatenate([complete(max(half, 1), draws), complete(n - half, draws) + half, bridge])
    )


def _until_connected(n: int, draw: Callable[[], Edges], tries: int = TRIES) -> Edges:
    """Draw until connected; after ``tries`` join the components of the last draw through their first nodes (ours)."""
    edges = draw()
    for _ in range(tries - 1):
        if is_connected(n, edges):
            return edges
        edges = draw()
    if is_connected(n, edges):
        return edges
    first = np.unique(components(n, edges), return_index=True)[1]
    return undirected(np.concatenate([edges, np.stack([first[:-1], first[1:]], axis=1)]))


_P = Parameter("P", "probability of rewiring, 0 to 1", fraction(zero=True))

GRAPHS: dict[str, Graph] = {
    "ring": Graph(ring),
    "path": Graph(path),
    "star": Graph(star),
    "complete": Graph(complete),
    "torus": Graph(torus, (Parameter("RxC", "rows x columns", grid, required=False),), _torus_problem),
    "hypercube": Graph(hypercube, problem=power_of_two_problem),
    "exponential": Graph(exponential, directed=True),
    "random-regular": Graph(
        random_regular, (Parameter("K", "neighbors of each peer, at least 2", whole(2)),), _regular_problem
    ),
    "erdos-renyi": Graph(
        erdos_renyi,
        (Parameter("P", "probability of an edge, above 0 to 1", fraction(zero=False), required=False),),
        _erdos_renyi_problem,
    ),
    "watts-strogatz": Graph(
        watts_strogatz, (Parameter("K", "degree, even, at least 2", whole(2)), _P), _watts_strogatz_problem
    ),
    "barabasi-albert": Graph(
        barabasi_albert,
        (Parameter("M", "links of each newcomer, at least 1", whole(1)),),
        lambda n, links: "" if links < n else f"M = {links} needs at least {links + 1} peers",
    ),
    "barbell": Graph(barbell),
    "two-cliques": Graph(two_cliques),
    "d-cliques": Graph(
        d_cliques,
        (
            Parameter("SIZE", "peers of a clique, at least 2", whole(2)),
            Parameter("BETWEEN", "ring or complete, default ring", between, required=False),
        ),
        by_labels=True,
    ),
}
