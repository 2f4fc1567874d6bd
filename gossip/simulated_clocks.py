"""The clocks of simulated peers: all show the network's time, but those that a fault has given a rate of their own.

Like the clocks that real peers wait by, they are monotonic: they may be fast, slow, or jump forward, as the clock of a
machine does that was suspended. They know nothing of what happens.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossip.fault_kinds import Clock


@dataclass(frozen=True, slots=True)
class _OwnClock:
    """Shows ``shown`` at time ``since`` of the network, and goes on at ``rate``."""

    rate: float
    shown: float
    since: float


class Clocks:
    """Peer -> its clock."""

    def __init__(self) -> None:
        self._own: dict[str, _OwnClock] = {}

    def set(self, peer: str, clock: Clock, now: float) -> None:
        """Let a clock jump, and go at another rate from now on."""
        self._own[peer] = _OwnClock(clock.rate, self.show(peer, now) + clock.jump_s, now)

    def show(self, peer: str, now: float) -> float:
        """Return what a peer's clock shows at time ``now`` of the network."""
        own = self._own.get(peer)
        return own.shown + own.rate * (now - own.since) if own else now

    def real_s(self, peer: str, seconds: float) -> float:
        """Return how long a peer waits that waits for so many seconds by its clock."""
        own = self._own.get(peer)
        return seconds / own.rate if own else seconds
