"""Signatures under what we offer, and the check of others': Ed25519 with the very key that makes the peer id.

A peer id contains the public key, so nothing else is needed to check one. What is signed is ``gossip/claims.py``'s.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Callable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gossip.claims import claim_in, statement
from gossip.messages import Claim, Offer
from peer.network.identity import peer_id, public_key_of

log = logging.getLogger(__name__)

SIGNED_MAX = 64
"""So many of our own claims are remembered: more than are kept to be read. Source: ours."""


def is_signed(run: bytes, claim: Claim) -> bool:
    """Tell whether the peer that a claim names has signed it, for this run."""
    return has_signed(claim.peer, claim.signature, statement(run, claim))


def has_signed(peer: str, signature: bytes, signed: bytes) -> bool:
    """Tell whether a peer has signed these bytes."""
    public = public_key_of(peer)
    if public is None:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, signed)
    except (InvalidSignature, ValueError):
        return False
    return True


class Signer:
    """Signs what we offer.

    Args:
        key: our identity's 32 private key bytes.
        run: fingerprint of our run.
        begin_life: returns the number of a new life of ours, higher than all before and kept for good.
    """

    def __init__(self, key: bytes, run: bytes, begin_life: Callable[[], int]) -> None:
        self.incarnation = begin_life()
        self._key = Ed25519PrivateKey.from_private_bytes(key)
        self._peer = peer_id(key)
        self._run = run
        self._begin_life = begin_life
        self._signed: OrderedDict[tuple[object, ...], Offer] = OrderedDict()

    def signed(self, offer: Offer) -> Offer:
        """Return an offer with our incarnation and signature.

        Never are two adapters signed for one round of one life, or we would convict ourselves: where a round was begun
        again from an older adapter, a new life begins with it.
        """
        subject = (offer.round, offer.kind, offer.base)
        known = self._signed.get(subject)
        if known is not None and known.digest != offer.digest:
            log.warning("round %d was published twice: a new life begins", offer.round)
            self._signed.clear()
            self.incarnation = self._begin_life()
            known = None
        if known is None:
            known = self._signed[subject] = self._sign(offer)
            if len(self._signed) > SIGNED_MAX:
                self._signed.popitem(last=False)
        return dataclasses.replace(offer, incarnation=known.incarnation, signature=known.signature)

    def _sign(self, offer: Offer) -> Offer:
        offer = dataclasses.replace(offer, incarnation=self.incarnation, offset=0)
        signature = self._key.sign(statement(self._run, claim_in(self._peer, offer)))
        return dataclasses.replace(offer, signature=signature)
