"""What is known of each peer, and who gets a place in the table.

A place is cheap for a peer that has answered us and dear for a rumor: rumors have a share of the table, each source a
share of that, and they give way to whoever greets us. Whom we miss most when it is away is kept longest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gossip.events import PeerUp
from gossip.membership_events import DialBack, Heartbeat, Search
from gossip.membership_limits import (
    ADDRESSES_PER_PEER,
    ANCHORS,
    FORGET_S,
    NAME_LETTERS,
    PEERS_MAX,
    PLACES_PER_SOURCE,
    PROOF_PAUSE_S,
    REDIAL_FIRST_S,
    RUMOR_FORGET_S,
    RUMORS_MAX,
)
from gossip.told_addresses import is_worth_keeping
from topology.announced import Announced


@dataclass(slots=True)
class Member:
    """What we know of one peer; name, addresses, round and data are its own claims.

    Args:
        source: on whose word it is in the table, until it has answered us; itself, if it announced itself.
        addresses: where it may be; where it has answered comes first, then what it claims, then what others say.
        proven: those of the addresses where its handshake has proven that it is there.
        tried: those that could not be proven lately.
        data: what it has announced of its data, if anything.
        has_answered: it has greeted us or answered our greeting, ever.
        is_up: it has, and has not been found away since.
        posted: what the node was told of it last, since its last hello.
        up_since: when it came up, if it is up; up_s: seconds that it was up before.
        away_since: when it went down or was first heard of.
        flaps: times in a row that it was lost soon after it had come.
        is_connected: whether there is a connection to it, as far as the transport has told since it is known.
        missed: heartbeats missed in a row.
        heartbeat: the one that it is being asked for, if any.
        search: the present step of our search for it, if there is one.
        incarnation, sequence: order its announcements; what is older than was heard is a replay.
        tries: dials of this search so far.
        pause_s: mean pause before the next step of the search but one.
        proof: the attempt to prove one of its addresses, if there is one.
        prove_at: when the next round of such attempts may begin; prove_pause_s: the pause before the one after that.
    """

    source: str = ""
    name: str = ""
    addresses: tuple[str, ...] = ()
    proven: frozenset[str] = frozenset()
    tried: frozenset[str] = frozenset()
    round: int = 0
    data: Announced | None = None
    has_answered: bool = False
    is_up: bool = False
    posted: PeerUp | None = None
    up_since: float = 0.0
    up_s: float = 0.0
    away_since: float = 0.0
    flaps: int = 0
    is_connected: bool = False
    missed: int = 0
    heartbeat: Heartbeat | None = None
    search: Search | None = None
    incarnation: int = 0
    sequence: int = -1
    tries: int = 0
    pause_s: float = REDIAL_FIRST_S
    proof: DialBack | None = None
    prove_at: float = 0.0
    prove_pause_s: float = PROOF_PAUSE_S

    def is_replay(self, incarnation: int, sequence: int) -> bool:
        """Note the place of an announcement in its lives; tell whether a newer one was heard before."""
        if (incarnation, sequence) <= (self.incarnation, self.sequence):
            return True
        self.incarnation, self.sequence = incarnation, sequence
        return False

    def up_for(self, now: float) -> float:
        """Return the seconds that it has been up in all."""
        return self.up_s + (now - self.up_since if self.is_up else 0.0)

    def keep(self, claimed: tuple[str, ...], rumored: tuple[str, ...] = ()) -> None:
        """Take the addresses that are claimed, keep those that are proven, fill up with rumors."""
        wanted = (*claimed, *rumored) if claimed else (*self.addresses, *rumored)
        ordered = dict.fromkeys(
            (*(one for one in wanted if one in self.proven), *self._proven_first(), *wanted)
        )
        self.addresses = tuple(ordered)[:ADDRESSES_PER_PEER]
        self.tried &= set(self.addresses)
        self.proven &= set(self.addresses)

    def _proven_first(self) -> tuple[str, ...]:
        """Return one proven address, so that new claims never displace all of them."""
        return tuple(one for one in self.addresses if one in self.proven)[:1]


@dataclass(slots=True)
class Places:
    """Peer id -> ``Member``, ourselves (``me``) excluded, at most ``PEERS_MAX`` of them.

    Args:
        on_forgotten: told of every member that loses its place.
        own: our own addresses, of which it depends whose we take.
    """

    on_forgotten: Callable[[Member], None]
    me: str = ""
    own: tuple[str, ...] = ()
    by_id: dict[str, Member] = field(default_factory=dict)

    def answered(
        self, peer: str, name: str, addresses: tuple[str, ...], round: int, now: float
    ) -> Member | None:
        """Note what a peer says of itself that has proven who it is; None only if the table is full of such."""
        member = self._place(peer, peer, now, has_answered=True)
        return self._claim(member, peer, name, addresses, round)

    def announced(
        self, peer: str, name: str, addresses: tuple[str, ...], round: int, now: float
    ) -> Member | None:
        """Note what a peer announces of itself; None if there is no place for it."""
        member = self._place(peer, peer, now)
        return self._claim(member, peer, name, addresses, round)

    def rumored(self, peer: str, address: str, source: str, now: float) -> Member | None:
        """Note an address that ``source`` says a peer has; it never displaces what the peer says itself."""
        if not is_worth_keeping(address, peer, self.own):
            return None
        member = self._place(peer, source, now)
        if member and address not in member.addresses:
            member.keep((), (address,))
        return member

    def given(self, peer: str, address: str, now: float) -> None:
        """Note an address that the user gave and where the peer has answered."""
        if member := self._place(peer, peer, now, has_answered=True):
            member.proven |= {address}
            member.keep((address, *member.addresses))

    def _claim(
        self, member: Member | None, peer: str, name: str, addresses: tuple[str, ...], round: int
    ) -> Member | None:
        if member:
            member.name = name[:NAME_LETTERS] or member.name
            member.keep(tuple(one for one in addresses if is_worth_keeping(one, peer, self.own)))
            if not member.is_up:
                member.round = round
        return member

    def _place(self, peer: str, source: str, now: float, *, has_answered: bool = False) -> Member | None:
        member = self.by_id.get(peer)
        if member is None and peer and peer != self.me and self._has_room(source, has_answered):
            member = self.by_id[peer] = Member(source, away_since=now)
        if member and has_answered:
            member.has_answered = True
        return member

    def _has_room(self, source: str, has_answered: bool) -> bool:
        """Make room for one more, if that is fair; return whether there is."""
        rumors = [peer for peer, member in self.by_id.items() if not member.has_answered]
        if not has_answered:
            if sum(self.by_id[peer].source == source for peer in rumors) >= PLACES_PER_SOURCE:
                return False
            if len(rumors) >= RUMORS_MAX:
                self.forget(self._least(rumors))
                return True
        if len(self.by_id) < PEERS_MAX:
            return True
        if not rumors and has_answered:
            anchors = self.anchors()
            rumors = [peer for peer, member in self.by_id.items() if not member.is_up and peer not in anchors]
        if rumors:
            self.forget(self._least(rumors))
        return len(self.by_id) < PEERS_MAX

    def _least(self, peers: list[str]) -> str:
        """Return whom we miss least: who was up shortest, then whom we dialed in vain most often, then the oldest."""
        return min(peers, key=lambda peer: (self.by_id[peer].up_s, -self.by_id[peer].tries))

    def forget(self, peer: str) -> None:
        """Let go of a peer."""
        self.on_forgotten(self.by_id.pop(peer))

    def is_forgotten(self, peer: str, now: float) -> bool:
        """Let go of a peer that has been away for too long, if it is none of the anchors; return whether it is gone."""
        member = self.by_id[peer]
        limit_s = FORGET_S if member.has_answered else RUMOR_FORGET_S
        if member.is_up or now - member.away_since <= limit_s or peer in self.anchors():
            return False
        self.forget(peer)
        return True

    def anchors(self) -> frozenset[str]:
        """Return the peers that are away, searched for and not let go of: those that were up longest."""
        away = [
            peer for peer, member in self.by_id.items() if member.search and not member.is_up and member.up_s
        ]
        return frozenset(sorted(away, key=lambda peer: -self.by_id[peer].up_s)[:ANCHORS])

    def forget_the_idle(self, now: float) -> None:
        """Let go of peers that have been away for too long and that nobody searches for."""
        for peer, member in list(self.by_id.items()):
            if not member.search:
                self.is_forgotten(peer, now)
