"""Cores between a weight's singular vectors: what they span, that peers agree on them, that mixing them is exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from peer.config import PeerConfig
from peer.training.local_trainer import LocalTrainer
from peer.training.lora_xs import CoreFactor, export_tensors, factors

Quick = Callable[..., PeerConfig]


@pytest.mark.parametrize("shape", [(48, 40), (20, 300)])
@pytest.mark.parametrize("rank", [3, 12])
def test_factors_span_the_leading_singular_vectors(shape: tuple[int, int], rank: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    up, down = factors(weight, rank)
    assert up.shape == (shape[0], rank)
    assert down.shape == (rank, shape[1])
    torch.testing.assert_close(up.T @ up, torch.eye(rank), rtol=0, atol=2e-3)
    torch.testing.assert_close(down @ down.T, torch.eye(rank), rtol=0, atol=2e-3)
    values = torch.linalg.svdvals(weight)[:rank]
    torch.testing.assert_close(up.T @ weight @ down.T, torch.diag(values), rtol=0, atol=0.05)
    assert (down.gather(1, down.abs().argmax(1, keepdim=True)) > 0).all(), "the sign is settled"


def test_factors_do_not_feel_what_another_machines_arithmetic_would_change() -> None:
    """A change of 1e-13 of the weight moves singular vectors as another library would; the result stays."""
    weight = torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noise = 1e-13 * torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for rank in (4, 32):  # by the iterative way and by the whole one
        for ours, theirs in zip(factors(weight, rank), factors(weight + noise, rank), strict=True):
            assert torch.equal(ours, theirs)
    assert not torch.equal(factors(weight, 4)[0], factors(weight + 1e10 * noise, 4)[0])


def test_a_core_is_the_product_of_its_factors() -> None:
    basis = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    factor = CoreFactor(basis)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    assert not factor(x).any()
    with torch.no_grad():
        factor.core.copy_(torch.arange(9.0).view(3, 3))
    torch.testing.assert_close(factor(x), x @ (basis @ torch.arange(9.0).view(3, 3)).T)
    torch.testing.assert_close(factor.weight, basis @ torch.arange(9.0).view(3, 3))


def test_only_cores_travel_and_their_mean_is_the_mean_of_updates(quick: Quick) -> None:
    trainer = LocalTrainer(quick(adapter="lora-xs", lora_r=5))
    assert {shape for _, shape in trainer.spec.entries} == {(5, 5)}
    assert {name.rpartition(".lora_R.")[2] for name, _ in trainer.spec.entries} == {"weight"}
    assert not trainer.initial.flat.any()
    frozen = trainer.model.export.frozen
    assert frozen is not None
    generator = torch.Generator().manual_seed(0)
    states = [
        AdapterState(trainer.spec, torch.randn(trainer.spec.size, generator=generator)) for _ in range(2)
    ]
    mean = AdapterState(trainer.spec, (states[0].flat + states[1].flat) / 2)

    def updates(state: AdapterState) -> dict[str, torch.Tensor]:
        found = export_tensors(state, frozen)
        assert set(found) == {name for name, _ in frozen.spec.entries}
        return {
            name: found[name.replace("lora_A", "lora_B")] @ found[name] for name in found if "lora_A" in name
        }

    one, two, both = map(updates, (*states, mean))
    assert len(one) == len(trainer.spec.entries)
    for name in both:
        torch.testing.assert_close(both[name], (one[name] + two[name]) / 2)
    before = [view.clone() for _, view in frozen.tensors()]
    trainer.train(trainer.initial)
    assert all(torch.equal(old, new) for old, (_, new) in zip(before, frozen.tensors(), strict=True))


def test_peers_must_hold_the_same_outer_factors(quick: Quick) -> None:
    told = [LocalTrainer(quick(adapter="lora-xs", lora_r=rank, seed=rank)).manifest for rank in (4, 4, 5)]
    assert told[0]["adapter_frozen"] == told[1]["adapter_frozen"] != told[2]["adapter_frozen"]
    assert len(told[0]["adapter_frozen"]) == 64
    other = LocalTrainer(quick(adapter="lora-xs", lora_r=4, seed=9)).manifest
    assert other["adapter_frozen"] == told[0]["adapter_frozen"], "they come from the base, not from the seed"


def test_an_adapter_without_cores_is_exported_as_it_is(quick: Quick) -> None:
    trainer = LocalTrainer(quick())
    assert trainer.model.export.frozen is None
    exported = export_tensors(trainer.initial, None)
    assert all(torch.equal(exported[name], view) for name, view in trainer.initial.tensors())


def test_a_core_larger_than_the_weight_is_refused(quick: Quick) -> None:
    with pytest.raises(LocalError, match="more than the rank of"):
        LocalTrainer(quick(adapter="lora-xs", lora_r=65))
