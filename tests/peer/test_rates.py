"""A learning rate where the user gave none: a short trial on one's own text, what it speaks for, and who is told."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from light_peers import Quadratic, Running, limited, memory

from peer.checkpoints import open_home
from peer.config import PeerConfig
from peer.journal_events import Listening
from peer.learning_options import ADAPTER_KINDS
from peer.rate_event import RateChosen
from peer.run_manifest import join_line
from peer.training import rate_trial, rates
from peer.training.adapted_model import AdaptedModel
from peer.training.adapter_kinds import ADAPTERS
from peer.training.frames import Progress, RateChoice, Ready
from peer.training.local_trainer import LocalTrainer
from peer.training.process import TrainerProcess
from peer.training.rate_trial import ABOVE, BELOW, STEPS, Tried, chosen, is_lost, rates_around, smoothed

Quick = Callable[..., PeerConfig]
HERE = Path(__file__).parent


def silent(stage: str, done: float | None) -> None:
    """Tell nobody of progress."""


def curve(gains: list[float]) -> list[Tried]:
    return [Tried(rate, gain) for rate, gain in zip(rates_around(1e-3), gains, strict=False)]


@pytest.fixture(scope="module")
def model(quick: Quick) -> AdaptedModel:
    return AdaptedModel(quick())


# -- the rule


def test_rates_grow_by_one_factor_around_the_usual_one() -> None:
    tried = rates_around(0.02)
    assert len(tried) == STEPS
    assert (tried[0], tried[-1]) == (pytest.approx(0.02 / BELOW), pytest.approx(0.02 * ABOVE))
    factors = [later / earlier for earlier, later in pairwise(tried)]
    assert factors == pytest.approx([factors[0]] * (STEPS - 1))


def test_the_upper_slope_is_taken_and_one_odd_batch_decides_nothing() -> None:
    slope = [0.0, 0.0, 0.0, 0.1, 0.3, 0.65, 0.9, 1.0, 1.0, 1.0, 0.2]
    taken = float(f"{rates_around(1e-3)[5]:.2g}")
    assert chosen(curve(slope), 4.0) == taken
    assert chosen(curve([10 * gain for gain in slope]), 40.0) == taken, "in any unit"
    assert chosen(curve(slope[:9]), 4.0) == taken, "what comes after the best does not matter"
    odd = [*slope]
    odd[1] = 1.0
    assert chosen(curve(odd), 4.0) == taken
    assert smoothed([1.0]) == [1.0]
    assert smoothed([0.0, 4.0, 0.0]) == [1.0, 2.0, 1.0]


def test_a_trial_in_which_nothing_helped_speaks_for_no_rate() -> None:
    assert chosen(curve([0.0, 0.01, -0.01, 0.02, -3.0]), 4.0) == 0.0
    assert chosen(curve([-1.0] * 5), 4.0) == 0.0
    assert chosen([], 4.0) == 0.0
    assert chosen(curve([0.2] * 5), 4.0) == pytest.approx(1e-3 / BELOW), "where all do, the lowest"


def test_a_trial_ends_where_steps_are_too_long() -> None:
    assert not is_lost(curve([0.0, 0.5, 1.0, -2.0])), "one odd batch"
    assert is_lost(curve([0.0, 0.5, 1.0, -2.0, 0.2]))
    assert not is_lost(curve([0.0, 0.5, 1.0, -2.0, 0.3]))
    assert not is_lost(curve([0.0, -0.1, -0.1])), "nothing has been gained yet"
    assert is_lost(curve([0.0, 0.5, math.nan]))
    assert is_lost(curve([-math.inf]))


# -- usual rates


def test_each_kind_has_a_usual_rate_that_optimizer_and_noise_multiply(tmp_path: Path) -> None:
    assert tuple(ADAPTERS) == ADAPTER_KINDS
    for kind in ADAPTER_KINDS:
        assert 1e-4 <= ADAPTERS[kind].rate <= 1.0
        assert rates.usual_rate(PeerConfig.of(adapter=kind)) == ADAPTERS[kind].rate
    lora = ADAPTERS["lora"].rate
    assert rates.usual_rate(PeerConfig.of(dp_epsilon=8.0)) == pytest.approx(10 * lora)
    assert rates.usual_rate(PeerConfig.of(local_optimizer="sgd")) == pytest.approx(100 * lora)
    assert rates.with_rate(PeerConfig()).training.learning_rate == lora
    assert rates.with_rate(PeerConfig.of(learning_rate=0.3)).training.learning_rate == 0.3


# -- the trial


def test_a_trial_finds_what_a_search_finds_and_leaves_no_trace(quick: Quick, tmp_path: Path) -> None:
    """A search over whole runs of this model and batch finds 1e-2 to 2e-2 (docs/results.md)."""
    config = quick(learning_rate=0.0, lora_dropout=0.2)
    model = AdaptedModel(config)
    trainer, stages = LocalTrainer(config, model), list[tuple[str, float | None]]()
    before = trainer.initial.digest()
    choice = trainer.find_rate(lambda stage, done: stages.append((stage, done)))
    assert (choice.source, choice.why) == ("tried", "")
    assert 6e-3 <= choice.rate <= 4e-2
    assert [rate for rate, _ in choice.tried] == list(rates_around(ADAPTERS["lora"].rate))[
        : len(choice.tried)
    ]
    assert choice.tried[0][1] == pytest.approx(0.0, abs=0.05), (
        "before the first step nothing is gained, but by dropout"
    )
    assert (stages[0], stages[1]) == (("rate", None), ("rate", 1 / STEPS))
    assert trainer.initial.digest() == before

    given = LocalTrainer(quick(learning_rate=choice.rate, lora_dropout=0.2), model)
    assert LocalTrainer(config, model).find_rate(silent) == choice, "the same to the bit"
    trainer.save(tmp_path / "tried")
    given.save(tmp_path / "given")
    assert (tmp_path / "tried").read_bytes() == (tmp_path / "given").read_bytes()
    assert trainer.train(trainer.initial).state.digest() == given.train(given.initial).state.digest()


def test_a_rate_is_kept_over_a_restart(quick: Quick, model: AdaptedModel, tmp_path: Path) -> None:
    first = LocalTrainer(quick(learning_rate=0.0), model)
    found = first.find_rate(silent).rate
    state = first.train(first.initial).state
    first.save(tmp_path / "saved")
    expected = first.train(state).state.digest()
    again = LocalTrainer(quick(learning_rate=0.0), model)
    again.load(tmp_path / "saved")
    assert again.find_rate(silent) == RateChoice(found, "kept")
    assert again.train(state).state.digest() == expected
    other = LocalTrainer(quick(learning_rate=found / 2), model)
    other.load(tmp_path / "saved")
    assert other.train(state).state.digest() != expected, "what the user gives now counts"


def test_there_is_no_trial_under_differential_privacy(
    quick: Quick, model: AdaptedModel, tmp_path: Path
) -> None:
    config = quick(learning_rate=0.0, dp_epsilon=8.0, home=tmp_path)
    trainer = LocalTrainer(config, model)
    choice = trainer.find_rate(silent)
    assert choice == RateChoice(0.02, "usual", "a trial would spend of the privacy budget")
    assert not any("--learning-rate" in note for note in trainer.ready(0.0).notes)
    assert not list(tmp_path.glob("**/*charge*"))
    usual = LocalTrainer(config.with_options(learning_rate=2e-3), model)
    assert any("--learning-rate 0.02" in note for note in usual.ready(0.0).notes)


def test_a_trial_that_takes_too_long_is_broken_off(
    quick: Quick, model: AdaptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choice() -> RateChoice:
        return LocalTrainer(quick(learning_rate=0.0), model).find_rate(silent)

    usual = ADAPTERS["lora"].rate
    monkeypatch.setattr(rate_trial, "SECONDS", 0.0)
    assert choice() == RateChoice(usual, "usual", "a trial on our own text takes too long here")
    monkeypatch.setattr(rate_trial, "FORWARD", math.inf)
    monkeypatch.setattr(rate_trial, "SECONDS", 1e-9)
    assert choice() == RateChoice(usual, "usual", "a trial on our own text takes too long here")


def test_a_trial_in_which_the_loss_explodes_keeps_what_came_before(
    quick: Quick, model: AdaptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_trial, "ABOVE", 1e30)
    monkeypatch.setattr(rate_trial, "BELOW", 1.0)
    choice = LocalTrainer(quick(learning_rate=0.0), model).find_rate(silent)
    assert all(math.isfinite(gain) for _, gain in choice.tried)
    assert len(choice.tried) < STEPS


# -- who is told


def test_the_process_says_what_it_has_chosen(quick: Quick) -> None:
    async def ready_of(config: PeerConfig) -> Ready:
        process, ready = await TrainerProcess.start(config)
        await process.stop()
        return ready

    tried = trio.run(ready_of, quick(learning_rate=0.0)).rate
    assert tried is not None
    assert (tried.source, tried.rate > 5e-3, len(tried.tried) > 5) == ("tried", True, True)
    assert json.loads(json.dumps(tried.tried)) == [list(pair) for pair in tried.tried]
    assert trio.run(ready_of, quick()).rate is None, "what the user gives is not tried"


class Choosing(Quadratic):
    """Chooses a rate where none is given; remembers what it was started with."""

    def __init__(self) -> None:
        super().__init__(1.0, deaths=[1])
        self.given: list[float] = []

    async def start(
        self, config: PeerConfig, resume: Path | None, progress: Progress
    ) -> tuple[Quadratic, Ready]:
        self.given.append(config.training.learning_rate)
        trainer, ready = await super().start(config, resume, progress)
        choice = RateChoice(0.013, "tried", tried=((0.01, 0.0), (0.02, 0.5)))
        return trainer, ready if self.given[-1] else replace(ready, rate=choice)


def test_a_peer_tells_its_user_and_friends_and_every_process_that_follows(tmp_path: Path) -> None:
    async def body() -> None:
        with open_home(tmp_path / "home") as home:
            running = Running(1, home, 1.0, rounds=3)
            running.trainer = trainer = Choosing()
            await running.run(memory()(running.key))
        assert trainer.given == [0.0, 0.013], "the process that came after the first had died"
        (told,), (listening,) = running.events(RateChosen), running.events(Listening)
        expected = RateChosen(rate=0.013, source="tried", why="", tried_rates=(0.01, 0.02), gains=(0.0, 0.5))
        assert told == expected
        assert str(told.sentence()).startswith("learning rate 0.013, found by 2 short steps on our own text")
        assert " --learning-rate 0.013 " in listening.join

    limited(body)


def test_a_trainer_that_makes_no_trial_has_the_usual_rate(tmp_path: Path) -> None:
    class Idle:
        pass

    config = PeerConfig.of(trainer="somewhere:make")
    choice = rates.choose(Idle(), config, silent)  # type: ignore[arg-type]
    assert choice == RateChoice(ADAPTERS["lora"].rate, "usual", "somewhere:make makes no trial")
    assert rates.choose(Idle(), config.with_options(learning_rate=0.1), silent) is None  # type: ignore[arg-type]


def test_friends_are_told_a_rate_that_suits_them() -> None:
    def line(**options: object) -> str:
        return join_line(PeerConfig.of(**options), ("/ip4/1.2.3.4/tcp/1",))

    assert "--learning-rate 0.013" in line(learning_rate=0.013)
    assert "--learning-rate" not in line(), "not chosen yet"
    for other in ({"dp_epsilon": 8.0}, {"local_optimizer": "sgd"}, {"trainer": "mine:make"}):
        assert "--learning-rate" not in line(learning_rate=0.013, **other)
