"""Partitions: every row once, enough for everyone, the same draw everywhere, and the limits that are known."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.errors import LocalError
from scripts.lab.partition import (
    PARTITIONERS,
    ROWS_MIN,
    dirichlet,
    dirichlet_shares,
    heterogeneity,
    natural,
    parse_partitioner,
    pathological,
    quantity,
    temporal,
)
from topology.draws import Draws

LABELS = [f"c{row * 7 % 10}" for row in range(2000)]
"""Ten classes of 200 rows, interleaved."""


@pytest.mark.parametrize("name", PARTITIONERS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    labels=st.lists(st.sampled_from("abc"), min_size=40, max_size=80),
    peers=st.integers(3, 10),
    seed=st.integers(0, 9),
)
def test_each_row_goes_to_one_peer_and_each_peer_has_enough(
    name: str, labels: list[str], peers: int, seed: int
) -> None:
    parts = parse_partitioner(name)(labels, peers, seed)
    assert len(parts) == peers
    assert sorted(int(row) for part in parts for row in part) == list(range(len(labels)))
    assert min(map(len, parts)) >= ROWS_MIN
    again = parse_partitioner(name)(labels, peers, seed)
    assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))


@pytest.mark.parametrize("name", ["iid", "dirichlet", "quantity", "pathological"])
def test_the_seed_matters(name: str) -> None:
    first, second = (parse_partitioner(name)(LABELS, 5, seed) for seed in (0, 1))
    assert not all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_large_alpha_gives_everyone_the_mix_and_a_small_one_gives_each_class_to_one_peer() -> None:
    alike = heterogeneity(LABELS, dirichlet(1e6)(LABELS, 5, 0))
    # Cuts are rounded: each class count of a peer is off by at most one row (and 1e-3 by the draw) of 400.
    assert alike.total_variation < 10 * (1 + 200 * 1e-3) / 400
    parts = dirichlet(1e-4)(LABELS, 4, 0)
    owners = [sum(any(LABELS[row] == name for row in part) for part in parts) for name in sorted(set(LABELS))]
    assert owners == [1] * 10
    between = [
        heterogeneity(LABELS, dirichlet(alpha)(LABELS, 5, 0)).total_variation for alpha in (100, 1, 0.1)
    ]
    assert between == sorted(between)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 5.0])
def test_shares_have_the_moments_of_a_dirichlet_law(alpha: float) -> None:
    count, times = 4, 4000
    drawn = np.stack([dirichlet_shares(Draws("moments", alpha, time), alpha, count) for time in range(times)])
    assert np.allclose(drawn.sum(axis=1), 1.0)
    variance = (1 / count) * (1 - 1 / count) / (count * alpha + 1)  # of one share of Dir(alpha, ..., alpha)
    assert drawn.mean(axis=0) == pytest.approx(1 / count, abs=4 * math.sqrt(variance / times))
    assert drawn.var(axis=0).mean() == pytest.approx(variance, rel=0.1)


def test_pathological_peers_have_so_many_classes_and_share_them_evenly() -> None:
    parts = pathological(2)(LABELS, 10, 0)
    for part in parts:
        assert sorted(Counter(LABELS[row] for row in part).values()) == [100, 100]
    with pytest.raises(LocalError, match="at least 4 classes"):
        pathological(2)(LABELS, 3, 0)


def test_natural_groups_stay_whole_or_are_shared_by_peers_of_their_own() -> None:
    whole = natural()(LABELS, 5, 0)
    assert [sorted({LABELS[row] for row in part}) for part in whole] == [
        [f"c{i}", f"c{i + 5}"] for i in range(5)
    ]
    shared = natural()(LABELS, 20, 0)
    assert [{LABELS[row] for row in part} for part in shared] == [{f"c{i % 10}"} for i in range(20)]
    assert {len(part) for part in shared} == {100}


def test_quantity_keeps_the_mix_and_spreads_the_sizes() -> None:
    narrow, wide = (heterogeneity(LABELS, quantity(sigma)(LABELS, 8, 0)) for sigma in (0.01, 1.5))
    assert max(narrow.sizes) < 1.1 * min(narrow.sizes)
    assert max(wide.sizes) > 4 * min(wide.sizes)
    assert narrow.total_variation < 0.15


def test_windows_follow_the_order() -> None:
    parts = temporal()(LABELS, 3, 0)
    assert np.concatenate(parts).tolist() == list(range(2000))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_heterogeneity_of_known_splits() -> None:
    labels = ["a"] * 4 + ["b"] * 4
    apart = heterogeneity(labels, [np.arange(4), np.arange(4, 8)])
    assert apart.total_variation == pytest.approx(0.5)
    # JSD((1, 0), (1/2, 1/2)) = H(3/4, 1/4) - (0 + 1) / 2 = 0.8113 - 0.5 bits
    assert apart.jensen_shannon == pytest.approx(math.sqrt(2 - 0.75 * math.log2(3) - 0.5))
    assert apart.sizes == (4, 4)
    alike = heterogeneity(labels, [np.array([0, 4]), np.array([1, 2, 3, 5, 6, 7])])
    assert alike[:2] == pytest.approx((0.0, 0.0))


def test_what_cannot_be_split_is_explained() -> None:
    with pytest.raises(LocalError, match="7 rows are too few for 2 peers"):
        temporal()(["a"] * 7, 2, 0)
    with pytest.raises(LocalError, match="number above 0"):
        parse_partitioner("dirichlet:0")
    with pytest.raises(LocalError, match="known"):
        parse_partitioner("dirichlett:1")
