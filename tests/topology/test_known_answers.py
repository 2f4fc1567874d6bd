"""Closed forms from the literature; item numbers are those of the test catalogue in algorithms.md 10.4."""

from __future__ import annotations

import math
from math import comb, cos, pi

import numpy as np
import pytest
from scipy.sparse import csr_array

from topology import quadratic
from topology.consensus import measured_rate, of_topology, run_consensus, static
from topology.draws import Draws
from topology.edges import WeightedEdges, undirected
from topology.errors import TopologyError
from topology.finite_time import base_schedule, hyper_hypercube
from topology.graphs import GRAPHS, path, ring, star, watts_strogatz
from topology.links import Topology, parse_topology
from topology.loss import lossy
from topology.sinkhorn import scale
from topology.spectral import (
    contraction,
    effective_neighbors,
    expected_contraction,
    isotropic_contraction,
    lambda_min,
    mean_drift,
    slem,
    spectral_gap,
    spectrum,
    sweep_contraction,
)
from topology.validation import validate
from topology.weights import data_size, metropolis_hastings


def topology(name: str, weights: str = "metropolis-hastings") -> Topology:
    return parse_topology(name, seed=1, weights=weights)


def values(name: str, n: int, weights: str = "metropolis-hastings") -> np.ndarray:
    return np.sort(spectrum(topology(name, weights).matrix(n)))[::-1]


# ---- item 1: spectra with Metropolis-Hastings weights


def test_ring() -> None:
    for n in (3, 4, 5, 8, 16, 17, 64):
        expected = sorted(((1 + 2 * cos(2 * pi * k / n)) / 3 for k in range(n)), reverse=True)
        np.testing.assert_allclose(values("ring", n), expected, atol=1e-12)
        assert spectral_gap(topology("ring").matrix(n)) == pytest.approx(
            2 / 3 * (1 - cos(2 * pi / n)), abs=1e-12
        )
    for n, gap in {8: 0.19526, 16: 0.05075, 32: 0.01281, 64: 0.00321}.items():
        assert spectral_gap(topology("ring").matrix(n)) == pytest.approx(gap, abs=5e-6)


def test_path() -> None:
    for n in (2, 3, 8, 16):
        expected = sorted((1 - 2 / 3 * (1 - cos(pi * k / n)) for k in range(n)), reverse=True)
        if n > 2:
            np.testing.assert_allclose(values("path", n), expected, atol=1e-12)
    gaps = [spectral_gap(topology(name).matrix(n)) for name, n in (("path", 16), ("ring", 32))]
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-12)


def test_star() -> None:
    for n in (3, 8, 32):
        np.testing.assert_allclose(values("star", n), [1.0] + [1 - 1 / n] * (n - 2) + [0.0], atol=1e-12)


def test_complete() -> None:
    for n in (2, 7, 16):
        np.testing.assert_allclose(topology("complete").matrix(n).toarray(), 1 / n, atol=1e-15)
        assert slem(topology("complete").matrix(n)) == pytest.approx(0.0, abs=1e-12)


def test_torus() -> None:
    for m in (3, 4, 5, 8):
        expected = [
            (1 + 2 * cos(2 * pi * a / m) + 2 * cos(2 * pi * b / m)) / 5 for a in range(m) for b in range(m)
        ]
        np.testing.assert_allclose(values("torus", m * m), sorted(expected, reverse=True), atol=1e-12)
    assert spectral_gap(topology("torus").matrix(16)) == pytest.approx(0.4, abs=1e-12)
    assert spectral_gap(topology("torus").matrix(64)) == pytest.approx(0.11716, abs=5e-6)
    np.testing.assert_array_equal(topology("torus:4x6").edges(24), topology("torus").edges(24))


def test_hypercube() -> None:
    for d in range(1, 7):
        expected = [1 - 2 * k / (d + 1) for k in range(d + 1) for _ in range(comb(d, k))]
        np.testing.assert_allclose(values("hypercube", 2**d), expected, atol=1e-12)
        assert spectral_gap(topology("hypercube").matrix(2**d)) == pytest.approx(2 / (d + 1), abs=1e-12)


def test_watts_strogatz_without_rewiring_is_a_circulant() -> None:
    n, k = 20, 4
    expected = [(1 + sum(2 * cos(2 * pi * d * m / n) for d in (1, 2))) / (k + 1) for m in range(n)]
    np.testing.assert_allclose(values(f"watts-strogatz:{k}:0", n), sorted(expected, reverse=True), atol=1e-12)
    assert len(watts_strogatz(n, Draws(1), k, 0.5)) == n * k // 2


def test_random_regular_is_an_expander() -> None:
    degree = np.bincount(topology("random-regular:4").edges(64)[:, 0])
    assert set(degree.tolist()) == {4}
    assert 0.08 < spectral_gap(topology("random-regular:4").matrix(64)) < 0.25  # one seed gave .1409
    bound = 1 - (1 + 2 * math.sqrt(3)) / 5
    assert spectral_gap(topology("random-regular:4").matrix(2000)) == pytest.approx(
        bound, abs=0.02
    )  # Friedman


def test_hard_cases_are_hard() -> None:
    assert spectral_gap(topology("two-cliques").matrix(32)) < 0.01
    assert spectral_gap(topology("barbell").matrix(48)) < 0.002


# ---- items 2, 3: exponential graphs


@pytest.mark.parametrize("n", [8, 12, 16, 24, 32, 64])
def test_static_exponential(n: int) -> None:
    matrix = topology("exponential").matrix(n)
    expected = 2 / (1 + math.ceil(math.log2(n)))
    assert spectral_gap(matrix) == pytest.approx(expected, abs=1e-12)
    assert contraction(matrix) == pytest.approx(1 - expected, abs=1e-12)  # normal: the norm is the modulus


def test_static_exponential_at_25() -> None:
    assert spectral_gap(topology("exponential").matrix(25)) == pytest.approx(0.489, abs=5e-4)


def sweep(name: str, n: int) -> list[csr_array]:
    one = topology(name)
    return [one.matrix(n, round) for round in range(one.period(n))]


def test_one_peer_exponential_is_exact_only_at_powers_of_two() -> None:
    for n in (2, 4, 8, 16, 32):
        assert len(sweep("one-peer-exponential", n)) == n.bit_length() - 1
        assert sweep_contraction(sweep("one-peer-exponential", n)) < 1e-12
    for n, norm in {12: 0.209, 24: 0.207, 48: 0.207, 100: 0.192}.items():
        assert sweep_contraction(sweep("one-peer-exponential", n)) == pytest.approx(norm, abs=1e-3)


# ---- items 4, 5: finite-time schedules

GOLDEN = {
    1: "2:1 3:3 4:2 5:5 6:4 7:5 8:3 9:7 10:6 12:5 16:4 20:7 24:6 25:9 31:9 32:5 48:7 50:10 64:6 96:8 100:11",
    2: "3:1 5:3 6:2 7:4 9:2 12:3 18:3 25:6 27:3 32:5 50:7 100:8",
    4: "5:1 6:2 7:3 10:2 12:2 25:2 32:3 50:3 64:3 100:3",
}


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_base_is_exact_for_every_n(k: int) -> None:
    for n in range(1, 65):
        product = np.eye(n)
        for weighted in base_schedule(n, k):
            matrix = weighted.matrix()
            assert (matrix != matrix.T).nnz == 0
            assert matrix.data.min() >= 0
            assert np.bincount(weighted.reader, minlength=1).max() <= k, f"{n} peers: more than {k} neighbors"
            product = matrix @ product
        np.testing.assert_allclose(product, 1 / n, atol=1e-14)


def test_base_is_no_longer_than_the_authors_generator() -> None:
    for k, row in GOLDEN.items():
        for entry in row.split():
            n, length = map(int, entry.split(":"))
            assert len(base_schedule(n, k)) <= length, f"Base-({k}+1) for {n} peers"
            assert parse_topology(f"base:{k}", seed=0).period(n) == len(base_schedule(n, k))


def test_dimension_exchange_and_hyper_hypercube_are_exact() -> None:
    for n in (2, 4, 8, 16, 64):
        assert len(sweep("dimension-exchange", n)) == n.bit_length() - 1
        assert sweep_contraction(sweep("dimension-exchange", n)) < 1e-12
    for n, k, length in ((12, 2, 3), (30, 4, 3), (27, 2, 3)):
        assert len(sweep(f"hyper-hypercube:{k}", n)) == length
        assert sweep_contraction(sweep(f"hyper-hypercube:{k}", n)) < 1e-12


def test_moshpit_grid_is_exact() -> None:
    """Moshpit all-reduce: a grid of M^d peers averages along each axis in turn."""
    side, axes = 5, 3
    places = np.arange(side**axes)[None, :]
    rounds = [WeightedEdges(side**axes, *arcs).matrix() for arcs in hyper_hypercube(places, [side] * axes)]
    assert len(rounds) == axes
    assert sweep_contraction(rounds) < 1e-12


# ---- item 6: expected contraction of random schedules


def draws(name: str, n: int, count: int) -> list[csr_array]:
    return [topology(name).matrix(n, round) for round in range(count)]


@pytest.mark.parametrize(
    ("name", "n", "expected"),
    [
        ("random-matching", 16, 14 / 30),
        ("random-matching", 12, 10 / 22),
        ("random-pair", 16, 1 - 1 / 15),
        ("epidemic-oracle:4", 16, (1 / 5) * (1 - 4 / 15)),
        ("epidemic-oracle:2", 13, (1 / 3) * (1 - 2 / 12)),
        ("equidyn", 16, 15 / 32),
    ],
)
def test_contraction_that_every_draw_has(name: str, n: int, expected: float) -> None:
    mean, error = expected_contraction(draws(name, n, 20))
    assert mean == pytest.approx(expected, abs=1e-12)
    assert error < 1e-12


@pytest.mark.parametrize("name", ["random-matching", "epidemic-oracle:3", "equidyn", "random-pair"])
def test_contraction_holds_for_any_values(name: str) -> None:
    """Monte Carlo on one ugly X: nodes are exchangeable, so X does not matter."""
    n, x = 16, np.zeros((16, 1))
    x[0], x[1] = 10.0, -3.0
    x -= x.mean()
    after = [float(((matrix @ x) ** 2).sum() / (x**2).sum()) for matrix in draws(name, n, 3000)]
    expected = isotropic_contraction(topology(name).matrix(n))
    assert abs(np.mean(after) - expected) < 3 * np.std(after) / math.sqrt(len(after))


@pytest.mark.parametrize("s", [2, 4])
def test_epidemic_local_distance_from_the_old_mean(s: int) -> None:
    n = 16
    after = [
        (float(matrix.data @ matrix.data) - 1) / (n - 1) for matrix in draws(f"epidemic-local:{s}", n, 3000)
    ]
    expected = (1 / s) * (1 - (1 - s / (n - 1)) ** n) - 1 / (n - 1)
    assert abs(np.mean(after) - expected) < 3 * np.std(after) / math.sqrt(len(after))
    if s == 4:
        assert expected == pytest.approx(0.1816, abs=5e-5)


def test_epidemic_pull_distance_from_the_old_mean() -> None:
    """Every row has s + 1 equal weights, so each draw has the same norm, but only rows sum to 1: the mean drifts."""
    matrix = topology("epidemic:4").matrix(16)
    assert float(matrix.data @ matrix.data) == pytest.approx(16 / 5)
    assert mean_drift(matrix) > 0.01
    assert not validate(matrix).doubly_stochastic


def test_equistatic_gap_does_not_depend_on_n() -> None:
    gaps = [spectral_gap(topology("equistatic-undirected:10").matrix(n)) for n in (64, 256, 1024)]
    assert min(gaps) > 0.2


# ---- item 7: best constant, FMMC, FDLA


def test_best_constant() -> None:
    for n in (4, 8, 16, 32):
        c = cos(2 * pi / n)
        assert slem(topology("ring", "best-constant").matrix(n)) == pytest.approx((1 + c) / (3 - c), abs=1e-9)
        star_slem = slem(topology("star", "best-constant").matrix(n))
        assert star_slem == pytest.approx((n - 1) / (n + 1), abs=1e-9)
    for d in (3, 4, 5):
        cube = slem(topology("hypercube", "best-constant").matrix(2**d))
        assert cube == pytest.approx((d - 1) / (d + 1), abs=1e-9)


def test_best_constant_on_a_star_is_refused_and_mixes_on_with_metropolis_hastings() -> None:
    star_topology = topology("star", "best-constant")
    assert star_topology.matrix(8).diagonal().min() < 0
    with pytest.raises(TopologyError, match="negative"):
        star_topology.check(8)
    members = tuple("abcdefgh")
    rng = np.random.default_rng(0)
    assert star_topology("b", members, 0, rng) == topology("star")("b", members, 0, rng)


def test_max_degree_and_lazy() -> None:
    for name in ("ring", "hypercube", "torus"):
        difference = topology(name, "max-degree").matrix(16) - topology(name).matrix(16)
        np.testing.assert_allclose(difference.toarray(), 0, atol=1e-15)
    np.testing.assert_allclose(values("ring", 16, "lazy:0.25"), 0.75 + 0.25 * values("ring", 16), atol=1e-12)
    assert lambda_min(topology("hypercube", "lazy").matrix(16)) >= 0


def test_fastest_mixing_weights() -> None:
    pytest.importorskip("mixingmatrix")
    for n in (8, 16):
        assert slem(topology("path", "fmmc").matrix(n)) == pytest.approx(cos(pi / n), abs=1e-5)
    assert slem(topology("star", "fmmc").matrix(8)) == pytest.approx(1 - 1 / 7, abs=1e-5)
    c = cos(2 * pi / 8)
    assert slem(topology("ring", "fmmc").matrix(8)) == pytest.approx((1 + c) / (3 - c), abs=1e-5)
    assert slem(topology("star", "fdla").matrix(8)) == pytest.approx(7 / 9, abs=1e-5)
    matrix = topology("path", "fmmc").matrix(8)
    assert (matrix != matrix.T).nnz == 0
    assert matrix.data.min() >= 0


# ---- item 8: Sinkhorn


def test_sinkhorn_leaves_a_doubly_stochastic_matrix_alone() -> None:
    matrix = topology("erdos-renyi").matrix(16)
    np.testing.assert_allclose(scale(matrix).toarray(), matrix.toarray(), atol=1e-12)


def test_sinkhorn_scales_and_keeps_symmetry() -> None:
    rng = np.random.default_rng(0)
    dense = rng.random((9, 9)) + 0.01
    np.testing.assert_allclose(scale(csr_array(dense)).sum(axis=0), 1, atol=1e-12)
    np.testing.assert_allclose(scale(csr_array(dense)).sum(axis=1), 1, atol=1e-12)
    scaled = scale(csr_array(dense + dense.T))
    assert (scaled != scaled.T).nnz == 0
    guarantees = validate(topology("barabasi-albert:2", "sinkhorn").matrix(30))
    assert guarantees.doubly_stochastic
    assert guarantees.symmetric


def test_sinkhorn_refuses_a_pattern_without_total_support() -> None:
    path_of_3 = csr_array(np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=float))
    with pytest.raises(TopologyError, match=r"serve rows (0|2)"):
        scale(path_of_3)
    triangular = csr_array(np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=float))
    with pytest.raises(TopologyError, match=r"nodes 0, 1 lie on no cycle"):
        scale(triangular)


# ---- item 9: the trap of weights 1/max(d_i, d_j) on an even ring


def test_even_ring_without_self_weight_is_rejected() -> None:
    n = 8
    edges = ring(n, Draws(0))
    both = np.concatenate([edges, edges[:, ::-1]])
    matrix = WeightedEdges(n, both[:, 0], both[:, 1], np.full(2 * n, 0.5)).matrix()
    guarantees = validate(matrix)
    assert guarantees.doubly_stochastic
    assert not guarantees.primitive
    assert guarantees.lambda_min == pytest.approx(-1)
    assert any("period 2" in failure for failure in guarantees.failures)
    with pytest.raises(TopologyError, match="period 2"):
        guarantees.require("primitive")
    assert validate(topology("ring").matrix(n)).primitive


# ---- item 10: effective number of neighbors


def test_effective_neighbors() -> None:
    identity = csr_array(np.eye(16))
    for gamma in (0.0, 0.5, 0.9):
        assert effective_neighbors(identity, gamma) == pytest.approx(1.0, rel=1e-9)
        assert effective_neighbors(topology("complete").matrix(16), gamma) == pytest.approx(16, rel=1e-9)
    assert effective_neighbors(topology("ring").matrix(16), 0.0) == pytest.approx(
        16 / (values("ring", 16) ** 2).sum(), rel=1e-9
    )
    table = {
        0.9: {"ring": 6.63, "star": 1.67, "hypercube": 19.6},
        0.951: {"ring": 8.86, "star": 2.31, "hypercube": 24.3},
        0.99: {"ring": 17.1, "star": 6.4, "hypercube": 30.0},
    }
    for gamma, row in table.items():
        for name, expected in row.items():
            assert effective_neighbors(topology(name).matrix(32), gamma) == pytest.approx(expected, rel=6e-3)


def test_effective_neighbors_without_symmetry_and_by_probes() -> None:
    matrix = topology("exponential").matrix(24)
    squares = np.abs(np.linalg.eigvals(matrix.toarray())) ** 2  # circulant, so normal
    expected = 10 / np.mean(squares / (1 - 0.9 * squares))
    assert effective_neighbors(matrix, 0.9) == pytest.approx(expected, rel=1e-9)
    large = topology("exponential").matrix(1024)
    squares = np.abs(np.fft.fft(large[[0]].toarray().ravel())) ** 2
    expected = 10 / np.mean(squares / (1 - 0.9 * squares))
    assert effective_neighbors(large, 0.9) == pytest.approx(expected, rel=0.03)


# ---- item 11: decentralized SGD on quadratics


@pytest.mark.parametrize(("steps", "order"), [(1, "atc"), (20, "atc"), (1, "cta")])
def test_fixed_point_of_decentralized_sgd(steps: int, order: quadratic.Order) -> None:
    matrix = topology("ring").matrix(8)
    targets = np.random.default_rng(0).standard_normal((8, 3))
    expected = quadratic.fixed_point(matrix, targets, 0.1, steps, order)
    reached = quadratic.run(static(matrix), targets, 0.1, 600, steps, order)
    np.testing.assert_allclose(reached, expected, atol=1e-12)
    np.testing.assert_allclose(expected.mean(axis=0), targets.mean(axis=0), atol=1e-12)


def test_fixed_point_of_a_mode() -> None:
    """The mode with eigenvalue l keeps the fraction (1 - a) l / (1 - a l) of its disagreement."""
    n, mode = 8, np.cos(2 * pi * np.arange(8) / 8)[:, None]
    eigenvalue, keep = (1 + 2 * cos(2 * pi / n)) / 3, 0.9**20
    reached = quadratic.fixed_point(topology("ring").matrix(n), mode, 0.1, 20)
    np.testing.assert_allclose(reached, (1 - keep) * eigenvalue / (1 - keep * eigenvalue) * mode, atol=1e-12)


# ---- items 18, 19: loss


def test_symmetric_drop_keeps_the_mean_and_the_others_do_not() -> None:
    matrix = topology("ring").matrix(16)
    x = np.random.default_rng(3).standard_normal((16, 200))
    drift = {
        rule: run_consensus(lossy(matrix, 0.3, rule, seed=4), x, 60).drift[-1] / math.sqrt(200)
        for rule in ("symmetric-drop", "renormalize", "to-self")
    }
    assert drift["symmetric-drop"] < 1e-14
    assert 0.05 < drift["renormalize"] < 0.2  # .114 in the survey
    assert 0.04 < drift["to-self"] < 0.2  # .092
    lossless = run_consensus(lossy(matrix, 0.0, "renormalize", seed=4), x, 60)
    np.testing.assert_allclose(lossless.values, run_consensus(static(matrix), x, 60).values, atol=1e-14)


def test_expected_matrix_under_symmetric_drop() -> None:
    matrix, loss = topology("ring").matrix(8), 0.3
    rounds = lossy(matrix, loss, "symmetric-drop", seed=1)
    mean = sum(rounds(t).toarray() for t in range(4000)) / 4000
    q = (1 - loss) ** 2
    np.testing.assert_allclose(mean, np.eye(8) - q * (np.eye(8) - matrix.toarray()), atol=0.015)


# ---- measured against predicted


@pytest.mark.parametrize(
    ("name", "n"), [("ring", 16), ("ring", 64), ("star", 32), ("torus", 64), ("hypercube", 64), ("erdos-renyi", 64),
                    ("random-regular:4", 64), ("exponential", 32), ("two-cliques", 16)]
)  # fmt: skip
def test_measured_rate_matches_the_slem(name: str, n: int) -> None:
    matrix = topology(name).matrix(n)
    x = np.random.default_rng(7).standard_normal((n, 16))
    outcome = run_consensus(static(matrix), x, 20000, tolerance=1e-7)
    rate = measured_rate(outcome.distance)
    assert rate is not None
    assert math.log(rate) == pytest.approx(math.log(slem(matrix)), rel=0.02)
    assert outcome.drift.max() < 1e-13


def test_a_start_in_the_slowest_mode_shrinks_by_the_slem_from_the_first_round() -> None:
    matrix = topology("erdos-renyi").matrix(32)
    _, vectors = np.linalg.eigh(matrix.toarray())
    outcome = run_consensus(static(matrix), vectors[:, [-2]] + 5.0, 20)
    ratios = outcome.distance[1:] / outcome.distance[:-1]
    np.testing.assert_allclose(ratios, slem(matrix), rtol=1e-9)


def test_schedules_reach_the_average_in_one_sweep() -> None:
    x = np.random.default_rng(0).standard_normal((37, 5)) + 1e6
    outcome = run_consensus(of_topology(topology("base:2"), 37), x, 50, tolerance=1e-12)
    assert outcome.rounds_to(1e-12) == topology("base:2").period(37)
    np.testing.assert_allclose(outcome.values, np.broadcast_to(x.mean(axis=0), x.shape), rtol=1e-12)


# ---- data sizes


def test_data_size_weights_keep_the_weighted_mean() -> None:
    edges, sizes = undirected(topology("erdos-renyi").edges(12)), np.arange(1.0, 13.0)
    matrix = data_size(12, edges, False, sizes).matrix()
    share = sizes / sizes.sum()
    np.testing.assert_allclose(share @ matrix.toarray(), share, atol=1e-15)
    assert matrix.data.min() >= 0
    equal = data_size(12, edges, False, np.ones(12)).matrix() - metropolis_hastings(12, edges).matrix()
    assert abs(equal).max() < 1e-15
    with pytest.raises(TopologyError, match="12 positive sizes"):
        data_size(12, edges, False, [1.0, 0.0])


def test_graph_shapes() -> None:
    draws_ = Draws(0)
    assert len(path(5, draws_)) == 4
    assert len(star(5, draws_)) == 4
    for name, graph in GRAPHS.items():
        if not graph.parameters:
            edges = graph.build(9, draws_)
            assert edges.min() >= 0, name
            assert edges.max() < 9
            assert (edges[:, 0] != edges[:, 1]).all()
            assert len(np.unique(edges, axis=0)) == len(edges)
