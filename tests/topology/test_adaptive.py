"""What methods adapt to: measured contraction, who reads whom, and draws that favor those alike."""

import random

import pytest

from topology.consensus import measured_contraction
from topology.errors import TopologyError
from topology.links import numbered, parse_topology
from topology.spectral import slem


def test_contraction_is_the_square_of_the_second_eigenvalue_on_a_ring() -> None:
    ring = parse_topology("ring", seed=0)
    # Over 32 rounds a random start is not yet all in the slowest direction: it contracts a little faster.
    p, theory = measured_contraction(ring, 16), 1 - slem(ring.matrix(16)) ** 2
    assert theory <= p < 1.6 * theory


@pytest.mark.parametrize(("name", "peers"), [("complete", 6), ("base:1", 8), ("ring", 1)])
def test_what_averages_exactly_contracts_fully(name: str, peers: int) -> None:
    assert measured_contraction(parse_topology(name, seed=0), peers) > 0.99


def test_readers_are_those_who_have_me_in_their_row() -> None:
    topology = parse_topology("exponential", seed=0)
    members = numbered(6)
    counted = dict.fromkeys(members, 0)
    for reader in members:
        for read, _ in topology(reader, members, 0, random.Random(0)).read_from:
            counted[read] += 1
    assert {me: topology.readers(me, members, 0) for me in members} == counted


def test_nobody_knows_who_reads_whom_where_each_draws_for_itself() -> None:
    with pytest.raises(TopologyError, match="drawn by each peer"):
        parse_topology("epidemic:2", seed=0).readers("p00000", numbered(4), 0)


def test_those_alike_are_read_more_often_in_proportion_to_exp_of_likeness() -> None:
    topology, members, rng = parse_topology("similar:1:2", seed=0), numbered(4), random.Random(1)
    likeness = {"p00001": 1.0, "p00002": 0.0, "p00003": -1.0}
    drawn = dict.fromkeys(likeness, 0)
    draws = 20_000
    for _ in range(draws):
        ((peer, weight),) = topology("p00000", members, 0, rng, likeness).read_from
        drawn[peer] += 1
        assert weight == 0.5
    total = 2.718281828**2 + 1 + 2.718281828**-2
    for peer, chance in (("p00001", 2.718281828**2), ("p00002", 1.0), ("p00003", 2.718281828**-2)):
        share = chance / total
        assert drawn[peer] / draws == pytest.approx(share, abs=4 * (share * (1 - share) / draws) ** 0.5)


def test_whoever_is_not_known_yet_comes_first() -> None:
    topology, members = parse_topology("similar:1:1000", seed=0), numbered(3)
    links = topology("p00000", members, 0, random.Random(0), {"p00001": 0.9})
    assert [peer for peer, _ in links.read_from] == ["p00002"]
