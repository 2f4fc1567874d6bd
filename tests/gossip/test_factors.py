"""Parts of an adapter, and the rules of which LoRA factors train and travel: known answers, refusals, a toy."""

import math

import pytest
import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError
from gossip.methods.catalogue import find
from gossip.methods.factors import (
    FACTORS,
    FactorRule,
    factor_of,
    factor_pairs,
    has_factors,
    switching_interval,
)

LAYER = "base_model.model.model.layers.{}.self_attn.{}_proj"
A_NAME, B_NAME = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
MAGNITUDE = f"{LAYER}.lora_magnitude_vector"
SPEC = AdapterSpec(
    tuple(
        sorted(
            entry
            for layer in range(2)
            for entry in (
                (A_NAME.format(layer, "q"), (2, 6)),
                (B_NAME.format(layer, "q"), (5, 2)),
                (A_NAME.format(layer, "v"), (2, 6)),
                (B_NAME.format(layer, "v"), (3, 2)),
                (MAGNITUDE.format(layer, "v"), (3,)),
            )
        )
    )
)
PLAIN = AdapterSpec((("base_model.model.model.layers.0.mlp.down_proj.ia3_l", (7,)),))


def rule(text: str) -> FactorRule:
    return find("factor rule", text, FACTORS)


def random_state(spec: AdapterSpec, seed: int) -> AdapterState:
    return AdapterState(spec, torch.randn(spec.size, generator=torch.Generator().manual_seed(seed)))


# -- parts of an adapter


@pytest.mark.parametrize("keep", ["lora_A", "lora_B", "magnitude", "layers.1", "q_proj", ""])
def test_a_part_taken_out_and_put_back_changes_nothing_else(keep: str) -> None:
    state, other = random_state(SPEC, 1), random_state(SPEC, 2)
    selected = other.select(SPEC.only(lambda name: keep in name))
    expected = dict(other.tensors())
    assert [name for name, _ in selected.tensors()] == [name for name, _ in SPEC.entries if keep in name]
    for name, values in selected.tensors():
        assert torch.equal(values, expected[name])
    kept, mine = dict(state.with_selected(selected).tensors()), dict(state.tensors())
    for name in mine:
        assert torch.equal(kept[name], expected[name] if keep in name else mine[name])
    assert torch.equal(state.flat, random_state(SPEC, 1).flat), "the adapter itself was written"


def test_the_whole_is_a_part_and_so_is_nothing() -> None:
    state = random_state(SPEC, 1)
    assert state.select(SPEC.only(lambda name: True)) is state
    nothing = state.select(SPEC.only(lambda name: False))
    assert nothing.flat.numel() == 0
    assert torch.equal(state.with_selected(nothing).flat, state.flat)


def test_a_part_is_a_copy() -> None:
    state = random_state(SPEC, 1)
    state.select(SPEC.only(lambda name: "lora_A" in name)).flat.zero_()
    assert torch.equal(state.flat, random_state(SPEC, 1).flat)


def test_a_layout_that_is_no_part_is_refused() -> None:
    with pytest.raises(LocalError, match="ia3_l"):
        random_state(SPEC, 1).select(PLAIN)
    other_shape = AdapterSpec(((A_NAME.format(0, "q"), (6, 2)),))
    with pytest.raises(LocalError, match="shape"):
        random_state(SPEC, 1).with_selected(random_state(other_shape, 1))


# -- names of factors


def test_pairs_are_found_by_name_and_lie_where_the_tensors_lie() -> None:
    state, tensors = random_state(SPEC, 3), dict(random_state(SPEC, 3).tensors())
    pairs = factor_pairs(SPEC)
    assert [pair.module for pair in pairs] == [LAYER.format(i, n) for i in range(2) for n in "qv"]
    for pair in pairs:
        a, b = tensors[f"{pair.module}.lora_A.weight"], tensors[f"{pair.module}.lora_B.weight"]
        assert torch.equal(state.flat[pair.a].view(pair.rank, pair.inputs), a)
        assert torch.equal(state.flat[pair.b].view(pair.outputs, pair.rank), b)


@pytest.mark.parametrize(
    "entries",
    [
        (("m.lora_A.weight", (2, 6)),),
        (("m.lora_A.weight", (2, 6)), ("n.lora_B.weight", (5, 2))),
        (("m.lora_A.weight", (2, 6)), ("m.lora_B.weight", (5, 3))),
        (("m.lora_A.weight", (2, 6)), ("m.lora_B.weight", (4,))),
        (("base_model.vera_A", (2, 6)), ("base_model.vera_B", (5, 2))),
        (("m.lora_embedding_A", (2, 6)), ("m.lora_embedding_B", (5, 2))),
        (("m.base_layer.weight", (2, 6)),),
        (),
    ],
)
def test_what_is_no_pair_is_not_taken_for_one(entries: tuple[tuple[str, tuple[int, ...]], ...]) -> None:
    assert not has_factors(AdapterSpec(entries))


def test_a_bias_and_a_magnitude_are_no_factors() -> None:
    for name in ("m.lora_B.bias", MAGNITUDE.format(0, "v"), "base_model.model.lm_head.weight"):
        assert factor_of(name) is None
    assert [factor_of("m.lora_A.weight"), factor_of("m.lora_B.weight")] == ["a", "b"]


# -- the rules

EXAMPLES = ["both", "ffa", "alternate", "alternate:5", "share-a", "tsvd"]


def test_every_rule_has_an_example_here() -> None:
    assert {text.partition(":")[0] for text in EXAMPLES} == FACTORS.keys() - {"r-only"}


@pytest.mark.parametrize("text", EXAMPLES)
def test_laws_of_every_rule(text: str) -> None:
    made = rule(text)
    shared = made.shared(SPEC)
    assert shared.entries
    assert shared == SPEC.only(lambda name: name in dict(shared.entries)), "the order of what is shared"
    assert made.shared(SPEC) == shared
    assert {MAGNITUDE.format(i, "v") for i in range(2)} <= dict(shared.entries).keys(), "magnitudes travel"
    assert all(made.trainable(round, made.interval or 3) in ("all", "a", "b") for round in range(20))
    assert made.doc
    assert made.interval is None or made.interval >= 1
    state, mixed = random_state(SPEC, 1), random_state(shared, 2)
    assert torch.equal(state.with_selected(mixed).select(shared).flat, mixed.flat)


@pytest.mark.parametrize(
    ("text", "shared", "trained"),
    [
        ("both", "AB", "all"),
        ("ffa", "B", "b"),
        ("alternate:1", "AB", "b"),
        ("share-a", "A", "all"),
        ("tsvd", "AB", "all"),
    ],
)
def test_what_travels_and_what_trains_first(text: str, shared: str, trained: str) -> None:
    names = [name for name, _ in rule(text).shared(SPEC).entries]
    assert {name.partition("lora_")[2][0] for name in names} - {"m"} == set(shared)
    assert rule(text).trainable(0, 1) == trained


def test_factors_take_turns_of_t_rounds_and_b_is_first() -> None:
    made = rule("alternate:3")
    assert made.interval == 3
    assert [made.trainable(round, made.interval) for round in range(8)] == [*"bbbaaabb"]


def test_the_interval_can_be_left_to_the_node() -> None:
    made = rule("alternate")
    assert made.interval is None
    assert "".join(made.trainable(round, 1) for round in range(4)) == "baba"
    assert "".join(made.trainable(round, 2) for round in range(6)) == "bbaabb"


@pytest.mark.parametrize(
    ("contraction", "interval"),
    [
        (1.0, 1),
        (0.51, 1),
        (0.5, 2),
        (1 / 3, 3),
        (0.3, 4),
        (0.2, 5),
        (0.11, 10),
        (0.1, 10),
        (0.01, 10),
        (0.0, 10),
    ],
)
def test_switching_interval_known_answers(contraction: float, interval: int) -> None:
    assert switching_interval(contraction) == interval


def test_switching_interval_of_odd_measurements() -> None:
    """Disagreement that grows is as slow as can be; none at all needs no patience."""
    assert [switching_interval(p) for p in (-2.0, -math.inf, math.nan, math.inf)] == [10, 10, 1, 1]


@pytest.mark.parametrize("text", [text for text in EXAMPLES if text != "both"])
def test_rules_of_factors_refuse_adapters_without(text: str) -> None:
    with pytest.raises(LocalError, match=r"ia3_l.*'both'.*lora, rslora or dora"):
        rule(text).shared(PLAIN)
    assert rule("both").shared(PLAIN) == PLAIN


def test_r_only_takes_cores_and_nothing_else() -> None:
    cores = AdapterSpec((("m.core", (4, 4)),))
    assert rule("r-only").core_only
    assert rule("r-only").shared(cores) == cores
    with pytest.raises(LocalError, match=r"q_proj.*share-a"):
        rule("r-only").shared(SPEC)


def test_bad_intervals_are_refused() -> None:
    assert rule(" Alternate:07 ").interval == 7
    for text in ("alternate:0", "alternate:x", "ffa:1", "alternative"):
        with pytest.raises(LocalError, match=r"alternate|ffa"):
            rule(text)


# -- a toy: which rule learns best where mixing is slow (algorithms.md section 3.2)


def toy_error(made: FactorRule, seed: int) -> float:
    """Return the mean error of 16 peers on a ring, relative to the target, over the last 20 of 60 rounds.

    Each peer descends for 20 steps a round towards a common rank-4 matrix with a perturbation of its own; these add up
    to zero. Averaged over a whole cycle, because one factor's phase ends better than the other's.
    """
    peers, size, rank, steps, rate, rounds, apart, noise = 16, 24, 4, 20, 0.02, 60, 0.3, 0.1
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    target = normal(size, rank) @ normal(rank, size) / rank**0.5
    own = normal(peers, size, size)
    own -= own.mean(dim=0)
    own = target + own * (apart * target.norm() / own.flatten(1).norm(dim=1).mean())
    ring = sum(torch.eye(peers).roll(shift, 0) for shift in (-1, 0, 1)) / 3
    a, b = (normal(rank, size) / size**0.5).repeat(peers, 1, 1), torch.zeros(peers, size, rank)
    errors = []
    for round in range(rounds):
        trainable = made.trainable(round, made.interval or 1)
        for _ in range(steps):
            gradient = b @ a - own + noise * normal(peers, size, size)
            b_step, a_step = gradient @ a.mT, b.mT @ gradient
            b = b - rate * b_step if trainable != "a" else b
            a = a - rate * a_step if trainable != "b" else a
        a, b = (torch.einsum("ij,jkl->ikl", ring, each) for each in (a, b))
        errors.append(float((b @ a - target).square().sum() / target.square().sum() / peers))
    return sum(errors[-20:]) / 20


def test_on_a_ring_long_turns_beat_short_ones_and_these_beat_training_both() -> None:
    def error(text: str) -> float:
        return sum(toy_error(rule(text), seed) for seed in range(3)) / 3

    long, short, together = error("alternate:10"), error("alternate:1"), error("both")
    assert long < 0.95 * short < 0.95 * together / 1.2
    assert error("ffa") > 20 * together, "four random directions cannot express the target"
