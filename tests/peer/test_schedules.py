"""Schedules of the learning rate: their laws, and that each step is taken at the rate of its place in the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import torch

from gossip.errors import LocalError
from peer.config import PeerConfig
from peer.learning_options import ScheduleName
from peer.run_manifest import join_line
from peer.run_plan import plan_run
from peer.training.adapted_model import AdaptedModel
from peer.training.local_trainer import LocalTrainer
from peer.training.schedules import COOLDOWN, SCHEDULES, WHOLE_RUN, Position, factor
from peer.training.secret_noise import SecretNoise

Quick = Callable[..., PeerConfig]

LENGTHS = (1, 2, 3, 7, 20, 1000)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_begin_whole_never_rise_and_take_every_step(name: str) -> None:
    for steps in LENGTHS:
        factors = [factor(name, 0, step, steps) for step in range(steps)]
        assert factors[0] == 1.0
        assert all(0.0 < one <= 1.0 for one in factors)
        assert all(later <= earlier for earlier, later in pairwise(factors))
        stretched = [factor(name, 0, 2 * step, 2 * steps) for step in range(steps)]
        assert stretched == pytest.approx(factors), "a prolonged run is stretched"


def test_schedules_end_where_they_say() -> None:
    steps = 1000
    last = {name: factor(name, 0, steps - 1, steps) for name in SCHEDULES}
    assert last["constant"] == 1.0
    assert last["linear"] == pytest.approx(1 / steps)
    assert 0.0 < last["cosine"] < 1e-5
    assert last["wsd"] == pytest.approx(1 / (COOLDOWN * steps))
    assert factor("linear", 0, 250, steps) == pytest.approx(0.75)
    assert factor("cosine", 0, 250, steps) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    stays = round((1 - COOLDOWN) * steps)
    assert factor("wsd", 0, stays, steps) == 1.0 > factor("wsd", 0, stays + 1, steps)
    assert sum(factor("linear", 0, step, steps) for step in range(steps)) == pytest.approx(
        steps / 2, rel=2e-3
    )


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 4, 50])
def test_a_warm_up_rises_evenly_to_the_whole_rate(name: str, warmup: int) -> None:
    factors = [factor(name, warmup, step, 20) for step in range(20)]
    rising = factors[:warmup]
    assert rising == pytest.approx([(step + 1) / (warmup + 1) for step in range(len(rising))])
    assert factors[warmup:] == [factor(name, 0, step, 20 - warmup) for step in range(20 - warmup)]
    assert all(0.0 < one <= 1.0 for one in factors)


def test_names_and_places_are_checked() -> None:
    assert tuple(SCHEDULES) == get_args(ScheduleName)
    with pytest.raises(LocalError, match="unknown --schedule 'step'; known: constant, linear, cosine, wsd"):
        PeerConfig.of(schedule="step")
    with pytest.raises(LocalError, match=r"--warmup-steps 20.*20 steps"):
        plan_run(PeerConfig.of(warmup_steps=20, rounds=10, local_steps=2))
    plan_run(PeerConfig.of(warmup_steps=19, rounds=10, local_steps=2))
    for step in (-1, 6):
        with pytest.raises(ValueError, match=f"step {step} is none of 6"):
            factor("linear", 0, step, 6)
    line = join_line(PeerConfig.of(schedule="linear", warmup_steps=5), ("/ip4/1.2.3.4/tcp/1",))
    assert "--schedule linear --warmup-steps 5" in line


def test_a_position_counts_the_steps_of_the_rounds_before() -> None:
    factors = [Position(round, 4).factor("cosine", 3, step, 5) for round in range(4) for step in range(5)]
    assert factors == [factor("cosine", 3, step, 20) for step in range(20)]
    assert [WHOLE_RUN.factor("linear", 0, step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


@pytest.fixture(scope="module")
def model(quick: Quick) -> AdaptedModel:
    return AdaptedModel(quick())


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_each_step_is_as_long_as_the_schedule_says(
    quick: Quick, model: AdaptedModel, tmp_path: Path, optimizer: str, private: bool
) -> None:
    """A single step of SGD is proportional to its rate; of AdamW's first, too. Noise is that of a fixed key."""
    options = {"local_optimizer": optimizer, "learning_rate": 0.05, "local_steps": 1, "schedule": "linear"}
    if private:
        options |= {"dp_epsilon": 8.0}

    def moved(round: int) -> torch.Tensor:
        trainer = LocalTrainer(quick(rounds=8, home=tmp_path / f"{round}", **options), model)
        if private:
            trainer._steps._noise = SecretNoise(bytes(32))  # type: ignore[attr-defined]
        trained = trainer.train(trainer.initial, position=Position(round, 4))
        return trained.state.flat - trainer.initial.flat

    whole = moved(0)
    assert whole.norm() > 0
    for round in (1, 3):
        expected = whole * (1 - round / 4)
        assert (moved(round) - expected).norm() < 1e-3 * expected.norm()


def test_who_comes_late_or_again_takes_the_run_s_place(
    quick: Quick, model: AdaptedModel, tmp_path: Path
) -> None:
    config = quick(schedule="cosine", warmup_steps=2, rounds=4)
    whole, state = LocalTrainer(config, model), model.initial
    for round in range(2):
        state = whole.train(state, position=Position(round, 4)).state
    whole.save(tmp_path / "trainer")
    expected = whole.train(state, position=Position(2, 4)).state
    resumed = LocalTrainer(config, model)
    resumed.load(tmp_path / "trainer")
    assert resumed.train(state, position=Position(2, 4)).state.digest() == expected.digest()
    for position in (Position(1, 4), Position(2, 8)):
        resumed.load(tmp_path / "trainer")
        assert resumed.train(state, position=position).state.digest() != expected.digest()
