"""A peer's identity: one Ed25519 private key in a file that only its owner can read.

Whoever has the key is the peer. It is made once, atomically, and never overwritten. The peer id is libp2p's: base58
of the identity multihash of the public key; computed here, because ``peer id`` need not import libp2p for it.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import base58
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gossip.errors import LocalError
from peer.durable import create_private, read_private, told

KEY_FILE = "identity.key"
KEY_BYTES = 32
# identity multihash (0x00) of 36 bytes: protobuf PublicKey{Type: Ed25519 (1), Data: 32 bytes}, libp2p peer id spec
_MULTIHASH_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])


def peer_id(private_key: bytes) -> str:
    """Return the peer id (base58, ``12D3Koo...``) of 32 raw private key bytes."""
    public = Ed25519PrivateKey.from_private_bytes(private_key).public_key()
    return base58.b58encode(_MULTIHASH_PREFIX + public.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def is_peer_id(text: str) -> bool:
    """Whether ``text`` is a base58 peer id of an Ed25519 key (the only kind that this project makes)."""
    return public_key_of(text) is not None


def public_key_of(peer: str) -> bytes | None:
    """Return the 32 public key bytes that a peer id contains; None if it is none of an Ed25519 key."""
    try:
        raw = base58.b58decode(peer)
    except ValueError:
        return None
    if len(raw) != len(_MULTIHASH_PREFIX) + KEY_BYTES or not raw.startswith(_MULTIHASH_PREFIX):
        return None
    return raw[len(_MULTIHASH_PREFIX) :]


def create_identity(home: Path) -> bytes:
    """Make a new key in ``home`` (which must exist) and return its 32 bytes.

    Raises:
        LocalError: there is an identity already, or the folder cannot be written.
    """
    path = home / KEY_FILE
    key = secrets.token_bytes(KEY_BYTES)
    try:
        create_private(path, key.hex())
    except FileExistsError:
        raise LocalError(f"{path} exists already: an identity is never overwritten") from None
    except OSError as error:
        raise LocalError(
            f"cannot write an identity to {home}: {told(error)}; or choose another --home"
        ) from error
    return key


def load_identity(home: Path) -> bytes:
    """Return the 32 key bytes of ``home``.

    Raises:
        LocalError: missing, readable by others, or not a key; the message says what to do.
    """
    path = home / KEY_FILE
    try:
        text = read_private(path)
    except FileNotFoundError:
        raise LocalError(f"no identity in {home}: run `peer init --home {home}` first") from None
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise LocalError(
            f"{path} is not a key of {KEY_BYTES} bytes in hex: restore it, or remove it and run `peer init`"
        )
    return key


def load_or_create_identity(home: Path) -> bytes:
    """Return the key of ``home``, making one at the first start."""
    return load_identity(home) if (home / KEY_FILE).exists() else create_identity(home)
