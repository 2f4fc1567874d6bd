"""Deaths of the training process are survived, wherever they happen, as long as rounds are completed between them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trio

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import Diverged, LocalError
from gossip.events import TrainableFactors
from gossip.rollouts import Received
from peer.config import PeerConfig
from peer.training import supervisor
from peer.training.frames import Evaluated, Export, OnStep, Progress, Ready, RowLosses, Step, Trained
from peer.training.memory import OutOfMemory
from peer.training.process import TrainerDied
from peer.training.supervisor import Callbacks, TrainerFailed, TrainingSupervisor, supervised_training

STATE = AdapterState(AdapterSpec((("x", (2,)),)), torch.zeros(2))
READY = Ready(STATE, {}, "none", "cpu", "none", 2, 1, 1, 0, 0.0, Export("adapter_model.safetensors", {}))


@dataclass
class World:
    """A training process that dies at given calls, and all that happened, in order."""

    dies_at: Sequence[str] = ()
    steps: int = 0
    diverges_at: Sequence[str] = ()
    error: LocalError = field(default_factory=lambda: Diverged("the loss is no number any more"))
    eval_every: int = 2
    happened: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._deaths = list(self.dies_at)

    def _do(self, call: str) -> None:
        self.happened.append(call)
        if self._deaths and call.startswith(self._deaths[0]):
            raise TrainerDied(f"killed at {self._deaths.pop(0)}")
        if any(call.startswith(start) for start in self.diverges_at):
            raise self.error

    async def start(self, config: PeerConfig, resume: Path | None, progress: Progress) -> tuple[World, Ready]:
        await trio.lowlevel.checkpoint()
        progress("load", None)
        self._do(f"start {resume}")
        return self, READY

    async def train(
        self,
        state: AdapterState,
        round: int,
        save_to: Path | None,
        on_step: OnStep,
        trainable: TrainableFactors,
        correction: torch.Tensor | None,
        rollouts: Sequence[Received],
    ) -> Trained:
        await trio.lowlevel.checkpoint()
        self._do(f"train {round} {trainable} {save_to}")
        for number in range(self.steps):
            on_step(Step(number + 1, self.steps, 1.0, 1))
        return Trained(state, 0.5, 1, 1, 1, 0.0)

    async def evaluate(self, state: AdapterState) -> Evaluated:
        await trio.lowlevel.checkpoint()
        self._do("evaluate")
        return Evaluated(1.0, None, {})

    async def probe(self, state: AdapterState, rows: int) -> float:
        await trio.lowlevel.checkpoint()
        self._do(f"probe {rows}")
        return 2.0

    async def row_losses(self, state: AdapterState) -> RowLosses | None:
        await trio.lowlevel.checkpoint()
        self._do("row_losses")
        return None

    async def stop(self) -> None:
        await trio.lowlevel.checkpoint()
        self.happened.append("stop")

    def callbacks(self) -> Callbacks:
        return Callbacks(
            preparing=lambda stage, done: self.happened.append(f"told {stage}"),
            step=lambda round, step: self.happened.append(f"told step {step.step} of round {round}"),
            evaluated=lambda round, result: self.happened.append(f"told loss {result.own} at {round}"),
            restarting=lambda reason, round: self.happened.append(f"told {reason}, from {round}"),
        )

    def run(self, body: Callable[[TrainingSupervisor], Awaitable[None]]) -> list[str]:
        async def main() -> None:
            config = PeerConfig.of(eval_every=self.eval_every)
            async with supervised_training(config, 0, None, self.callbacks(), self.start) as (training, _):
                await body(training)

        try:
            trio.run(main)
        finally:
            start = ["told load", "start None"]
            assert self.happened[:2] == start
            del self.happened[:2]
        return self.happened


async def two_rounds(training: TrainingSupervisor) -> None:
    attempts = iter(Path(letter) for letter in "abcd")
    await training.train(STATE, 0, "all", None, lambda: next(attempts))
    training.restart_from(1, Path("saved"))
    await training.train(STATE, 1, "b", None, lambda: next(attempts))


def test_it_measures_every_so_many_rounds_trains_and_stops() -> None:
    assert World().run(two_rounds) == [
        "evaluate",
        "told loss 1.0 at 0",
        "train 0 all a",
        "train 1 b b",
        "stop",
    ]


def test_a_death_in_local_steps_restarts_from_the_checkpoint_into_a_fresh_file() -> None:
    assert World(["train 1"]).run(two_rounds)[3:] == [
        "train 1 b b",
        "told killed at train 1, from 1",
        "told load",
        "start saved",
        "train 1 b c",
        "stop",
    ]


def test_a_death_while_measuring_is_survived_and_told_once() -> None:
    happened = World(["evaluate"]).run(two_rounds)
    assert happened[:6] == [
        "evaluate",
        "told killed at evaluate, from 0",
        "told load",
        "start None",
        "evaluate",
        "told loss 1.0 at 0",
    ]
    assert happened[-1] == "stop"


@pytest.mark.parametrize(
    ("call", "round"), [("train 1", 1), ("start saved", 1), ("probe", 1), ("evaluate", 0)]
)
def test_deaths_without_a_round_between_are_an_error_that_says_where_to_go_on(call: str, round: int) -> None:
    async def body(training: TrainingSupervisor) -> None:
        await two_rounds(training)
        await training.probe(STATE, 4)
        await training.evaluate(STATE)

    first = "train 1" if call == "start saved" else call
    world = World([first, *[call] * (supervisor.DEATHS_MAX - 1)], eval_every=100)
    with pytest.raises(
        TrainerFailed,
        match=rf"died 3 times without .* between: killed at {call}\n.*checkpoint is of round {round};",
    ):
        world.run(body)
    assert TrainerFailed.exit_code == 8


def test_any_number_of_deaths_is_survived_if_rounds_are_completed_between_them() -> None:
    rounds = 6

    async def body(training: TrainingSupervisor) -> None:
        for round in range(rounds):
            await training.train(STATE, round, "all", None, lambda: Path("a"))

    world = World([f"train {round}" for round in range(rounds)])
    world.run(body)
    assert sum(line.startswith("start") for line in world.happened) == rounds
    assert sum(line.startswith("train") for line in world.happened) == 2 * rounds


def test_a_death_while_starting_is_survived() -> None:
    happened = World(["start None"]).run(two_rounds)
    assert happened[:3] == ["told killed at start None, from 0", "told load", "start None"]
    assert happened[-1] == "stop"


def test_the_process_is_replaced_after_training_has_diverged() -> None:
    async def body(training: TrainingSupervisor) -> None:
        training.restart_from(1, Path("saved"))
        with pytest.raises(Diverged, match="no number"):
            await training.train(STATE, 1, "all", None, lambda: Path("a"))
        await training.train(STATE, 3, "all", None, lambda: Path("b"))

    world = World(diverges_at=["train 1"])
    assert world.run(body) == ["train 1 all a", "told load", "start saved", "train 3 all b", "stop"]


def test_what_else_the_process_reports_is_passed_on() -> None:
    async def body(training: TrainingSupervisor) -> None:
        await training.train(STATE, 1, "all", None, lambda: Path("a"))

    with pytest.raises(OutOfMemory):
        World(diverges_at=["train 1"], error=OutOfMemory("too large")).run(body)


def test_steps_are_told_sparingly_and_the_first_of_each_round_always(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(
        monotonic=iter([100.0, 100.0, 100.1, 100.49, 100.5, 100.5, 200.0, 200.0]).__next__
    )
    monkeypatch.setattr(supervisor, "time", clock)
    assert supervisor.STEP_EVENT_S == 0.5

    async def body(training: TrainingSupervisor) -> None:
        await training.train(STATE, 0, "all", None, lambda: Path("a"))

    assert [told for told in World(steps=5).run(body) if "step" in told] == [
        f"told step {number} of round 0" for number in (1, 4, 5)
    ]
