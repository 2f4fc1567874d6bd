"""The table of peers: who is up, what is said when one comes or goes, and what others are told of them.

All of it is soft state, made of claims. Only what a peer says of itself counts for much: addresses must name the very
peer, so that the handshake proves them, and only those at which that has happened are passed on. When a peer is up or
down is decided in ``membership.py``; who is in the table, in ``member_places.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

from gossip.events import PeerDown, PeerUp
from gossip.member_places import Member, Places
from gossip.membership_events import Action, Post
from gossip.membership_limits import REMEMBERED, STEADY_S
from gossip.notices import Notices
from gossip.told_addresses import is_worth_keeping


class Members:
    """The table, and what comes of changes in it.

    Args:
        places: who is in it; ``by_id`` is the same table, to look at.
        notices: words what is told to the user.
    """

    def __init__(self, places: Places, notices: Notices) -> None:
        self.places = places
        self.by_id: Mapping[str, Member] = places.by_id
        self.notices = notices

    def up(self, peer: str, round: int, now: float) -> list[Action]:
        """Note that a peer is up and has completed ``round`` rounds, unless it is not in the table."""
        member = self.by_id.get(peer)
        if member is None:
            return []
        was_up, member.is_up = member.is_up, True
        member.round = round
        said = PeerUp(peer, round, member.data, member.incarnation)
        if was_up:  # whoever repeats itself does not fill the node's inbox
            member.posted, is_news = said, member.posted != said
            return [Post(said)] if is_news else []
        member.up_since = now
        told = f"peer {self.display_name(peer)} is up ({peer}); others up: {self.up_count}"
        member.posted = said
        return [Post(said), *self.notices.line("up", peer, told, now)]

    def down(self, peer: str, reason: str, now: float) -> list[Action]:
        """Note that a peer is down, if it was up; ``reason``: for people."""
        member = self.by_id.get(peer)
        if member is None or not member.is_up:
            return []
        member.up_s = member.up_for(now)
        member.flaps = member.flaps + 1 if now - member.up_since < STEADY_S else 0
        member.is_up = False
        member.away_since = now
        member.missed = 0
        told = f"peer {self.display_name(peer)} is down: {reason}; others up: {self.up_count}"
        return [Post(PeerDown(peer)), *self.notices.line("down", peer, told, now)]

    @property
    def up_count(self) -> int:
        """How many other peers are up."""
        return sum(member.is_up for member in self.by_id.values())

    def all_reached(self, round: int) -> bool:
        """Whether every peer that is up has completed ``round`` rounds, by its own word."""
        return all(member.round >= round for member in self.by_id.values() if member.is_up)

    def known(self) -> tuple[str, ...]:
        """Return what we pass on: one address of every peer that is up and can be dialed there, in order of ids."""
        up = sorted(peer for peer, member in self.by_id.items() if member.is_up)
        return tuple(found for peer in up if (found := self.told_address(peer)) is not None)

    def told_address(self, peer: str) -> str | None:
        """Return where others may dial a member, None if that is not known: what the user typed may be for us alone."""
        member = self.by_id[peer]
        proven = (one for one in member.addresses if one in member.proven)
        return next((one for one in proven if is_worth_keeping(one, peer, self.places.own)), None)

    def to_remember(self, now: float) -> tuple[str, ...]:
        """Return the addresses to try after a restart: the best of each peer that has answered, longest up first."""
        longest = sorted(self.by_id.items(), key=lambda item: (-item[1].up_for(now), item[0]))
        found = [member.addresses[0] for _, member in longest if member.has_answered and member.addresses]
        return tuple(found[:REMEMBERED])

    def display_name(self, peer: str) -> str:
        """Return the peer's name, or the last letters of its id."""
        member = self.by_id.get(peer)
        return member.name if member and member.name else peer[-6:]
