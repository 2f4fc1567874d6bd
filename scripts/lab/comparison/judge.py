"""How adapters are measured: all on the same held-out text, equal ones once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gossip.adapter import AdapterState
from peer.training import data
from peer.training.sequences import Tokens
from peer.training.task import measure
from peer.training.tasks import TASKS
from scripts.lab.comparison.peers import Peers

BATCH = 16
"""Sequences measured at a time. Source: ours; with 49,152 tokens to choose from, their logits take 0.2 GB."""


class Score(NamedTuple):
    """What an adapter is worth on some files: mean of their token means (nats), and share of right labels."""

    loss: float
    accuracy: float


class Judge:
    """Measures adapters on held-out text, each adapter once."""

    def __init__(self, peers: Peers) -> None:
        self._model, self._config = peers.model, peers.config
        self._task = TASKS[peers.config.model.task]
        self._pad = peers.model.tokenizer.pad_token_id or 0
        self._measured = [self._held_out(file) for file in peers.layout.measured]
        self._own = {
            name: self._held_out(file) for name, file in zip(peers.names, peers.layout.train, strict=True)
        }
        self._scores: dict[str, Score] = {}

    def _held_out(self, file: Path) -> list[Tokens]:
        config = self._config
        rows = data.load([file], bad_rows=config.data.bad_rows, labels=config.model.labels).rows
        held = data.split(rows, config.data.held_out, config.run.seed)[1]
        return self._task.tokenize(held, self._model.tokenizer, config)[0][: config.data.eval_blocks_max]

    def __call__(self, state: AdapterState) -> Score:
        """Return the score on the files all are measured on."""
        digest = state.digest()
        if digest not in self._scores:
            self._scores[digest] = self._score(state, self._measured)
        return self._scores[digest]

    def own(self, name: str, state: AdapterState) -> float:
        """Return the loss on held-out rows of a peer's own file."""
        return self._score(state, [self._own[name]]).loss

    def _score(self, state: AdapterState, files: Sequence[Sequence[Tokens]]) -> Score:
        self._model.put(state)
        self._model.module.eval()
        sums = [measure(self._task, self._model.module, file, BATCH, self._pad) for file in files]
        right = sum(measured.correct for measured in sums) / sum(measured.targets for measured in sums)
        classifies = self._config.model.task == "classification"
        loss = sum(measured.loss / measured.targets for measured in sums) / len(sums)
        return Score(loss, right if classifies else math.nan)
