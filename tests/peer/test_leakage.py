"""Statistics of leaks: known answers, brute force, and intervals that hold as often as they say."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from peer.training.frames import RowLosses
from peer.training.leakage import (
    FALSE_POSITIVE_RATES,
    ROWS_MIN,
    attributed,
    auc_interval,
    exposure,
    figures,
    membership,
    share_of,
)

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=40)


@given(members=SCORES, others=SCORES)
def test_membership_is_what_counting_says(members: list[float], others: list[float]) -> None:
    found = membership(members, others)
    pairs = list(itertools.product(members, others))
    won = sum((member > other) + (member == other) / 2 for member, other in pairs)
    assert found.auc.value == pytest.approx(won / len(pairs))
    assert found.auc.low <= found.auc.value <= found.auc.high
    assert (found.members, found.others) == (len(members), len(others))
    mirrored = membership(others, members).auc
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.auc.high, 1 - found.auc.low), abs=1e-9)
    for rate, share in found.true_positives.items():
        # the best threshold by trying all: as many members beyond it as can be, at so many false positives
        allowed = [t for t in others if sum(other > t for other in others) <= rate * len(others)]
        best = max(sum(member > t for member in members) for t in allowed)
        assert share.value == pytest.approx(best / len(members))


def test_known_answers() -> None:
    apart = membership([4.0, 5.0, 6.0], [1.0, 2.0, 3.0])
    assert (apart.auc.value, apart.auc.high) == (1.0, 1.0)
    assert apart.auc.low < 1.0, "three of each prove little"
    assert all(share.value == 1.0 for share in apart.true_positives.values())
    assert membership([1.0] * 9, [1.0] * 9).auc.value == 0.5
    assert membership([2.0], [1.0] * 199).is_too_few_for(0.01) is False
    assert membership([2.0], [1.0] * 99).is_too_few_for(0.01) is True
    # one other in a hundred may lie beyond the threshold
    one_beyond = membership([10.0] * 3 + [0.0], [*map(float, range(100))])
    assert one_beyond.true_positives[0.01].value == 0.0
    assert one_beyond.true_positives[0.05].value == 0.0
    assert membership([98.5] * 3 + [0.0], [*map(float, range(100))]).true_positives[0.01].value == 0.75


def test_the_exact_interval_of_a_share_is_that_of_the_binomial() -> None:
    for hits, trials in ((0, 10), (3, 10), (10, 10), (1, 200)):
        share = share_of(hits, trials)
        assert share.value == float(Fraction(hits, trials))
        if hits:
            assert binom.sf(hits - 1, trials, share.low) == pytest.approx(0.025)
        if hits < trials:
            assert binom.cdf(hits, trials, share.high) == pytest.approx(0.025)
    assert share_of(0, 10).low == 0.0
    assert share_of(0, 10).high == pytest.approx(0.3085, abs=1e-4)  # 1 - .025^(1/10)


def test_the_interval_of_an_auc_solves_its_equation_and_never_has_no_width() -> None:
    for auc, members, others in ((0.5, 20, 20), (0.9, 50, 10), (0.97, 128, 64)):
        interval = auc_interval(auc, members, others)
        for bound in (interval.low, interval.high):
            star = (members + others) / 2 - 1
            spread = 1 + star * (1 - bound) / (2 - bound) + star * bound / (1 + bound)
            variance = bound * (1 - bound) * spread / (members * others)
            assert abs(bound - auc) == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-4)
    for auc in (0.0, 1.0):
        interval = auc_interval(auc, ROWS_MIN, ROWS_MIN)
        assert interval.high - interval.low > 0.3
    widths = [auc_interval(0.8, n, n).high - auc_interval(0.8, n, n).low for n in (10, 100, 1000)]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("distance", [0.0, 1.0, 2.5])
def test_the_interval_of_an_auc_holds_the_truth_as_often_as_it_says(distance: float) -> None:
    """Normal scores a distance apart: the truth is Phi(distance / sqrt 2). Of 600 intervals 95 % hold it, and chance in
    that count is 0.9 points (one standard error)."""
    draw = np.random.default_rng(5)
    truth = 0.5 * (1 + math.erf(distance / 2))
    held = 0
    for _ in range(600):
        auc = membership(draw.normal(distance, 1, 30), draw.normal(0, 1, 25)).auc
        held += auc.low <= truth <= auc.high
    assert 0.92 <= held / 600 <= 0.99


def test_exposure_known_answers() -> None:
    references = [*map(float, range(7))]
    found = exposure([10.0, -1.0, 5.5], references)
    assert found.limit == 3.0
    assert found.highest == 3.0  # before all of the 7
    assert found.mean == pytest.approx((3.0 + 0.0 + 2.0) / 3)  # behind none, all, one
    assert exposure([6.0], references).highest == 2.0, "what ties with it counts as before it"
    # every rank alike
    ranks = [math.log2(8 / rank) for rank in range(1, 9)]
    assert found.chance_mean == pytest.approx(np.mean(ranks))
    best_of_two = [max(pair) for pair in itertools.product(ranks, repeat=2)]
    assert exposure([0.0] * 2, references).chance_highest == pytest.approx(np.mean(best_of_two))
    many = exposure([0.0] * 4, [1.0] * 1023)
    assert many.chance_mean == pytest.approx(1 / math.log(2), abs=0.01)
    assert many.chance_highest == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / math.log(2), abs=0.03)
    assert many.limit == 10.0
    assert many.mean == 0.0


def test_what_was_hard_before_does_not_look_unlearned() -> None:
    """Calibrated by the losses before, members of any difficulty are found; by the loss alone only easy ones."""
    before = RowLosses((1.0, 5.0, 9.0), (1.1, 5.1, 9.1))
    after = RowLosses((0.5, 4.5, 8.5), (1.1, 5.1, 9.1))
    found = figures(after, before)
    assert found.calibrated is not None
    assert found.blind is not None
    assert found.membership is found.calibrated
    assert found.calibrated.auc.value == 1.0
    assert found.plain.auc.value == pytest.approx(6 / 9)
    assert found.blind.auc.value == pytest.approx(6 / 9)
    assert found.exposure is None
    alone = figures(after, None)
    assert alone.membership is alone.plain
    with_canaries = figures(
        RowLosses(after.members, after.held_out, (1.0,), (2.0, 2.0, 2.0)),
        RowLosses(before.members, before.held_out, (2.0,), (2.0, 2.0, 2.0)),
    )
    assert with_canaries.exposure is not None
    assert with_canaries.exposure.mean == 2.0


def test_losses_that_are_no_number_are_the_worst_and_break_nothing() -> None:
    found = figures(RowLosses((math.nan, 1.0), (math.inf, 2.0)), RowLosses((3.0, 3.0), (3.0, 3.0)))
    assert found.membership.auc.value == pytest.approx((0.5 + 0 + 1 + 1) / 4)
    assert all(math.isfinite(bound) for bound in found.membership.auc)


def test_an_adapter_that_is_better_at_everything_is_not_taken_for_the_owner_of_all() -> None:
    #                 of adapter 0, of adapter 1 (better at all, best at its own)
    losses = np.array([[2.0, 1.5], [2.1, 1.6], [3.0, 0.5], [3.1, 0.6]])
    assert attributed(losses) == [0, 0, 1, 1]
    assert set(FALSE_POSITIVE_RATES) == {0.01, 0.05}
