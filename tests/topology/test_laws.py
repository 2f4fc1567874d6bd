"""Laws that every entry of the topology catalogue keeps, for every number of peers, odd ones included."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest

from topology.graphs import GRAPHS
from topology.links import catalogue, numbered, parse_topology
from topology.schedules import SCHEDULES

COUNTS = (1, 2, 3, 5, 8, 12, 16)
NAMES = (
    "ring",
    "path",
    "star",
    "complete",
    "torus",
    "torus:3x4",
    "hypercube",
    "exponential",
    "random-regular:2",
    "random-regular:3",
    "random-regular:4",
    "erdos-renyi",
    "erdos-renyi:0.3",
    "watts-strogatz:4:0.1",
    "barabasi-albert:2",
    "barbell",
    "two-cliques",
    "d-cliques:3",
    "epidemic:3",
    "similar:3",
    "epidemic-local:3",
    "epidemic-oracle:3",
    "base:1",
    "base:2",
    "hyper-hypercube:2",
    "one-peer-exponential",
    "dimension-exchange",
    "random-matching",
    "random-pair",
    "equistatic:3",
    "equistatic-undirected:3",
    "equidyn",
    "round-robin:ring+star+base:1",
)


def test_names_cover_the_catalogue() -> None:
    covered = {name.split(":")[0] for name in NAMES}
    assert covered == {*GRAPHS, *SCHEDULES, "round-robin"}
    assert {written.split(":")[0].split("[")[0] for written in catalogue()} == covered | {"matrix", "graph"}
    assert all(line.endswith(".") for line in catalogue().values())


def rows(name: str, n: int, round: int, seed: int = 3) -> np.ndarray:
    """W put together from the links that every peer computes for itself, with a topology of its own."""
    members = numbered(n)
    matrix = np.zeros((n, n))
    for place, me in enumerate(members):
        topology = (
            parse_topology(name, seed=seed)
            if n <= 3
            else SHARED.setdefault(name, parse_topology(name, seed=seed))
        )
        links = topology(me, members, round, random.Random(place))
        assert all(peer in members and peer != me and weight > 0 for peer, weight in links.read_from)
        assert list(links.read_from) == sorted(links.read_from)
        assert links.self_weight >= 0
        for peer, weight in links.read_from:
            assert matrix[place, members.index(peer)] == 0, "a peer is read twice"
            matrix[place, members.index(peer)] = weight
        matrix[place, place] = links.self_weight
    return matrix


SHARED: dict[str, object] = {}


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("name", NAMES)
def test_rows_of_all_peers_make_the_matrix_that_is_claimed(name: str, n: int) -> None:
    topology = parse_topology(name, seed=3)
    for round in range(5):
        matrix = rows(name, n, round)
        np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-12)
        if topology.is_doubly_stochastic:
            np.testing.assert_allclose(matrix.sum(axis=0), 1.0, atol=1e-12)
        if topology.is_symmetric:
            np.testing.assert_array_equal(matrix, matrix.T)
        if not topology.own_sample:
            np.testing.assert_allclose(matrix, topology.matrix(n, round).toarray(), atol=1e-15)
        if topology.is_static:
            np.testing.assert_array_equal(matrix, rows(name, n, 0))
        if period := topology.period(n):
            np.testing.assert_array_equal(matrix, rows(name, n, round + period))


@pytest.mark.parametrize("name", NAMES)
def test_links_depend_on_members_round_and_seed_only(name: str) -> None:
    members = tuple(f"peer-{letter}" for letter in "abcdefghijkl")
    one, other = parse_topology(name, seed=3), parse_topology(name, seed=3)
    for round in (7, 0, 3):
        for me in members:
            links = one(me, members, round, random.Random(5))
            assert links == other(me, list(members), round, random.Random(5))
            for peer, weight in links.read_from:
                assert type(peer) is str
                assert type(weight) is float


@pytest.mark.parametrize(
    "name", ["random-regular:4", "erdos-renyi", "random-matching", "equidyn", "epidemic-oracle:3"]
)
def test_random_topologies_follow_the_seed(name: str) -> None:
    one, other = (parse_topology(name, seed=seed).matrix(16).toarray() for seed in (1, 2))
    assert (one != other).any()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("random-pair",)])
def test_every_topology_connects_all_peers_over_a_few_rounds(name: str) -> None:
    topology = parse_topology(name, seed=3)
    for n in COUNTS:
        product = np.eye(n)
        for round in range(max(topology.period(n), 12)):
            product = topology.matrix(n, round).toarray() @ product
        if topology.is_static:
            product = np.linalg.matrix_power(product, n)
        assert (product > 0).all(), f"{name} at {n} peers leaves someone out"


def test_epidemic_accepts_both_kinds_of_generator_and_samples_uniformly() -> None:
    topology = parse_topology("epidemic:3", seed=0)
    members = numbered(9)
    for rng in (random.Random(0), np.random.default_rng(0)):
        count = dict.fromkeys(members, 0)
        for round in range(2000):
            links = topology(members[4], members, round, rng)
            assert len(links.read_from) == 3
            assert links.self_weight == pytest.approx(0.25)
            for peer, weight in links.read_from:
                assert weight == 0.25
                count[peer] += 1
        assert count.pop(members[4]) == 0
        assert all(abs(seen - 750) < 4 * 22 for seen in count.values())  # binomial(2000, 3/8): deviation 22


def test_shared_draws_never_change() -> None:
    """Golden: a new library or machine must draw the same graph, or peers of one run disagree on W."""
    graph = parse_topology("random-regular:3", seed=42).edges(8).tolist()
    assert [j for i, j in graph if i == 0] == GOLDEN_REGULAR
    matching = parse_topology("random-matching", seed=42).edges(8, 5).tolist()
    assert [j for _, j in matching] == GOLDEN_MATCHING
    digests = {}
    for name in GOLDEN_DIGESTS:
        drawn = np.ascontiguousarray(parse_topology(name, seed=42).edges(21, 3), dtype="<i8")
        digests[name] = hashlib.sha256(drawn.tobytes()).hexdigest()[:8]
    assert digests == GOLDEN_DIGESTS


GOLDEN_DIGESTS = {
    "random-regular:4": "125ee2db",
    "random-regular:16": "e9bce242",
    "erdos-renyi": "db9f170a",
    "watts-strogatz:4:0.3": "f5bf1c10",
    "barabasi-albert:2": "9eca9d0f",
    "epidemic-local:3": "fa5a0db9",
    "epidemic-oracle:3": "6e73d234",
    "equistatic:4": "1057d696",
    "equidyn": "62c56c2e",
}
GOLDEN_REGULAR = [2, 4, 7]
GOLDEN_MATCHING = [2, 4, 0, 7, 1, 6, 5, 3]
