"""Figures of whole topologies: structure, guarantees, cost, cliques; and that sparse answers equal dense ones."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict

import numpy as np
import pytest
from scipy.sparse import csr_array

from topology.advice import advise
from topology.analysis import consensus_cost, measure
from topology.announced import Announced
from topology.cliques import d_cliques, draw_cliques, skew
from topology.consensus import measured_rate, of_topology, run_consensus, static
from topology.cost import LinkModel, round_bytes, slem_under_loss
from topology.draws import Draws
from topology.edges import edge_array, is_connected, undirected
from topology.errors import TopologyError
from topology.links import Topology, parse_topology
from topology.loss import lossy
from topology.quadratic import fixed_point
from topology.spectral import contraction, lambda_min, rounds_to, slem, spectrum, sweep_contraction
from topology.structure import algebraic_connectivity, degrees, diameter, remove_nodes
from topology.validation import validate


def matrix(name: str, n: int, round: int = 0) -> csr_array:
    return parse_topology(name, seed=2).matrix(n, round)


def edges(name: str, n: int) -> np.ndarray:
    return undirected(parse_topology(name, seed=2).edges(n))


# ---- sparse against dense and closed forms


@pytest.mark.parametrize(
    "name", ["ring", "torus", "random-regular:4", "watts-strogatz:4:0.02", "barabasi-albert:2"]
)
def test_large_spectra_equal_dense_ones(name: str) -> None:
    large = matrix(name, 900)
    values = np.linalg.eigvalsh(large.toarray())
    assert slem(large) == pytest.approx(max(values[-2], -values[0]), abs=1e-10)
    assert lambda_min(large) == pytest.approx(values[0], abs=1e-8)


def test_a_ring_of_ten_thousand() -> None:
    assert 1 - slem(matrix("ring", 10_000)) == pytest.approx(
        2 / 3 * (1 - math.cos(2 * math.pi / 10_000)), rel=1e-6
    )


def test_large_matrices_with_negative_self_weights() -> None:
    wheel = parse_topology("star", seed=0, weights="best-constant").matrix(900)
    assert wheel.diagonal().min() < 0
    assert slem(wheel) == pytest.approx(899 / 901, abs=1e-9)
    assert lambda_min(wheel) == pytest.approx(-899 / 901, abs=1e-9)


def test_large_directed_spectra() -> None:
    assert slem(matrix("exponential", 2048)) == pytest.approx(1 - 2 / 12, abs=1e-9)
    assert contraction(matrix("exponential", 600)) == pytest.approx(
        slem(matrix("exponential", 600)), abs=1e-6
    )


def test_large_sweeps() -> None:
    topology = parse_topology("one-peer-exponential", seed=0)
    for n in (400, 401, 512):
        sweep = [topology.matrix(n, round) for round in range(topology.period(n))]
        product = np.eye(n)
        for one in sweep:
            product = one @ product
        assert sweep_contraction(sweep) == pytest.approx(np.linalg.norm(product - 1 / n, 2), abs=1e-6)


def test_whole_spectra_have_a_limit() -> None:
    with pytest.raises(TopologyError, match="at most 4096"):
        spectrum(matrix("ring", 5000))
    with pytest.raises(TopologyError, match="not symmetric"):
        lambda_min(matrix("exponential", 8))


def test_rounds_to() -> None:
    assert rounds_to(0.5, 1 / 8) == pytest.approx(3)
    assert rounds_to(0.0, 1e-6) == 1
    assert rounds_to(1.0, 1e-6) == math.inf


# ---- structure


@pytest.mark.parametrize(
    ("name", "n", "expected"),
    [("ring", 9, 4), ("path", 9, 8), ("star", 9, 2), ("complete", 9, 1), ("torus", 16, 4), ("hypercube", 32, 5),
     ("exponential", 16, 4), ("two-cliques", 12, 3), ("ring", 600, 300)],
)  # fmt: skip
def test_diameter(name: str, n: int, expected: int) -> None:
    assert diameter(n, parse_topology(name, seed=0).edges(n)) == expected


def test_structure_of_a_broken_graph() -> None:
    one_way = edge_array([(0, 1), (1, 2)])
    assert diameter(3, one_way) is None
    assert algebraic_connectivity(4, edge_array([(0, 1), (2, 3)])) == 0.0
    assert [side.tolist() for side in degrees(3, one_way)] == [[1, 1, 0], [0, 1, 1]]


def test_algebraic_connectivity() -> None:
    assert algebraic_connectivity(8, edges("complete", 8)) == pytest.approx(8)
    assert algebraic_connectivity(9, edges("star", 9)) == pytest.approx(1)
    assert algebraic_connectivity(700, edges("ring", 700)) == pytest.approx(
        2 - 2 * math.cos(2 * math.pi / 700), rel=1e-6
    )


def test_removal_of_nodes() -> None:
    hub_gone = remove_nodes(9, edges("star", 9), 1, "targeted")
    assert not hub_gone.connected
    assert hub_gone.largest_share == pytest.approx(1 / 8)
    leaf_gone = remove_nodes(9, edges("star", 9), 0, "targeted")
    assert leaf_gone.connected
    assert leaf_gone.algebraic_connectivity == pytest.approx(1)
    assert remove_nodes(
        12, edges("complete", 12), 5, "random", seed=3
    ).algebraic_connectivity == pytest.approx(7)
    with pytest.raises(TopologyError, match="0 to 8 of 9"):
        remove_nodes(9, edges("star", 9), 9)


# ---- guarantees


def test_guarantees_of_common_matrices() -> None:
    ring = validate(matrix("ring", 8))
    assert (ring.doubly_stochastic, ring.symmetric, ring.nonnegative, ring.primitive) == (True,) * 4
    assert ring.lambda_min == pytest.approx(-1 / 3)
    assert [failure[:19] for failure in ring.failures] == ["smallest eigenvalue"]  # D^2 wants it above -1/3
    directed = validate(matrix("exponential", 12))
    assert directed.doubly_stochastic
    assert not directed.symmetric
    assert directed.lambda_min is None


def test_failures_say_where_and_what_follows() -> None:
    broken = csr_array(np.array([[0.5, 0.5, 0.0], [0.7, 0.4, 0.0], [0.0, 1.5, -0.5]]))
    failures = " | ".join(validate(broken).failures)
    assert "1 of 3 rows do not sum to 1, worst row 1 with 1.1" in failures
    assert "columns do not sum to 1, worst column" in failures
    assert "the mean drifts" in failures
    assert "W[2, 2] = -0.5" in failures
    assert "not symmetric" in failures
    assert "not strongly connected: 2 parts" in failures
    with pytest.raises(TopologyError, match="not row-stochastic, nonnegative"):
        validate(broken).require("row_stochastic", "nonnegative")
    validate(matrix("ring", 5)).require("row_stochastic", "primitive")


def test_periods_of_directed_cycles() -> None:
    cycle = csr_array(np.roll(np.eye(6), 1, axis=1))
    assert any("period 6" in failure for failure in validate(cycle).failures)
    chord = cycle.toarray()
    chord[0], chord[0, [1, 5]] = 0, 0.5  # cycles of 6 and 2
    assert any("period 2" in failure for failure in validate(csr_array(chord)).failures)
    chord[0, [1, 4, 5]] = [0.5, 0.5, 0.0]  # cycles of 6 and 3
    assert any("period 3" in failure for failure in validate(csr_array(chord)).failures)


# ---- cost


def test_link_model_oracles() -> None:
    ring, star, n, payload = matrix("ring", 12), matrix("star", 12), 12, 4e6
    assert LinkModel(latency_s=0.05).round_s(ring, payload) == pytest.approx(0.05)
    line = LinkModel(up_mbit=20, down_mbit=20)
    assert line.round_s(ring, payload) == pytest.approx(2 * payload * 8e-6 / 20)
    assert line.round_s(star, payload) == pytest.approx((n - 1) * payload * 8e-6 / 20)
    assert LinkModel(compute_s=3).round_s(matrix("ring", 1), payload) == 3
    assert LinkModel(overhead_bytes=100, up_mbit=8).round_s(
        matrix("one-peer-exponential", 8), 900
    ) == pytest.approx(1e-3)
    assert round_bytes(star, 10) == (2 * 11 * 10, 11 * 10)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"up_mbit": 0}, "up_mbit must be greater than 0"),
        ({"latency_s": -1}, "latency_s must not be negative"),
    ],
)
def test_a_bad_link_model_says_so(options: dict[str, float], says: str) -> None:
    with pytest.raises(TopologyError, match=says):
        LinkModel(**options)


def test_loss_slows_as_predicted() -> None:
    ring = matrix("ring", 16)
    values = np.linalg.eigvalsh(ring.toarray())
    predicted = slem_under_loss(values[-2], values[0], 0.1)
    x = np.random.default_rng(0).standard_normal((16, 400))
    rate = measured_rate(
        run_consensus(lossy(ring, 0.1, "symmetric-drop", 0), x, 500, tolerance=1e-6).distance
    )
    assert rate is not None
    assert math.log(rate) == pytest.approx(math.log(predicted), rel=0.05)
    assert slem_under_loss(values[-2], values[0], 0.0) == pytest.approx(slem(ring))


# ---- the whole record


def test_measures_of_a_static_graph() -> None:
    record = measure(parse_topology("hypercube", seed=0), 16)
    assert (record.edges, record.degree_max, record.diameter, record.sweep_length) == (32, 4, 4, 1)
    assert record.spectral_gap == pytest.approx(0.4)
    assert record.lambda_min == pytest.approx(-0.6)
    assert record.sweep_contraction == pytest.approx(0.6)
    assert record.effective_neighbors is not None
    assert list(record.effective_neighbors) == ["0.5", "0.9", "0.99"]
    assert record.rounds_to_tolerance == pytest.approx(math.log(1e6) / -math.log(0.6))
    assert record.expected_contraction is None
    assert json.loads(json.dumps(asdict(record)))["peers"] == 16


def test_measures_of_schedules_leave_out_what_has_no_meaning() -> None:
    record = measure(parse_topology("base:1", seed=0), 12)
    assert (record.sweep_length, record.rounds_to_tolerance, record.degree_max) == (5, 5.0, 1)
    assert record.spectral_gap is record.slem is record.lambda_min is record.effective_neighbors is None
    assert record.sweep_contraction == pytest.approx(0, abs=1e-12)
    random_one = measure(parse_topology("epidemic:3", seed=0), 12)
    assert random_one.sweep_length is random_one.edges is random_one.diameter is None
    assert not random_one.doubly_stochastic
    assert random_one.mean_drift > 0.01
    assert random_one.expected_contraction is not None
    assert measure(parse_topology("complete", seed=0), 6).rounds_to_tolerance == 1


@pytest.mark.parametrize(
    "name", ["ring", "one-peer-exponential", "random-matching", "epidemic-oracle:3", "base:1"]
)
def test_predicted_rounds_are_near_the_measured_ones(name: str) -> None:
    n, topology = 24, parse_topology(name, seed=5)
    predicted = measure(topology, n).rounds_to_tolerance
    x = np.random.default_rng(1).standard_normal((n, 64))
    measured = run_consensus(of_topology(topology, n), x, 2000, tolerance=1e-6).rounds_to(1e-6)
    assert measured is not None
    assert 0.6 * predicted < measured < 1.15 * predicted + 1


def test_consensus_cost() -> None:
    link = LinkModel(latency_s=0.1, up_mbit=8, down_mbit=8)
    total, busiest, seconds = consensus_cost(parse_topology("ring", seed=0), 10, 5, 1e6, link)
    assert (total, busiest) == (5 * 20 * 1e6, 5 * 2 * 1e6)
    assert seconds == pytest.approx(5 * (0.1 + 2))


# ---- consensus, push-sum and quadratic refuse bad input


def test_runners_refuse_bad_input() -> None:
    ring = matrix("ring", 4)
    with pytest.raises(TopologyError, match="finite"):
        run_consensus(static(ring), np.full((4, 1), np.nan), 1)
    with pytest.raises(TopologyError, match="loss must be a probability"):
        lossy(ring, -0.1, "symmetric-drop", 0)
    with pytest.raises(TopologyError, match="unknown loss rule 'drop'"):
        lossy(ring, 0.1, "drop", 0)
    with pytest.raises(TopologyError, match="eta must lie"):
        fixed_point(ring, np.ones((4, 1)), 1.5)
    with pytest.raises(TopologyError, match="exactly 1 for CTA"):
        fixed_point(ring, np.ones((4, 1)), 0.5, 2, "cta")


def test_drift_of_row_stochastic_rounds_is_measured() -> None:
    topology = parse_topology("epidemic:3", seed=0)
    x = np.random.default_rng(0).standard_normal((50, 8)) + 1e3
    outcome = run_consensus(of_topology(topology, 50), x, 60)
    assert outcome.distance[-1] < 1e-10
    assert outcome.drift[-1] == pytest.approx(
        np.linalg.norm(outcome.values.mean(axis=0) - x.mean(axis=0)), rel=1e-6
    )
    assert outcome.drift[-1] > 0.05


# ---- D-Cliques


def test_cliques_pool_all_labels() -> None:
    histograms = np.repeat(np.eye(5), 6, axis=0) * 100  # 30 peers, one label each
    cliques = draw_cliques(Draws(0), histograms, 5)
    assert sorted(peer for clique in cliques for peer in clique) == list(range(30))
    assert all(skew(clique, histograms) < 1e-12 for clique in cliques)
    edges = d_cliques(30, Draws(0), histograms, 5)
    assert is_connected(30, edges)
    assert len(edges) == 6 * 10 + 6
    assert len(d_cliques(30, Draws(0), histograms, 5, "complete")) == 6 * 10 + 15
    np.testing.assert_array_equal(edges, d_cliques(30, Draws(0), histograms, 5))
    with pytest.raises(TopologyError, match="label counts"):
        d_cliques(3, Draws(0), np.zeros((3, 2)), 2)


def test_a_clique_graph_goes_by_what_peers_announce() -> None:
    names = tuple(f"p{index:02d}" for index in range(12))
    labels = {name: Announced(labels=(100, 0) if index < 6 else (0, 100)) for index, name in enumerate(names)}
    blind = parse_topology("d-cliques:2", seed=0)
    assert blind.wants == {"labels"}
    knowing = blind.knowing(labels)
    for name in names:
        mates = [peer for peer, _ in knowing.links(name, names, 0, random.Random(0)).read_from]
        assert any(
            labels[peer] != labels[name] for peer in mates
        )  # its clique, whose two labels are balanced
    assert _mixed(knowing, names, labels) > _mixed(blind, names, labels)
    silent = blind.knowing({name: labels[name] for name in names[:11]})  # who says nothing is an average peer
    assert silent.matrix(names).shape == (12, 12)
    assert parse_topology("ring", seed=0).knowing(labels).wants == frozenset()
    with pytest.raises(TopologyError, match="at least 2"):
        parse_topology("d-cliques:1", seed=0)
    with pytest.raises(TopologyError, match="ring or complete"):
        parse_topology("d-cliques:3:star", seed=0)


def _mixed(topology: Topology, names: tuple[str, ...], labels: dict[str, Announced]) -> int:
    """Count the pairs of neighbors whose labels differ."""
    return sum(labels[names[i]] != labels[names[j]] for i, j in topology.edges(names).tolist() if i < j)


def test_weights_by_rows_go_by_what_peers_announce() -> None:
    names = ("a", "b", "c", "d")
    blind = parse_topology("ring", seed=0, weights="data-size")
    assert blind.wants == {"rows"}
    assert not blind.is_doubly_stochastic
    plain = parse_topology("ring", seed=0).matrix(names).toarray()
    np.testing.assert_allclose(blind.matrix(names).toarray(), plain)
    rows = np.array([10.0, 20.0, 30.0, 20.0])  # d does not say: the mean of the others
    knowing = blind.knowing({"a": Announced(10), "b": Announced(20), "c": Announced(30)})
    np.testing.assert_allclose(rows @ knowing.matrix(names).toarray(), rows)
    assert parse_topology("round-robin:ring+star", seed=0, weights="data-size").wants == {"rows"}


# ---- advice


def test_advice_ranks_what_fits() -> None:
    link = LinkModel(latency_s=0.05, up_mbit=20, down_mbit=20)
    ranked = advise(24, degree_max=3, payload_bytes=4e6, link=link, loss=0.05, churn=0.25)
    names = [advice.name for advice in ranked]
    assert {"ring", "random-regular:3", "base:3", "epidemic:3", "random-matching"} <= set(names)
    assert not {"complete", "star", "torus", "hypercube"} & set(
        names
    )  # too many reads, or 24 is no power of two
    assert [advice.seconds for advice in ranked] == sorted(advice.seconds for advice in ranked)
    by_name = {advice.name: advice for advice in ranked}
    assert by_name["ring"].seconds == max(advice.seconds for advice in ranked)
    assert by_name["random-regular:3"].mean_error < 1e-12 < by_name["epidemic:3"].mean_error
    assert by_name["ring"].connected_share < 0.6 < 0.95 < by_name["epidemic:3"].connected_share
    assert all(advice.reason.startswith(advice.name) for advice in ranked)
    exact = advise(24, degree_max=3, payload_bytes=4e6, link=link)
    assert exact[0].name == "base:3"
    assert ranked == advise(24, degree_max=3, payload_bytes=4e6, link=link, loss=0.05, churn=0.25)


def test_advice_refuses_what_cannot_be() -> None:
    link = LinkModel()
    with pytest.raises(TopologyError, match="at least 2 peers"):
        advise(1, degree_max=3, payload_bytes=1, link=link)
    with pytest.raises(TopologyError, match=r"loss must be from 0 to below 1, not -0\.1"):
        advise(8, degree_max=3, payload_bytes=1, link=link, loss=-0.1)
    assert advise(8, degree_max=1, payload_bytes=1, link=link)[0].name == "base:1"
