"""What every task promises (``peer/training/task.py``), ours and one that is defined here and named by one line."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import peft
import pytest
import torch
import transformers
from torch import Tensor

from peer import config as options
from peer.config import PeerConfig
from peer.training import data, tiny_model
from peer.training.causal_lm import CAUSAL_LM
from peer.training.libraries import BaseModel
from peer.training.local_trainer import LocalTrainer
from peer.training.sequences import IGNORED, Batch
from peer.training.task import Output, measure
from peer.training.tasks import TASKS

Configure = Callable[..., PeerConfig]
PLUG_IN = "smoothed-lm"


class Smoothed(NamedTuple):
    """A model's answer with another loss."""

    loss: Tensor
    logits: Tensor


def smoothed(model: BaseModel, batch: Batch) -> Output:
    """Return the cross-entropy with a tenth of each target's weight spread over all tokens (arXiv 1512.00567)."""
    logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    flat, targets = logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(flat, targets, ignore_index=IGNORED, label_smoothing=0.1)
    return Smoothed(loss, logits)


@pytest.fixture(params=[*TASKS, PLUG_IN])
def configure(
    request: pytest.FixtureRequest, quick: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Configure:
    """Return what makes a configuration for the task under test."""
    settings: dict[str, object] = {"task": request.param, "eval_blocks_max": 40}
    if request.param == PLUG_IN:
        monkeypatch.setitem(TASKS, PLUG_IN, dataclasses.replace(CAUSAL_LM, forward=smoothed))  # the one line
        monkeypatch.setattr(options, "TASKS", (*options.TASKS, PLUG_IN))  # and its name
    if request.param == "classification":
        rows = [
            {"text": phrase + mark, "label": mark}
            for phrase in tiny_model.phrases(tiny_model.OBJECTS)
            for mark in "?."
        ]
        file = tmp_path / "labeled.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings |= {"data": (file,), "labels": ("?", "."), "local_steps": 10}
    return lambda **more: quick(**{**settings, **more})


def test_the_catalogue_and_the_options_name_the_same_tasks() -> None:
    assert tuple(TASKS) == options.TASKS
    for task in TASKS.values():
        assert task.doc
        assert task.peft_type in peft.TaskType.__members__
        assert hasattr(transformers, task.loader)


def test_sequences_are_neither_empty_nor_too_long(configure: Configure) -> None:
    trainer = LocalTrainer(configure(max_length=16))
    rows = data.load(trainer.config.data.data, labels=trainer.config.model.labels).rows
    sequences, bad = trainer.task.tokenize(rows, trainer.model.tokenizer, trainer.config)
    assert sequences
    assert all(1 <= len(sequence.ids) <= 16 for sequence in sequences)
    assert all(row.reason for row in bad)
    again, _ = trainer.task.tokenize(rows, trainer.model.tokenizer, trainer.config)
    assert again == sequences


def test_what_is_measured_does_not_depend_on_batches_and_padding(configure: Configure) -> None:
    trainer = LocalTrainer(configure())
    model, pad = trainer.model.module.eval(), trainer.model.tokenizer.pad_token_id
    assert pad is not None
    sequences = [*trainer.shard.train][:9]
    alone, together = (measure(trainer.task, model, sequences, size, pad) for size in (1, 4))
    assert (alone.targets, alone.correct) == (together.targets, together.correct)
    assert alone.targets >= len(sequences)
    assert 0 <= alone.correct <= alone.targets
    assert math.isfinite(alone.loss)
    assert together.loss == pytest.approx(alone.loss, rel=1e-4)
    _, targets = trainer.task.collate(sequences, pad)
    assert targets == alone.targets


def test_it_is_learned_and_its_head_travels(configure: Configure) -> None:
    trainer = LocalTrainer(configure())
    before = trainer.evaluate(trainer.initial)
    trained = trainer.train(trainer.initial).state
    after = trainer.evaluate(trained)
    assert after.own < before.own
    assert (before.accuracy is None) == (trainer.task.correct is None)
    names = {name for name, _ in trainer.spec.entries}
    for head in trainer.task.head_modules(trainer.model.module.get_base_model()):
        assert any(f".{head}." in name for name in names)
    assert LocalTrainer(trainer.config).initial.digest() == trainer.initial.digest()


def test_a_task_of_ones_own_has_its_own_loss(quick: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, PLUG_IN, dataclasses.replace(CAUSAL_LM, forward=smoothed))
    monkeypatch.setattr(options, "TASKS", (*options.TASKS, PLUG_IN))
    plain, own = LocalTrainer(quick()), LocalTrainer(quick(task=PLUG_IN))
    assert own.initial.digest() == plain.initial.digest()
    assert own.evaluate(own.initial).own > plain.evaluate(plain.initial).own
    assert own.train(own.initial).state.digest() != plain.train(plain.initial).state.digest()
