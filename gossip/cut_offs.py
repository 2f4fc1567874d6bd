"""Who is cut off: for a while after repeated faults, and for the rest of the run for contradicting what it has signed.

A small machine inside ``membership.py``. It says whom to drop and what to tell; what claims prove is ``claims.py``'s.
"""

from __future__ import annotations

from collections.abc import Iterable

from gossip.claims import Claims
from gossip.members import Members
from gossip.membership_events import Action, Announce, Drop, Tell
from gossip.membership_limits import REFUSALS, STRIKES, STRIKES_S
from gossip.messages import Claim, Evidence
from gossip.notices import Notices
from gossip.searching import Searches
from gossip.strikes import Strikes


class CutOffs:
    """All grounds on which peers are cut off.

    Args:
        members, searches: who is cut off is down, and not searched for.
        notices: words what is told to the user.
        claims: what peers have signed.
    """

    def __init__(self, members: Members, searches: Searches, notices: Notices, claims: Claims) -> None:
        self._members = members
        self._searches = searches
        self._notices = notices
        self._claims = claims
        self._strikes = Strikes(STRIKES)
        self._refusals = Strikes(REFUSALS)

    def holds(self, peer: str, now: float) -> bool:
        """Whether a peer is cut off now."""
        is_convicted = peer in self._claims.evidence
        return is_convicted or self._strikes.is_over(peer, now) or self._refusals.is_over(peer, now)

    def forget_old(self, now: float) -> None:
        """Let go of faults that do not count any more."""
        self._strikes.forget_old(now)
        self._refusals.forget_old(now)

    # -- for a while

    def strike(self, peer: str, reason: str, now: float) -> list[Action]:
        """Count a fault."""
        was_cut_off = self.holds(peer, now)
        if not self._strikes.add(peer, now):
            return []
        return [Drop(peer)] if was_cut_off else self._cut_off(peer, reason, f"for {STRIKES_S:.0f} s", now)

    def refused(self, peer: str, now: float) -> list[Action]:
        """Count a hello of another run."""
        if not self._refusals.add(peer, now):
            return []
        return self._cut_off(peer, "greets with another run", f"for {STRIKES_S:.0f} s", now)

    # -- for the rest of the run

    def offered(self, claim: Claim, now: float) -> list[Action]:
        """Take a claim that came with an offer to us, its signature checked before."""
        return [*self._follow(self._claims.read(claim), now), *self._strike_changed_lives(now)]

    def told(self, claims: Iterable[Claim], now: float) -> list[Action]:
        """Take claims that others were offered."""
        found = [action for claim in claims for action in self._follow(self._claims.heard(claim), now)]
        return [*found, *self._strike_changed_lives(now)]

    def proven(self, found: Iterable[Evidence], now: float) -> list[Action]:
        """Take evidence that others have found."""
        news = [evidence for evidence in found if self._claims.convict(evidence)]
        return [action for evidence in news for action in self._follow(evidence, now)]

    def _strike_changed_lives(self, now: float) -> list[Action]:
        """Count lives that publish other adapters than lives before: an honest peer does not restart that often."""
        changed = self._claims.take_changed_lives()
        reason = "begins new lives with other adapters of the same rounds"
        return [action for peer in changed for action in self.strike(peer, reason, now)]

    def _follow(self, evidence: Evidence | None, now: float) -> list[Action]:
        """Cut the convicted peer off, and tell everybody, who can check the evidence as we did."""
        if evidence is None:
            return []
        peer, what = evidence.first.peer, f"two different adapters of round {evidence.first.round}"
        if peer == self._members.places.me:
            return [Tell(f"{what} were signed with our key: does another process use it?")]
        return [
            *self._cut_off(peer, f"it has signed {what}", "for the rest of the run", now),
            Announce(evidence),
        ]

    def _cut_off(self, peer: str, reason: str, how_long: str, now: float) -> list[Action]:
        self._searches.end(peer)
        line = f"peer {self._members.display_name(peer)} ({peer}) is cut off {how_long}: {reason}"
        told = self._notices.line("cut off", peer, line, now)
        return [*told, *self._members.down(peer, reason, now), Drop(peer)]
