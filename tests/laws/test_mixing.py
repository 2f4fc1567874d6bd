"""Laws that every mixing rule keeps, and known answers of those in the catalogue."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import pytest
import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError
from gossip.methods.catalogue import find
from gossip.methods.contribution import Contribution, MixInput
from gossip.methods.mixing import AGE_RATIO_MAX, MIX_BLOCK, MIXERS, Mixing, weighted_sum
from gossip.methods.requirements import State
from gossip.methods.stage import Combination, Encoded, RoundContext, Stage
from topology.links import parse_topology

SPEC = AdapterSpec((("a", (3, 5)), ("b", (7,))))


@dataclass(frozen=True, eq=False)
class Doubles:
    """An adapter in float64, so that known answers hold to rounding."""

    spec: AdapterSpec
    flat: Tensor


def doubles(flat: Tensor) -> AdapterState:
    return cast("AdapterState", Doubles(AdapterSpec((("x", (flat.numel(),)),)), flat))


def contribution(sender: str, seed: int, weight: float, age: int = 10) -> Contribution:
    generator = torch.Generator().manual_seed(seed)
    return Contribution(sender, AdapterState(SPEC, torch.randn(22, generator=generator)), weight, age, 0)


def mix(
    name: str,
    own: Contribution,
    others: list[Contribution],
    *,
    as_decoded: Tensor | None = None,
    gamma: float = 1.0,
) -> AdapterState:
    """Publish and mix one row, everybody in their first round; neighbors are read by as many as we are."""
    stage = find("mixing rule", name, MIXERS).stage(gamma, SPEC)
    readers = len(others)
    _, state = publish(stage, own, readers)
    received = []
    for other in others:
        vector, _ = publish(stage, other, readers)
        received.append(other._replace(state=AdapterState(stage.next_spec, vector)))
    row = Combination(
        context=context_of(own, readers),
        own=own,
        own_as_decoded=own.state.flat if as_decoded is None else as_decoded,
        others=tuple(received),
        vector=own.state.flat,
        norm_cap=math.inf,
    )
    row, _ = stage.combine(row, state)
    return AdapterState(SPEC, row.vector)


def publish(stage: Stage, own: Contribution, readers: int) -> tuple[Tensor, State]:
    """Return what travels of the first round, and the stage's state."""
    sent = []

    def encode(vector: Tensor) -> Encoded:
        sent.append(vector)
        return Encoded(b"", vector)

    state = stage.init(own.state.flat)
    _, state = stage.publish(own.state.flat, context_of(own, readers), encode, state)
    return sent[0], state


def context_of(own: Contribution, readers: int) -> RoundContext:
    return RoundContext(
        round=own.round, age=own.age, steps=1, start=own.state, trained=own.state, readers=lambda: readers
    )


def rule_of(name: str) -> Callable[[MixInput], AdapterState]:
    """Return the function of a rule that remembers nothing, which takes adapters in any precision."""
    stage = find("mixing rule", name, MIXERS).stage(1.0, SPEC)
    assert isinstance(stage, Mixing)
    return stage.rule


@pytest.mark.parametrize("name", MIXERS)
def test_equal_adapters_are_a_fixed_point(name: str) -> None:
    own = contribution("me", 1, 0.4, age=3)
    others = [own._replace(sender="x", weight=0.5, age=9), own._replace(sender="y", weight=0.1, age=1)]
    torch.testing.assert_close(mix(name, own, others).flat, own.state.flat)


@pytest.mark.parametrize("name", MIXERS)
def test_alone_nothing_changes(name: str) -> None:
    own = contribution("me", 1, 1.0)
    assert torch.equal(mix(name, own, []).flat, own.state.flat)


@pytest.mark.parametrize("name", MIXERS)
def test_convex_rules_stay_inside_the_hull(name: str) -> None:
    own, others = (
        contribution("me", 1, 0.2),
        [contribution("x", 2, 0.5, age=30), contribution("y", 3, 0.3, age=1)],
    )
    every = torch.stack([one.state.flat for one in (own, *others)])
    mixed = mix(name, own, others).flat
    assert (mixed <= every.amax(dim=0) + 1e-6).all()
    assert (mixed >= every.amin(dim=0) - 1e-6).all()


@pytest.mark.parametrize("name", MIXERS)
def test_inputs_are_never_written(name: str) -> None:
    own, others = contribution("me", 1, 0.5), [contribution("x", 2, 0.5)]
    tensors = [*(one.state.flat for one in (own, *others)), own.state.flat + 0.01]
    before = [tensor.clone() for tensor in tensors]
    mix(name, own, others, as_decoded=tensors[-1])
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(tensor, old)


@pytest.mark.parametrize("name", MIXERS)
def test_equal_ages_and_rounds_give_the_row_of_w(name: str) -> None:
    """For push-sum the row is that of equal shares: everybody has two readers and mass 1."""
    third = 1 / 3
    w = (third, third, third) if name == "push-sum" else (0.25, 0.5, 0.25)
    own, others = contribution("me", 1, w[0]), [contribution("x", 2, w[1]), contribution("y", 3, w[2])]
    expected = sum(each.weight * each.state.flat for each in (own, *others))
    torch.testing.assert_close(mix(name, own, others).flat, expected)


@pytest.mark.parametrize("name", [name for name in MIXERS if name != "push-sum"])
def test_a_step_from_what_readers_see(name: str) -> None:
    """x + gamma sum_j w_j (y_j - y)."""
    own, others = contribution("me", 1, 0.25), [contribution("x", 2, 0.5), contribution("y", 3, 0.25)]
    x = own.state.flat
    for y in (x, x + 0.1):
        expected = x + 0.3 * sum(other.weight * (other.state.flat - y) for other in others)
        torch.testing.assert_close(mix(name, own, others, as_decoded=y, gamma=0.3).flat, expected)


@pytest.mark.parametrize("name", ["average", "age", "staleness", "symmetric-drop"])
def test_an_exact_codec_and_a_whole_step_are_bitwise_the_plain_sum(name: str) -> None:
    own, others = contribution("me", 1, 0.2), [contribution("x", 2, 0.5), contribution("y", 3, 0.3)]
    row = (own, *others)
    plain = weighted_sum([one.state.flat for one in row], [one.weight for one in row])
    mixed = mix(name, own, others).flat
    if name == "age":
        torch.testing.assert_close(mixed, plain)
    else:
        assert torch.equal(mixed, plain)


@pytest.mark.parametrize("name", ["average", "age", "staleness", "symmetric-drop"])
@pytest.mark.parametrize("gamma", [1.0, 0.4])
@pytest.mark.parametrize("lossy", [False, True], ids=["exact", "lossy"])
def test_a_doubly_stochastic_w_keeps_the_mean(name: str, gamma: float, lossy: bool) -> None:
    """Also if everybody sees only a rough rounding of everybody's adapter, as long as we count from ours too."""
    n, rule = 9, rule_of(name)
    w = parse_topology("torus:3x3", seed=0).matrix(n).toarray().tolist()
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = x.mean(dim=0)
    for round in range(30):
        decoded = (4 * x).round() / 4 if lossy else x
        rows = [
            MixInput(
                Contribution(f"p{i}", doubles(x[i]), w[i][i], 10, round),
                decoded[i] if lossy else x[i],
                [
                    Contribution(f"p{j}", doubles(decoded[j]), w[i][j], 10, round)
                    for j in range(n)
                    if w[i][j] and j != i
                ],
                gamma,
            )
            for i in range(n)
        ]
        x = torch.stack([rule(row).flat for row in rows])
    torch.testing.assert_close(x.mean(dim=0), mean, atol=1e-10, rtol=0)
    assert float((x - mean).abs().max()) < (0.5 if lossy else 0.01)


@pytest.mark.parametrize(
    ("own_age", "other_age", "share"),
    [
        (1, 3, 0.75),
        (3, 1, 0.25),
        (0, 0, 0.5),
        (0, 5, 1.0),
        (1, 1_000_000, AGE_RATIO_MAX / (1 + AGE_RATIO_MAX)),
    ],
)
def test_age_weighted_known_answers(own_age: int, other_age: int, share: float) -> None:
    """Ages 3 and 1 give 3/4 and 1/4 (Ormandi et al.); a newcomer takes over; a boast is cut."""
    own, other = contribution("me", 1, 0.5, own_age), contribution("x", 2, 0.5, other_age)
    expected = (1 - share) * own.state.flat + share * other.state.flat
    torch.testing.assert_close(mix("age", own, [other]).flat, expected)


@pytest.mark.parametrize(
    ("name", "delay", "share"),
    [
        ("staleness", 3, 0.5),
        ("staleness:1", 3, 0.25),
        ("staleness:0", 3, 1.0),
        ("staleness", 0, 1.0),
        ("staleness", -2, 1.0),
    ],
)
def test_staleness_known_answers(name: str, delay: int, share: float) -> None:
    """(1 + 3)^-1/2 = 1/2; all alike late is a lazy W: (1 - s) x + s W x; who is ahead of us is not late."""
    own, others = (
        contribution("me", 1, 0.25)._replace(round=5),
        [contribution("x", 2, 0.5), contribution("y", 3, 0.25)],
    )
    others = [each._replace(round=5 - delay) for each in others]
    row = sum(each.weight * each.state.flat for each in (own, *others))
    torch.testing.assert_close(mix(name, own, others).flat, (1 - share) * own.state.flat + share * row)


@pytest.mark.parametrize("change", [{"confirmed": False}, {"round": 1}])
def test_symmetric_drop_gives_what_is_not_mutual_back_to_self(change: dict[str, int]) -> None:
    own, others = (
        contribution("me", 1, 0.25),
        [contribution("x", 2, 0.5)._replace(**change), contribution("y", 3, 0.25)],
    )
    expected = 0.75 * own.state.flat + 0.25 * others[1].state.flat
    torch.testing.assert_close(mix("symmetric-drop", own, others).flat, expected)


def lossy_ring(name: str, rounds: int, loss: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mix on a ring of 16 where each message is lost independently; return start, end and the mean of realized W.

    An exchange is confirmed where both directions arrived. Rows are renormalized for ``renormalized``.
    """
    n = 16
    rule = rule_of("average" if name == "renormalized" else name)
    w = parse_topology("ring", seed=0).matrix(n).toarray().tolist()
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x, realized = (
        torch.cat([start, torch.eye(n, dtype=torch.float64)], dim=1),
        torch.zeros(n, n, dtype=torch.float64),
    )
    for _ in range(rounds):
        came = (torch.rand(n, n, generator=generator) >= loss).tolist()
        x[:, 2:] = torch.eye(n)  # unit vectors come back as the rows of this round's W
        mixed = []
        for i in range(n):
            near = [j for j in range(n) if j != i and w[i][j] and came[i][j]]
            others = [Contribution(f"p{j}", doubles(x[j]), w[i][j], 0, 0, came[j][i]) for j in near]
            if name == "renormalized":
                total = w[i][i] + sum(each.weight for each in others)
                others = [each._replace(weight=each.weight / total) for each in others]
            own = Contribution(f"p{i}", doubles(x[i]), 1 - sum(each.weight for each in others), 0, 0)
            mixed.append(rule(MixInput(own, x[i], others, 1.0)).flat)
        x = torch.stack(mixed)
        realized += x[:, 2:] / rounds
    return start, x[:, :2], realized


def test_symmetric_drop_keeps_the_mean_under_loss_and_others_do_not() -> None:
    drift = {}
    for name in ("symmetric-drop", "average", "renormalized"):
        start, end, _ = lossy_ring(name, 60, 0.3)
        drift[name] = float((end.mean(dim=0) - start.mean(dim=0)).abs().max())
    assert drift["symmetric-drop"] < 1e-10
    assert min(drift["average"], drift["renormalized"]) > 0.01


def test_symmetric_drop_is_in_expectation_a_lazy_w() -> None:
    """E[W] = I - q (I - W), q = 0.7^2 the chance that both directions arrive."""
    _, _, realized = lossy_ring("symmetric-drop", 800, 0.3)
    identity = torch.eye(16, dtype=torch.float64)
    w = torch.from_numpy(parse_topology("ring", seed=0).matrix(16).toarray())
    expected = identity - 0.49 * (identity - w)
    # an off-diagonal entry is 1/3 of a mean of 800 draws: standard deviation 0.006; the diagonal sums two
    torch.testing.assert_close(realized, expected, atol=0.03, rtol=0)


def test_unknown_rules_and_bad_parameters_are_refused() -> None:
    with pytest.raises(LocalError, match="average"):
        find("mixing rule", "averag", MIXERS)
    with pytest.raises(LocalError, match="exponent"):
        find("mixing rule", "staleness:-1", MIXERS)


def test_weighted_sum_over_many_blocks_equals_the_plain_one() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(3 * MIX_BLOCK + 17, generator=generator) for _ in range(4)]
    weights = [0.1, 0.2, 0.3, 0.4]
    expected = sum(w * v.double() for w, v in zip(weights, vectors, strict=True))
    torch.testing.assert_close(weighted_sum(vectors, weights).double(), expected, atol=1e-6, rtol=0)
