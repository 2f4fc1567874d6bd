"""Lines for the user about other peers, as many as a person reads and a disk holds, whatever the others do.

That the same happens to the same peer is told once in a while, and all lines together keep to a rate; how many were
left out is said at most once a minute.
"""

from __future__ import annotations

from gossip.membership_events import Action, Tell
from gossip.membership_limits import NOTICE_S, NOTICED_MAX, NOTICES_BURST, NOTICES_PER_S
from gossip.token_bucket import TokenBucket


class Notices:
    """What was told lately, and what was not."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], float] = {}  # (kind, peer) -> when, oldest first
        self._rate = TokenBucket(NOTICES_PER_S, NOTICES_BURST)
        self._left_out = 0
        self._summed_up_at = 0.0

    def line(self, kind: str, peer: str, text: str, now: float, *, every_s: float = NOTICE_S) -> list[Action]:
        """Return the line, or nothing if it would be too much.

        Args:
            kind: what happened, a stable word.
            peer: to whom.
            text: the line.
            now: see ``Membership.handle``.
            every_s: how often this may be said of the same peer at most, seconds.
        """
        told_at = self._told.get((kind, peer))
        if (told_at is not None and now - told_at < every_s) or not self._rate.take(now):
            self._left_out += 1
            return []
        self._told.pop((kind, peer), None)
        self._told[kind, peer] = now
        if len(self._told) > NOTICED_MAX:
            del self._told[next(iter(self._told))]
        return [Tell(text)]

    def sum_up(self, now: float) -> list[Action]:
        """Say how many lines were left out, if any were and that has not been said lately."""
        if not self._left_out or now - self._summed_up_at < NOTICE_S:
            return []
        count, self._left_out, self._summed_up_at = self._left_out, 0, now
        return [Tell(f"{count} more times peers came, went or were refused, not told one by one")]

    def __len__(self) -> int:
        return len(self._told)
