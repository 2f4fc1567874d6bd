"""What we say of ourselves, when we announce it, and what others' answers to it mean.

A peer introduces itself with its whole run manifest; a difference ends in a refusal that names the first field that
differs, in the words of whoever reads it. Announcements come at intervals, and early after a completed round.
"""

from __future__ import annotations

import itertools

from gossip.claims import Claims
from gossip.errors import RemoteError
from gossip.manifest import RunManifest, first_difference
from gossip.membership_events import Action, Announce, AnnouncementDue, Incompatible, SetTimer, Tell
from gossip.membership_limits import ADDRESSES_PER_PEER, PRESENCE_GAP_S, PRESENCE_S
from gossip.messages import Hello, Message, Presence, Refusal
from gossip.told_addresses import is_name
from gossip.wire import EVIDENCE_MAX, FRAME_BYTES_MAX, LIST_ITEMS_MAX
from topology.announced import Announced

KNOWN_BYTES_MAX = FRAME_BYTES_MAX // 2
"""Others' addresses in one hello are at most so long together. Source: ours; a quarter is for evidence, some for the
manifest, and our own addresses have at most 4 KiB."""


class Introduction:
    """Our own claims: run, name, addresses and incarnation (known once we listen) and rounds completed.

    ``claims``: what others have signed, to be passed on.
    """

    def __init__(self, manifest: RunManifest, name: str, data: Announced | None, claims: Claims) -> None:
        self.run = manifest.fingerprint
        self.addresses: tuple[str, ...] = ()
        self.round = 0
        self.incarnation = 0
        self._claims = claims
        self._sequence = 0  # announcements so far
        self._manifest = manifest.fields()
        self._name = name
        self._data = data
        self._announcement = 0  # number of the last one
        self._announced_at = 0.0
        self._is_next_hurried = False  # the next announcement comes early, because a round was completed

    def listens(self, addresses: tuple[str, ...], incarnation: int) -> list[Action]:
        """Take what is known once we listen; names are kept from others, who would not resolve them."""
        names = [address for address in addresses if is_name(address)]
        self.addresses = tuple(address for address in addresses if address not in names)[:ADDRESSES_PER_PEER]
        self.incarnation = incarnation
        told = f"others are not told {', '.join(names)}: they take no names from peers; announce an IP address too"
        return [Tell(told)] if names else []

    def hello(self, known: tuple[str, ...]) -> Hello:
        """Return our greeting, or our answer to one.

        Args:
            known: addresses of others that are up; as many are told as a frame has room for.
        """
        evidence = tuple(self._claims.evidence.values())[-EVIDENCE_MAX:]
        said = (self._manifest, self._name, self.round, self.addresses, _as_fit(known), self._data)
        return Hello(*said, self.incarnation, evidence)

    def announce(self, now: float) -> list[Action]:
        """Announce ourselves, and when to do so again."""
        self._announcement += 1
        self._announced_at = now
        self._is_next_hurried = False
        return [Announce(self._presence()), SetTimer(AnnouncementDue(self._announcement), PRESENCE_S)]

    def announce_soon(self, now: float) -> list[Action]:
        """Announce ourselves as soon as the gap allows; the timer set before finds it done and does nothing."""
        wait_s = self._announced_at + PRESENCE_GAP_S - now
        if wait_s <= 0:
            return self.announce(now)
        if self._is_next_hurried:
            return []
        self._is_next_hurried = True
        return [SetTimer(AnnouncementDue(self._announcement), wait_s)]

    def announce_if_due(self, timer: AnnouncementDue, now: float) -> list[Action]:
        """Announce ourselves unless that has been done since the timer was set."""
        return self.announce(now) if timer.number == self._announcement else []

    def goodbye(self) -> Announce:
        """Return the announcement that we leave."""
        return Announce(self._presence(leaving=True))

    def _presence(self, *, leaving: bool = False) -> Presence:
        self._sequence += 1
        said = (self.run, self._name, self.round, self.addresses, leaving)
        return Presence(*said, self.incarnation, self._sequence, self._claims.to_tell())

    def difference_from(self, hello: Hello) -> str | None:
        """Return the first difference between our run and another's, for our user; None if there is none."""
        return first_difference(self._manifest, hello.manifest)

    def refusal_of(self, hello: Hello) -> Refusal:
        """Return the refusal of a peer of another run, in which "ours" is what that peer has."""
        return Refusal("manifest", first_difference(hello.manifest, self._manifest, advise=True) or "")

    def judge(self, peer: str, answer: Message | RemoteError) -> Hello | RemoteError | Incompatible:
        """Tell what came of greeting a peer: the hello of a member, a failure to try again after, or another run."""
        match answer:
            case Hello():
                difference = first_difference(self._manifest, answer.manifest, advise=True)
                return _incompatible(peer, difference) if difference else answer
            case Refusal(reason="manifest"):
                return _incompatible(peer, answer.detail)
            case Refusal():
                return RemoteError(answer.reason, answer.detail)
            case RemoteError():
                return answer
            case _:
                return RemoteError("malformed", "a hello was expected")


def _as_fit(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Return the first of these addresses, as many as a hello may name and has room for."""
    ends = itertools.accumulate(len(address.encode()) for address in addresses[:LIST_ITEMS_MAX])
    return addresses[: sum(end <= KNOWN_BYTES_MAX for end in ends)]


def _incompatible(peer: str, difference: str) -> Incompatible:
    return Incompatible(f"peer {peer} takes part in another run: {difference}")
