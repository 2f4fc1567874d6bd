"""What a trainer is, and the catalogue of trainers: who takes the local steps of a round, chosen by name.

A trainer lives in the training process and computes there on its own, one call at a time; it may use any library. It
knows nothing of peers, rounds or mixing. ``worker.py`` serves it to the network process. Which one it is, the local
configuration alone decides (option ``trainer``): no message of a peer names one. A new trainer passes the suite of
``tests/peer/test_trainer_conformance.py``, which says in tests what this file says in words.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from gossip.events import TrainableFactors
from peer.config import OPTIONS, PeerConfig
from peer.training.frames import Evaluated, OnStep, Progress, RateChoice, Ready, RowLosses, Trained
from peer.training.schedules import WHOLE_RUN, Position


class Trainer(Protocol):
    """One peer's model, data and optimizer.

    Adapters come and go as values: a trainer writes into none that it is given, and hands out none that it changes
    later. It is deterministic: two trainers with equal configurations that are given the same calls return the same
    adapters, on a CPU to the bit; but for ours with differential privacy, whose noise nobody may repeat.

    Raises (every method): ``LocalError`` for what the user or this machine did; it ends the training process, and
    reaches the user with its message and exit code, but for ``Diverged``: after that the peer goes on from an adapter
    that was in order, with a new process. Any other exception is a bug.
    """

    def ready(self, seconds: float) -> Ready:
        """Return what is known once model, data and adapter are set up; it does not change afterwards.

        Args:
            seconds: how long that took; passed on.
        """

    def train(
        self,
        state: AdapterState,
        trainable: TrainableFactors = "all",
        correction: Tensor | None = None,
        on_step: OnStep | None = None,
        position: Position = WHOLE_RUN,
    ) -> Trained:
        """Take ``config.training.local_steps`` optimizer steps from ``state`` on the own data; or none, and say why.

        The optimizer's memory and the order of the data go on from the last call. Trainers that learn from answers of
        others, and hand out their own (``Trained.rollouts``), have one more argument:
        ``rollouts: tuple[Received, ...] = ()``, at most ``gossip.rollouts.CAPACITY`` of the last rounds, no two the
        same. Whatever is in them somebody else wrote: it is text to be judged, never run.

        Args:
            state: the adapter to start from, of the layout of ``ready().initial``.
            trainable: which of its tensors are trained (see ``selects``); the others keep their values to the bit.
            correction: float32[P] in the layout of ``state``, added to the trained tensors after every step; gradient
                tracking and momentum across rounds want it. None = nothing.
            on_step: told of each step.
            position: where in the run these steps stand, for a rate that changes over it. ``worker.py`` gives it to
                trainers whose ``train`` has an argument of this name.

        Raises:
            LocalError: the adapter has no tensors of that part; or training cannot go on.
            Diverged: the loss is no number any more.
        """

    def evaluate(self, state: AdapterState) -> Evaluated:
        """Return held-out losses of ``state``; neither optimizer nor order of data nor generators notice."""

    def probe(self, state: AdapterState, rows: int) -> float:
        """Return the loss of ``state`` on the first ``rows`` of the own held-out sequences, or all if there are fewer.

        Perhaps not finite; neither optimizer nor order of data nor generators notice. It decides whether an adapter is
        kept, several times in some rounds, so it must be quick.
        """

    def save(self, path: Path) -> None:
        """Write all that ``train`` goes on from (but the adapter) to the file ``path``, whole or not at all.

        Raises:
            LocalError: the disk is full, or the folder cannot be written.
        """

    def load(self, path: Path) -> None:
        """Continue where ``save`` was called, in this process or another; on a CPU to the bit.

        Raises:
            LocalError: no such file, or it is not of this trainer, adapter and data.
        """


@runtime_checkable
class MeasuresRows(Protocol):
    """What a trainer may do besides: without it, a run cannot be audited (``--audit``)."""

    def row_losses(self, state: AdapterState) -> RowLosses:
        """Return the loss of ``state`` on single rows; neither optimizer nor order of data nor generators notice.

        Raises:
            LocalError: the configuration asks for no audit.
        """


@runtime_checkable
class FindsRate(Protocol):
    """What a trainer may do besides: without it, a run without ``--learning-rate`` has the usual one."""

    def find_rate(self, progress: Progress) -> RateChoice:
        """Find a learning rate and take it from now on; one that ``load`` brought is kept.

        Called once, before the first ``train``, where the user gave none. Nothing else changes: what is learned
        afterwards is what would be learned if the rate had been given.

        Args:
            progress: told how far it is.
        """


MakeTrainer: TypeAlias = Callable[[PeerConfig, Progress], Trainer]
"""What an entry of ``TRAINERS`` names: (configuration, told of stages) -> a trainer that is ready. It raises
``LocalError`` for what the user can mend."""


def selects(trainable: TrainableFactors, name: str) -> bool:
    """Say whether ``trainable`` means the tensor called ``name`` (see ``gossip.events.TrainableFactors``)."""
    return trainable == "all" or ("lora_A" in name) == (trainable == "a")


def trainer_name(config: PeerConfig) -> str:
    """Return the trainer that a configuration asks for; the usual one depends on the task."""
    name = config.training.trainer
    return "grpo" if name == OPTIONS["trainer"].default and config.model.task == "agent" else name


def entry_point(name: str) -> str:
    """Return where the trainer called ``name`` is made, as ``"module:function"``; what is such a place is its own name.

    Raises:
        LocalError: there is none of that name; says which there are.
    """
    module, _, function = name.partition(":")
    if function.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        return name
    if name not in TRAINERS:
        raise LocalError(
            f"unknown --trainer {name!r}; known: {', '.join(TRAINERS)}, or your own as module:function"
        )
    return TRAINERS[name]


def maker_at(place: str) -> MakeTrainer:
    """Return the ``MakeTrainer`` at ``"module:function"``.

    Raises:
        LocalError: there is none.
    """
    try:
        made: MakeTrainer = pkgutil.resolve_name(place)
    except (ImportError, AttributeError) as error:
        raise LocalError(f"there is no trainer at {place}: {error}") from error
    return made


TRAINERS: dict[str, str] = {
    "local-steps": "peer.training.local_trainer:make_trainer",
    "grpo": "peer.training.agent.grpo:make_trainer",
}
"""Trainers by name: where the ``MakeTrainer`` stands, as ``"module:function"``, since only the training process imports
it. To add one: a file, and a line here."""
