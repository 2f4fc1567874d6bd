"""Who is cut off: for a while after repeated faults, or for the rest of the run after a contradiction signed by itself.

A small machine inside ``membership.py``. Members and strangers are treated alike.
"""

from __future__ import annotations

from gossip.convictions import Convictions
from gossip.members import Members
from gossip.membership_events import Action, Drop
from gossip.membership_limits import REFUSALS, STRIKES, STRIKES_S
from gossip.notices import Notices
from gossip.searching import Searches
from gossip.strikes import Strikes


class Bans:
    """All bans of one peer.

    Args:
        convictions: who is cut off for good.
        members: the table.
        searches: end when a ban begins.
        notices: words what is told to the user.
    """

    def __init__(
        self, convictions: Convictions, members: Members, searches: Searches, notices: Notices
    ) -> None:
        self._convictions = convictions
        self._members = members
        self._searches = searches
        self._notices = notices
        self._faults = Strikes(STRIKES)
        self._refusals = Strikes(REFUSALS)

    def has(self, peer: str, now: float) -> bool:
        """Whether a peer is cut off."""
        for_a_while = self._faults.is_over(peer, now) or self._refusals.is_over(peer, now)
        return for_a_while or peer in self._convictions.convicted

    def strike(self, peer: str, reason: str, now: float) -> list[Action]:
        """Count what no honest peer does; too much of it, and the peer is cut off."""
        was_cut_off = self.has(peer, now)
        if not self._faults.add(peer, now):
            return []
        return [Drop(peer)] if was_cut_off else self._cut_off(peer, reason, now)

    def refused(self, peer: str, now: float) -> list[Action]:
        """Count a greeting with another run, which an honest peer may send now and then."""
        return self._cut_off(peer, "greets with another run", now) if self._refusals.add(peer, now) else []

    def forget_old(self, now: float) -> None:
        """Let go of what no longer counts."""
        self._faults.forget_old(now)
        self._refusals.forget_old(now)

    def _cut_off(self, peer: str, reason: str, now: float) -> list[Action]:
        self._searches.end(peer)
        name = self._members.display_name(peer)
        line = f"peer {name} ({peer}) is cut off for {STRIKES_S:.0f} s: {reason}"
        told = self._notices.line("cut off", peer, line, now)
        return [*told, *self._members.down(peer, reason, now), Drop(peer)]
