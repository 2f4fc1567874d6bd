"""Steps on batches in seeded order, with the gradient of the mean loss: the usual way of training.

Several batches may make one step: their gradients are added up one after another, each counting as many times as it has
targets, so that the step is that of one large batch in the memory of a small one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gossip.errors import Diverged, LocalError
from peer.training.local_steps import Learner, Shift, StepOutcome
from peer.training.memory import is_out_of_memory, out_of_memory, release_cache
from peer.training.sequences import Tokens

NON_FINITE_MAX = 3
"""So many steps in a row without a finite loss or gradient end the run. Source: guess; one can be a bad batch."""


class PlainSteps:
    """See ``Steps``. Steps whose loss or gradient is not finite are left out."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._non_finite = 0
        self._halved = False  # a batch did not fit into memory

    def notes(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def begin(self) -> str:
        """Every round may be trained in."""
        return ""

    def take(self, shift: Shift) -> StepOutcome:
        """See ``Steps.take``. The first that does not fit into memory is dropped, and in all after it batches have half
        as many sequences."""
        drawn = [self._learner.draw() for _ in range(self._learner.config.training.accumulate)]
        if self._halved:
            drawn = [batch[: max(1, len(batch) // 2)] for batch in drawn]
        try:
            loss, targets = self._gradient(drawn, shift)
            taken = self._step(loss, shift)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._learner.optimizer.zero_grad(set_to_none=True)
            if self._halved or len(drawn[0]) < 2:
                raise out_of_memory(error) from error
            self._halved = True
        else:
            return StepOutcome(loss, taken, targets, sum(map(len, drawn)))
        release_cache()  # here, because the exception holds what did not fit
        return StepOutcome(math.nan, False, 0, 0, dropped=True)

    def _gradient(self, drawn: Sequence[Sequence[Tokens]], shift: Shift) -> tuple[float, int]:
        """Give the trained parameters the gradient of the mean loss over all targets; return that loss, and how many
        targets there are."""
        learner = self._learner
        total, all_targets = 0.0, 0
        for sequences in drawn:
            batch, targets = learner.batch(sequences)
            loss = learner.task.forward(learner.module, batch).loss
            if len(drawn) > 1:
                loss = loss * targets
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            total, all_targets = total + loss.item(), all_targets + targets
        if len(drawn) == 1:
            return total, all_targets
        for parameter in shift.trained.values():
            if parameter.grad is not None:
                parameter.grad.div_(all_targets)
        return total / all_targets, all_targets

    def _step(self, value: float, shift: Shift) -> bool:
        """Take one step on the gradient that the parameters have; return whether it was taken (else loss or gradient
        were not finite).

        Args:
            value: the loss that it is the gradient of.
        """
        learner, training = self._learner, self._learner.config.training
        shift.pull_back()
        norm = torch.nn.utils.clip_grad_norm_(shift.trained.values(), training.max_grad_norm).item()
        taken = math.isfinite(value) and math.isfinite(norm)
        if taken:
            learner.optimizer.step()
            shift.add_correction()
            self._non_finite = 0
        else:
            self._non_finite += 1
        learner.optimizer.zero_grad(set_to_none=True)
        if self._non_finite == NON_FINITE_MAX:
            rate = learner.optimizer.param_groups[0]["lr"]
            raise Diverged(
                f"loss {value}, gradient norm {norm}: not finite for {NON_FINITE_MAX} steps in a row. Lower "
                f"learning_rate (in this step {rate:g}), or train in float32."
            )
        return taken

    def state(self) -> dict[str, Any]:
        """How many steps in a row were left out."""
        return {"non_finite": self._non_finite}

    def restore(self, path: Path, state: Mapping[str, Any]) -> None:
        """See ``Steps.restore``; what was promised so far would end here."""
        if "non_finite" not in state:
            raise LocalError(
                f"cannot resume from {path}: it was trained with differential privacy, which steps without would undo. "
                "Give --dp-epsilon again, or start anew with another --home."
            )
        self._non_finite = state["non_finite"]
