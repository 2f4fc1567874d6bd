"""What a peer tells that has come to a run under way: an event as those of ``journal_events.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedLate:
    """The others were rounds ahead when we came; we have asked some of them what they have, to begin with that."""

    kind: ClassVar[str] = "joined-late"
    is_transient: ClassVar[bool] = False

    round: int
    """The round that we begin in, from 0; the learning rate's schedule goes on from there, too."""
    rounds: int
    """All rounds, with those of the final merge."""
    peers: tuple[str, ...]
    """Names of the peers whose weights ours begin as the median of."""
    asked: int
    """How many peers were asked."""
    why_not: str
    """Why we begin with our own weights, which are untrained at a first start; empty if with those of others."""

    def sentence(self) -> str | None:
        """Return where we begin, and with what."""
        at = f"at round {self.round + 1} of {self.rounds}"
        if self.why_not:
            return f"joined late: {_peers(self.asked)} asked, {self.why_not}; began with our own weights {at}"
        return f"joined late: began with what {len(self.peers)} of {_peers(self.asked)} have, {at}"


def _peers(count: int) -> str:
    return f"{count} peer" if count == 1 else f"{count} peers"
