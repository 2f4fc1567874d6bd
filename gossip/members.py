"""The table of peers: what is known of each, bounded; what is said when one comes or goes; and what others ask of it.

All of it is soft state, made of claims. Only what a peer says of itself counts for much: addresses must name the very
peer, so that the handshake proves them and nobody can point us elsewhere. When a peer is up or down is decided in
``membership.py``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from gossip.events import PeerDown, PeerUp
from gossip.membership_events import Action, Drop, Heartbeat, Post, Search, Tell
from gossip.membership_limits import (
    ADDRESSES_PER_PEER,
    FORGET_S,
    NAME_LETTERS,
    PEERS_MAX,
    REDIAL_FIRST_S,
    STRIKES,
    STRIKES_S,
)
from topology.announced import Announced


@dataclass(slots=True)
class Member:
    """What we know of one peer; name, addresses, round and data are its own claims.

    Args:
        data: what it has announced of its data, if anything.
        is_up: it has greeted us or answered our greeting, and has not been found away since.
        away_since: when it went down or was first heard of.
        is_connected: whether there is a connection to it, as far as the transport has told since it is known.
        missed: heartbeats missed in a row.
        heartbeat: the one that it is being asked for, if any.
        search: the present step of our search for it, if there is one.
        pause_s: mean pause before the next step of the search but one.
        incarnation, sequence: order its announcements; what is older than was heard is a replay.
        is_convicted: it has signed what contradicts itself, and is cut off for the rest of the run.
        strikes: when it did what no honest peer does, the last few times.
    """

    name: str = ""
    addresses: tuple[str, ...] = ()
    round: int = 0
    data: Announced | None = None
    is_up: bool = False
    away_since: float = 0.0
    is_connected: bool = False
    missed: int = 0
    heartbeat: Heartbeat | None = None
    search: Search | None = None
    pause_s: float = REDIAL_FIRST_S
    incarnation: int = 0
    sequence: int = -1
    is_convicted: bool = False
    strikes: deque[float] = field(default_factory=lambda: deque(maxlen=STRIKES))

    def is_banned(self, now: float) -> bool:
        """Whether it is cut off, for repeated faults or for good."""
        return self.is_convicted or (len(self.strikes) == STRIKES and now - self.strikes[0] < STRIKES_S)


class Members:
    """Peer id -> ``Member``, ourselves (``me``) excluded, at most ``PEERS_MAX`` of them.

    ``convicted``: who is cut off for the rest of the run, in the table or not.
    """

    def __init__(self) -> None:
        self.me = ""
        self.by_id: dict[str, Member] = {}
        self.convicted: set[str] = set()

    def claimed(
        self, peer: str, name: str, addresses: tuple[str, ...], round: int, now: float
    ) -> Member | None:
        """Note what a peer says of itself; None if the table is full and it is not in it."""
        member = self._place(peer, now)
        if member:
            member.name = name[:NAME_LETTERS] or member.name
            own = tuple(address for address in addresses if peer_named_by(address) == peer)
            member.addresses = own[:ADDRESSES_PER_PEER] or member.addresses
            if not member.is_up:
                member.round = round
        return member

    def rumored(self, peer: str, address: str, now: float) -> Member | None:
        """Note an address that somebody else says a peer has; it never displaces what the peer says itself."""
        member = self._place(peer, now)
        if member and peer_named_by(address) == peer and address not in member.addresses:
            member.addresses = (*member.addresses, address)[:ADDRESSES_PER_PEER]
        return member

    def _place(self, peer: str, now: float) -> Member | None:
        if peer not in self.by_id and peer and peer != self.me and len(self.by_id) < PEERS_MAX:
            self.by_id[peer] = Member(away_since=now, is_convicted=peer in self.convicted)
        return self.by_id.get(peer)

    def up(self, peer: str, round: int, now: float) -> list[Action]:
        """Note that a peer is up and has completed ``round`` rounds, unless it is not in the table or cut off."""
        member = self.by_id.get(peer)
        if member is None or member.is_banned(now):
            return []
        was_up, member.is_up = member.is_up, True
        member.round = round
        posted = Post(PeerUp(peer, round, member.data, member.incarnation))
        if was_up:
            return [posted]
        told = Tell(f"peer {self.display_name(peer)} is up ({peer}), {self.up_count} in all")
        return [posted, told]

    def is_replay(self, peer: str, incarnation: int, sequence: int) -> bool:
        """Note the place of an announcement in a peer's lives; tell whether a newer one was heard before."""
        member = self.by_id.get(peer)
        if member is None:
            return False
        if (incarnation, sequence) <= (member.incarnation, member.sequence):
            return True
        member.incarnation, member.sequence = incarnation, sequence
        return False

    def strike(self, peer: str, reason: str, now: float) -> list[Action]:
        """Count a fault of a peer; too many of them and it is cut off for a while."""
        member = self.by_id.get(peer)
        if member is None:
            return []
        member.strikes.append(now)
        if not member.is_banned(now):
            return []
        member.search = None
        told = Tell(f"peer {self.display_name(peer)} ({peer}) is cut off for {STRIKES_S:.0f} s: {reason}")
        return [told, *self.down(peer, reason, now), Drop(peer)]

    def convict(self, peer: str, now: float) -> list[Action]:
        """Cut a peer off for the rest of the run."""
        self.convicted.add(peer)
        if member := self.by_id.get(peer):
            member.is_convicted, member.search = True, None
        return self.down(peer, "cut off", now)

    def is_cut_off(self, peer: str, now: float) -> bool:
        """Whether a peer is cut off, in the table or not."""
        member = self.by_id.get(peer)
        return peer in self.convicted or (member is not None and member.is_banned(now))

    def is_welcome(self, peer: str, now: float) -> bool:
        """Whether a peer has exchanged a hello of our run with us, has not gone since, and is not cut off."""
        member = self.by_id.get(peer)
        return member is not None and member.is_up and not member.is_banned(now)

    def down(self, peer: str, reason: str, now: float) -> list[Action]:
        """Note that a peer is down, if it was up; ``reason``: for people."""
        member = self.by_id.get(peer)
        if member is None or not member.is_up:
            return []
        member.is_up = False
        member.away_since = now
        member.missed = 0
        told = Tell(f"peer {self.display_name(peer)} is down: {reason}; {self.up_count} left")
        return [Post(PeerDown(peer)), told]

    def left(self, peer: str, now: float) -> list[Action]:
        """Take a peer's goodbye: nobody searches for it."""
        if member := self.by_id.get(peer):
            member.search = None
        return self.down(peer, "left", now)

    def forget_the_idle(self, now: float) -> None:
        """Let go of peers that have been away for ``FORGET_S`` and that nobody searches for; bans are remembered."""
        for peer, member in list(self.by_id.items()):
            is_idle = not member.is_up and not member.search and not member.is_banned(now)
            if is_idle and now - member.away_since > FORGET_S:
                del self.by_id[peer]

    @property
    def up_count(self) -> int:
        """How many other peers are up."""
        return sum(member.is_up for member in self.by_id.values())

    def all_reached(self, round: int) -> bool:
        """Whether every peer that is up has completed ``round`` rounds, by its own word."""
        return all(member.round >= round for member in self.by_id.values() if member.is_up)

    def addresses_up(self) -> tuple[str, ...]:
        """Return one address of every peer that is up, in order of peer ids."""
        return tuple(
            member.addresses[0]
            for _, member in sorted(self.by_id.items())
            if member.is_up and member.addresses
        )

    def display_name(self, peer: str) -> str:
        """Return the peer's name, or the last letters of its id."""
        member = self.by_id.get(peer)
        return member.name if member and member.name else peer[-6:]


def peer_named_by(address: str) -> str:
    """Return the peer id at the end of a multiaddr; empty if it names none."""
    return address.rpartition("/p2p/")[2] if "/p2p/" in address else ""
