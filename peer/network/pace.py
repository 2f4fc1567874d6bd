"""How fast others may go: token buckets, and all of them that one peer has.

Knows numbers and times that it is given; nothing of connections, streams or clocks.
"""

from __future__ import annotations

from peer.network.limits import Limits


class Bucket:
    """A token bucket that may be overdrawn: who overdraws it has to wait.

    Args:
        per_s: tokens that come back each second.
        burst: how many it holds; it begins full.
    """

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst
        self._at = 0.0

    def take(self, count: float, now: float) -> None:
        """Take ``count`` tokens at ``now``, seconds on any monotonic clock, whether they are there or not."""
        self._tokens = self._left(now) - count
        self._at = now

    def wait_s(self, now: float) -> float:
        """Return how long it takes until the bucket is no longer overdrawn; 0 if it is not."""
        return max(0.0, -self._left(now) / self._per_s)

    def _left(self, now: float) -> float:
        return min(self._burst, self._tokens + max(0.0, now - self._at) * self._per_s)


class Flood(Exception):
    """A peer is so far ahead of what it may do that slowing it down is no answer."""


class Pace:
    """What one peer may do, over all of its connections; it begins as a newcomer's."""

    def __init__(self, limits: Limits) -> None:
        self._newcomer_cost = self._cost = limits.newcomer_cost
        self._flood_s = limits.flood_s
        self._streams = Bucket(limits.streams_per_s, limits.streams_burst)
        self._frames = Bucket(limits.frames_per_s, limits.frames_burst)
        self._announcements = Bucket(limits.announcements_per_s, limits.announcements_burst)
        self._faults = Bucket(1 / limits.fault_s, limits.faults_burst)

    def use(self, *, is_member: bool) -> None:
        """Let it be a member's from now on, or a newcomer's."""
        self._cost = 1.0 if is_member else self._newcomer_cost

    def stream(self, now: float) -> None:
        """Note that the peer opened a stream.

        Raises:
            Flood: far too many.
        """
        self._take(self._streams, 1.0, now, "streams")

    def frames(self, count: float, now: float) -> None:
        """Note so many small frames.

        Raises:
            Flood: far too many.
        """
        self._take(self._frames, count, now, "frames")

    def announcements(self, count: float, now: float) -> None:
        """Note so many announcements, or what costs us as much."""
        self._announcements.take(count, now)

    def fault(self, now: float) -> bool:
        """Note a broken rule; return whether there were too many."""
        self._faults.take(1.0, now)
        return self._faults.wait_s(now) > 0.0

    def pause_s(self, now: float) -> float:
        """Return for how long nothing of the peer's connections should be read."""
        return max(self._streams.wait_s(now), self._frames.wait_s(now))

    def announcements_pause_s(self, now: float) -> float:
        """Return for how long no announcements of the peer should be read."""
        return self._announcements.wait_s(now)

    def _take(self, bucket: Bucket, count: float, now: float, what: str) -> None:
        bucket.take(count * self._cost, now)
        if bucket.wait_s(now) > self._flood_s:
            raise Flood(f"the peer floods us with {what}")
