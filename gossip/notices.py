"""Lines for the user about other peers, as many as a person reads and a disk holds, whatever the others do.

That the same happens to the same peer is told a few times and then once in a while, that it is of another run once an
hour; all lines together keep to a rate. How many were left out is said at most once a minute.
"""

from __future__ import annotations

from gossip.membership_events import Action, Tell
from gossip.membership_limits import (
    NOTICE_S,
    NOTICED_MAX,
    NOTICES_BURST,
    NOTICES_PER_PEER,
    NOTICES_PER_S,
    REFUSED_NOTICE_S,
)
from gossip.token_bucket import TokenBucket, TokenBuckets


class Notices:
    """What was told lately, and what was not."""

    def __init__(self) -> None:
        self._rate = TokenBucket(NOTICES_PER_S, NOTICES_BURST)
        self._per_peer = TokenBuckets(1 / NOTICE_S, NOTICES_PER_PEER, NOTICED_MAX)
        self._refused = TokenBuckets(1 / REFUSED_NOTICE_S, 1, NOTICED_MAX)
        self._left_out = 0
        self._summed_up_at = -NOTICE_S

    def line(self, kind: str, peer: str, text: str, now: float) -> list[Action]:
        """Return the line, or nothing if it would be too much.

        Args:
            kind: what happened, a stable word.
            peer: to whom.
            text: the line.
            now: see ``Membership.handle``.
        """
        return self._unless_too_many(self._per_peer.of(f"{kind} {peer}"), text, now)

    def refused(self, peer: str, text: str, now: float) -> list[Action]:
        """Return a line that says that a peer is of another run, or nothing if that has been said of it."""
        return self._unless_too_many(self._refused.of(peer), text, now)

    def _unless_too_many(self, bucket: TokenBucket, text: str, now: float) -> list[Action]:
        if bucket.has(now) and self._rate.take(now):
            bucket.take(now)
            return [Tell(text)]
        self._left_out += 1
        return []

    def sum_up(self, now: float) -> list[Action]:
        """Say how many lines were left out, if any were and that has not been said lately."""
        if not self._left_out or now - self._summed_up_at < NOTICE_S:
            return []
        count, self._left_out, self._summed_up_at = self._left_out, 0, now
        return [Tell(f"{count} more times peers came, went or were refused, not told one by one")]

    def __len__(self) -> int:
        return len(self._per_peer) + len(self._refused)
