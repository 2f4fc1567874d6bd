"""Several batches that make one step: the step of one large batch, to rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from peer.config import PeerConfig
from peer.training import plain_steps
from peer.training.adapted_model import AdaptedModel
from peer.training.local_trainer import LocalTrainer

Quick = Callable[..., PeerConfig]


@pytest.fixture(scope="module")
def model(quick: Quick) -> AdaptedModel:
    return AdaptedModel(quick())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_accumulated_batches_are_one_large_batch(model: AdaptedModel, optimizer: str, tmp_path: Path) -> None:
    """With rows of different lengths, so that batches differ in how much they count."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(f'{{"prompt": "{"a" * n}", "completion": "{"bc" * (n % 7 + 1)}"}}\n' for n in range(1, 50))
    )
    of = {"data": (rows,), "local_optimizer": optimizer, "learning_rate": 0.3 if optimizer == "sgd" else 1e-3}
    large = LocalTrainer(model.config.with_options(**of, batch_size=8), model).train(model.initial)
    small = LocalTrainer(model.config.with_options(**of, batch_size=2, accumulate=4), model).train(
        model.initial
    )
    step = large.state.flat - model.initial.flat
    assert step.norm() > 1e-3
    tolerance = (
        1e-5 if optimizer == "sgd" else 1e-2
    )  # AdamW divides by tiny second moments: rounding is enlarged
    assert (small.state.flat - large.state.flat).norm() < tolerance * step.norm()
    assert small.loss == pytest.approx(large.loss, rel=1e-5)
    assert (small.steps, small.tokens, small.sequences) == (large.steps, large.tokens, large.sequences)


def test_accumulated_steps_resume_to_the_bit(model: AdaptedModel, tmp_path: Path) -> None:
    config = model.config.with_options(batch_size=2, accumulate=3)
    through, first = LocalTrainer(config, model), LocalTrainer(config, model)
    wanted = through.train(through.train(model.initial).state).state
    middle = first.train(model.initial).state
    first.save(tmp_path / "state")
    resumed = LocalTrainer(config, model)
    resumed.load(tmp_path / "state")
    assert resumed.train(middle).state.digest() == wanted.digest()


def test_a_batch_that_does_not_fit_drops_the_whole_step_and_halves_all_batches(
    model: AdaptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = LocalTrainer(model.config.with_options(batch_size=4, accumulate=2), model)
    sizes: list[int] = []
    batch = trainer._learner.batch

    def cramped(sequences: list[object]) -> object:
        sizes.append(len(sequences))
        if len(sizes) == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return batch(sequences)

    monkeypatch.setattr(plain_steps, "release_cache", lambda: None)
    object.__setattr__(trainer._learner, "batch", cramped)
    trained = trainer.train(model.initial)
    assert sizes == [4, 4, 2, 2, 2, 2]
    assert (trained.dropped, trained.sequences) == (1, 8)
    assert torch.isfinite(trained.state.flat).all()


def test_a_trial_of_rates_tries_steps_as_large_as_those_that_follow(model: AdaptedModel) -> None:
    seen: list[int] = []
    trainer = LocalTrainer(model.config.with_options(batch_size=2, accumulate=3), model)
    batch = trainer._learner.batch
    object.__setattr__(trainer._learner, "batch", lambda rows: (seen.append(len(rows)), batch(rows))[1])
    choice = trainer.find_rate(lambda stage, done: None)
    assert choice.source == "tried"
    assert len(seen) == 3 * (16 + len(choice.tried))
