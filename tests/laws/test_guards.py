"""What guards let through, clip and refuse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.adapter import AdapterSpec, AdapterState
from gossip.methods.contribution import Contribution
from gossip.methods.guards import GUARDS, REFUSE_RATIO, apply_all, within_reach
from gossip.methods.reach import PATHS_MAX, Reach, RoundReach, vector_distance

SPEC = AdapterSpec((("w", (100,)),))
OWN = Contribution("me", AdapterState(SPEC, torch.ones(100)), 0.5, 1, 0)  # norm 10
CAP = 2.0  # so the radius is 20


def other(flat: torch.Tensor) -> Contribution:
    return Contribution("x", AdapterState(SPEC, flat), 0.5, 1, 0)


def test_an_honest_neighbor_passes_every_guard_unchanged() -> None:
    honest = other(torch.full((100,), 1.5))
    passed, objections = apply_all(OWN, [honest], CAP)
    assert passed == [honest]
    assert objections == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_drops_the_whole(bad: float) -> None:
    flat = torch.ones(100)
    flat[37] = bad
    passed, objections = apply_all(OWN, [other(flat)], CAP)
    assert passed == []
    assert [(each.reason, each.is_fault) for each in objections] == [("non-finite", True)]


def test_a_far_neighbor_is_clipped_to_the_radius_in_its_direction() -> None:
    far = other(OWN.state.flat + 10.0)  # distance 100, radius 20
    passed, objections = apply_all(OWN, [far], CAP)
    delta = passed[0].state.flat - OWN.state.flat
    assert float(delta.norm()) == pytest.approx(20.0, rel=1e-5)
    torch.testing.assert_close(delta / delta.norm(), torch.full((100,), 0.1))
    assert [(each.reason, each.is_fault) for each in objections] == [("clipped", False)]


def test_the_influence_of_one_neighbor_is_bounded_by_weight_times_radius() -> None:
    for scale in (1.0, 10.0, 100.0, 1e4, 1e30):
        passed, _ = apply_all(OWN, [other(torch.full((100,), scale))], CAP)
        pull = sum((part.weight * (part.state.flat - OWN.state.flat) for part in passed), torch.zeros(100))
        assert float(pull.norm()) <= 0.5 * 20.0 * (1 + 1e-5)


def test_far_beyond_the_cap_is_a_fault() -> None:
    passed, objections = apply_all(OWN, [other(torch.full((100,), 2.1 * REFUSE_RATIO * CAP))], CAP)
    assert passed == []
    assert [(each.reason, each.is_fault) for each in objections] == [("norm", True)]


@pytest.mark.parametrize("name", GUARDS)
def test_guards_keep_the_order(name: str) -> None:
    crowd = [other(torch.full((100,), 1.0 + i / 10))._replace(sender=f"p{i}") for i in range(5)]
    passed, _ = GUARDS[name](OWN, crowd, CAP)
    assert [part.sender for part in passed] == [part.sender for part in crowd]


# -- how far rounds go

LENGTHS = st.floats(1e-3, 1e3)


def test_what_lies_beyond_reach_is_drawn_to_it_in_its_direction_and_is_no_fault() -> None:
    reach = RoundReach(vector_distance, lambda distances: 5.0, by_weight=False)
    near, far = other(OWN.state.flat + 0.5), other(OWN.state.flat - 2.0)
    passed, objections = within_reach(OWN, [near, far], reach)
    assert passed[0] == near
    torch.testing.assert_close(passed[1].state.flat, OWN.state.flat - 0.5)
    assert [(each.reason, each.is_fault) for each in objections] == [("far", False)]


def test_less_weight_is_the_same_as_being_drawn_nearer() -> None:
    far = other(OWN.state.flat + 2.0)
    pulls = []
    for by_weight in (False, True):
        reach = RoundReach(vector_distance, lambda distances: 5.0, by_weight=by_weight)
        (passed,), _ = within_reach(OWN, [far], reach)
        pulls.append(passed.weight * (passed.state.flat - OWN.state.flat))
    torch.testing.assert_close(*pulls)


@settings(max_examples=200, deadline=None)
@given(movements=st.lists(LENGTHS, min_size=1, max_size=30), lie=st.floats(1.0, 1e30))
def test_one_liar_among_three_cannot_raise_the_radius_beyond_what_honest_rounds_are(
    movements: list[float], lie: float
) -> None:
    """Two neighbors are as far from us as our own rounds go; the third lies as it likes."""
    reach = Reach(5.0, 0.0)
    for movement in movements:
        row = [movement, movement, movement * lie]
        radius = reach.radius(movement, row)
        assert radius <= 5.0 * max(movements) * (1 + 1e-9)
        reach.record(movement, [min(distance, radius) for distance in row])


@settings(max_examples=200, deadline=None)
@given(movements=st.lists(LENGTHS, min_size=2, max_size=60))
def test_liars_alone_can_make_the_radius_grow_with_our_own_path_and_no_faster(movements: list[float]) -> None:
    reach, path = Reach(5.0, 0.0), 0.0
    for movement in movements:
        path += movement
        radius = reach.radius(movement, [1e30])
        assert radius <= PATHS_MAX * path * (1 + 1e-9)
        assert radius >= min(5.0 * min(movements), PATHS_MAX * path) * (1 - 1e-9)
        reach.record(movement, [radius])


@settings(max_examples=200, deadline=None)
@given(movement=LENGTHS, factor=st.floats(1.0, 10.0))
def test_who_is_no_farther_than_our_own_rounds_passes_in_any_round(movement: float, factor: float) -> None:
    newcomer = Reach(factor, 0.0)
    assert newcomer.radius(movement, [movement]) >= movement
    old = Reach(factor, 100 * movement)
    old.record(movement, [movement])
    assert old.radius(movement, []) == pytest.approx(factor * movement)
    assert old.longest(movement) >= 2 * 100 * movement


def test_who_has_never_moved_or_asks_for_no_bound_has_none_of_its_own() -> None:
    assert Reach(5.0, 0.0).longest(0.0) == math.inf
    assert Reach(math.inf, 1.0).radius(1.0, [1e9]) == math.inf
