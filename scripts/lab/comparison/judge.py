"""How adapters are measured: all on the same held-out text, equal ones once.

The held-out rows of every measured file are cut in two: learning rates are tuned, and the best round is found, on the
validation rows; what is reported is measured on the test rows, which decide nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from peer.training import data
from peer.training.sequences import Tokens
from peer.training.shard import split_rows
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
    """Measures adapters on held-out text, each adapter once.

    Args:
        peers: whose text it is.
        validates: keep half of the held-out rows for validation; otherwise all are test rows.

    Raises:
        LocalError: a measured file has too few held-out rows for both halves.
    """

    def __init__(self, peers: Peers, *, validates: bool = True) -> None:
        self._model, self._config = peers.model, peers.config
        self._task = TASKS[peers.config.model.task]
        self._pad = peers.model.tokenizer.pad_token_id or 0
        self._one_by_one = peers.layout.one_by_one
        measured = peers.layout.measured
        if validates:
            halves = [self._halves(file) for file in measured]
            self._test, self._validation = ([half[which] for half in halves] for which in (0, 1))
        else:
            self._test, self._validation = [self._tokenized(self._held_out(file)) for file in measured], []
        self._own = {
            name: self._tokenized(split_rows(self._config, self._rows(file))[1])
            for name, file in zip(peers.names, peers.layout.train, strict=True)
        }
        self._scores: dict[tuple[str, str], Score] = {}

    def _rows(self, file: Path) -> Sequence[data.Row]:
        config = self._config
        return data.load([file], bad_rows=config.data.bad_rows, labels=config.model.labels).rows

    def _held_out(self, file: Path) -> list[data.Row]:
        """Return the rows of a measured file that are nobody's training text."""
        config, rows = self._config, self._rows(file)
        return data.split(rows, config.data.held_out, config.run.seed, one_by_one=self._one_by_one)[1]

    def _tokenized(self, rows: Sequence[data.Row]) -> list[Tokens]:
        sequences = self._task.tokenize(rows, self._model.tokenizer, self._config)[0]
        return sequences[: self._config.data.eval_blocks_max]

    def _halves(self, file: Path) -> tuple[list[Tokens], list[Tokens]]:
        """Return sequences of the test rows and of the validation rows: every other row of the file's order."""
        rows = self._held_out(file)
        test, validation = self._tokenized(rows[::2]), self._tokenized(rows[1::2])
        if not test or not validation:
            raise LocalError(
                f"{len(rows)} held-out rows of {file.name} are too few for a validation and a test half: give more "
                "rows, or a larger held_out"
            )
        return test, validation

    def __call__(self, state: AdapterState) -> Score:
        """Return the score on the test rows that all are measured on."""
        return self._once("test", state, self._test)

    def validation(self, state: AdapterState) -> Score:
        """Return the score on the validation rows."""
        return self._once("validation", state, self._validation)

    def own(self, name: str, state: AdapterState) -> float:
        """Return the loss on held-out rows of a peer's own file."""
        return self._score(state, [self._own[name]]).loss

    def _once(self, half: str, state: AdapterState, files: Sequence[Sequence[Tokens]]) -> Score:
        known = half, state.digest()
        if known not in self._scores:
            self._scores[known] = self._score(state, files)
        return self._scores[known]

    def _score(self, state: AdapterState, files: Sequence[Sequence[Tokens]]) -> Score:
        self._model.put(state)
        self._model.module.eval()
        sums = [measure(self._task, self._model.module, file, BATCH, self._pad) for file in files]
        right = sum(measured.correct for measured in sums) / sum(measured.targets for measured in sums)
        classifies = self._config.model.task == "classification"
        loss = sum(measured.loss / measured.targets for measured in sums) / len(sums)
        return Score(loss, right if classifies else math.nan)
