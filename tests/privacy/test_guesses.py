"""Bounds on guesses: above what the best attack reaches on what can be simulated, and not far above."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from peer.privacy.charge import Charge
from peer.privacy.guesses import area_under_curve, profile, true_positives
from peer.privacy.loss_distribution import loss

TRIALS = 100_000


@pytest.mark.parametrize("mu", [0.2, 1.0, 2.0])
def test_of_a_gaussian_they_are_the_known_curve_and_area(mu: float) -> None:
    """Dong, Roth, Su (arXiv 1905.02383): true = Phi(Phi^-1(false) + mu), area = Phi(mu / sqrt 2)."""
    pairs = profile([Charge(1 / mu, 1, 1)])
    for false in (0.001, 0.01, 0.05, 0.5):
        exact = norm.cdf(norm.ppf(false) + mu)
        assert exact <= true_positives(pairs, false) <= 1.12 * exact
    assert norm.cdf(mu / 2**0.5) <= area_under_curve(pairs) <= norm.cdf(mu / 2**0.5) + 0.012


def test_one_pair_bounds_by_both_kinds_of_error() -> None:
    pairs = [(np.log(2), 0.01)]
    assert true_positives(pairs, 0) == pytest.approx(0.01)
    assert true_positives(pairs, 0.1) == pytest.approx(0.21)
    assert true_positives(pairs, 0.9) == pytest.approx(1 - (1 - 0.01 - 0.9) / 2)
    assert true_positives([], 0.3) == 1
    assert true_positives([(0.0, 0.0)], 0.3) == pytest.approx(0.3)
    assert area_under_curve([(0.0, 0.0)]) == pytest.approx(0.5, abs=0.01)
    assert true_positives([(1e6, 0.0)], 0.5) == 1


def attacked(charge: Charge, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss sums, by which the best attack decides, of outsiders and of members, one for each trial."""
    draw = np.random.default_rng(seed)
    noise = draw.normal(0, charge.noise_multiplier, (2, TRIALS, charge.steps))
    taken = draw.random((TRIALS, charge.steps)) < charge.sampling_rate
    outside, inside = (loss(charge, x).sum(1) for x in (noise[0], noise[1] + taken))
    return outside, inside


def area(outside: np.ndarray, inside: np.ndarray) -> float:
    return float(np.searchsorted(np.sort(outside), inside).mean() / TRIALS)


@pytest.mark.parametrize("charge", [Charge(1.0, 0.3, 20), Charge(0.6, 0.05, 30), Charge(4.0, 1.0, 10)])
def test_the_best_attack_stays_below_and_comes_near(charge: Charge) -> None:
    outside, inside = attacked(charge, 1)
    pairs = profile([charge])
    assert area(outside, inside) <= area_under_curve(pairs)
    assert area(outside, inside) >= 0.9 * (area_under_curve(pairs) - 0.5) + 0.5 - 0.02
    for threshold in np.quantile(
        outside, [0.95, 0.99]
    ):  # the rates are counted: each may be off by four errors
        false, true = (float((losses > threshold).mean()) for losses in (outside, inside))
        of_false, of_true = (4 * (rate * (1 - rate) / TRIALS) ** 0.5 for rate in (false, true))
        assert true - of_true <= true_positives(pairs, false + of_false)
        assert true + of_true >= 0.9 * true_positives(pairs, false - of_false)


def test_without_noise_worth_the_name_the_attack_succeeds_and_nothing_is_promised() -> None:
    charge = Charge(0.2, 0.3, 20)
    assert area(*attacked(charge, 2)) > 0.9
    assert area_under_curve(profile([charge])) > 0.98
