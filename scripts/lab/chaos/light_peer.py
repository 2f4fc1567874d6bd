"""A ``peer run`` that trains in its own process: ``python -m scripts.lab.chaos.light_peer`` takes its flags.

All but the training process is the real program: half the memory and half of the time to start, so that sixteen peers
fit on two cores. Its local steps are those of ``light_trainer.py``, which wait and hardly compute.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import trio
from torch import Tensor

from gossip.adapter import AdapterState
from gossip.events import TrainableFactors
from gossip.rollouts import Received
from peer.config import PeerConfig
from peer.training.frames import Evaluated, OnStep, Progress, Ready, Trained
from peer.training.process import TrainerProcess
from peer.training.supervisor import StartTrainer
from peer.training.trainers import Trainer, entry_point, maker_at, trainer_name


class TrainerInside:
    """What ``TrainerProcess`` is, without the process."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    async def train(
        self,
        state: AdapterState,
        round: int,
        save_to: Path | None,
        on_step: OnStep,
        trainable: TrainableFactors,
        correction: Tensor | None,
        rollouts: Sequence[Received],
    ) -> Trained:
        """Take a round's steps in a thread, which waits most of the time."""
        trained = await trio.to_thread.run_sync(self._trainer.train, state, trainable, correction, None)
        if save_to is not None:
            self._trainer.save(save_to)
        return trained

    async def evaluate(self, state: AdapterState) -> Evaluated:
        """Measure an adapter."""
        await trio.lowlevel.checkpoint()
        return self._trainer.evaluate(state)

    async def probe(self, state: AdapterState, rows: int) -> float:
        """Measure an adapter on a few rows."""
        await trio.lowlevel.checkpoint()
        return self._trainer.probe(state, rows)

    async def row_losses(self, state: AdapterState) -> None:
        """Measure no single rows."""

    async def stop(self) -> None:
        """There is nothing to stop."""


async def start_inside(
    config: PeerConfig, resume: Path | None, on_progress: Progress
) -> tuple[TrainerInside, Ready]:
    """Make the trainer here."""
    await trio.lowlevel.checkpoint()
    trainer = maker_at(entry_point(trainer_name(config)))(config, on_progress)
    if resume is not None:
        trainer.load(resume)
    return TrainerInside(trainer), trainer.ready(0.0)


def main(words: Sequence[str]) -> None:
    """Run a command of ``peer``, with the trainer inside."""
    from peer.cli import main

    start: StartTrainer = start_inside  # so that its type is checked, which the next line cannot be
    # Before the command imports peer.runtime, whose default it is.
    TrainerProcess.start = staticmethod(start)  # type: ignore[method-assign,assignment]
    main(words)


if __name__ == "__main__":
    main(sys.argv[1:])
