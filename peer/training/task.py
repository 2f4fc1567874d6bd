"""What a task is: from rows to batches, a loss, right answers, and a base model that can do it.

A task is a value made of functions; ``causal_lm.py`` and ``classification.py`` hold one each, ``tasks.py`` names them.
One that differs from another in a single function is ``dataclasses.replace`` of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gossip.errors import LocalError
from peer.config import PeerConfig
from peer.learning_options import ModelOptions
from peer.training.data import Row
from peer.training.libraries import BaseModel, Tokenizer
from peer.training.readers import BadRow
from peer.training.sequences import Batch, Tokens


class Output(Protocol):
    """What a model says of a batch; every ``ModelOutput`` of transformers with a loss is one."""

    @property
    def loss(self) -> Tensor:
        """Mean over the batch's targets, nats; float32 scalar, differentiable in the trained parameters."""

    @property
    def logits(self) -> Tensor:
        """What ``Task.correct`` reads: float[B, T, vocabulary], or float[B, classes]."""


@dataclass(frozen=True, slots=True)
class Task:
    """One line of the catalogue.

    Attributes:
        doc: one line for help and tables.
        peft_type: how peft calls it (a name of its ``TaskType``).
        loader: the class of transformers that loads its base model, such as ``"AutoModelForCausalLM"``.
        tokenize: (rows, tokenizer, configuration) -> (sequences of up to ``max_length`` tokens, rows that gave none).
        collate: (sequences, pad token) -> (a batch, how many targets it has).
        correct: (logits, the batch's labels) -> how many answers are right; None where there is no such thing.
        forward: (model, batch) -> its loss and logits.
        head_modules: base model -> names of its modules that are trained beside the adapter and travel with it.
        check_base: (configuration, base model, tensors of it that its files lack) -> None; refuses a base that cannot
            do the task with ``LocalError``.
        prepare_base: (base model, tensors that its files lack, pad token, seed) -> None; gives values to what the files
            lack. Peers with the same seed get the same values on every machine.
    """

    doc: str
    peft_type: str
    loader: str
    tokenize: Callable[[Sequence[Row], Tokenizer, PeerConfig], tuple[list[Tokens], list[BadRow]]]
    collate: Callable[[Sequence[Tokens], int], tuple[dict[str, Tensor], int]]
    correct: Callable[[Tensor, Tensor], int] | None
    forward: Callable[[BaseModel, Batch], Output]
    head_modules: Callable[[BaseModel], list[str]]
    check_base: Callable[[PeerConfig, BaseModel, Collection[str]], None]
    prepare_base: Callable[[BaseModel, Collection[str], int, int], None]


def forward(model: BaseModel, batch: Batch) -> Output:
    """Return what a model of transformers makes of a batch; the loss is the one that it brings itself."""
    output: Output = model(**batch)
    return output


class Measured(NamedTuple):
    """Sums over some sequences.

    Attributes:
        loss: nats, summed over the targets.
        targets: tokens predicted, or texts classified.
        correct: texts given the right label; 0 where nothing is classified.
    """

    loss: float
    targets: int
    correct: int


@torch.no_grad()
def measure(task: Task, model: BaseModel, sequences: Sequence[Tokens], batch_size: int, pad: int) -> Measured:
    """Return the sums of ``model`` (in evaluation mode) over ``sequences``, ``batch_size`` at a time."""
    loss, count, correct = 0.0, 0, 0
    device = next(model.parameters()).device
    for start in range(0, len(sequences), batch_size):
        batch, targets = task.collate(sequences[start : start + batch_size], pad)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        output = task.forward(model, batch)
        loss, count = loss + output.loss.item() * targets, count + targets
        if task.correct is not None:
            correct += task.correct(output.logits, batch["labels"])
    return Measured(loss, count, correct)


def refuse_lacking(model: ModelOptions, lacking: Sequence[str], hint: str) -> None:
    """Refuse a base whose files lack tensors that the task cannot do without.

    Raises:
        LocalError: ``lacking`` is not empty.
    """
    if lacking:
        raise LocalError(
            f"model {model.model} cannot do --task {model.task}: its files lack {len(lacking)} tensors "
            f"of it, such as {lacking[0]}.{hint}"
        )


def refuse_too_long(config: PeerConfig, base: BaseModel) -> None:
    """Refuse sequences that are longer than a model takes.

    Raises:
        LocalError: they are.
    """
    longest = positions(base)
    if longest is not None and config.training.max_length > longest:
        raise LocalError(
            f"max_length {config.training.max_length} exceeds the model's {longest} positions; lower it"
        )


def positions(base: BaseModel) -> int | None:
    """Return the longest sequence that a model takes, tokens; None if it has no limit."""
    longest: int | None = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    return longest
