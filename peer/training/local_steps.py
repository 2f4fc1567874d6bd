"""What a local step is made of besides the gradient of the loss: the optimizer, a pull and a correction.

Also what every way of taking steps has in common (``Steps``); how a gradient is made, ``plain_steps.py`` and
``private_steps.py`` say. It knows nothing of data or files. What can take the steps stands in a catalogue at the foot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gossip.adapter import AdapterState
from peer.config import PeerConfig
from peer.learning_options import TrainingOptions
from peer.training.libraries import BaseModel
from peer.training.sequences import Batch, Tokens
from peer.training.shard import Shard
from peer.training.task import Task

Parameters = Mapping[str, torch.nn.Parameter]
"""Trained parameters by the names that files and peers use."""


@dataclass(frozen=True, slots=True)
class Learner:
    """What a peer's steps are taken with.

    Attributes:
        config: settings of the peer.
        module: the model with its adapter.
        parameters: all of the adapter.
        task, shard: what is learned, and from what.
        optimizer: of ``parameters``.
        batch: sequences -> (the model's inputs on its device, how many targets they have).
        draw: gives the sequences of the next step, where rows are no secret.
        vocabulary: how many tokens there are.
    """

    config: PeerConfig
    module: BaseModel
    parameters: Parameters
    task: Task
    shard: Shard
    optimizer: torch.optim.Optimizer
    batch: Callable[[Sequence[Tokens]], tuple[Batch, int]]
    draw: Callable[[], list[Tokens]]
    vocabulary: int


class StepOutcome(NamedTuple):
    """What a step was.

    Attributes:
        loss: mean over its targets, nats, perhaps not finite.
        counts: whether its loss does; one that was left out, or drew nobody, has none.
        targets, sequences: on how much it was taken.
        dropped: it did not fit into memory.
    """

    loss: float
    counts: bool
    targets: int
    sequences: int
    dropped: bool = False


class Steps(Protocol):
    """A way of taking local steps: of making a gradient, that is, and of choosing its rows."""

    def notes(self) -> tuple[str, ...]:
        """Return what the user should know before the first step, sentence by sentence."""

    def begin(self) -> str:
        """Begin a round; return why no step may be taken in it, empty if they may.

        Raises:
            LocalError: they may not, and the run cannot go on.
        """

    def take(self, shift: Shift) -> StepOutcome:
        """Take one step on ``shift.trained``; their gradients are gone afterwards.

        Raises:
            Diverged: too many steps in a row had no finite loss or gradient.
            OutOfMemory: the smallest batch does not fit.
        """

    def state(self) -> dict[str, Any]:
        """Return what ``restore`` needs, JSON-able."""

    def restore(self, path: Path, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken; ``path``: where it was kept.

        Raises:
            LocalError: these steps may not go on from there.
        """


class Shift:
    """What is added to a round's steps besides the gradient of the loss.

    Args:
        trained: the parameters that are trained.
        state: where the round began.
        correction: float32[P] or None, see ``Trainer.train``.
        proximal: strength of the pull toward ``state``, at least 0.
    """

    def __init__(self, trained: Parameters, state: AdapterState, correction: Tensor | None, proximal: float):
        self.trained = trained
        self._proximal = proximal
        self._origin = self._views(state) if proximal else {}
        self._correction = self._views(AdapterState(state.spec, correction)) if correction is not None else {}

    def _views(self, state: AdapterState) -> dict[str, Tensor]:
        trained = self.trained
        return {name: view.to(trained[name].device) for name, view in state.tensors() if name in trained}

    @torch.no_grad()
    def pull_back(self) -> None:
        """Add the gradient of proximal / 2 * |x - x_start|^2 (FedProx, arXiv 1812.06127)."""
        for name, origin in self._origin.items():
            gradient = self.trained[name].grad
            assert gradient is not None
            gradient.add_(self.trained[name] - origin, alpha=self._proximal)

    @torch.no_grad()
    def add_correction(self) -> None:
        """Add ``correction`` to the trained parameters."""
        for name, correction in self._correction.items():
            self.trained[name].add_(correction)


@contextmanager
def frozen_but(trained: Parameters, parameters: Parameters) -> Iterator[None]:
    """Let only ``trained`` of ``parameters`` have gradients meanwhile, so that AdamW passes the others by."""
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in trained)
        yield
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(True)


def _adamw(parameters: list[torch.nn.Parameter], training: TrainingOptions) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)


def _sgd(parameters: list[torch.nn.Parameter], training: TrainingOptions) -> torch.optim.Optimizer:
    """No momentum: methods that need it bring their own across rounds."""
    return torch.optim.SGD(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)


OPTIMIZERS: dict[str, Callable[[list[torch.nn.Parameter], TrainingOptions], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
}
"""What takes local steps. A new one stands in ``LocalOptimizer`` of ``learning_options.py`` too, and its memory of a
parameter in ``own_optimizer.MOMENTS``."""
