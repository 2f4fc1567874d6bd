"""What one process has told so far. ``PeerView.take`` is the one place of the testnet that reads events of a peer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from scripts.lab.testnet.plan import PlannedPeer


class Evaluation(NamedTuple):
    """What a peer measured after ``round`` rounds.

    Attributes:
        own, all: held-out losses, nats a token or labeled text: of its own shard, and the mean over all shards.
        accuracy, accuracy_all: the same of right labels, 0 to 1; None where nothing is classified.
        tokens: what its whole regime has trained on by then; see ``PlannedPeer.round_tokens``.
        seconds: wall time since training began, without measurements.
    """

    round: int
    own: float
    all: float
    accuracy: float | None
    accuracy_all: float | None
    tokens: int
    seconds: float


class LocalStep(NamedTuple):
    """The optimizer step that a peer has reached in its round, 1 to ``steps``."""

    step: int
    steps: int


class RoundReport(NamedTuple):
    """What a peer said at the end of a round.

    Attributes:
        round: its number, 1 to ``rounds``; those of the final merge count too.
        loss: of training, nats; None in a round of the final merge.
        age: local steps in its adapter.
        mixed: names of the peers whose adapters it read in this round.
        bytes_in, bytes_out, fetches_ok, fetches_failed: since its start.
    """

    round: int
    rounds: int
    loss: float | None
    age: int
    mixed: tuple[str, ...]
    bytes_in: int
    bytes_out: int
    fetches_ok: int
    fetches_failed: int


@dataclass(slots=True)
class PeerView:
    """What one process has told so far.

    Attributes:
        shards: how many there are in the run.
        doing: a word for people.
        rate: the learning rate that it has found, where none was given.
        load: a line of Python that loads its adapter; empty before the end.
        exit_code: None while it runs.
    """

    planned: PlannedPeer
    shards: int
    doing: str = "start"
    rate: float = math.nan
    step: LocalStep | None = None
    round: RoundReport | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    load: str = ""
    exit_code: int | None = None
    _trained_rounds: int = 0
    _trained_s: float = 0.0  # since the first measurement, without measurements
    _goes_on_at: float | None = None  # when the latest measurement or round ended, seconds since 1970

    def take(self, event: Mapping[str, Any]) -> None:
        """Note one event of the process; events and fields are those of docs/events.md."""
        match event["event"]:
            case "preparing":
                self.doing = event["stage"]
            case "rate":
                self.rate = event["rate"]
            case "ready" | "listening" as stage:
                self.doing = stage
            case "step":
                self.doing, self.step = "train", LocalStep(event["step"], event["steps"])
            case "round":
                self._trained(event["at"], event["merging"])
                self.round = RoundReport(
                    round=event["round"] + 1,
                    mixed=tuple(event["mixed"]),
                    **{name: event[name] for name in RoundReport._fields if name not in ("round", "mixed")},
                )
            case "eval":
                self._goes_on_at = event[
                    "at"
                ]  # measured at once after the round before, so this time was for it
                self.evaluations.append(self._evaluation(event))
            case "finished":
                self.doing, self.load = "done", event["load"] or ""

    def _trained(self, at: float, is_merging: bool) -> None:
        """Count a round that ended then."""
        self._trained_rounds += not is_merging
        if self._goes_on_at is not None:
            self._trained_s += at - self._goes_on_at
        self._goes_on_at = at

    def _evaluation(self, event: Mapping[str, Any]) -> Evaluation:
        accuracy, accuracy_all = event["accuracy"], event["accuracy_all"]
        if accuracy_all is None:  # there is no shard but our own
            accuracy_all = accuracy
        # The central peer is measured on the files of all shards, so its own rows are none of them.
        losses: list[float] = list(event["per_file"].values())
        if len(losses) != self.shards:
            losses.append(event["own"])
        return Evaluation(
            round=event["round"],
            own=event["own"],
            all=sum(losses) / len(losses),
            accuracy=accuracy,
            accuracy_all=accuracy_all,
            tokens=self._trained_rounds * self.planned.round_tokens,
            seconds=self._trained_s,
        )


Watch = Callable[[PeerView, str], None]
"""Called with a process and what has just happened to it: "planned", then the name of every event that it told."""
