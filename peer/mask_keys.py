"""The keys behind masks, of one life of ours: X25519, HKDF-SHA256, AES-256-CTR and Ed25519 from ``cryptography``.

What is derived with them, and what may be revealed to whom, is decided in ``gossip/masked_sums.py``. The keys are drawn
from the operating system at the start of a life and kept nowhere: whoever takes the disk later unmasks nothing.
"""

from __future__ import annotations

import os

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gossip.errors import RemoteError
from gossip.fixed_point import Words
from gossip.masked_sums import key_statement
from gossip.messages import MaskKey
from peer.network.identity import peer_id
from peer.signing import has_signed

SEED_BYTES = 32
VERIFIED_MAX = 1024
"""So many signatures that held are remembered: the same keys are shown by each reader in each round. Source: ours."""
CHUNK_WORDS = 1 << 14
"""Words of a mask that are made at a time: 64 KiB stay in the cache. Source: our bench; all at once takes four times as
long."""
_ZEROS = memoryview(bytes(4 * CHUNK_WORDS))


class MaskSecrets:
    """One life's keys; see ``masked_sums.Secrets``.

    Args:
        key: our identity's 32 private key bytes.
        run: fingerprint of our run.
        roster: digest of roster and W.
    """

    def __init__(self, key: bytes, run: bytes, roster: bytes) -> None:
        self.peer = peer_id(key)
        self._identity = Ed25519PrivateKey.from_private_bytes(key)
        self._own = os.urandom(SEED_BYTES)
        self._agreement = X25519PrivateKey.generate()
        public = self._agreement.public_key().public_bytes_raw()
        self.key = MaskKey(self.peer, public, self.sign(key_statement(run, roster, self.peer, public)))
        self._verified: dict[tuple[str, bytes, bytes], None] = {}

    def pair_seed(self, key: bytes, info: bytes) -> bytes:
        """Return what both ends of a pair derive, 32 bytes.

        Raises:
            RemoteError: ``"mask"``: the key is one of the few points with which everybody derives the same.
        """
        try:
            shared = self._agreement.exchange(X25519PublicKey.from_public_bytes(key))
        except ValueError as error:
            raise RemoteError("mask", "a public key of small order") from error
        return _derived(shared, info)

    def own_seed(self, info: bytes) -> bytes:
        """Return 32 bytes that nobody else can derive."""
        return _derived(self._own, info)

    def add_mask(self, seed: bytes, words: Words, sign: int) -> None:
        """Add the mask of a seed, AES-256-CTR from a counter of 0, to words in place; ``sign``: 1 or -1.

        Each seed is derived for one sum and used as a key for nothing else, so that the counter may begin at 0.
        """
        stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
        buffer = bytearray(len(_ZEROS) + 16)  # the library asks for a block more
        mask = np.frombuffer(buffer, dtype="<u4", count=CHUNK_WORDS)
        for start in range(0, words.size, CHUNK_WORDS):
            part = words[start : start + CHUNK_WORDS]
            stream.update_into(_ZEROS[: 4 * part.size], buffer)
            if sign > 0:
                part += mask[: part.size]
            else:
                part -= mask[: part.size]

    def sign(self, statement: bytes) -> bytes:
        """Sign with the key of our peer id; 64 bytes."""
        return self._identity.sign(statement)

    def has_signed(self, peer: str, signature: bytes, statement: bytes) -> bool:
        """Tell whether a peer has signed a statement; what held once is not computed again."""
        known = (peer, signature, statement)
        if known in self._verified:
            return True
        if not has_signed(peer, signature, statement):
            return False
        self._verified[known] = None
        if len(self._verified) > VERIFIED_MAX:
            del self._verified[next(iter(self._verified))]
        return True


def _derived(secret: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), SEED_BYTES, salt=None, info=info).derive(secret)
