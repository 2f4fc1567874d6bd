"""What is kept of a trial, and how adapters are measured: all on the same held-out text, equal ones once.

It sees moments (all peers' adapters after a round) and makes tables of them. It runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from gossip.adapter import AdapterState
from peer.training import data
from peer.training.sequences import Tokens
from peer.training.task import measure
from peer.training.tasks import TASKS
from scripts.lab.comparison.peers import Setting
from scripts.lab.comparison.trial import COLUMNS, OUTCOMES, PEER_COLUMNS, Trial
from scripts.lab.convergence.run import Column

BATCH = 16
"""Sequences measured at a time. Source: ours; with 49,152 tokens to choose from, their logits take 0.2 GB."""


@dataclass(frozen=True, slots=True, eq=False)
class TrialResult:
    """What came out of one trial.

    Args:
        tables: ``rounds`` with ``COLUMNS`` and ``peers`` with ``PEER_COLUMNS``, float64.
        outcome: ``OUTCOMES`` -> value.
    """

    tables: dict[str, dict[str, Column]]
    outcome: dict[str, Any]


class Score(NamedTuple):
    """What an adapter is worth on some files: mean of their token means (nats), and share of right labels."""

    loss: float
    accuracy: float


class Judge:
    """Measures adapters on held-out text, each adapter once."""

    def __init__(self, setting: Setting) -> None:
        self._model, self._config = setting.model, setting.config
        self._task = TASKS[setting.config.model.task]
        self._pad = setting.model.tokenizer.pad_token_id or 0
        self._measured = [self._held_out(file) for file in setting.layout.measured]
        self._own = {
            name: self._held_out(file) for name, file in zip(setting.names, setting.layout.train, strict=True)
        }
        self._known: dict[str, Score] = {}

    def _held_out(self, file: Path) -> list[Tokens]:
        config = self._config
        rows = data.load([file], bad_rows=config.data.bad_rows, labels=config.model.labels).rows
        held = data.split(rows, config.data.held_out, config.run.seed)[1]
        return self._task.tokenize(held, self._model.tokenizer, config)[0][: config.data.eval_blocks_max]

    def __call__(self, state: AdapterState) -> Score:
        """Return the score on the files all are measured on."""
        digest = state.digest()
        if digest not in self._known:
            self._known[digest] = self._score(state, self._measured)
        return self._known[digest]

    def own(self, name: str, state: AdapterState) -> float:
        """Return the loss on held-out rows of a peer's own file."""
        return self._score(state, [self._own[name]]).loss

    def _score(self, state: AdapterState, files: Sequence[Sequence[Tokens]]) -> Score:
        self._model.put(state)
        self._model.module.eval()
        sums = [measure(self._task, self._model.module, file, BATCH, self._pad) for file in files]
        right = sum(one.correct for one in sums) / sum(one.targets for one in sums)
        classifies = self._config.model.task == "classification"
        loss = sum(one.loss / one.targets for one in sums) / len(sums)
        return Score(loss, right if classifies else math.nan)


@dataclass(frozen=True, slots=True)
class Moment:
    """All peers at the end of one round.

    Args:
        round: rounds done; 0 = before the first.
        states: adapter of each peer.
        bytes, seconds: of this round, per peer; since the start.
        merging: a round of the final merge.
        last: of the final merge.
    """

    round: int
    states: dict[str, AdapterState]
    bytes: float = 0.0
    seconds: float = 0.0
    train_loss: float = math.nan
    cross_term: float = math.nan
    merging: bool = False
    last: bool = False


class Record:
    """The tables of a trial, filled in moment by moment."""

    def __init__(self, trial: Trial, setting: Setting) -> None:
        self.diverged = False
        self.known: dict[str, Any] = {}
        self._trial, self._setting, self._judge = trial, setting, Judge(setting)
        self._rows: list[dict[str, float]] = []
        self._peers: list[dict[str, float]] = []
        self._bytes = 0.0
        self._milestones: dict[str, dict[str, float]] = {}

    def add(self, now: Moment) -> None:
        """Take the next round."""
        trial = self._trial
        self._bytes += now.bytes
        row = dict.fromkeys(COLUMNS, math.nan)
        row |= {
            "round": now.round,
            "merging": float(now.merging),
            "steps": min(now.round, trial.rounds) * trial.local_steps,
            "bytes_per_peer": self._bytes,
            "seconds": now.seconds,
            "train_loss": now.train_loss,
            "cross_term": now.cross_term,
        }
        mean = mean_adapter(list(now.states.values()))
        row["consensus_distance"] = self._distance(now.states, mean)
        trained = now.round == trial.rounds
        if now.last or trained or (not now.merging and now.round % trial.evaluate_every == 0):
            scores = {name: self._judge(state) for name, state in now.states.items()}
            common = self._judge(mean)
            losses = [score.loss for score in scores.values()]
            row |= {
                "loss": average(losses),
                "loss_worst": max(losses),
                "loss_best": min(losses),
                "loss_mean_adapter": common.loss,
                "accuracy": average([score.accuracy for score in scores.values()]),
                "accuracy_mean_adapter": common.accuracy,
            }
            if trained or now.last:
                self._milestone("final" if now.last else "unmerged", now, row, scores)
        self._rows.append(row)

    def _milestone(self, name: str, now: Moment, row: dict[str, float], scores: dict[str, Score]) -> None:
        central = (
            self._trial.what.regime == "centralized"
        )  # one adapter: equal everywhere, and so is its own loss
        own = {peer: self._judge.own(peer, state) for peer, state in now.states.items()}
        for index, peer in enumerate([] if central else sorted(now.states)):
            score = scores[peer]
            values = (now.round, index, score.loss, own[peer], score.accuracy)
            self._peers.append(dict(zip(PEER_COLUMNS, values, strict=True)))
        self._milestones[name] = {**row, "own": average(list(own.values()))}

    def _distance(self, states: Mapping[str, AdapterState], mean: AdapterState) -> float:
        moved = float((mean.flat - self._setting.model.initial.flat).double().norm())
        squares = [float((state.flat - mean.flat).double().square().sum()) for state in states.values()]
        return math.sqrt(average(squares)) / moved if moved > 0 else math.nan

    def result(self) -> TrialResult:
        """Return tables and outcome of what has been added."""
        rounds = {name: np.asarray([row[name] for row in self._rows]) for name in COLUMNS}
        peers = {
            name: np.asarray([row[name] for row in self._peers], dtype=np.float64) for name in PEER_COLUMNS
        }
        found: dict[str, Any] = {"start_loss": self._rows[0]["loss"], "diverged": 1}
        unmerged = self._milestones.get("unmerged")
        final = self._milestones.get("final", unmerged)
        if not self.diverged and unmerged and final and math.isfinite(unmerged["loss"] + final["loss"]):
            found["diverged"] = 0
            for name, at in (("unmerged", unmerged), ("final", final)):
                found |= {
                    f"{name}_loss": at["loss"],
                    f"{name}_worst": at["loss_worst"],
                    f"{name}_own": at["own"],
                }
                found[f"{name}_accuracy"] = at["accuracy"]
            found["final_mean_adapter"] = final["loss_mean_adapter"]
            found |= {name: final[name] for name in ("bytes_per_peer", "seconds")}
            found["consensus_distance"] = unmerged["consensus_distance"]
            terms = rounds["cross_term"][np.isfinite(rounds["cross_term"])]
            found["cross_term"] = float(terms.mean()) if len(terms) else None
        uneven = self._setting.layout.heterogeneity
        found |= {
            "tokens_per_peer": sum(self._setting.tokens.values()) / self._trial.peers,
            "total_variation": uneven.total_variation,
            "jensen_shannon": uneven.jensen_shannon,
            "rows_least": min(uneven.sizes),
            "rows_most": max(uneven.sizes),
            **self.known,
        }
        outcome = {name: _plain(found.get(name)) for name in OUTCOMES}
        return TrialResult({"rounds": rounds, "peers": peers}, outcome)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def average(values: Sequence[float]) -> float:
    """Return the mean."""
    return math.fsum(values) / len(values)


def mean_adapter(states: Sequence[AdapterState]) -> AdapterState:
    """Return the mean of adapters; of equal ones to the bit the first of them."""
    first = states[0]
    if all(state is first or torch.equal(state.flat, first.flat) for state in states):
        return first
    return AdapterState(first.spec, torch.stack([state.flat for state in states]).mean(dim=0))
