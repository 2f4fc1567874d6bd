"""Laws that every mixing rule keeps, and known answers of those in the catalogue."""

import pytest
import torch

from gossip.adapter import AdapterSpec, AdapterState
from gossip.mixing import AGE_RATIO_MAX, MIX_BLOCK, MIXERS, Contribution, weighted_sum

SPEC = AdapterSpec((("a", (3, 5)), ("b", (7,))))


def part(sender: str, seed: int, weight: float, age: int = 10) -> Contribution:
    generator = torch.Generator().manual_seed(seed)
    return Contribution(sender, AdapterState(SPEC, torch.randn(22, generator=generator)), weight, age, 0)


def mix(name: str, own: Contribution, others: list[Contribution]) -> AdapterState:
    mixer = MIXERS[name]
    return mixer.mix(own, others, mixer.init(SPEC))[0]


@pytest.mark.parametrize("name", MIXERS)
def test_equal_adapters_are_a_fixed_point(name: str) -> None:
    own = part("me", 1, 0.4, age=3)
    others = [own._replace(sender="x", weight=0.5, age=9), own._replace(sender="y", weight=0.1, age=1)]
    torch.testing.assert_close(mix(name, own, others).flat, own.state.flat)


@pytest.mark.parametrize("name", MIXERS)
def test_alone_nothing_changes(name: str) -> None:
    own = part("me", 1, 1.0)
    assert torch.equal(mix(name, own, []).flat, own.state.flat)


@pytest.mark.parametrize("name", MIXERS)
def test_convex_rules_stay_inside_the_hull(name: str) -> None:
    own, others = part("me", 1, 0.2), [part("x", 2, 0.5, age=30), part("y", 3, 0.3, age=1)]
    every = torch.stack([each.state.flat for each in (own, *others)])
    mixed = mix(name, own, others).flat
    assert (mixed <= every.amax(dim=0) + 1e-6).all()
    assert (mixed >= every.amin(dim=0) - 1e-6).all()


@pytest.mark.parametrize("name", MIXERS)
def test_inputs_are_never_written(name: str) -> None:
    own, others = part("me", 1, 0.5), [part("x", 2, 0.5)]
    before = [each.state.flat.clone() for each in (own, *others)]
    mix(name, own, others)
    for each, old in zip((own, *others), before, strict=True):
        assert torch.equal(each.state.flat, old)


@pytest.mark.parametrize("name", MIXERS)
def test_equal_ages_give_the_row_of_w(name: str) -> None:
    own, others = part("me", 1, 0.25), [part("x", 2, 0.5), part("y", 3, 0.25)]
    expected = sum(each.weight * each.state.flat for each in (own, *others))
    torch.testing.assert_close(mix(name, own, others).flat, expected)


@pytest.mark.parametrize(
    ("own_age", "other_age", "share"),
    [(1, 3, 0.75), (3, 1, 0.25), (0, 0, 0.5), (0, 5, 1.0), (1, 1_000_000, AGE_RATIO_MAX / (1 + AGE_RATIO_MAX))],
)
def test_age_weighted_known_answers(own_age: int, other_age: int, share: float) -> None:
    """Ages 3 and 1 give 3/4 and 1/4 (Ormandi et al.); a newcomer takes over; a boast is cut."""
    own, other = part("me", 1, 0.5, own_age), part("x", 2, 0.5, other_age)
    expected = (1 - share) * own.state.flat + share * other.state.flat
    torch.testing.assert_close(mix("age", own, [other]).flat, expected)


def test_weighted_sum_over_many_blocks_equals_the_plain_one() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(3 * MIX_BLOCK + 17, generator=generator) for _ in range(4)]
    weights = [0.1, 0.2, 0.3, 0.4]
    expected = sum(w * v.double() for w, v in zip(weights, vectors, strict=True))
    torch.testing.assert_close(weighted_sum(vectors, weights).double(), expected, atol=1e-6, rtol=0)
