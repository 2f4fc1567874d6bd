"""A trainer of another kind, as a user might write one: it fits B A x to y by gradient descent, with numpy alone.

Its data are JSON lines of ``{"x": [...], "y": [...]}``. No language model, no tokenizer, no optimizer of torch: only
what ``peer.training.trainers.Trainer`` asks for. ``test_trainer_conformance.py`` holds it to that.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gossip.adapter import AdapterState
from gossip.errors import Diverged, LocalError
from gossip.events import TrainableFactors
from gossip.rollouts import Received, Rollout
from peer.config import PeerConfig
from peer.durable import write_atomically
from peer.training.frames import Evaluated, Export, OnStep, Progress, Ready, Step, Trained
from peer.training.schedules import WHOLE_RUN, Position
from peer.training.trainers import Trainer, selects

Values = NDArray[np.float32]
MOMENTUM = 0.5


def make_trainer(config: PeerConfig, progress: Progress) -> Trainer:
    """Return the trainer for the rows of ``config.data.data``."""
    progress("load", None)
    try:
        rows = [json.loads(line) for file in config.data.data for line in file.read_text().splitlines()]
    except OSError as error:
        raise LocalError(f"cannot read {error.filename}: {error.strerror}") from error
    return LeastSquares(config, *(np.array([row[key] for row in rows], np.float32) for key in "xy"))


def make_of_one_rate(config: PeerConfig, progress: Progress) -> Any:
    """Return a trainer that follows no schedule: its ``train`` has no argument for a position."""
    return OneRate(make_trainer(config, progress))


class OneRate:
    """Everything as the trainer within, but for ``train``."""

    def __init__(self, within: Trainer) -> None:
        self._within = within

    def __getattr__(self, name: str) -> Any:
        return getattr(self._within, name)

    def train(
        self, state: AdapterState, trainable: TrainableFactors, correction: Tensor | None, on_step: OnStep
    ) -> Trained:
        return self._within.train(state, trainable, correction, on_step)


def make_talkative(config: PeerConfig, progress: Progress) -> Any:
    """Return a trainer that hands out an answer of its own a step, and those that it was given."""
    return Talkative(make_trainer(config, progress))


class Talkative(OneRate):
    """Everything as the trainer within; what it was given comes back as answers of a task called ``came``."""

    def train(
        self,
        state: AdapterState,
        trainable: TrainableFactors,
        correction: Tensor | None,
        on_step: OnStep,
        rollouts: tuple[Received, ...] = (),
    ) -> Trained:
        trained = super().train(state, trainable, correction, on_step)
        own = [Rollout("own", 0, index, f"{trained.loss:.3f}\n") for index in range(trained.steps)]
        for one in rollouts:
            if one.rollout.task == "own":
                answer = f"{one.sender}: {one.rollout.answer}"
                own.append(Rollout("came", one.round, one.rollout.index, answer))
        return replace(trained, rollouts=tuple(own))


class LeastSquares:
    """Fits float32[n, k] ``x`` to float32[n, d] ``y``; the last fifth of the rows is held out."""

    def __init__(self, config: PeerConfig, x: Values, y: Values) -> None:
        self._config, self._x, self._y = config, x, y
        self._train_rows = len(x) - len(x) // 5
        rank = config.model.lora_r
        first = np.random.default_rng(config.run.seed).standard_normal((rank, x.shape[1]), dtype=np.float32)
        tensors = {"lora_A": torch.from_numpy(first), "lora_B": torch.zeros(y.shape[1], rank)}
        self._initial = AdapterState.from_tensors(tensors)
        self._draw = np.random.default_rng(config.run.seed)
        self._velocity = {name: np.zeros(shape, np.float32) for name, shape in self._initial.spec.entries}

    def ready(self, seconds: float) -> Ready:
        manifest = dict.fromkeys(("base_digest", "tokenizer_digest", "adapter_frozen"), "")
        manifest |= {"base_dtype": "float32", "adapter_spec": self._initial.spec.fingerprint}
        manifest["adapter_digest"] = self._initial.digest()
        export = Export("factors.safetensors", {"README.txt": "y is lora_B lora_A x"})
        held_out = len(self._x) - self._train_rows
        report = f"{len(self._x)} rows of numbers"
        return Ready(
            self._initial, manifest, "least squares", "cpu", report, self._train_rows, held_out,
            self._train_rows, 0, seconds, export,
        )  # fmt: skip

    def train(
        self,
        state: AdapterState,
        trainable: TrainableFactors = "all",
        correction: Tensor | None = None,
        on_step: OnStep | None = None,
        position: Position = WHOLE_RUN,
    ) -> Trained:
        started, training = time.monotonic(), self._config.training
        values = {name: view.numpy().copy() for name, view in state.tensors()}
        shift = {} if correction is None else dict(AdapterState(state.spec, correction).tensors())
        losses = []
        for step in range(1, training.local_steps + 1):
            rows = self._draw.integers(self._train_rows, size=training.batch_size)
            loss, gradients = _loss_and_gradients(
                values["lora_A"], values["lora_B"], self._x[rows], self._y[rows]
            )
            if not np.isfinite(loss):
                raise Diverged("the loss is not a number any more: lower learning_rate")
            factor = position.factor(training.schedule, training.warmup_steps, step - 1, training.local_steps)
            for name in filter(lambda name: selects(trainable, name), values):
                self._velocity[name] = MOMENTUM * self._velocity[name] + gradients[name]
                values[name] -= np.float32(training.learning_rate * factor) * self._velocity[name]
                if name in shift:
                    values[name] += shift[name].numpy()
            losses.append(loss)
            if on_step is not None:
                on_step(Step(step, training.local_steps, loss, len(rows)))
        trained = AdapterState.from_tensors({name: torch.from_numpy(array) for name, array in values.items()})
        rows_seen = len(losses) * training.batch_size
        seconds = time.monotonic() - started
        return Trained(trained, float(np.mean(losses)), len(losses), rows_seen, rows_seen, seconds)

    def evaluate(self, state: AdapterState) -> Evaluated:
        return Evaluated(self.probe(state, len(self._x)), None, {})

    def probe(self, state: AdapterState, rows: int) -> float:
        factors = {name: view.numpy() for name, view in state.tensors()}
        held_out = slice(self._train_rows, self._train_rows + rows)
        loss, _ = _loss_and_gradients(
            factors["lora_A"], factors["lora_B"], self._x[held_out], self._y[held_out]
        )
        return loss

    def save(self, path: Path) -> None:
        velocity = {name: values.tolist() for name, values in self._velocity.items()}
        written = {"draw": self._draw.bit_generator.state, "velocity": velocity}
        try:
            write_atomically(path, json.dumps(written).encode())
        except OSError as error:
            raise LocalError(f"cannot write {path}: {error.strerror}") from error

    def load(self, path: Path) -> None:
        try:
            written = json.loads(path.read_bytes())
            self._draw.bit_generator.state = written["draw"]
            self._velocity = {name: np.array(rows, np.float32) for name, rows in written["velocity"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LocalError(f"cannot resume from {path}: {error}") from error


def _loss_and_gradients(a: Values, b: Values, x: Values, y: Values) -> tuple[float, dict[str, Values]]:
    """Return mean |B A x - y|^2 / 2 over the rows, and its gradients."""
    error = x @ a.T @ b.T - y  # [n, d]
    gradients = {"lora_A": b.T @ error.T @ x / len(x), "lora_B": error.T @ (x @ a.T) / len(x)}
    return float((error**2).sum() / len(x) / 2), gradients
