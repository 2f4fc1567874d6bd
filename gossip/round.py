"""Where a node is in its round, and what it keeps of it; a new record begins with each round."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from gossip.events import RolloutReport, RoundReport, Trained
from gossip.health import Health
from gossip.methods.contribution import Contribution
from gossip.methods.stage import RoundContext
from gossip.pipelines import Pipelines, Row
from gossip.round_end import RoundEnd, Settled
from topology.links import Links

NOT_A_FAULT = frozenset({"gap"})
"""Reasons for which an adapter cannot be used although its sender did nothing wrong."""


class Phase(enum.Enum):
    """Where a node is in its round."""

    NEW = "new"
    CATCHING_UP = "catching up"
    TRAINING = "training"
    COLLECTING = "collecting"
    CHECKING = "checking"
    DONE = "done"


@dataclass(slots=True)
class Round:
    """The present round.

    Args:
        since_s: when its present phase began, seconds on the caller's clock.
        train_s: seconds that our last local steps took, of this round or, until they are done, of one before.
        trained: our local steps of this round, once they are done.
        links: our row of W, once it is drawn.
        deadline_s: how long we wait for neighbors at most, seconds.
        waiting_for: neighbors of the row that have neither come nor failed.
        is_over: the deadline has passed.
        served: peers that have got our adapter of this round.
        failed: ``(peer, reason)`` of neighbors that did not come.
        objections: ``(peer, reason)`` of what came and could not be used.
        payload_bytes: bytes of what came.
        has_diverged: our local steps came to nothing, and not for the first time.
        end: its end, once that has begun.
    """

    since_s: float = 0.0
    train_s: float = 0.0
    trained: Trained | None = None
    links: Links = field(default_factory=lambda: Links((), 1.0))
    deadline_s: float = 0.0
    waiting_for: set[str] = field(default_factory=set)
    is_over: bool = False
    served: set[str] = field(default_factory=set)
    failed: list[tuple[str, str]] = field(default_factory=list)
    objections: list[tuple[str, str]] = field(default_factory=list)
    payload_bytes: int = 0
    has_diverged: bool = False
    end: RoundEnd | None = None

    @property
    def half_are_here(self) -> bool:
        """At most half of the row's neighbors are still waited for."""
        return 2 * len(self.waiting_for) <= len(self.links.read_from)

    def stop_waiting_for(self, peer: str) -> bool:
        """Return whether we have waited for a peer until now."""
        was_waited_for = peer in self.waiting_for
        self.waiting_for.discard(peer)
        return was_waited_for

    def begin_end(
        self,
        pipelines: Pipelines,
        health: Health,
        context: RoundContext,
        contributions: Sequence[Contribution],
    ) -> RoundEnd:
        """Return the round's end; ``contributions``: what can be mixed, in sorted order of senders."""
        said = [one._replace(confirmed=one.sender in self.served) for one in contributions]
        row = Row(context, said, 1.0 - self.links.self_weight, len(self.links.read_from))
        self.end = RoundEnd(pipelines, health, row, has_diverged=self.has_diverged)
        return self.end

    def report(
        self,
        settled: Settled,
        *,
        round: int,
        merging: bool,
        age: int,
        now: float,
        rollouts: RolloutReport | None,
    ) -> RoundReport:
        """Return what there is to say of the round at its end.

        Args:
            settled: what came of mixing.
            round: its number.
            merging: it is one of the final merge.
            age: local steps that went into our adapter.
            now: seconds on the caller's clock.
            rollouts: what was shared of them.
        """
        mixed = settled.mixed
        guards_objections = ((objection.sender, objection.reason) for objection in mixed.objections)
        return RoundReport(
            round=round,
            merging=merging,
            loss=self.trained.loss if self.trained else math.nan,
            age=age,
            mixed=tuple((used.sender, used.round, used.weight) for used in mixed.others),
            failed=tuple(sorted(self.failed)),
            objections=(
                *self.objections,
                *guards_objections,
                *((distrusted.peer, "unhealthy") for distrusted in settled.distrust),
            ),
            neighbors=mixed.neighbors,
            payload_bytes=self.payload_bytes,
            mixing_change=mixed.mixing_change,
            cross_term=mixed.cross_term,
            collect_s=now - self.since_s,
            deadline_s=self.deadline_s,
            held_out=settled.loss,
            measurements=settled.measurements,
            went_back=settled.went_back,
            state=mixed.state,
            received=tuple((one.sender, one.state) for one in mixed.came),
            rollouts=rollouts,
        )
