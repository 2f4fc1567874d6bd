"""Steps that keep a promise about every row: clipped, noised, on rows that nobody else can name (DP-SGD).

A step, as Abadi et al. (arXiv 1607.00133) describe it: every unit (a row, or all rows of an author) is drawn by itself
with the same small probability; the gradient of each is clipped to the same length; to their sum noise is added, and
what comes of it is divided by the number of units *expected*, which no draw changes. All that leaves this file by way
of the adapter is made of such sums. Losses that it returns are exact and meant for this machine alone.

What depends on the data must not decide whether a step is taken: a gradient that is not finite counts as nothing, a
draw of nobody is a step of noise alone, and a draw that does not fit into memory is computed in smaller pieces.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gossip.errors import LocalError
from peer.training.local_steps import Learner, Parameters, Shift, StepOutcome
from peer.training.memory import is_out_of_memory, out_of_memory, release_cache
from peer.training.per_sample import Recorder
from peer.training.privacy_budget import Budget
from peer.training.secret_noise import SecretNoise
from peer.training.sequences import Tokens

SEQUENCES_MAX = 4
"""So many sequences of a unit take part in a step at most, drawn anew each time. Source: ours; with more, one author
with many rows would cost as much time as all others, for one clipped gradient."""
VALUES_MAX = 1 << 26
"""So many values of separate gradients are held at once, 256 MB: larger draws are computed in pieces. Source: ours."""
CLIP_MARGIN = 1e-5
"""Gradients are clipped so much shorter than the clip, relatively, that rounding in float32 does not exceed it."""
APART_ERROR_MAX = 0.5
"""How far a sequence's gradient may depend on others of its batch, relatively. Source: ours; SmolLM2 in bfloat16 rounds
to 0.05 (float32 1e-5), a model that mixes rows is off by 1 and more."""
TRIED_LENGTHS = (5, 8, 12)
"""Lengths of the made-up sequences on which that is tried, tokens. They are of the middle of the vocabulary: the first
tokens of many are marks, on which bfloat16 rounds so badly that nothing can be told."""


class Part(NamedTuple):
    """What a unit brings into a step: sequences, and how many targets they have."""

    sequences: Sequence[Tokens]
    targets: int


class ClippedSum(NamedTuple):
    """The sum of clipped gradients of a draw, float32[P], and what is told on this machine alone."""

    gradient: Tensor
    loss: float
    targets: int
    sequences: int


class PrivateSteps:
    """See ``Steps``.

    Args:
        learner: with a promise in its configuration.
        noise: what draws and disturbs; only tests give one.

    Raises:
        LocalError: the gradients of rows cannot be told apart.
    """

    def __init__(self, learner: Learner, noise: SecretNoise | None = None) -> None:
        self._learner = learner
        self._noise = noise or SecretNoise()
        self._units = list(learner.shard.units)
        self._recorder = Recorder(learner.module, learner.parameters)
        self._budget = Budget(learner.config, self._units)
        self._rounds: int = 0
        self._is_planned = False
        self._at_once = len(self._units)

    def notes(self) -> tuple[str, ...]:
        """See ``Steps.notes``."""
        self._plan()
        return self._budget.notes()

    def begin(self) -> str:
        """Charge a round's steps to the ledger; at the end of the budget none may be taken."""
        self._plan()
        self._rounds += 1
        return self._budget.charge_round()

    def take(self, shift: Shift) -> StepOutcome:
        """See ``Steps.take``."""
        learner, budget = self._learner, self._budget
        clip = learner.config.privacy.dp_clip
        total = self._sum_that_fits(self._draw(), shift.trained)
        noise = torch.from_numpy(self._noise.normal(total.gradient.numel()))
        noisy = total.gradient.cpu().double() + noise * (budget.noise_multiplier * clip)
        _set_gradients(shift.trained, noisy / (budget.sampling_rate * len(self._units)))
        shift.pull_back()
        learner.optimizer.step()
        shift.add_correction()
        learner.optimizer.zero_grad(set_to_none=True)
        loss = total.loss / total.targets if total.targets else math.nan
        return StepOutcome(loss, total.targets > 0, total.targets, total.sequences)

    def state(self) -> dict[str, Any]:
        """How many rounds have begun. Neither the noise nor its key is ever written."""
        return {"private_rounds": self._rounds}

    def restore(self, path: Path, state: Mapping[str, Any]) -> None:
        """See ``Steps.restore``."""
        if "private_rounds" not in state:
            raise LocalError(
                f"cannot resume from {path} with differential privacy: what was trained before had none, and is in the "
                "adapter. Start anew with another --home, or leave --dp-epsilon away."
            )
        self._rounds, self._is_planned = state["private_rounds"], False

    def _plan(self) -> None:
        if not self._is_planned:
            self._check_apart()
            self._budget.plan(self._rounds)
            self._is_planned = True

    def _draw(self) -> list[Part]:
        """Return what the units that take part bring; each unit takes part by itself."""
        parts = []
        for number in self._noise.chosen(len(self._units), self._budget.sampling_rate):
            unit = self._units[number]
            if len(unit.sequences) <= SEQUENCES_MAX:
                parts.append(Part(unit.sequences, sum(unit.targets)))
                continue
            some = self._noise.some(len(unit.sequences), SEQUENCES_MAX)
            parts.append(Part([unit.sequences[one] for one in some], sum(unit.targets[one] for one in some)))
        return parts

    def _sum_that_fits(self, drawn: Sequence[Part], trained: Parameters) -> ClippedSum:
        """Return ``_clipped_sum``, computed in pieces small enough for the memory."""
        while True:
            try:
                return self._clipped_sum(drawn, trained)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._learner.optimizer.zero_grad(set_to_none=True)
                self._at_once = min(self._at_once, len(drawn)) // 2
                if not self._at_once:
                    raise out_of_memory(error) from error
            release_cache()

    def _clipped_sum(self, drawn: Sequence[Part], trained: Parameters) -> ClippedSum:
        """Return the sum of the units' gradients, none of them longer than the clip."""
        clip, values = self._learner.config.privacy.dp_clip, sum(map(torch.Tensor.numel, trained.values()))
        total = next(iter(trained.values())).new_zeros(values, dtype=torch.float32)
        loss, targets, sequences = 0.0, 0, 0
        at_once = min(self._at_once, max(1, VALUES_MAX // (SEQUENCES_MAX * values)))
        pieces = math.ceil(len(drawn) / at_once)
        for piece in range(pieces):
            parts = drawn[piece * len(drawn) // pieces : (piece + 1) * len(drawn) // pieces]
            of_units, piece_loss = self._gradients(parts, list(trained))
            norms = torch.linalg.vector_norm(of_units, dim=1)
            factors = (clip / (norms * (1.0 + CLIP_MARGIN))).clamp(max=1.0)
            finite = norms.isfinite()
            if not finite.all():
                factors = factors.where(finite, 0.0)
                of_units = of_units.where(finite[:, None], 0.0)
            total += factors @ of_units
            loss, targets = loss + piece_loss, targets + sum(part.targets for part in parts)
            sequences += sum(len(part.sequences) for part in parts)
        return ClippedSum(total, loss, targets, sequences)

    def _gradients(self, parts: Sequence[Part], names: Sequence[str]) -> tuple[Tensor, float]:
        """Return float32[U, P], the gradient of each unit's mean loss, and the summed loss, nats."""
        learner = self._learner
        sequences = [one for part in parts for one in part.sequences]
        batch, targets = learner.batch(sequences)
        with self._recorder.recording(len(sequences)):
            loss = learner.task.forward(learner.module, batch).loss
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            each = self._recorder.gradients(names).float()
        # of the batch's mean over targets; wanted: of each unit's
        scales = torch.tensor([targets / part.targets for part in parts], device=each.device)
        if len(parts) < len(sequences):
            owners = [index for index, part in enumerate(parts) for _ in part.sequences]
            sums = each.new_zeros(len(parts), each.shape[1])
            each = sums.index_add_(0, torch.tensor(owners, device=each.device), each)
        return each.mul_(scales[:, None]), loss.item() * targets

    def _check_apart(self) -> None:
        """Refuse a model in which a sequence's gradient depends on the other sequences of its batch.

        Raises:
            LocalError: it does.
        """
        learner = self._learner
        lengths = [min(length, learner.config.training.max_length) for length in TRIED_LENGTHS]
        first = learner.vocabulary // 2
        made_up = [Tokens(array("i", range(first, first + length)), label=0) for length in lengths]
        parts = [Part([one], learner.task.collate([one], 0)[1]) for one in made_up]
        names, was_training = list(learner.parameters), learner.module.training
        learner.module.eval()  # no dropout, which falls differently each time
        together, _ = self._gradients(parts, names)
        apart = torch.cat([self._gradients([part], names)[0] for part in parts])
        learner.module.train(was_training)
        error = (together - apart).norm() / apart.norm()
        if not error <= APART_ERROR_MAX:
            raise LocalError(
                "differential privacy: in this model the gradient of a row depends on the other rows of its batch "
                f"(by {error:.1%}), so no row can be bounded by itself: use another model"
            )


@torch.no_grad()
def _set_gradients(trained: Parameters, flat: Tensor) -> None:
    """Give float64[P] to parameters as their gradients, in their own order, precision and place."""
    sizes = [parameter.numel() for parameter in trained.values()]
    for parameter, piece in zip(trained.values(), torch.split(flat, sizes), strict=True):
        parameter.grad = piece.to(parameter.dtype).view_as(parameter).to(parameter.device)
