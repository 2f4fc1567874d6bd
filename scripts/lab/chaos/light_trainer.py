"""A trainer that costs next to nothing: each peer pulls toward its own optimum, and the end point is known.

Its data are one JSON line ``{"optimum": [...], "step_s": seconds}``. A local step is
x <- x - eta (x - optimum), with eta from ``--learning-rate`` at all times, and takes ``step_s`` seconds of waiting. The
held-out loss of a file is |x - optimum|^2 / 2 over the number of values. ``--trainer`` names it by its place.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError
from gossip.events import TrainableFactors
from peer.config import PeerConfig
from peer.durable import write_atomically
from peer.training.frames import Evaluated, Export, OnStep, Progress, Ready, Step, Trained
from peer.training.schedules import WHOLE_RUN, Position
from peer.training.trainers import Trainer, selects

NAME = "scripts.lab.chaos.light_trainer:make_trainer"
"""What ``--trainer`` is given."""


class _Rows(NamedTuple):
    optimum: Tensor
    step_s: float


def make_trainer(config: PeerConfig, progress: Progress) -> Trainer:
    """Return the trainer of ``config.data``."""
    progress("load", None)
    (own,) = (_read(file) for file in config.data.data)
    others = {file.name: _read(file).optimum for file in config.data.eval_data}
    return LightTrainer(config, own, others)


def _read(file: Path) -> _Rows:
    try:
        row = json.loads(file.read_text())
        return _Rows(torch.tensor(row["optimum"], dtype=torch.float32), float(row["step_s"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LocalError(f"cannot read {file}: {error}") from error


class LightTrainer:
    """Walks toward its optimum."""

    def __init__(self, config: PeerConfig, own: _Rows, others: dict[str, Tensor]) -> None:
        self._config, self._own, self._others = config, own, others
        values = len(own.optimum)
        generator = torch.Generator().manual_seed(config.run.seed)
        self._initial = AdapterState(
            AdapterSpec((("x", (values,)),)), torch.randn(values, generator=generator)
        )
        self._steps = 0

    def ready(self, seconds: float) -> Ready:
        manifest = dict.fromkeys(("base_digest", "tokenizer_digest", "adapter_frozen"), "")
        manifest |= {"base_dtype": "float32", "adapter_spec": self._initial.spec.fingerprint}
        manifest["adapter_digest"] = self._initial.digest()
        export = Export("adapter_model.safetensors", {"README.txt": "x, a point\n"})
        return Ready(
            self._initial, manifest, "light", "cpu", "one optimum", 1, 1, 1, 0, seconds, export
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
        x, losses = state.flat.clone(), []
        for step in range(1, training.local_steps + 1):
            error = x - self._own.optimum
            losses.append(float(error.square().mean()) / 2)
            if selects(trainable, "x"):
                x -= training.learning_rate * error
                x += 0.0 if correction is None else correction
            threading.Event().wait(self._own.step_s)
            if on_step is not None:
                on_step(Step(step, training.local_steps, losses[-1], 1))
        self._steps += len(losses)
        seconds = time.monotonic() - started
        loss = sum(losses) / len(losses)
        return Trained(AdapterState(state.spec, x), loss, len(losses), len(losses), len(losses), seconds)

    def evaluate(self, state: AdapterState) -> Evaluated:
        per_file = {
            name: float((state.flat - optimum).square().mean()) / 2 for name, optimum in self._others.items()
        }
        return Evaluated(self.probe(state, 1), None, per_file)

    def probe(self, state: AdapterState, rows: int) -> float:
        return float((state.flat - self._own.optimum).square().mean()) / 2

    def save(self, path: Path) -> None:
        try:
            write_atomically(path, json.dumps({"steps": self._steps}).encode())
        except OSError as error:
            raise LocalError(f"cannot write {path}: {error.strerror}") from error

    def load(self, path: Path) -> None:
        try:
            self._steps = int(json.loads(path.read_bytes())["steps"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LocalError(f"cannot resume from {path}: {error}") from error
