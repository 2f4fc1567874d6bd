"""Who did what no honest peer does, how often lately, and who is cut off for it: members and strangers alike."""

from __future__ import annotations

from collections import deque

from gossip.membership_limits import STRIKERS_MAX, STRIKES_S


class Strikes:
    """The last strikes of each peer; ``limit`` of them within ``STRIKES_S``, and it is cut off for as long.

    At most ``STRIKERS_MAX`` peers are remembered: whoever is not cut off is forgotten before whoever is, and the one
    that came first before the others.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._times: dict[str, deque[float]] = {}  # by peer id

    def add(self, peer: str, now: float) -> bool:
        """Count a strike; return whether the peer is cut off, for this one or before."""
        times = self._times.get(peer)
        if times is None:
            if len(self._times) >= STRIKERS_MAX:
                del self._times[self._least(now)]
            times = self._times[peer] = deque(maxlen=self._limit)
        times.append(now)
        return self.is_over(peer, now)

    def is_over(self, peer: str, now: float) -> bool:
        """Whether a peer is cut off."""
        times = self._times.get(peer)
        return times is not None and len(times) == self._limit and now - times[0] < STRIKES_S

    def forget_old(self, now: float) -> None:
        """Let go of peers whose last strike no longer counts."""
        self._times = {peer: times for peer, times in self._times.items() if now - times[-1] < STRIKES_S}

    def __len__(self) -> int:
        return len(self._times)

    def _least(self, now: float) -> str:
        return next((peer for peer in self._times if not self.is_over(peer, now)), next(iter(self._times)))
