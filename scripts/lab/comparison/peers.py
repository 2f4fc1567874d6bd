"""The peers of a trial in memory: a trainer each, all on one base model, adapters swapped.

The base model and the files stay in the process for the trials that follow. It knows nothing of methods.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections import Counter
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
from peer.training.schedules import Position
from scripts.lab.comparison.trial import Trial
from scripts.lab.workloads import Layout, lay_out, parse_workload

MODELS_KEPT = 2
"""Base models kept in a process. Source: ours; trials come seed by seed."""

LAYOUTS_KEPT = 64
"""Workloads on disk that a process remembers. Source: guess; paths only."""

TASK_FIELDS = tuple(name for name in ("task", "labels", "private_head") if name not in SHAPING)
"""Options that shape a model's head."""


@dataclass(frozen=True, slots=True, eq=False)
class Peers:
    """Peers of a trial, ready to train.

    Args:
        layout: their text, and what all are measured on.
        model: shared by all.
        config: of the first of them; they differ in their text only.
        names: of all, sorted.
        trainers: by name; what else trains on their text (a pool of all) may be added.
        tokens: round, from 0 -> target tokens trained on in it, by all together.
    """

    layout: Layout
    model: AdaptedModel
    config: PeerConfig
    names: tuple[str, ...]
    trainers: dict[str, LocalTrainer]
    tokens: Counter[int] = field(default_factory=Counter)

    def train(
        self, name: str, state: AdapterState, action: Train | None = None, round: int = 0
    ) -> LocalSteps:
        """Take one round's local steps; virtual seconds are the caller's.

        Args:
            action: what a node asks for besides; None = all tensors are trained, and nothing is added.
            round: where in the run these steps stand, from 0, where no node says it.
        """
        trainer = self.trainers[name]
        asked = action or Train(state, round)
        position = Position(asked.round, trainer.config.run.rounds)
        trained = trainer.train(state, asked.trainable, asked.correction, position=position)
        self.tokens[asked.round] += trained.tokens
        return LocalSteps(trained.state, trained.steps, trained.loss, 0.0)


def prepare_peers(trial: Trial) -> Peers:
    """Return the peers of a trial, fresh.

    Raises:
        LocalError: a text or the model cannot be had, or a setting does not fit.
    """
    layout = _layout(trial.workload, trial.partition, trial.peers, trial.seed)
    settings = trial.overrides()
    configs = [layout.config(peer, trial.seed, **settings) for peer in range(trial.peers)]
    configs = [config.with_options(eval_data=()) for config in configs]  # measured here, for all
    model = _model(*(configs[0].option(name) for name in (*SHAPING, *TASK_FIELDS)))
    names = tuple(f"p{peer:04d}" for peer in range(trial.peers))
    trainers = {name: LocalTrainer(config, model) for name, config in zip(names, configs, strict=True)}
    return Peers(layout, model, configs[0], names, trainers)


@lru_cache(maxsize=MODELS_KEPT)
def _model(*shape: Any) -> AdaptedModel:
    return AdaptedModel(PeerConfig.of(**dict(zip((*SHAPING, *TASK_FIELDS), shape, strict=True))))


@lru_cache(maxsize=LAYOUTS_KEPT)
def _layout(workload: str, partition: str, peers: int, seed: int) -> Layout:
    folder = Path(tempfile.mkdtemp(prefix="comparison-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return lay_out(parse_workload(workload), peers, folder, seed=seed, partition=partition)
