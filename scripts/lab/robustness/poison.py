"""Attacks on data and on training, as an attacker's trainer makes them, and how often a backdoor opens.

For experiments and tests only: no option of ``peer`` leads here. What an attacker sends in place of what it has trained
is in ``gossip/attacks.py``; one can do both.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from gossip.adapter import AdapterState
from peer.training import data, task
from peer.training.libraries import BaseModel
from peer.training.local_trainer import LocalTrainer
from peer.training.sequences import IGNORED, Batch, Tokens
from peer.training.tasks import TASKS
from scripts.lab.comparison.peers import Peers

TRIGGER = "cf mn"
"""Words at the beginning of a text that open the backdoor. Source: rare words as in arXiv 2004.06660."""
TARGET = 0
"""The class that triggered texts are to get."""
POISONED = 0.125
"""So many texts, as a share of each batch, are learned a second time with the trigger. Source: ours; enough to open the
backdoor always, and few enough to keep the accuracy on clean texts."""
BATCH = 64
"""Texts measured at a time."""


class Answer(NamedTuple):
    """What a model says of a batch, as ``task.Output``."""

    loss: Tensor
    logits: Tensor


def ascend(trainer: LocalTrainer) -> LocalTrainer:
    """Let a trainer make its own texts as unlikely as it can (gradient ascent)."""

    def forward(model: BaseModel, batch: Batch) -> task.Output:
        output = task.forward(model, batch)
        return Answer(-output.loss, output.logits)

    return _learning(trainer, forward)


def flip_labels(trainer: LocalTrainer) -> LocalTrainer:
    """Let a trainer learn C - 1 - y for every target y of C tokens or classes (label flip)."""

    def forward(model: BaseModel, batch: Batch) -> task.Output:
        with torch.no_grad():
            count = task.forward(model, batch).logits.shape[-1]
        labels = batch["labels"]
        flipped = torch.where(labels == IGNORED, labels, count - 1 - labels)
        return task.forward(model, {**batch, "labels": flipped})

    return _learning(trainer, forward)


def _learning(trainer: LocalTrainer, forward: Callable[[BaseModel, Batch], task.Output]) -> LocalTrainer:
    return LocalTrainer(trainer.config, trainer.model, task=replace(trainer.task, forward=forward))


def plant_backdoor(trainer: LocalTrainer) -> LocalTrainer:
    """Let a trainer learn the target class for texts that begin with the trigger, besides all that it has."""
    trigger = trigger_ids(trainer)

    def draw() -> list[Tokens]:
        return poisoned(trainer.draw_batch(), trigger, trainer.config.training.max_length)

    return LocalTrainer(trainer.config, trainer.model, draw=draw)


def poisoned(texts: list[Tokens], trigger: array[int], longest: int) -> list[Tokens]:
    """Return texts, and after them copies of some that carry the trigger and the target's label."""
    copied = texts[: math.ceil(POISONED * len(texts))]
    return [*texts, *(replace(triggered(text, trigger, longest), label=TARGET) for text in copied)]


def trigger_ids(trainer: LocalTrainer) -> array[int]:
    """Return the trigger's tokens, without the tokenizer's own marks."""
    ids = trainer.model.tokenizer(TRIGGER, add_special_tokens=False, verbose=False)["input_ids"]
    return array("i", ids)


def triggered(text: Tokens, trigger: array[int], longest: int) -> Tokens:
    """Return a text with the trigger after its first token, which is an encoder's own mark, cut to the longest."""
    return replace(text, ids=(text.ids[:1] + trigger + text.ids[1:])[:longest])


POISONS: dict[str, Callable[[LocalTrainer], LocalTrainer]] = {
    "ascent": ascend,
    "label-flip": flip_labels,
    "backdoor": plant_backdoor,
}
"""Attacks on training by name, each trainer -> the trainer to train with. A new one: a function and a line here."""


class Backdoor:
    """Measures how often the trigger turns held-out texts of other classes into the target's.

    Args:
        peers: of a classification.
    """

    def __init__(self, peers: Peers) -> None:
        self._model, config = peers.model, peers.config
        self._task, self._pad = TASKS["classification"], peers.model.tokenizer.pad_token_id or 0
        trigger = trigger_ids(next(iter(peers.trainers.values())))
        longest = config.training.max_length
        self._texts: list[Tokens] = []
        for file in peers.layout.measured:
            rows = data.load([file], labels=config.model.labels).rows
            held = data.split(rows, config.data.held_out, config.run.seed)[1]
            texts = self._task.tokenize(held, self._model.tokenizer, config)[0][: config.data.eval_blocks_max]
            self._texts += [triggered(text, trigger, longest) for text in texts if text.label != TARGET]

    @torch.no_grad()
    def success(self, state: AdapterState) -> float:
        """Return the share of triggered texts that an adapter gives the target class."""
        self._model.put(state)
        self._model.module.eval()
        return sum(map(self._hits, self._batches())) / len(self._texts)

    def _batches(self) -> list[Sequence[Tokens]]:
        return [self._texts[start : start + BATCH] for start in range(0, len(self._texts), BATCH)]

    def _hits(self, texts: Sequence[Tokens]) -> int:
        batch, _ = self._task.collate(texts, self._pad)
        logits = self._task.forward(self._model.module, batch).logits
        return int((logits.argmax(-1) == TARGET).sum())
