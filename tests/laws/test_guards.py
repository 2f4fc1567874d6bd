"""What guards let through, clip and refuse."""

import math

import pytest
import torch

from gossip.adapter import AdapterSpec, AdapterState
from gossip.methods.contribution import Contribution
from gossip.methods.guards import GUARDS, REFUSE_RATIO, apply_all

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
