"""What a peer tells of a neighbor that it does not read for a while: an event as those of ``journal_events.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peer.journal_words import loss_in_words


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A neighbor's adapter would have harmed ours; it is not read for a while, which is longer each time."""

    kind: ClassVar[str] = "left-out"
    is_transient: ClassVar[bool] = False

    peer: str
    """Its name."""
    round: int
    """The round, from 0."""
    loss: float
    """What our loss on a few held-out rows would have been with the mix in which it was; null if not finite."""
    limit: float
    """Up to what it would have been in order."""
    rounds: int
    """Rounds for which it is left out."""

    def sentence(self) -> str | None:
        """Return who is left out, why, and for how long."""
        return (
            f"{self.peer} is left out for {self.rounds} rounds: with its adapter our held-out loss would have been "
            f"{loss_in_words(self.loss)}, where up to {loss_in_words(self.limit)} is in order"
        )
