"""The peers of a trial in memory: a trainer each, all on one base model, adapters swapped.

The base model and the files stay in the process for the trials that follow. It knows nothing of methods.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from gossip.adapter import AdapterState
from gossip.events import Train
from gossip.simulation import LocalSteps
from peer.config import PeerConfig
from peer.training.adapted_model import SHAPING, AdaptedModel
from peer.training.local_trainer import LocalTrainer
from scripts.lab.comparison.trial import Comparison, Trial
from scripts.lab.convergence.learning import one_thread
from scripts.lab.figures import write_file
from scripts.lab.workloads import Layout, lay_out, parse_workload

MODELS_KEPT = 2
"""Base models kept in a process. Source: ours; trials come seed by seed."""


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """Peers of a trial, ready to train."""

    layout: Layout
    model: AdaptedModel
    config: PeerConfig
    names: tuple[str, ...]
    trainers: dict[str, LocalTrainer]
    tokens: dict[str, int] = field(default_factory=dict)
    """Target tokens trained on so far, by peer."""

    def train(self, name: str, state: AdapterState, action: Train | None = None) -> LocalSteps:
        """Take one round's local steps; virtual seconds are the caller's."""
        extra: dict[str, Any] = (
            {} if action is None else {"trainable": action.trainable, "correction": action.correction}
        )
        made = self.trainers[name].train(state, **extra)
        self.tokens[name] = self.tokens.get(name, 0) + made.tokens
        return LocalSteps(made.state, made.steps, made.loss, 0.0)


def make_setting(trial: Trial) -> Setting:
    """Return the peers of a trial, fresh; base model and files stay in the process for the trials that follow.

    Raises:
        LocalError: a text or the model cannot be had, or a setting does not fit.
    """
    layout = _layout(trial.workload, trial.partition, trial.peers, trial.seed)
    settings = trial.overrides()
    configs = [layout.config(peer, trial.seed, **settings) for peer in range(trial.peers)]
    configs = [dataclasses.replace(config, eval_data=()) for config in configs]  # measured here, for all
    model = _model(*(getattr(configs[0], name) for name in (*SHAPING, *TASK_FIELDS)))
    names = tuple(f"p{peer:04d}" for peer in range(trial.peers))
    trainers = {name: LocalTrainer(config, model) for name, config in zip(names, configs, strict=True)}
    return Setting(layout, model, configs[0], names, trainers)


TASK_FIELDS = tuple(name for name in ("task", "labels", "private_head") if name not in SHAPING)
"""Settings that shape a model's head."""


@lru_cache(maxsize=MODELS_KEPT)
def _model(*shape: Any) -> AdaptedModel:
    return AdaptedModel(PeerConfig(**dict(zip((*SHAPING, *TASK_FIELDS), shape, strict=True))))


@lru_cache(maxsize=64)
def _layout(workload: str, partition: str, peers: int, seed: int) -> Layout:
    folder = Path(tempfile.mkdtemp(prefix="comparison-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return lay_out(parse_workload(workload), peers, folder, seed=seed, partition=partition)


STEPS_TIMED = 20


def measured_step_s(comparison: Comparison, out: Path) -> float:
    """Return wall seconds of one optimizer step of one peer here, to two digits; measured once for a folder.

    It is kept in the folder, because trials with another number would be other trials.
    """
    kept = out / "step_s.json"
    if kept.exists():
        return float(json.loads(kept.read_text()))
    rate = dict.fromkeys(comparison.all_methods(), comparison.learning_rates[0])
    trial = dataclasses.replace(comparison.evaluation(rate)[0], local_steps=STEPS_TIMED)
    with one_thread():
        setting = make_setting(trial)
        setting.train(setting.names[0], setting.model.initial)
        begin = time.monotonic()
        setting.train(setting.names[0], setting.model.initial)
        seconds = float(f"{(time.monotonic() - begin) / STEPS_TIMED:.2g}")
    write_file(kept, json.dumps(seconds).encode())
    return seconds
