"""What peers have signed: two adapters under one name prove that their signer serves other bytes to each reader.

Every offer is signed, and says which life of its sender (``incarnation``) published which adapter (``digest``) of which
round. Readers tell others what they were offered, and whoever sees two claims that contradict each other has a proof
that everybody can check, about the signer and nobody else. An honest peer that goes on from an older checkpoint, and so
publishes a round twice, is in a new life then and contradicts nothing; whoever begins a new life for each reader is
found by how often it does (``take_changed_lives``).

Pure: it takes claims whose signatures have been verified. How they are signed is ``peer/signing.py``'s.
"""

from __future__ import annotations

import struct
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import get_args

from gossip.messages import Claim, Evidence, Kind, Offer
from gossip.wire import CLAIMS_MAX

DOMAIN = b"gossip-peer/3 offer\0"
"""What signed bytes begin with, so that no signature made for anything else is one of a claim, nor the reverse."""
PER_PEER = 16
"""Claims remembered of each peer, the newest. Source: ours; the three rounds that it keeps, plain and whole, and some
that others are late with."""
PEERS_MAX = 1000
"""So many peers' claims are remembered: as many as members (membership_limits.py)."""
TOLD_MAX = 64
"""So many claims wait to be told to others; the oldest are dropped. Source: ours, a few rounds of reading 16."""
PROVEN_MAX = 1000
"""Against so many peers others' evidence is taken: whoever makes up identities to convict fills no memory. Our own is
always kept."""
Verify = Callable[[bytes, Claim], bool]
"""``(run, claim) -> whether the peer that it names has signed it``."""


def nothing_is_signed(run: bytes, claim: Claim) -> bool:
    """Stand in for ``Verify`` where nobody has a key, as in simulations."""
    return False


_FIXED = struct.Struct(">QQBB")
LIVES_MAX = 1000
"""So many lives are remembered that have published a round anew: as many as peers. Source: ours."""
_Subject = tuple[int, int, Kind, bytes]
_NOTHING: OrderedDict[_Subject, Claim] = OrderedDict()


def statement(run: bytes, claim: Claim) -> bytes:
    """Return the bytes that are signed: no two claims, and no two runs, have the same."""
    kind = get_args(Kind).index(claim.kind)
    fixed = _FIXED.pack(claim.incarnation, claim.round, kind, len(claim.base))
    return b"".join((DOMAIN, run, fixed, claim.base, claim.digest, claim.peer.encode()))


def claim_in(peer: str, offer: Offer) -> Claim:
    """Return what a peer claims with an offer."""
    subject = (peer, offer.incarnation, offer.round, offer.kind, offer.base)
    return Claim(*subject, offer.digest, offer.signature)


class Claims:
    """What all peers have claimed, as far as it was seen; bounded per peer and in all.

    Args:
        run: fingerprint of the run.
        verify: see ``Verify``.
    """

    def __init__(self, run: bytes, verify: Verify) -> None:
        self.evidence: dict[str, Evidence] = {}  # by the peer convicted, the newest last
        self._run = run
        self._verify = verify
        self._claims: OrderedDict[str, OrderedDict[_Subject, Claim]] = OrderedDict()
        self._untold: deque[Claim] = deque(maxlen=TOLD_MAX)
        self._changed: OrderedDict[tuple[str, int], None] = OrderedDict()  # (peer, life) that published anew
        self._untaken: list[str] = []  # peers of those lives that ``take_changed_lives`` has not returned

    def read(self, claim: Claim) -> Evidence | None:
        """Take a claim that came with an offer to us, verified before; it is told to others."""
        self._untold.append(claim)
        return self._take(claim)

    def heard(self, claim: Claim) -> Evidence | None:
        """Take a claim that somebody told of, perhaps of somebody else; a forged one is ignored."""
        known = self._claims.get(claim.peer, _NOTHING).get(_subject(claim))
        if known and known.digest == claim.digest:
            return None
        return self._take(claim) if self._verify(self._run, claim) else None

    def convict(self, proof: Evidence) -> bool:
        """Take a proof that somebody passed on; return whether it holds and was not known."""
        first, second = proof.first, proof.second
        if first.peer in self.evidence or len(self.evidence) >= PROVEN_MAX or not _contradict(first, second):
            return False
        if not (self._verify(self._run, first) and self._verify(self._run, second)):
            return False
        self._keep(proof)
        return True

    def take_changed_lives(self) -> list[str]:
        """Return peers, once for each life in which they published something else under a round of another life.

        An honest peer does so once a restart, if at all.
        """
        taken, self._untaken = self._untaken, []
        return taken

    def to_tell(self) -> tuple[Claim, ...]:
        """Return claims to tell others now, the newest first, which they may have as well; each is told once."""
        return tuple(self._untold.pop() for _ in range(min(CLAIMS_MAX, len(self._untold))))

    def _take(self, claim: Claim) -> Evidence | None:
        of_peer = self._claims.pop(claim.peer, OrderedDict())
        self._claims[claim.peer] = of_peer
        if len(self._claims) > PEERS_MAX:
            self._claims.popitem(last=False)
        self._compare_lives(claim, of_peer)
        known = of_peer.setdefault(_subject(claim), claim)
        if len(of_peer) > PER_PEER:
            of_peer.popitem(last=False)
        if known.digest == claim.digest or claim.peer in self.evidence:
            return None
        proof = Evidence(known, claim)
        self._keep(proof)
        return proof

    def _compare_lives(self, claim: Claim, of_peer: OrderedDict[_Subject, Claim]) -> None:
        """Note that a life of a peer contradicts another one, the first time that it does."""
        life = (claim.peer, claim.incarnation)
        if life in self._changed or not any(_is_published_anew(known, claim) for known in of_peer.values()):
            return
        self._changed[life] = None
        self._untaken.append(claim.peer)
        if len(self._changed) > LIVES_MAX:
            self._changed.popitem(last=False)

    def _keep(self, proof: Evidence) -> None:
        self.evidence[proof.first.peer] = proof


def _subject(claim: Claim) -> _Subject:
    """Return what a claim is about: one adapter for all of its readers."""
    return (claim.incarnation, claim.round, claim.kind, claim.base)


def _is_published_anew(known: Claim, claim: Claim) -> bool:
    """Tell whether two lives of a peer publish different adapters under one round."""
    same_round = (known.round, known.kind, known.base) == (claim.round, claim.kind, claim.base)
    return same_round and known.incarnation != claim.incarnation and known.digest != claim.digest


def _contradict(first: Claim, second: Claim) -> bool:
    """Tell whether two claims cannot both be honest."""
    same = first.peer == second.peer and _subject(first) == _subject(second)
    return same and first.digest != second.digest
