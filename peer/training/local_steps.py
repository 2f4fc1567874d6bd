"""What a local step is made of besides the gradient of the loss: the optimizer, a pull and a correction.

It knows nothing of models, data or files. What can take the steps stands in a catalogue at the foot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from gossip.adapter import AdapterState
from peer.config import TrainingOptions

Parameters = Mapping[str, torch.nn.Parameter]
"""Trained parameters by the names that files and peers use."""


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
"""What takes local steps. A new one stands in ``LocalOptimizer`` of ``config.py`` too, and its memory of a parameter in
``local_trainer.MOMENTS``."""
