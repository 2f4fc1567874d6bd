"""What is kept of a trial: tables and one outcome, filled in moment by moment.

A moment is all peers' adapters after a round. It runs nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gossip.adapter import AdapterState
from scripts.lab.comparison.judge import Judge, Score
from scripts.lab.comparison.peers import Peers
from scripts.lab.comparison.server import mean_adapter
from scripts.lab.comparison.trial import COLUMNS, OUTCOMES, PEER_COLUMNS, Trial
from scripts.lab.statistics import Values


@dataclass(frozen=True, slots=True, eq=False)
class TrialResult:
    """What came out of one trial.

    Args:
        tables: ``rounds`` with ``COLUMNS`` and ``peers`` with ``PEER_COLUMNS``, float64.
        outcome: ``OUTCOMES`` -> value.
    """

    tables: dict[str, dict[str, Values]]
    outcome: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Moment:
    """All peers at the end of one round.

    Args:
        round: rounds done; 0 = before the first.
        states: adapter of each peer.
        bytes: read by a peer in this round, mean over the peers.
        seconds: virtual, since the start.
        train_loss: mean over the peers' local steps, nats; NaN = nothing was trained.
        cross_term: see ``gossip.events.RoundReport``; NaN = not measured.
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


class Converged(Exception):
    """A trial need not go on: its validation loss falls no more, or all rounds are taken."""


class Best(NamedTuple):
    """The best evaluation of a trial that goes on until it has converged.

    Attributes:
        validation: mean over peers of the loss of their own adapters on validation rows.
        moment: the peers then.
        row: of the table of rounds.
    """

    validation: float
    moment: Moment
    row: dict[str, float]


class Record:
    """The tables of a trial, filled in moment by moment.

    Attributes:
        diverged: training found no finite loss any more.
        simulated: outcomes that only the simulator knows.
    """

    def __init__(self, trial: Trial, peers: Peers) -> None:
        self.diverged = False
        self.simulated: dict[str, Any] = {}
        self._trial, self._peers, self._judge = trial, peers, Judge(peers)
        self._rounds: list[dict[str, float]] = []
        self._peer_rows: list[dict[str, float]] = []
        self._bytes = 0.0
        self._milestones: dict[str, dict[str, float]] = {}
        self._latest: Moment | None = None
        self._best: Best | None = None
        self._evaluations_since = 0

    def add(self, now: Moment) -> None:
        """Take the next round.

        Raises:
            Converged: of a trial with patience, which has ended.
        """
        trial = self._trial
        self._latest = now
        self._bytes += now.bytes
        mean = mean_adapter(list(now.states.values()))
        row = dict.fromkeys(COLUMNS, math.nan) | {
            "round": now.round,
            "merging": float(now.merging),
            "tokens_per_peer": self._tokens(now.round),
            "bytes_per_peer": self._bytes,
            "seconds": now.seconds,
            "train_loss": now.train_loss,
            "cross_term": now.cross_term,
            "consensus_distance": self._distance(now.states, mean),
        }
        trained = now.round == trial.rounds
        due = now.last or trained or (not now.merging and now.round % trial.evaluate_every == 0)
        if due and not trial.tunes:
            scores = {name: self._judge(state) for name, state in now.states.items()}
            row |= _measures(list(scores.values()), self._judge(mean))
            if (trained or now.last) and not trial.patience:
                self._milestone("final" if now.last else "unmerged", now, row)
        self._rounds.append(row)
        if due and trial.patience:
            self._follow(now, row)

    def _follow(self, now: Moment, row: dict[str, float]) -> None:
        """Keep the best evaluation; end the trial where there has been no better one for too long."""
        validation = self._validation(now)
        self._evaluations_since += 1
        if self._best is None or validation < self._best.validation:
            self._best, self._evaluations_since = Best(validation, now, row), 0
        if self._evaluations_since >= self._trial.patience or now.round >= self._trial.rounds:
            raise Converged

    def _validation(self, now: Moment) -> float:
        return average([self._judge.validation(state).loss for state in now.states.values()])

    def _recall(self, best: Best) -> None:
        """Make milestones of the best evaluation: as it was, and merged where peers merge."""
        self._milestone("unmerged", best.moment, best.row)
        if self._trial.what.is_baseline or self._peers.config.mixing.merge == "none":
            return
        mean = mean_adapter(list(best.moment.states.values()))
        merged = dict.fromkeys(best.moment.states, mean)
        score = self._judge(mean)
        self._milestone(
            "final",
            dataclasses.replace(best.moment, round=best.moment.round + 1, states=merged),
            best.row | _measures([score], score),
        )

    def _tokens(self, rounds: int) -> float:
        """Return the targets that all peers together have trained on in so many rounds, over their number."""
        trained = (tokens for round, tokens in self._peers.tokens.items() if round < rounds)
        return sum(trained) / self._trial.peers

    def _milestone(self, name: str, now: Moment, row: dict[str, float]) -> None:
        is_one = self._trial.what.is_central  # there is nothing to see of peers
        own = {peer: self._judge.own(peer, state) for peer, state in now.states.items()}
        for index, peer in enumerate([] if is_one else sorted(now.states)):
            score = self._judge(now.states[peer])
            values = (now.round, index, score.loss, own[peer], score.accuracy)
            self._peer_rows.append(dict(zip(PEER_COLUMNS, values, strict=True)))
        self._milestones[name] = {**row, "own": average(list(own.values()))}

    def _distance(self, states: Mapping[str, AdapterState], mean: AdapterState) -> float:
        """Return the root mean square distance to the mean, over that of the mean from the start."""
        moved = float((mean.flat - self._peers.model.initial.flat).double().norm())
        squares = [float((state.flat - mean.flat).double().square().sum()) for state in states.values()]
        return math.sqrt(average(squares)) / moved if moved > 0 else math.nan

    def result(self) -> TrialResult:
        """Return tables and outcome of what has been added."""
        best, latest = self._best, self._latest
        if best is not None and not self._trial.tunes:
            self._recall(best)
        rounds = _table(self._rounds, COLUMNS)
        uneven = self._peers.layout.heterogeneity
        known = {
            "start_loss": self._rounds[0]["loss"],
            **self._losses(rounds["cross_term"]),
            "tokens_per_peer": self._tokens(best.moment.round if best else self._trial.rounds),
            "total_variation": uneven.total_variation,
            "jensen_shannon": uneven.jensen_shannon,
            "rows_least": min(uneven.sizes),
            "rows_most": max(uneven.sizes),
            "best_round": best.moment.round if best else None,
            "last_round": latest.round if best and latest else None,
            **self.simulated,
        }
        outcome = {name: _finite(known.get(name)) for name in OUTCOMES}
        return TrialResult({"rounds": rounds, "peers": _table(self._peer_rows, PEER_COLUMNS)}, outcome)

    def _losses(self, cross_terms: Values) -> dict[str, Any]:
        """Return the outcomes of a trial that came to its end with finite losses; of another, that it diverged."""
        best, latest = self._best, self._latest
        if self.diverged or latest is None or (best is None and latest.round < self._trial.rounds):
            return {"diverged": 1}
        validation = self._validation(latest) if best is None else best.validation
        unmerged = self._milestones.get("unmerged", {"loss": 0.0})
        final = self._milestones.get("final", unmerged)
        if not math.isfinite(unmerged["loss"] + final["loss"] + validation):
            return {"diverged": 1}
        if self._trial.tunes:
            return {"diverged": 0, "validation_loss": validation}
        losses: dict[str, Any] = {"diverged": 0}
        for name, milestone in (("unmerged", unmerged), ("final", final)):
            losses[f"{name}_loss"] = milestone["loss"]
            losses[f"{name}_worst"] = milestone["loss_worst"]
            losses[f"{name}_own"] = milestone["own"]
            losses[f"{name}_accuracy"] = milestone["accuracy"]
        finite = cross_terms[np.isfinite(cross_terms)]
        return losses | {
            "final_mean_adapter": final["loss_mean_adapter"],
            "validation_loss": validation,
            "bytes_per_peer": final["bytes_per_peer"],
            "seconds": final["seconds"],
            "consensus_distance": unmerged["consensus_distance"],
            "cross_term": float(finite.mean()) if len(finite) else None,
        }


def _measures(scores: Sequence[Score], of_mean: Score) -> dict[str, float]:
    """Return the columns that are measured: of all peers' adapters, and of their mean."""
    losses = [score.loss for score in scores]
    return {
        "loss": average(losses),
        "loss_worst": max(losses),
        "loss_best": min(losses),
        "loss_mean_adapter": of_mean.loss,
        "accuracy": average([score.accuracy for score in scores]),
        "accuracy_mean_adapter": of_mean.accuracy,
    }


def _table(rows: Sequence[Mapping[str, float]], columns: Sequence[str]) -> dict[str, Values]:
    return {name: np.asarray([row[name] for row in rows], dtype=np.float64) for name in columns}


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def average(values: Sequence[float]) -> float:
    """Return the mean."""
    return math.fsum(values) / len(values)
