"""The secret of a closed group: whoever knows it may connect, nobody else learns more than that a port is open.

It travels in the line with which a friend joins and is kept in a file that only its owner can read; it is in no
manifest and no message. Transports get a key made of it and prove it inside their handshake, before any protocol is
offered (``libp2p_host.py``). There is one secret a group: who leaves still knows it, so begin a new run to lock
somebody out.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

import base58

from gossip.errors import LocalError
from peer.durable import create_private, read_private, told

SECRET_FILE = "group.secret"
SECRET_BYTES = 32
OTHER_GROUP = "it is of another group, or of an open one; take the whole line with which you were invited"
"""Why a handshake fails between peers that do not share a secret, and what to do."""
_KEY_LABEL = b"gossip-peer group key 1\0"


def new_secret() -> str:
    """Return a fresh secret as text: 32 random bytes in base58 with a checksum, 49 letters or so."""
    return base58.b58encode_check(secrets.token_bytes(SECRET_BYTES)).decode()


def group_key(secret: str) -> bytes:
    """Return the 32 bytes that transports prove to know, of a secret as text.

    Raises:
        LocalError: not a secret: cut off, or a letter was mistyped.
    """
    try:
        raw = base58.b58decode_check(secret.strip())
    except ValueError:
        raw = b""
    if len(raw) != SECRET_BYTES:
        raise LocalError(
            "the group's secret is incomplete or mistyped: copy the whole of --secret from the line with which you "
            "were invited"
        )
    return hashlib.sha256(_KEY_LABEL + raw).digest()


def secret_of(home: Path, given: str = "", *, may_create: bool) -> str:
    """Return the secret of the group that a home folder belongs to; the first one is kept there.

    Args:
        given: what the user said; empty = nothing.
        may_create: without a secret, a new group begins: make one. Otherwise none is made.

    Returns:
        The secret, or an empty text where there is none and none may be made.

    Raises:
        LocalError: malformed, another than the one kept, or the file can be read by others or not be written.
    """
    path = home / SECRET_FILE
    if given:
        group_key(given)
    try:
        kept = read_private(path)
    except FileNotFoundError:
        kept = ""
    if kept and given and kept != given.strip():
        raise LocalError(
            f"{home} belongs to a group with another secret: use another --home for this group, or leave out --secret"
        )
    secret = kept or given.strip() or (new_secret() if may_create else "")
    if secret and not kept:
        try:
            create_private(path, secret)
        except OSError as error:
            raise LocalError(f"cannot keep the group's secret in {home}: {told(error)}") from error
    return secret
