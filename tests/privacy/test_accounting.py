"""Epsilon against closed forms, integration, the other accountant and itself; the noise that a promise needs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp
from scipy.stats import norm

from gossip.errors import LocalError
from peer.privacy import loss_distribution, renyi
from peer.privacy.accounting import EPSILON_OF, Accountant, epsilon, noise_multiplier_for
from peer.privacy.charge import Charge, merged

ACCOUNTANTS: tuple[Accountant, ...] = tuple(EPSILON_OF)
GRID = 2e-4
"""How far the grid may move epsilon, relatively: half of ``SPREAD_ADDED`` was measured; this leaves room."""

charges = st.builds(
    Charge, st.floats(0.5, 20), st.sampled_from([0.001, 0.01, 0.1, 0.5, 1.0]), st.integers(1, 3000)
)
deltas = st.sampled_from([1e-3, 1e-5, 1e-8])


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the exact epsilon of one Gaussian step of sensitivity ``mu`` (Balle and Wang, arXiv 1805.06530)."""

    def excess(epsilon: float) -> float:
        tail = norm.logcdf(-epsilon / mu - mu / 2)
        return float(norm.cdf(-epsilon / mu + mu / 2) - np.exp(epsilon + tail) - delta)

    return float(brentq(excess, 0, 300, xtol=1e-12))


@pytest.mark.parametrize(("mu", "known"), [(0.5, 1.993), (1, 4.377), (2, 9.997)])
@pytest.mark.parametrize("steps", [1, 100, 10_000])
def test_full_participation_is_the_exact_gaussian_case(mu: float, known: float, steps: int) -> None:
    found = epsilon([Charge(math.sqrt(steps) / mu, 1, steps)], 1e-5)
    exact = gaussian_epsilon(mu, 1e-5)
    assert exact == pytest.approx(known, abs=1e-3)
    assert exact <= found <= exact * (1 + GRID)


@given(st.lists(st.tuples(st.floats(1, 30), st.integers(1, 50)), min_size=1, max_size=4), deltas)
def test_uneven_gaussian_steps_add_up_to_one(kinds: list[tuple[float, int]], delta: float) -> None:
    mu = math.sqrt(sum(steps / noise**2 for noise, steps in kinds))
    exact = gaussian_epsilon(mu, delta)
    found = epsilon([Charge(noise, 1, steps) for noise, steps in kinds], delta)
    assert exact * (1 - 1e-9) <= found <= exact * (1 + GRID)


def test_of_a_smallest_delta_the_bound_is_as_tight() -> None:
    exact = gaussian_epsilon(1, 1e-12)
    assert exact <= epsilon([Charge(10, 1, 100)], 1e-12) <= exact * (1 + GRID)


def one_step_delta(charge: Charge, eps: float) -> float:
    """Return the exact delta of one step with a draw, of both directions the larger, by normal distributions alone."""
    noise, rate = charge.noise_multiplier, charge.sampling_rate

    def mixed(tail: float, tail_shifted: float) -> float:
        return (1 - rate) * tail + rate * tail_shifted

    def outcome(loss: float) -> float:
        return noise**2 * math.log1p(math.expm1(loss) / rate) + 0.5

    x = outcome(eps)
    added = mixed(norm.sf(x / noise), norm.sf((x - 1) / noise)) - math.exp(eps) * norm.sf(x / noise)
    if -eps <= math.log1p(-rate):
        return float(added)
    y = outcome(-eps)
    removed = norm.cdf(y / noise) - math.exp(eps) * mixed(norm.cdf(y / noise), norm.cdf((y - 1) / noise))
    return float(max(added, removed))


@pytest.mark.parametrize(
    "charge",
    [Charge(1, 0.01, 1), Charge(0.5, 0.1, 1), Charge(2, 0.5, 1), Charge(0.3, 0.001, 1), Charge(1, 0.99, 1)],
)
@pytest.mark.parametrize("delta", [1e-2, 1e-4, 1e-6])
def test_one_step_with_a_draw_is_the_closed_form(charge: Charge, delta: float) -> None:
    found = epsilon([charge], delta)
    if one_step_delta(charge, 0) <= delta:
        assert found == 0
    else:
        exact = brentq(lambda eps: one_step_delta(charge, eps) - delta, 0, 200, xtol=1e-12)
        assert exact <= found <= exact * (1 + 5e-3)


def test_two_steps_with_a_draw_are_what_integration_says() -> None:
    charge, eps = Charge(1.0, 0.1, 2), 1.0
    x = np.linspace(-12, 13, 3001)
    losses = loss_distribution.loss(charge, x)
    weights = (x[1] - x[0]) * (0.9 * norm.pdf(x) + 0.1 * norm.pdf(x - 1))
    shortfall = np.maximum(0, -np.expm1(eps - losses[:, None] - losses[None, :]))
    delta = float(weights @ shortfall @ weights)
    assert epsilon([charge], delta) == pytest.approx(eps, rel=2e-4)
    assert epsilon([charge], delta) >= eps * (1 - 1e-5)  # the sum over x has an error of its own


def by_quadrature(charge: Charge, order: float) -> float:
    noise, rate = charge.noise_multiplier, charge.sampling_rate
    peak = renyi.divergence(noise, rate, order) * (order - 1)

    def integrand(x: float) -> float:
        ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * noise**2))
        return float(np.exp(norm.logpdf(x, scale=noise) + order * ratio - peak))

    places = [0.0, order / 2, order]
    mass = quad(
        integrand, -15 * noise, order + 15 * noise, points=places, limit=2000, epsabs=0, epsrel=1e-12
    )[0]
    return (math.log(mass) + peak) / (order - 1)


@pytest.mark.parametrize("order", [1.5, 2.25, 5.0, 12.0, 32.0])
@pytest.mark.parametrize(
    "charge", [Charge(1, 0.01, 1), Charge(0.6, 0.2, 1), Charge(4, 0.5, 1), Charge(0.3, 1e-3, 1)]
)
def test_divergences_are_what_integration_says(charge: Charge, order: float) -> None:
    found = renyi.divergence(charge.noise_multiplier, charge.sampling_rate, order)
    assert found == pytest.approx(by_quadrature(charge, order), rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("order", [2, 5, 17, 64])
def test_divergences_at_whole_orders_are_the_binomial_sum(order: int) -> None:
    """Mironov, Talwar, Zhang (arXiv 1908.10530), section 3.3."""
    noise, rate = 0.9, 0.02
    k = np.arange(order + 1)
    binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    terms = binomial + (order - k) * math.log1p(-rate) + k * math.log(rate) + k * (k - 1) / (2 * noise**2)
    assert renyi.divergence(noise, rate, order) == pytest.approx(
        float(logsumexp(terms)) / (order - 1), rel=1e-9, abs=1e-13
    )


def test_the_conversion_of_divergences_is_the_improved_one() -> None:
    """At mu = 0.5, 1, 2 the plain conversion gives 2.524, 5.299, 11.60; the exact values are 1.993, 4.377, 9.997."""
    for mu, plain, exact in [(0.5, 2.524, 1.993), (1.0, 5.299, 4.377), (2.0, 11.60, 9.997)]:
        assert exact < renyi.epsilon([Charge(1 / mu, 1, 1)], 1e-5) < 0.94 * plain


@given(charges, deltas)
@settings(max_examples=40)
@example(Charge(0.5, 0.001, 3000), 1e-8)
def test_the_distribution_of_the_loss_is_never_looser(charge: Charge, delta: float) -> None:
    assert epsilon([charge], delta, "pld") <= epsilon([charge], delta, "rdp") * (1 + GRID)


@given(charges, deltas, st.sampled_from(ACCOUNTANTS))
@settings(max_examples=40)
def test_more_noise_fewer_steps_smaller_draws_and_a_larger_delta_cost_no_more(
    charge: Charge, delta: float, accountant: Accountant
) -> None:
    whole = epsilon([charge], delta, accountant)
    less = [
        (charge._replace(noise_multiplier=1.1 * charge.noise_multiplier), delta),
        (charge._replace(sampling_rate=0.9 * charge.sampling_rate), delta),
        (charge._replace(steps=charge.steps - 1), delta),
        (charge, min(0.5, 1.5 * delta)),
    ]
    for smaller, at in less:
        assert epsilon([smaller], at, accountant) <= whole * (1 + GRID)


@given(st.lists(charges, min_size=1, max_size=3), deltas, st.sampled_from(ACCOUNTANTS))
@settings(max_examples=30)
def test_parts_come_to_the_whole_whatever_their_order(
    parts: list[Charge], delta: float, accountant: Accountant
) -> None:
    whole = epsilon(parts, delta, accountant)
    split = [
        part._replace(steps=steps)
        for part in parts
        for steps in (part.steps // 3, part.steps - part.steps // 3)
    ]
    assert epsilon(split[::-1], delta, accountant) == pytest.approx(whole, rel=1e-12)
    assert whole >= epsilon(parts[1:], delta, accountant) * (1 - GRID)


@given(charges, charges, st.sampled_from(ACCOUNTANTS))
@settings(max_examples=25)
def test_two_promises_for_half_of_delta_each_bound_both_together(
    one: Charge, other: Charge, accountant: Accountant
) -> None:
    apart = epsilon([one], 5e-6, accountant) + epsilon([other], 5e-6, accountant)
    assert epsilon([one, other], 1e-5, accountant) <= apart * (1 + 1e-6)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_nothing_done_costs_nothing_and_no_noise_costs_what_is_no_promise(accountant: Accountant) -> None:
    assert epsilon([], 1e-5, accountant) == 0
    assert epsilon([Charge(1, 0.1, 0)], 1e-5, accountant) == 0
    assert epsilon([Charge(1e4, 1e-3, 1)], 1e-5, accountant) < 2e-3
    assert 1e3 < epsilon([Charge(0.01, 1, 1)], 1e-5, accountant) < 1e5


@pytest.mark.parametrize(
    "wrong", [Charge(0, 0.1, 1), Charge(math.nan, 0.1, 1), Charge(1, 0, 1), Charge(1, 2, 1), Charge(1, 1, -1)]
)
def test_what_is_no_mechanism_is_not_counted(wrong: Charge) -> None:
    with pytest.raises(ValueError, match="must"):
        merged([wrong])


@pytest.mark.parametrize("delta", [0, 1e-13, 1.0, math.nan])
def test_a_delta_that_promises_nothing_is_refused(delta: float) -> None:
    with pytest.raises(LocalError, match="delta must lie between"):
        epsilon([Charge(1, 0.1, 1)], delta)


@given(
    st.floats(0.2, 20),
    deltas,
    st.sampled_from([0.002, 0.14, 1.0]),
    st.integers(1, 3000),
    st.sampled_from(ACCOUNTANTS),
)
@settings(max_examples=8)
@example(8, 1e-5, 0.14, 60, "pld")
def test_the_noise_is_enough_and_hardly_more(
    target: float, delta: float, rate: float, steps: int, accountant: Accountant
) -> None:
    noise = noise_multiplier_for(target, delta, rate, steps, accountant=accountant)
    assert epsilon([Charge(noise, rate, steps)], delta, accountant) <= target
    if noise > 0.2:
        assert epsilon([Charge(noise * (1 - 6e-4), rate, steps)], delta, accountant) > target


def test_what_is_spent_asks_for_more_noise_or_is_all_there_was() -> None:
    spent = [Charge(1.0, 0.1, 30)]
    already = epsilon(spent, 1e-5)
    fresh = noise_multiplier_for(already + 1, 1e-5, 0.1, 30)
    noise = noise_multiplier_for(already + 1, 1e-5, 0.1, 30, spent)
    assert noise > fresh
    assert epsilon([*spent, Charge(noise, 0.1, 30)], 1e-5) <= already + 1
    with pytest.raises(LocalError, match=r"nothing is left to spend .* other data"):
        noise_multiplier_for(already, 1e-5, 0.1, 1, spent)
    with pytest.raises(LocalError, match=r"no noise keeps epsilon .* fewer rounds"):
        noise_multiplier_for(already + 1e-5, 1e-5, 1, 10**9, spent)
