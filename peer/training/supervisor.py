"""Keeps a training process at work: starts it, replaces it when it has died or diverged, and tells what it does.

Every so many rounds it measures before it trains; of the optimizer steps it tells only as many as a person can follow.
It knows neither rounds' other half (who reads whom) nor where checkpoints lie: what it must tell goes through
``Callbacks``, and where a new process goes on is said by ``restart_from``.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor

from gossip.adapter import AdapterState
from gossip.errors import Diverged, LocalError
from gossip.events import TrainableFactors
from gossip.rollouts import Received
from peer.config import PeerConfig
from peer.training.frames import Evaluated, OnStep, Progress, Ready, RowLosses, Step, Trained
from peer.training.process import TrainerDied

STEP_EVENT_S = 0.5
"""Training steps are told at most this often: a tiny model makes a hundred a second. Source: guess."""

DEATHS_MAX = 3
"""So many deaths in a row, none of them after a round's local steps, end the peer. Source: guess; one may be somebody's
kill, or memory that was short for a moment."""

Answer = TypeVar("Answer")


class TrainerFailed(LocalError):
    """The training process died again and again without completing a round."""

    exit_code = 8


class RemoteTrainer(Protocol):
    """A trainer in a process of its own, as its parent sees it; ``TrainerProcess`` is the real one (see there).

    Its methods raise ``TrainerDied`` when the process has ended by itself, and ``LocalError`` for what the user or we
    did wrong (then it has ended too).
    """

    async def train(
        self,
        state: AdapterState,
        round: int,
        save_to: Path | None,
        on_step: OnStep,
        trainable: TrainableFactors,
        correction: Tensor | None,
        rollouts: Sequence[Received],
    ) -> Trained: ...

    async def evaluate(self, state: AdapterState) -> Evaluated: ...

    async def probe(self, state: AdapterState, rows: int) -> float: ...

    async def row_losses(self, state: AdapterState) -> RowLosses | None: ...

    async def stop(self) -> None: ...


StartTrainer = Callable[[PeerConfig, Path | None, Progress], Awaitable[tuple[RemoteTrainer, Ready]]]
"""Starts a training process, given the settings, the file of an earlier one to go on from, and whom to tell of loading.

Returns when it is ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """Who is told what a training process does. All must be quick and not raise.

    Args:
        preparing: a stage of loading, and the share of it that is done.
        step: a step of a round.
        evaluated: what a measurement after so many rounds gave.
        restarting: why the process died, and the round from which a new one goes on.
    """

    preparing: Progress
    step: Callable[[int, Step], None]
    evaluated: Callable[[int, Evaluated], None]
    restarting: Callable[[str, int], None]


@asynccontextmanager
async def supervised_training(
    config: PeerConfig, round: int, trainer_state: Path | None, callbacks: Callbacks, start: StartTrainer
) -> AsyncIterator[tuple[TrainingSupervisor, Ready]]:
    """Start a training process; stop it politely at the end.

    Args:
        config: settings of the run.
        round: rounds completed in the checkpoint that we go on from; 0 without one.
        trainer_state: the training process's file in that checkpoint; None without one.
        callbacks: who is told.
        start: starts a process.

    Yields:
        its supervisor, and what the process said when it was ready.
    """
    supervisor = TrainingSupervisor(config, round, trainer_state, callbacks, start)
    try:
        yield supervisor, await supervisor.begin()
    finally:
        await supervisor.stop()


class TrainingSupervisor:
    """A training process that is replaced when it dies. One call at a time.

    Use ``supervised_training``, which says what the arguments are.

    Raises (every method but ``stop``): ``TrainerFailed`` after ``DEATHS_MAX`` deaths without a round between them;
    ``LocalError`` that the process reported.
    """

    def __init__(
        self,
        config: PeerConfig,
        round: int,
        trainer_state: Path | None,
        callbacks: Callbacks,
        start: StartTrainer,
    ) -> None:
        self._config = config
        self._round = round
        self._trainer_state = trainer_state
        self._callbacks = callbacks
        self._start = start
        self._trainer: RemoteTrainer | None = None  # none before the first, and after one that has ended
        self._deaths = 0

    async def begin(self) -> Ready:
        """Start the first process; return what it said when it was ready."""
        while True:
            try:
                self._trainer, ready = await self._start(
                    self._config, self._trainer_state, self._callbacks.preparing
                )
            except TrainerDied as death:
                self._bury(death)
            else:
                if ready.rate:  # a new process is to take it, too
                    self._config = self._config.with_options(learning_rate=ready.rate.rate)
                return ready

    def restart_from(self, round: int, trainer_state: Path | None) -> None:
        """Let a new process go on from the checkpoint after ``round`` rounds; ``trainer_state`` is its file there."""
        self._round, self._trainer_state = round, trainer_state

    async def train(
        self,
        state: AdapterState,
        round: int,
        trainable: TrainableFactors,
        correction: Tensor | None,
        save_to: Callable[[], Path | None],
        rollouts: Sequence[Received] = (),
    ) -> Trained:
        """Measure ``state`` if it is time to, then take a round's local steps from it.

        Args:
            state: where to begin.
            round: the round, from 0.
            trainable: which tensors to change.
            correction: float32[P] to add to the adapter after every step, or None.
            save_to: returns a new file for the process's own state, in a folder that holds nothing of an attempt that
                broke off; None: its state is not saved in this round.
            rollouts: of others, for trainers that learn from them.

        Raises:
            Diverged: the loss is no number any more; the next call finds a new process.
        """
        if round % self._config.data.eval_every == 0:
            self._callbacks.evaluated(round, await self.evaluate(state))
        on_step = self._sparing(round)
        try:
            trained = await self._surviving(
                lambda trainer: trainer.train(
                    state, round, save_to(), on_step, trainable, correction, rollouts
                )
            )
        except LocalError as error:
            if error.exit_code != Diverged.exit_code:
                raise
            self._trainer = None
            raise Diverged(str(error)) from error
        self._deaths = 0
        return trained

    async def evaluate(self, state: AdapterState) -> Evaluated:
        """Measure an adapter on the held-out rows."""
        return await self._surviving(lambda trainer: trainer.evaluate(state))

    async def probe(self, state: AdapterState, rows: int) -> float:
        """Return the loss of an adapter on so many of the held-out rows, perhaps not finite."""
        return await self._surviving(lambda trainer: trainer.probe(state, rows))

    async def row_losses(self, state: AdapterState) -> RowLosses | None:
        """Return the loss of an adapter on single rows; None if the trainer cannot measure them."""
        return await self._surviving(lambda trainer: trainer.row_losses(state))

    async def stop(self) -> None:
        """End the process, if there is one; never raises for one that is gone already."""
        if self._trainer is not None:
            await self._trainer.stop()

    async def _surviving(self, ask: Callable[[RemoteTrainer], Awaitable[Answer]]) -> Answer:
        """Ask the process; if it dies, ask a new one."""
        while True:
            if self._trainer is None:
                await self.begin()
                continue
            try:
                return await ask(self._trainer)
            except TrainerDied as death:
                self._trainer = None
                self._bury(death)

    def _bury(self, death: TrainerDied) -> None:
        """Count a death.

        Raises:
            TrainerFailed: it is one too many.
        """
        self._deaths += 1
        if self._deaths >= DEATHS_MAX:
            raise TrainerFailed(
                f"the training process died {DEATHS_MAX} times without completing a round between: {death.reason}\n"
                f"The last complete checkpoint is of round {self._round}; start again to go on from there. If it was "
                "out of memory, lower batch_size or max_length, or use a smaller model."
            ) from death
        self._callbacks.restarting(death.reason, self._round)

    def _sparing(self, round: int) -> OnStep:
        """Return what tells the steps of a round: the first one, and then not more often than ``STEP_EVENT_S``."""
        told_at = -STEP_EVENT_S

        def on_step(step: Step) -> None:
            nonlocal told_at
            if time.monotonic() - told_at >= STEP_EVENT_S:
                told_at = time.monotonic()
                self._callbacks.step(round, step)

        return on_step
