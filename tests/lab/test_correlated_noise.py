"""Noise that cancels in pairs: known answers, what a reader of all peers still tells, what is left in the mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.lab import correlated_noise
from scripts.lab.correlated_noise import (
    Case,
    accuracy,
    clipped_sums,
    complete,
    effective_noise,
    main,
    mixing,
    own_noise,
    pair_noise,
)
from scripts.lab.records import records_in, table_of

noises = st.floats(0.05, 20)


def hypercube(peers: int) -> np.ndarray:
    edges = np.array([[float((i ^ j).bit_count() == 1) for j in range(peers)] for i in range(peers)])
    return np.diag(edges.sum(1)) - edges


@pytest.mark.parametrize(("pair", "known"), [(0, 1), (0.5, 0.5375), (1, 0.2635), (10, 0.0652), (1e4, 1 / 16)])
def test_of_a_hypercube_of_16_it_goes_from_a_peer_s_own_to_that_of_the_sum(pair: float, known: float) -> None:
    assert 1 / effective_noise(hypercube(16), 1, pair).min() ** 2 == pytest.approx(known, abs=1e-4)


@given(noises, noises, st.integers(2, 20))
def test_where_all_share_seeds_it_has_a_closed_form(own: float, pair: float, peers: int) -> None:
    precision = 1 / (peers * own**2) + (1 - 1 / peers) / (own**2 + peers * pair**2)
    assert effective_noise(complete(peers), own, pair) == pytest.approx(precision**-0.5, rel=1e-9)


@given(noises, noises, st.integers(2, 12))
def test_it_is_what_knowing_all_others_leaves_uncertain(own: float, pair: float, peers: int) -> None:
    """The variance of one coordinate of a Gaussian given all others, by regression on them."""
    covariance = own**2 * np.eye(peers) + pair**2 * complete(peers)
    shared = covariance[0, 1:]
    left = covariance[0, 0] - shared @ np.linalg.solve(covariance[1:, 1:], shared)
    assert effective_noise(complete(peers), own, pair)[0] == pytest.approx(left**0.5, rel=1e-9)


@given(noises, st.floats(0, 10), st.integers(1, 20))
def test_own_noise_is_as_much_as_is_wanted_between_that_of_the_sum_and_that_of_one(
    wanted: float, pair: float, peers: int
) -> None:
    own = own_noise(complete(peers), pair * wanted, wanted)
    assert wanted / peers**0.5 * (1 - 1e-6) <= own <= wanted
    assert effective_noise(complete(peers), own, pair * wanted).min() == pytest.approx(wanted, rel=1e-6)


def test_who_colludes_takes_its_seeds_away_and_of_two_peers_one_is_then_alone() -> None:
    own = [replace(Case(), pair=0.5, colluders=colluders).noises()[0] for colluders in range(8)]
    assert own == sorted(own)
    assert own[7] == pytest.approx(Case().noises()[0]), "the last honest peer needs all the noise itself"
    assert own[0] < 0.5 * own[7]


def test_noise_of_pairs_cancels_in_the_sum_and_only_there() -> None:
    noise = pair_noise(6, (50, 4), np.random.default_rng(1))
    assert np.abs(noise.sum(0)).max() < 1e-12
    assert noise[:5].sum(0).std() == pytest.approx(5**0.5, rel=0.2), "the one who is missing shared with five"
    assert noise.std() == pytest.approx(5**0.5, rel=0.1)


def test_one_row_more_moves_a_sum_by_the_clip_at_most() -> None:
    draw = np.random.default_rng(2)
    features = 5 * draw.normal(size=(1, 30, 8))
    classes = draw.integers(4, size=(1, 30))
    weights = draw.normal(size=(1, 8, 4))
    taken = np.ones((1, 30), bool)
    whole = clipped_sums(weights, features, classes, taken)
    for row in range(30):
        without = taken.copy()
        without[0, row] = False
        assert np.linalg.norm(whole - clipped_sums(weights, features, classes, without)) <= 1 + 1e-9


@pytest.mark.parametrize("neighbors", [2, 4, 7])
def test_what_is_mixed_keeps_the_mean(neighbors: int) -> None:
    w = mixing(Case(neighbors=neighbors))
    assert w.sum(0) == pytest.approx(1)
    assert w.sum(1) == pytest.approx(1)
    assert (w[0] > 0).sum() == neighbors + 1


def test_at_equal_promises_pairs_are_right_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correlated_noise, "FEATURES", 32)
    monkeypatch.setattr(correlated_noise, "HELD_OUT", 1000)
    case = Case(rows=100, batch=20, rounds=2, epsilon=1.0)
    ways = [replace(case, epsilon=0.0), replace(case, pair=1.0), case]
    none, pairs, independent = (np.mean([accuracy(way, 0.3, seed) for seed in range(3)]) for way in ways)
    assert none > pairs > independent + 0.03


def test_the_table_has_a_line_for_each_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"rounds": 1, "rows": 40, "batch": 16}
    ways = {"curator": {"together": True, **small}, "lost": {"pair": 1.0, "lost": 0.5, **small}}
    monkeypatch.setattr(correlated_noise, "WAYS", ways)
    monkeypatch.setattr(correlated_noise, "HELD_OUT", 50)
    monkeypatch.setattr(correlated_noise, "RATES", (0.3,))
    main(["--epsilon", "8", "--seeds", "2", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.count("±") == 2 for line in lines[2:])
    assert lines == table_of(records_in(tmp_path)("record"), {})
