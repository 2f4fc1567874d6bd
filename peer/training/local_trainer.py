"""Local training: a peer's own rows, optimizer steps on the adapter of a frozen base, held-out losses.

This is the trainer called ``local-steps``; what a trainer is, ``trainers.py`` says. The adapter comes and goes as one
flat vector; the base may be shared with other peers of this process (``adapted_model.py``). Optimizer, generators and
sampler are the peer's own (``own_optimizer.py``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from gossip.events import TrainableFactors
from peer.config import PeerConfig
from peer.training import data, rates, tasks
from peer.training.adapted_model import AdaptedModel
from peer.training.frames import Evaluated, OnStep, Progress, RateChoice, Ready, RowLosses, Step, Trained
from peer.training.local_steps import Learner, Parameters, Shift, frozen_but
from peer.training.model_making import silent
from peer.training.own_optimizer import OwnOptimizer
from peer.training.rate_trial import try_rates
from peer.training.readers import DataError
from peer.training.schedules import WHOLE_RUN, Position
from peer.training.sequences import Batch, BatchSampler, Tokens
from peer.training.shard import is_streamed, make_shard, open_shard
from peer.training.step_kinds import steps_of
from peer.training.task import Measured, Task, measure
from peer.training.trainers import Trainer
from peer.training.units import owner_field

MEASURED_AT_ONCE = 4
"""At least so many sequences are measured together, where training takes fewer at a step. Source: our bench on SmolLM2:
one at a time takes 1.6 times as long, and more together gain nothing."""


def make_trainer(config: PeerConfig, progress: Progress) -> Trainer:
    """Return the trainer of a peer that has a process to itself."""
    return LocalTrainer(config, progress=progress)


def _loaded(config: PeerConfig) -> data.Loaded:
    return data.load(
        config.data.data,
        bad_rows=config.data.bad_rows,
        labels=config.model.labels,
        owner_field=owner_field(config),
    )


class LocalTrainer:
    """One peer's data, sampler, optimizer and generators, on a model of its own or one lent to several peers.

    Peers that share a model get to the bit what they would get with one each; they must take turns.

    Args:
        config: settings of the peer.
        model: the model to train on; without one, its own is built from ``config``.
        progress: told of stages while a model is built.
        draw: gives the sequences of each step (``draw_batch`` of other trainers, say), in place of our own; ``save``
            then keeps nothing of where it is. Not with differential privacy, which draws in secret.
        task: what is learned in place of what ``config`` names; experiments train attackers so.

    Attributes:
        model: the model with the adapter.
        spec, initial, manifest: of the model.
        task: what is learned.
        shard: the sequences that are learned and measured.

    Raises:
        LocalError: the model, a target module, a layer or the device does not exist, or the model lent was built
            with other settings.
        DataError: the data cannot be used.
    """

    def __init__(
        self,
        config: PeerConfig,
        model: AdaptedModel | None = None,
        progress: Progress | None = None,
        draw: Callable[[], list[Tokens]] | None = None,
        task: Task | None = None,
    ):
        self.config = config = rates.with_rate(config)
        self._kept_rate = 0.0  # of a state that was loaded
        if not config.data.data:
            raise DataError("no data to train on: give at least one file")
        self.task = task or tasks.TASKS[config.model.task]
        loaded = None if is_streamed(config) else _loaded(config)  # before the model: it may be refused
        if model is not None:
            model.check(config)
        self.model = model or AdaptedModel(config, progress)
        self.spec, self.initial, self.manifest = self.model.spec, self.model.initial, self.model.manifest
        if loaded is None:
            self.shard = open_shard(config, self.model.tokenizer, progress or silent)
        else:
            self.shard = make_shard(config, loaded, self.task, self.model.tokenizer)
        self._parameters: Parameters = self.model.parameters
        self._optimizer = OwnOptimizer(config, self.model)
        self._pad = self.model.tokenizer.pad_token_id or 0
        self._measured_at_once = max(MEASURED_AT_ONCE, config.training.batch_size)
        self._sampler = BatchSampler(len(self.shard.train), config.training.batch_size, config.run.seed)
        self._learner = Learner(
            config,
            self.model.module,
            self._parameters,
            self.task,
            self.shard,
            self._optimizer.torch,
            self._batch,
            draw or self.draw_batch,
            self.model.tokenizer.vocab_size,
        )
        self._steps = steps_of(self._learner)

    def ready(self, seconds: float) -> Ready:
        """Return what the network process is told of us; see ``Trainer``."""
        return Ready(
            initial=self.initial,
            manifest=self.manifest,
            model_name=self.model.source.name,
            device=self.model.device,
            data_report=self.shard.report,
            rows=self.shard.rows,
            rows_held_out=self.shard.rows_held_out,
            sequences=len(self.shard.train),
            base_parameters=self.model.base_parameters,
            seconds=seconds,
            export=self.model.export,
            label_rows=self.shard.label_rows,
            canaries=self.shard.canaries,
            notes=self._steps.notes(),
        )

    def draw_batch(self) -> list[Tokens]:
        """Return ``batch_size`` of our own training sequences, the next in order, and move on."""
        return [self.shard.train[index] for index in self._sampler.draw()]

    def train(
        self,
        state: AdapterState,
        trainable: TrainableFactors = "all",
        correction: Tensor | None = None,
        on_step: OnStep | None = None,
        position: Position = WHOLE_RUN,
    ) -> Trained:
        """Take ``local_steps`` steps from ``state``; see ``Trainer``.

        Raises:
            Diverged, OutOfMemory: as said by ``Steps.take``.
            LocalError: the adapter has nothing of that part.
        """
        self.model.put(state)
        self.model.module.train()
        start, steps = time.monotonic(), self.config.training.local_steps
        loss_sum, tokens, sequences, dropped = 0.0, 0, 0, 0
        trained = self._optimizer.selected(trainable)
        if stopped := self._steps.begin():
            return Trained(state, math.nan, 0, 0, 0, time.monotonic() - start, stopped=stopped)
        self._optimizer.begin_round()
        with self._optimizer.own_generators(), frozen_but(trained, self._parameters):
            shift = Shift(trained, state, correction, self.config.training.proximal)
            for step in range(1, steps + 1):
                self._optimizer.set_rate(self.config.training.learning_rate, position, step - 1)
                took = self._steps.take(shift)
                if took.counts:
                    loss_sum, tokens = loss_sum + took.loss * took.targets, tokens + took.targets
                    sequences += took.sequences
                dropped += took.dropped
                if on_step is not None:
                    on_step(Step(step, steps, took.loss, took.targets))
        mean = loss_sum / tokens if tokens else math.nan
        seconds = time.monotonic() - start
        return Trained(self.model.state(), mean, steps, sequences, tokens, seconds, dropped)

    def find_rate(self, progress: Progress) -> RateChoice:
        """Find a learning rate by a short trial, and take it from now on; see ``FindsRate``."""
        usual, config = self.config.training.learning_rate, self.config
        if self._kept_rate:
            self.config = config.with_options(learning_rate=self._kept_rate)
            return RateChoice(self._kept_rate, "kept")
        if config.privacy.dp_epsilon:
            return RateChoice(usual, "usual", "a trial would spend of the privacy budget")
        kept = dict(self._optimizer.generators)
        self.model.put(self.initial)
        with self._optimizer.own_generators():
            shift = Shift(self._parameters, self.initial, None, config.training.proximal)
            trial = try_rates(self._learner, shift, usual, progress)
        self._optimizer.generators = kept
        if not trial.rate:
            return RateChoice(usual, "usual", trial.why, trial.tried)
        self.config = config.with_options(learning_rate=trial.rate)
        return RateChoice(trial.rate, "tried", tried=trial.tried)

    @torch.no_grad()
    def evaluate(self, state: AdapterState) -> Evaluated:
        """Return held-out losses of ``state``, over files: our own and those of ``eval_data``."""
        self.model.put(state)
        self.model.module.eval()
        sums = {
            file: measure(self.task, self.model.module, sequences, self._measured_at_once, self._pad)
            for file, sequences in self.shard.held_out.items()
            if sequences
        }
        losses = self._means(sums, lambda measured: measured.loss)
        if self.task.correct is None:
            return Evaluated(*losses)
        return Evaluated(*losses, *self._means(sums, lambda measured: measured.correct))

    @torch.no_grad()
    def probe(self, state: AdapterState, rows: int) -> float:
        """Return the loss of ``state`` on a few of our own held-out sequences; see ``Trainer``."""
        self.model.put(state)
        self.model.module.eval()
        own = [
            sequence
            for file in self.config.data.data
            for sequence in self.shard.held_out.get(file.resolve(), ())
        ]
        measured = measure(self.task, self.model.module, own[:rows], self._measured_at_once, self._pad)
        return measured.loss / measured.targets

    def row_losses(self, state: AdapterState) -> RowLosses:
        """Return the loss of ``state`` on single rows; see ``MeasuresRows``."""
        if self.shard.audited is None:
            raise LocalError("single rows are measured only in a run with --audit")
        self.model.put(state)
        self.model.module.eval()
        return self.shard.audited.losses(self.task, self.model.module, self._pad)

    def _means(
        self, sums: Mapping[Path, Measured], total: Callable[[Measured], float]
    ) -> tuple[float, float | None, dict[str, float]]:
        """Return the mean of ``total`` over our own targets, over the means of all files, and that of each file."""
        files = self.config.data
        own = [sums[file.resolve()] for file in files.data if file.resolve() in sums]
        means = {file: total(measured) / measured.targets for file, measured in sums.items()}
        per_file = {str(file): means[file.resolve()] for file in files.eval_data if file.resolve() in means}
        return (
            sum(map(total, own)) / sum(measured.targets for measured in own),
            sum(means.values()) / len(means) if files.eval_data else None,
            per_file,
        )

    def save(self, path: Path) -> None:
        """Write optimizer, generators and sampler to the file ``path``, whole or not at all.

        Raises:
            LocalError: the disk is full, or the folder cannot be written.
        """
        written = {
            "sampler": self._sampler.state(),
            "learning_rate": self.config.training.learning_rate,
            **self._steps.state(),
        }
        self._optimizer.save(path, written, {})

    def load(self, path: Path) -> None:
        """Continue where ``save`` was called; on a CPU the next steps are then the same to the bit.

        Raises:
            LocalError: no such file, not ours, made with another adapter or other data, or by an earlier version.
        """
        written, tensors = self._optimizer.read(path)
        self._sampler.restore(written["sampler"])
        # files of earlier versions do not have it: their rate was always given
        self._kept_rate = written.get("learning_rate", self.config.training.learning_rate)
        self._steps.restore(path, written)
        self._optimizer.restore(tensors)

    def _batch(self, sequences: Sequence[Tokens]) -> tuple[Batch, int]:
        """Return model inputs on the device, and how many targets are predicted."""
        batch, targets = self.task.collate(sequences, self._pad)
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}, targets
