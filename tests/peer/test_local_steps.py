"""What a local step is made of: a model lent to many peers, parts of an adapter, corrections, a pull, plain SGD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from peer.config import PeerConfig
from peer.training.adapted_model import AdaptedModel
from peer.training.local_trainer import LocalTrainer

Quick = Callable[..., PeerConfig]


def scattered(state: AdapterState) -> AdapterState:
    """No tensor is zero any more, so that every gradient is there to be seen."""
    generator = torch.Generator().manual_seed(3)
    return AdapterState(state.spec, state.flat + 0.01 * torch.randn(state.spec.size, generator=generator))


def flat_of(state: AdapterState, ending: str) -> torch.Tensor:
    return torch.cat([view.flatten() for name, view in state.tensors() if ending in name])


def test_peers_that_share_a_model_get_what_they_would_get_alone(
    quick: Quick, languages: dict[str, Path], tmp_path: Path
) -> None:
    """Two rounds with mixing in turns, with dropout, two optimizers and a resume: equal to the bit."""
    configs = [
        quick(lora_dropout=0.2),
        quick(lora_dropout=0.2, data=(languages["french"],), batch_size=4, local_optimizer="sgd"),
    ]
    shared = AdaptedModel(configs[0])
    together = [LocalTrainer(config, shared) for config in configs]
    states = [shared.initial, shared.initial]
    losses = []
    for _ in range(2):
        trained = [peer.train(state) for peer, state in zip(together, states, strict=True)]
        losses += [one.loss for one in trained]
        losses += [peer.evaluate(one.state).own for peer, one in zip(together, trained, strict=True)]
        mean = AdapterState(shared.spec, (trained[0].state.flat + trained[1].state.flat) / 2)
        states = [mean, trained[1].state]
        for index, peer in enumerate(together):
            peer.save(tmp_path / f"{index}.safetensors")
            together[index] = LocalTrainer(peer.config, shared)
            together[index].load(tmp_path / f"{index}.safetensors")

    apart = [LocalTrainer(config) for config in configs]
    alone = [peer.initial for peer in apart]
    seen = []
    for _ in range(2):
        trained = [peer.train(state) for peer, state in zip(apart, alone, strict=True)]
        seen += [one.loss for one in trained]
        seen += [peer.evaluate(one.state).own for peer, one in zip(apart, trained, strict=True)]
        alone = [
            AdapterState(shared.spec, (trained[0].state.flat + trained[1].state.flat) / 2),
            trained[1].state,
        ]
    assert [one.digest() for one in states] == [one.digest() for one in alone]
    assert losses == seen


def test_dropout_is_each_peers_own_and_leaves_the_process_alone(quick: Quick) -> None:
    shared = AdaptedModel(quick(lora_dropout=0.5))
    first, second = (LocalTrainer(shared.config, shared) for _ in range(2))
    outside = torch.get_rng_state()
    one = first.train(scattered(first.initial)).state
    assert torch.equal(torch.get_rng_state(), outside)
    assert one.digest() == second.train(scattered(first.initial)).state.digest()
    assert one.digest() != first.train(scattered(first.initial)).state.digest()


@pytest.mark.parametrize("setting", [{"lora_r": 4}, {"seed": 1}, {"lora_dropout": 0.1}, {"adapter": "dora"}])
def test_a_model_is_lent_only_to_who_wants_it_so(quick: Quick, setting: dict[str, object]) -> None:
    shared = AdaptedModel(quick())
    with pytest.raises(LocalError, match=f"{next(iter(setting))} is "):
        LocalTrainer(quick(**setting), shared)


@pytest.mark.parametrize(
    ("trainable", "kept", "moved"), [("a", "lora_B", "lora_A"), ("b", "lora_A", "lora_B")]
)
def test_only_the_part_asked_for_moves(
    quick: Quick, tmp_path: Path, trainable: str, kept: str, moved: str
) -> None:
    trainer = LocalTrainer(quick(adapter="dora", weight_decay=0.1))
    start = trainer.train(scattered(trainer.initial)).state
    trainer.save(tmp_path / "before")
    trained = trainer.train(start, trainable, torch.full((trainer.spec.size,), 0.001)).state
    trainer.save(tmp_path / "after")
    assert torch.equal(flat_of(trained, kept), flat_of(start, kept))
    assert (flat_of(trained, moved) != flat_of(start, moved)).float().mean() > 0.99
    magnitudes = torch.equal(flat_of(trained, "magnitude"), flat_of(start, "magnitude"))
    assert magnitudes == (trainable == "a"), "what is neither belongs to b"
    before, after = load_file(tmp_path / "before"), load_file(tmp_path / "after")
    for name in before:
        if name.startswith("optimizer."):
            assert torch.equal(before[name], after[name]) == (
                kept in name or (trainable == "a" and "magnitude" in name)
            )


def test_a_part_that_does_not_exist_is_refused(quick: Quick) -> None:
    trainer = LocalTrainer(quick(adapter="ia3"))
    with pytest.raises(LocalError, match="no tensors of the part 'a'"):
        trainer.train(trainer.initial, "a")
    assert not torch.equal(trainer.train(trainer.initial, "b").state.flat, trainer.initial.flat)


def test_the_correction_is_added_after_every_step(quick: Quick) -> None:
    """With hardly any step size, three steps are three times the correction."""
    trainer = LocalTrainer(quick(learning_rate=1e-12))
    correction = torch.linspace(-0.01, 0.01, trainer.spec.size)
    moved = trainer.train(trainer.initial, correction=correction).state.flat - trainer.initial.flat
    torch.testing.assert_close(moved, 3 * correction, rtol=0, atol=1e-7)
    with pytest.raises(LocalError, match="an adapter needs"):
        trainer.train(trainer.initial, correction=correction[1:])


def test_the_second_step_feels_the_pull_back_to_the_start(quick: Quick) -> None:
    """SGD: x2 = x1 - lr (g(x1) + mu (x1 - x0)), so mu moves x2 by - lr mu (x1 - x0)."""
    settings = {"local_optimizer": "sgd", "learning_rate": 0.5, "max_grad_norm": 1e9}
    start = scattered(LocalTrainer(quick()).initial)

    def after(steps: int, proximal: float) -> torch.Tensor:
        config = quick(local_steps=steps, proximal=proximal, **settings)
        return LocalTrainer(config).train(start).state.flat

    first = after(1, 0.0)
    assert torch.equal(after(1, 0.8), first), "the first step starts where it is pulled to"
    pulled = after(2, 0.8) - after(2, 0.0)
    torch.testing.assert_close(pulled, -0.5 * 0.8 * (first - start.flat), rtol=1e-3, atol=1e-7)
    assert (first - start.flat).abs().max() > 1e-3


def test_sgd_goes_down_the_gradient_of_the_batch(quick: Quick, tmp_path: Path) -> None:
    """One step by hand: lr times the gradient of the mean loss, clipped to norm 0.01."""
    config = quick(local_optimizer="sgd", learning_rate=0.5, max_grad_norm=0.01, local_steps=1)
    start = scattered(LocalTrainer(quick()).initial)
    trained = LocalTrainer(config).train(start).state
    other = LocalTrainer(config)
    other.model.put(start)
    batch, _ = other._batch([other.shard.train[index] for index in other._sampler.draw()])
    other.model.module(**batch).loss.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in other.model.parameters.values()])
    expected = start.flat - 0.5 * 0.01 * gradient / gradient.norm()
    torch.testing.assert_close(trained.flat, expected, rtol=0, atol=1e-6)
    assert (trained.flat - start.flat).norm() == pytest.approx(0.005, rel=1e-3)


def test_moments_that_are_reset_leave_nothing_of_the_round_before(quick: Quick) -> None:
    """A round is then that of a peer that comes anew and draws the same rows."""
    resetting, keeping, fresh = (
        LocalTrainer(quick(moments=moments)) for moments in ("reset", "keep", "keep")
    )
    mixed = scattered(resetting.initial)
    for trainer in (resetting, keeping):
        trainer.train(trainer.initial)
    for _ in range(fresh.config.training.local_steps):
        fresh.draw_batch()
    ended = [trainer.train(mixed).state.digest() for trainer in (resetting, keeping, fresh)]
    assert ended[0] == ended[2] != ended[1]


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"proximal": -0.1}, "proximal must not be negative"),
        ({"local_optimizer": "adam"}, "known: adamw, sgd"),
        ({"moments": "average"}, "known: keep, reset"),
    ],
)
def test_impossible_steps_are_refused(setting: dict[str, object], complaint: str) -> None:
    with pytest.raises(LocalError, match=complaint):
        PeerConfig.of(**setting)  # type: ignore[arg-type]
