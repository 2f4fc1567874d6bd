"""What follows from what peers have signed: whoever contradicts itself is cut off by all for the rest of the run.

It joins the claims (``claims.py``) to the table of members; both are ``membership.py``'s.
"""

from __future__ import annotations

from collections.abc import Iterable

from gossip.claims import Claims
from gossip.members import Members
from gossip.membership_events import Action, Announce, Drop, Tell
from gossip.messages import Claim, Proof


class Convictions:
    """Who is cut off, and on what grounds (``claims``)."""

    def __init__(self, claims: Claims, members: Members) -> None:
        self.claims = claims
        self._members = members

    def offered(self, claim: Claim, now: float) -> list[Action]:
        """Take a claim that came with an offer to us, its signature checked before."""
        return self._follow(self.claims.read(claim), now)

    def told(self, claims: Iterable[Claim], now: float) -> list[Action]:
        """Take claims that others were offered."""
        return [action for claim in claims for action in self._follow(self.claims.heard(claim), now)]

    def proven(self, proofs: Iterable[Proof], now: float) -> list[Action]:
        """Take proofs that others have found."""
        news = [proof for proof in proofs if self.claims.convict(proof)]
        return [action for proof in news for action in self._follow(proof, now)]

    def _follow(self, proof: Proof | None, now: float) -> list[Action]:
        """Cut the convicted peer off, and tell everybody, who can check the proof as we did."""
        if proof is None:
            return []
        peer, what = proof.first.peer, f"two different adapters of round {proof.first.round}"
        if peer == self._members.me:
            return [Tell(f"{what} were signed with our key: does another process use it?")]
        name = self._members.display_name(peer)
        told = Tell(f"peer {name} ({peer}) is cut off for the rest of the run: it has signed {what}")
        return [told, *self._members.convict(peer, now), Drop(peer), Announce(proof)]
