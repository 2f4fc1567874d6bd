"""What a node keeps of the round that it is in; a new record begins with each round."""

from __future__ import annotations

from dataclasses import dataclass, field

from gossip.events import Trained
from topology.links import Links


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
        served: peers that have got our adapter of this round.
        failed: ``(peer, reason)`` of neighbors that did not come.
        objections: ``(peer, reason)`` of what came and could not be used.
        payload_bytes: bytes of what came.
    """

    since_s: float = 0.0
    train_s: float = 0.0
    trained: Trained | None = None
    links: Links = field(default_factory=lambda: Links((), 1.0))
    deadline_s: float = 0.0
    waiting_for: set[str] = field(default_factory=set)
    served: set[str] = field(default_factory=set)
    failed: list[tuple[str, str]] = field(default_factory=list)
    objections: list[tuple[str, str]] = field(default_factory=list)
    payload_bytes: int = 0

    @property
    def half_are_here(self) -> bool:
        """At most half of the row's neighbors are still waited for."""
        return 2 * len(self.waiting_for) <= len(self.links.read_from)
