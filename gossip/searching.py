"""Reaching peers that are away, and proving where those that are up can be reached.

A small machine inside ``membership.py``. A search dials, greets, pauses and dials again, ever less often, until the
peer is up or forgotten. Addresses at which the peer has answered before and those that are only claimed take turns: the
former need no leave, the latter wait for what ``dials.py`` allows, because they could be anybody's.
"""

from __future__ import annotations

import itertools
import random

from gossip.dials import Dials
from gossip.errors import LocalError, RemoteError
from gossip.member_places import Member
from gossip.members import Members
from gossip.membership_events import Action, Dial, DialBack, Incompatible, Search, SetTimer
from gossip.membership_limits import (
    FLAPS_MAX,
    PROOF_PAUSE_LONGEST_S,
    PROOF_PAUSE_S,
    REDIAL_FIRST_S,
    REDIAL_LONGEST_S,
)
from gossip.notices import Notices


class Searches:
    """All searches and proofs under way; each member holds its own present step.

    Args:
        members: the table.
        dials: makes the dials.
        notices: words what is told to the user.
        rng: spreads the pauses.
    """

    def __init__(self, members: Members, dials: Dials, notices: Notices, rng: random.Random) -> None:
        self._members = members
        self._dials = dials
        self._notices = notices
        self._rng = rng
        self._steps = itertools.count(1)

    # -- searching

    def seek(self, peer: str, now: float) -> list[Action]:
        """Begin to search for a peer, once at a time."""
        member = self._members.by_id.get(peer)
        if member is None or member.search:
            return []
        self._begin(member)
        return self._dial(peer, member, now)

    def lost(self, peer: str, now: float, *, afresh: bool = False) -> list[Action]:
        """Look for a peer whose connection is gone: it is down only if it cannot be dialed again at once.

        Args:
            afresh: close what connections there still seem to be.
        """
        member = self._members.by_id.get(peer)
        if member is None or member.search:
            return []
        if member.flaps >= FLAPS_MAX:
            down = self._members.down(peer, "connection lost", now)
            return [*down, *self._pause(peer, member)]
        self._begin(member)
        dial = self._dial(peer, member, now, afresh=afresh)
        is_waiting = not any(isinstance(action, Dial) and action.errand == member.search for action in dial)
        return [*dial, *(self._members.down(peer, "connection lost", now) if is_waiting else [])]

    def _begin(self, member: Member) -> None:
        member.tries = 0
        if member.flaps < FLAPS_MAX:
            member.pause_s = REDIAL_FIRST_S

    def _dial(self, peer: str, member: Member, now: float, *, afresh: bool = False) -> list[Action]:
        search = member.search = Search(peer, next(self._steps))
        proven = tuple(one for one in member.addresses if one in member.proven)
        turn, is_first = divmod(member.tries, 2) if proven else (member.tries, 1)
        member.tries += 1
        if proven and not is_first:
            return self._dials.trusted(Dial(search, proven, peer, afresh), now)
        shift = turn % max(
            1, len(member.addresses)
        )  # so that a silent address does not use up every dial's time
        addresses = member.addresses[shift:] + member.addresses[:shift]
        return self._dials.rumored(Dial(search, addresses, peer, afresh), member.source, now)

    def searched(self, errand: Search) -> Member | None:
        """Return the member searched for, if this is the present step of the search."""
        member = self._members.by_id.get(errand.peer)
        return member if member and member.search == errand else None

    def greeting(self, errand: Search) -> Search | None:
        """Go on from dialing to greeting and return the next step; None if ``errand`` is not the present one."""
        member = self.searched(errand)
        if member is None:
            return None
        member.search = Search(errand.peer, next(self._steps))
        return member.search

    def end(self, peer: str) -> None:
        """Search no longer."""
        if (member := self._members.by_id.get(peer)) and member.search:
            self._dials.cancel(member.search)
            member.search = None

    def failed(self, errand: Search, error: RemoteError | LocalError, now: float) -> list[Action]:
        """Pause and try again, ever less often; LocalErrors other than ``Incompatible`` are addresses made up."""
        member = self.searched(errand)
        if member is None:
            return []
        if isinstance(error, Incompatible):
            down = self._members.down(errand.peer, "another run", now)
            self._members.places.forget(errand.peer)
            return [*down, *self._notices.refused(errand.peer, str(error), now)]
        down = self._members.down(errand.peer, "connection lost", now)
        is_made_up = isinstance(error, LocalError) and not member.has_answered
        if is_made_up:
            self._members.places.forget(errand.peer)
        if is_made_up or self._members.places.is_forgotten(errand.peer, now):
            return down
        return [*down, *self._pause(errand.peer, member)]

    def _pause(self, peer: str, member: Member) -> list[Action]:
        member.search = Search(peer, next(self._steps))
        pause_s = member.pause_s * self._rng.uniform(0.5, 1.0)
        member.pause_s = min(2 * member.pause_s, REDIAL_LONGEST_S)
        return [SetTimer(member.search, pause_s)]

    def again(self, errand: Search, now: float) -> list[Action]:
        """Dial once more, after a pause."""
        member = self.searched(errand)
        return self._dial(errand.peer, member, now) if member else []

    def abandon(self) -> None:
        """Take no interest in any of them any more."""
        self._dials.clear()
        for member in self._members.by_id.values():
            member.search = member.proof = None

    def forgotten(self, member: Member) -> None:
        """Take no interest in a member that has lost its place."""
        for errand in (member.search, member.proof):
            if errand:
                self._dials.cancel(errand)

    # -- proving

    def prove(self, peer: str, now: float) -> list[Action]:
        """Dial a peer that is up back at the first address that it claims and that was not tried lately.

        One that answers is enough; none is passed on before it has.
        """
        member = self._members.by_id.get(peer)
        if member is None or not member.is_up or member.proof or now < member.prove_at:
            return []
        if self._members.told_address(peer) is not None:
            return []
        untried = (one for one in member.addresses if one not in member.tried and one not in member.proven)
        if (address := next(untried, None)) is None:
            return []
        member.tried |= {address}
        proof = member.proof = DialBack(peer, address, next(self._steps))
        return self._dials.rumored(Dial(proof, (address,), peer), peer, now)

    def proved(self, proof: DialBack, has_answered: bool, now: float) -> list[Action]:
        """Take the outcome of an attempt; after a pause all addresses are tried once more."""
        member = self._members.by_id.get(proof.peer)
        if member is None or member.proof != proof:
            return []
        member.proof = None
        if has_answered and proof.address in member.addresses:
            member.proven |= {proof.address}
            member.prove_pause_s = PROOF_PAUSE_S
            member.keep((), ())
            return []
        if following := self.prove(proof.peer, now):
            return following
        member.tried = frozenset()
        member.prove_at = now + member.prove_pause_s
        member.prove_pause_s = min(2 * member.prove_pause_s, PROOF_PAUSE_LONGEST_S)
        return []
