"""What liars and colluders can reach: by hand, against plain enumeration and exact fractions, and its words."""

from __future__ import annotations

import itertools
import random
import statistics
from fractions import Fraction
from math import comb

import networkx as nx
import numpy as np
import pytest

from gossip.methods import robust
from topology.adversaries import (
    GUARDED_READS,
    borne,
    bounded,
    chance_of_more,
    clusters,
    colluder_exposure,
    known_share,
    liar_exposure,
    placements,
)
from topology.advice import Adversaries, Advice, advise, candidates
from topology.cost import LinkModel
from topology.errors import TopologyError
from topology.links import Topology, parse_topology
from topology.withstanding import against_colluders, against_liars, of_colluders, of_liars, percent

LINK = LinkModel(latency_s=0.05, up_mbit=20, down_mbit=20)


def named(name: str, seed: int = 0) -> Topology:
    return parse_topology(name, seed=seed)


# ---- liars


def test_what_trim_clip_drops() -> None:
    assert [borne(reads) for reads in (0, 1, 2, 3, 4, 5, 8, 9, 12, 13)] == [0, 0, 0, 0, 1, 2, 2, 3, 3, 4]
    assert [borne(reads, asked=True) for reads in (0, 1, 2, 3, 4)] == [0, 0, 1, 1, 1]
    assert GUARDED_READS == robust.READS_MIN
    assert [borne(reads, asked=True) for reads in range(40)] == [
        robust.borne(None, reads) for reads in range(40)
    ]


def test_as_many_as_are_bounded_are_clipped_to_an_honest_distance() -> None:
    for reads in range(4, 14):
        left = reads - borne(reads)
        for liars in range(reads + 1):
            honest = reads - liars
            # worst case for the rule: liars just beyond all honest peers, so that the farthest of them are dropped
            distances = sorted([1.0] * honest + [9.0] * liars)[:left]
            assert (statistics.median_low(distances) == 1.0) == (liars <= bounded(reads))
    assert [bounded(reads) for reads in (1, 2, 3, 4, 5, 8)] == [0, 0, 0, 2, 3, 5]


def test_chances_by_hand_and_by_enumeration() -> None:
    assert chance_of_more(10, 2, 3, 1) == pytest.approx(7 / comb(9, 3))  # both liars and one of seven others
    assert chance_of_more(16, 2, 4, 0) == pytest.approx(1 - Fraction(comb(13, 4), comb(15, 4)))
    assert chance_of_more(16, 2, 0, 0) == 0.0
    for n, liars, reads, bound in itertools.product((5, 8), (1, 3), (1, 2, 4), (0, 1, 2)):
        drawn = [sum(other < liars for other in row) for row in itertools.combinations(range(n - 1), reads)]
        counted = sum(count > bound for count in drawn) / len(drawn)
        assert chance_of_more(n, liars, reads, bound) == pytest.approx(counted)


def brute_liars(topology: Topology, n: int, liars: int) -> tuple[float, float, float, float]:
    """Return shares lied to, overrun and at worst, and the chance to stay joined, of a graph: all placements."""
    rows = [set(topology.graph(n).neighbors(peer)) for peer in sorted(topology.graph(n))]
    names = sorted(topology.graph(n))
    lied, overrun, joined = [], [], []
    for placed in itertools.combinations(range(n), liars):
        inside = {names[peer] for peer in placed}
        counts = [len(rows[peer] & inside) for peer in range(n) if peer not in placed]
        bounds = [borne(len(rows[peer])) for peer in range(n) if peer not in placed]
        lied.append(np.mean([count > 0 for count in counts]))
        overrun.append(np.mean([count > bound for count, bound in zip(counts, bounds, strict=True)]))
        left = nx.DiGraph(topology.graph(n)).subgraph(set(names) - inside)
        joined.append(nx.is_strongly_connected(left))
    return float(np.mean(lied)), float(np.mean(overrun)), float(max(overrun)), float(np.mean(joined))


@pytest.mark.parametrize("name", ["ring", "star", "complete", "random-regular:4", "exponential", "torus"])
@pytest.mark.parametrize("liars", [1, 3])
def test_fixed_graphs_against_every_placement(name: str, liars: int) -> None:
    met = liar_exposure(named(name), 8, liars, rounds=5)
    assert met.is_exhaustive
    assert met.placements == comb(8, liars)
    found = (met.lied_to, met.overrun, met.overrun_worst, met.joined)
    assert found == pytest.approx(brute_liars(named(name), 8, liars))
    assert met.overrun_ever == met.overrun  # the same rows in every round
    assert met.joined_worst == (met.joined == 1.0)


def test_liars_by_hand() -> None:
    ring = liar_exposure(named("ring"), 10, 2, rounds=10)
    assert ring.lied_to == ring.overrun == pytest.approx(1 - comb(7, 2) / comb(9, 2))
    assert ring.overrun_asked == pytest.approx(1 / comb(9, 2))  # both neighbors lie
    assert ring.joined == pytest.approx(
        10 / comb(10, 2)
    )  # two liars leave one piece only if they are neighbors
    assert not ring.is_guarded
    assert ring.unbounded == ring.lied_to
    four = liar_exposure(named("random-regular:4"), 10, 3, rounds=1)
    assert four.unbounded == pytest.approx(6 / comb(9, 4))  # all three and one of six others
    complete = liar_exposure(named("complete"), 10, 2, rounds=10)
    assert (complete.lied_to, complete.overrun, complete.joined, complete.overrun_worst) == (1, 0, 1, 0)
    # in rows of 4F - 3 no F liars are too many, in rows of one less they are
    assert liar_exposure(named("random-regular:9"), 16, 3, rounds=1).overrun_worst == 0
    assert (liar_exposure(named("random-regular:8"), 16, 3, rounds=1).overrun_worst or 0) > 0


def test_drawn_rows_over_rounds() -> None:
    drawn = liar_exposure(named("epidemic:4"), 10, 2, rounds=7)
    once = comb(7, 2) / comb(9, 4)  # both liars and two of seven others
    assert drawn.overrun == pytest.approx(once)
    assert drawn.overrun_ever == pytest.approx(1 - (1 - once) ** 7)
    assert drawn.overrun_worst is None  # where the liars stand does not matter
    rng, overrun = random.Random(3), 0
    for _ in range(4000):  # the rows that nodes draw, against the formula: 4 standard errors are 0.025
        members = tuple(f"p{peer}" for peer in range(10))
        row = named("epidemic:4")("p9", members, 0, rng).read_from
        overrun += sum(peer in ("p0", "p1") for peer, _ in row) > 1
    assert abs(overrun / 4000 - once) < 0.025


def test_schedules_that_repeat_take_all_rounds_of_a_sweep() -> None:
    met = liar_exposure(named("one-peer-exponential"), 8, 1, rounds=10)
    assert met.overrun == pytest.approx(1 / 7)
    assert met.overrun_ever == pytest.approx(3 / 7)  # one of the three peers it reads in turn
    assert liar_exposure(named("one-peer-exponential"), 8, 1, rounds=2).overrun_ever == pytest.approx(2 / 7)


def test_large_groups_are_sampled_and_clusters_are_not_missed() -> None:
    met = liar_exposure(named("random-regular:4"), 80, 6, rounds=1, seed=5)
    assert not met.is_exhaustive
    assert met == liar_exposure(named("random-regular:4"), 80, 6, rounds=1, seed=5)
    assert not met.joined_worst  # four liars around one peer, which no random placement would find
    assert met.joined > 0.99
    drawn, is_all = placements(80, 6, 50, seed=1)
    assert drawn.shape == (50, 6)
    assert not is_all
    assert all(len(set(placed)) == 6 for placed in drawn.tolist())
    near = clusters(named("ring").matrix(12), 2, most=100)
    assert {0, 1} in [set(pair) for pair in near.tolist()]
    assert {1, 11} in [set(pair) for pair in near.tolist()]


# ---- colluders


def exact_span(rows: list[list[Fraction]], target: int) -> bool:
    """Tell whether the unit vector of ``target`` lies in the span of the rows: elimination without rounding."""
    width = len(rows[0])
    unit = [Fraction(int(column == target)) for column in range(width)]

    def rank(matrix: list[list[Fraction]]) -> int:
        left, found = [list(row) for row in matrix], 0
        for column in range(width):
            pivot = next((row for row in left[found:] if row[column]), None)
            if pivot is None:
                continue
            left.remove(pivot)
            left.insert(found, pivot)
            for index in range(found + 1, len(left)):
                factor = left[index][column] / pivot[column]
                left[index] = [a - factor * b for a, b in zip(left[index], pivot, strict=True)]
            found += 1
        return found

    return rank(rows) == rank([*rows, unit])


@pytest.mark.parametrize("name", ["random-regular:4", "exponential", "torus", "ring", "star"])
@pytest.mark.parametrize("count", [2, 3])
def test_isolation_equals_elimination_with_fractions(name: str, count: int) -> None:
    n = 9
    matrix = named(name).matrix(n).toarray()
    weights = [[Fraction(value).limit_denominator(1000) for value in row] for row in matrix.tolist()]
    shares = []
    for placed in itertools.combinations(range(n), count):
        honest = [peer for peer in range(n) if peer not in placed]
        rows = [[weights[reader][peer] for peer in honest] for reader in placed]
        shares.append(np.mean([exact_span(rows, column) for column in range(len(honest))]))
    met = colluder_exposure(named(name), n, count, rounds=3)
    assert met.is_exhaustive
    assert met.isolated == pytest.approx(np.mean(shares))
    assert met.isolated_worst == pytest.approx(max(shares))
    assert met.isolated_still == met.isolated  # the same sums again


def test_colluders_by_hand() -> None:
    # two neighbors on a ring each read one other: 16 of 120 pairs isolate 2 of 14
    ring = colluder_exposure(named("ring"), 16, 2, rounds=10)
    assert ring.isolated == pytest.approx(16 / 120 * 2 / 14)
    assert ring.group_least == 1
    assert not ring.is_maskable
    for name in ("random-regular:4", "torus", "hypercube"):
        assert colluder_exposure(named(name), 16, 2, rounds=10).isolated_worst == 0
    for name in ("torus", "hypercube"):
        met = colluder_exposure(named(name), 16, 3, rounds=10)
        assert (met.isolated, met.group_least, met.is_maskable) == (0, 2, True)
    # one partner a round: whoever is read is told apart
    matching = colluder_exposure(named("random-matching"), 16, 2, rounds=10)
    assert matching.isolated == matching.in_rows > 0.7
    # a complete graph hides among all who are honest, and gives the last one away
    complete = colluder_exposure(named("complete"), 6, 4, rounds=10)
    assert (complete.isolated, complete.group_least, complete.in_rows) == (0, 2, 1)
    assert colluder_exposure(named("complete"), 6, 5, rounds=10).isolated == 1


def test_sums_of_several_colluders_may_give_away_what_none_does() -> None:
    # on this graph reader 4 reads {3, 5, 12, 13} and reader 10 reads {5, 12, 13} and the third of them
    met = colluder_exposure(named("random-regular:4"), 16, 3, rounds=10)
    assert met.isolated_worst == pytest.approx(1 / 13)
    assert met.group_least == 1
    sums = np.array([[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]])
    np.testing.assert_allclose(known_share(sums), [1.0, 1 / 3, 1 / 3, 1 / 3])


def test_changing_rows_give_away_adapters_that_stand_still() -> None:
    met = colluder_exposure(named("epidemic-oracle:3"), 16, 2, rounds=10)
    assert met.isolated == 0
    assert met.isolated_still > 0.95
    assert not met.is_maskable


def test_mixing_without_training_gives_adapters_away_even_on_a_fixed_graph() -> None:
    """Sums of x, Wx, WWx ... with a known W: what is observable is known, and a mask does not help."""
    met = colluder_exposure(named("random-regular:4"), 16, 3, rounds=10)
    assert met.isolated_still < 0.001
    assert met.isolated_idle > 0.9
    short = colluder_exposure(named("random-regular:4"), 16, 3, rounds=1)
    assert short.isolated_idle == short.isolated  # nothing to put together yet
    # the first adapters are found again from the sums of rounds in which all only mix
    matrix = named("random-regular:4").matrix(16).toarray()
    first = np.random.default_rng(0).standard_normal(16)
    states, own = [first], [0, 1, 2]
    for _ in range(9):
        states.append(matrix @ states[-1])
    honest = [peer for peer in range(16) if peer not in own]
    rows, sums, inner = matrix[np.ix_(own, honest)], [], np.eye(13)
    known = np.zeros(13)  # what the colluders' own adapters have added to those of the others
    traced = []
    for state in states:
        sums.append(rows @ state[honest] - rows @ known)
        traced.append(rows @ inner)
        known = matrix[np.ix_(honest, honest)] @ known + matrix[np.ix_(honest, own)] @ state[own]
        inner = matrix[np.ix_(honest, honest)] @ inner
    found = np.linalg.lstsq(np.concatenate(traced), np.concatenate(sums), rcond=None)[0]
    np.testing.assert_allclose(found, first[honest], atol=1e-6)


# ---- words


def test_counts_out_of_range_are_refused() -> None:
    for count in (0, 10, -1):
        with pytest.raises(TopologyError, match=f"liars must be from 1 to 9 of 10 peers.*not {count}"):
            liar_exposure(named("ring"), 10, count, rounds=1)
        with pytest.raises(TopologyError, match=f"colluders must be from 1 to 9 of 10 peers.*not {count}"):
            colluder_exposure(named("ring"), 10, count, rounds=1)
    with pytest.raises(TopologyError, match="rounds must be at least 1, not 0"):
        liar_exposure(named("ring"), 10, 1, rounds=0)
    with pytest.raises(TopologyError, match="liars must be from 1 to 7 of 8 peers, not 8"):
        advise(8, degree_max=3, payload_bytes=1, link=LINK, against=Adversaries(liars=8))


def test_candidates_include_rows_that_bear_the_liars() -> None:
    plain = candidates(24, 8)
    assert candidates(24, 8, Adversaries()) == plain
    wider = candidates(24, 12, Adversaries(liars=3))
    assert {"random-regular:4", "random-regular:5", "random-regular:9", "epidemic:9"} <= set(wider)
    assert "random-regular:4" in candidates(24, 8, Adversaries(colluders=2))
    assert "random-regular:4" not in candidates(24, 3, Adversaries(liars=1))


def ranked(degree_max: int, **against: int) -> list[Advice]:
    return advise(12, degree_max=degree_max, payload_bytes=4e6, link=LINK, against=Adversaries(**against))


def test_advice_says_what_liars_reach_and_what_to_take() -> None:
    ranking = ranked(5, liars=2)
    by_name = {advice.name: advice.liars for advice in ranking}
    assert all(met is not None for met in by_name.values())
    assert all(advice.colluders is None for advice in ranking)
    ring = by_name["ring"]
    assert ring is not None
    assert of_liars("ring", ring) == (
        "ring: rows read only 2, and rows of fewer than 4 are not guarded by default; even with --robust trim-clip, in "
        "1.8 % of rows more than 1 of 2 lie: read 4 or more"
    )
    five = by_name["epidemic:5"]
    assert five is not None
    assert of_liars("epidemic:5", five).endswith("hold a liar, and none more than trim-clip drops")
    told = against_liars(ranking)
    taken = told.removeprefix("Against 2 liars: take ").split(",")[0]
    best = by_name[taken]
    assert best is not None
    assert best.is_guarded
    assert best.overrun_ever == 0
    assert "no honest peer meets an overrun row" in told
    assert "no honest peer meets an overrun row wherever they stand" in against_liars(
        [advice for advice in ranking if advice.name == "random-regular:5"]
    )
    assert "--degree-max 4" in against_liars(ranked(3, liars=2))
    assert against_liars(ranked(4, liars=2)).endswith(
        "From 5 reads on no row can be overrun: allow it with --degree-max 5."
    )


def test_advice_says_what_colluders_learn_and_what_to_take() -> None:
    ranking = ranked(4, colluders=2)
    by_name = {advice.name: advice.colluders for advice in ranking}
    assert all(advice.liars is None for advice in ranking)
    drawn, fixed = by_name["epidemic:4"], by_name["random-regular:4"]
    assert drawn is not None
    assert fixed is not None
    assert of_colluders("epidemic:4", drawn).endswith("masks want a fixed graph with at least 4 reads")
    assert "hide every adapter among at least 3 in a round" in of_colluders("random-regular:4", fixed) or (
        fixed.group_least < 3
    )
    assert "with --mask pairs, which gives away no adapter" in against_colluders(ranking)
    assert against_colluders(ranked(2, colluders=1)).startswith(
        "Against 1 colluder: no candidate can be masked"
    )


def test_shares_in_words() -> None:
    shares = (0.0, 1e-5, 0.0123, 0.5, 0.994, 0.99999, 1.0)
    assert [percent(share) for share in shares] == [
        *("0 %", "<0.1 %", "1.2 %", "50 %", "99.4 %", ">99.9 %", "100 %")
    ]
