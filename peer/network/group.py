"""Who may connect: the secret of a group, and a list of peers beside it.

The secret travels in the line with which a friend joins and is kept in a file that only its owner can read; it is in
no manifest and no message. Transports get a key made of it and prove it inside their handshake, before any protocol is
offered (``libp2p_host.py``); who does not know it learns no more than that a port is open. There is one secret a
group: who leaves still knows it. To lock somebody out, list those who stay (``--allow``), or begin a new group.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import base58

from gossip.errors import LocalError
from peer.durable import create_private, read_private, told

SECRET_FILE = "group.secret"
SECRET_BYTES = 32
OTHER_GROUP = (
    "it is of another group, or does not have us on its list; take the whole line with which you were invited"
)
"""Why a handshake fails between peers that do not share a secret, and what to do."""
NOT_LISTED = "is not on our list of peers that may connect: add it with --allow"
"""What is said of a peer that our own list leaves out."""
_KEY_LABEL = b"gossip-peer group key 1\0"
_TOPIC_BYTES = 16


@dataclass(frozen=True, slots=True)
class Group:
    """Who may connect, in either direction.

    Args:
        key: what both sides must know, 32 bytes (``group_key``); empty: an open group, whose members have none either.
        allowed: ids of the peers that may connect; empty: everybody who has the key.
    """

    key: bytes = b""
    allowed: frozenset[str] = frozenset()

    @staticmethod
    def of(secret: str, allowed: Iterable[str] = ()) -> Group:
        """Return the group with this secret, which is open if the secret is empty.

        Raises:
            LocalError: the secret is malformed.
        """
        return Group(group_key(secret) if secret else b"", frozenset(allowed))

    def admits(self, peer: str) -> bool:
        """Whether a peer that has proven the key and its id may connect."""
        return not self.allowed or peer in self.allowed

    def name_of(self, topic: str) -> str:
        """Return the name under which a topic of announcements goes over the network: it says nothing of the run."""
        digest = hmac.digest(self.key, topic.encode(), "sha256")
        return digest[:_TOPIC_BYTES].hex()


OPEN_GROUP = Group()
"""Anybody may connect."""


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


def secret_of(home: Path, given: str = "", *, is_open: bool, begins: bool) -> str:
    """Return the secret of the group that a home folder belongs to, empty for an open one; the first one is kept there.

    Args:
        given: what the user said; empty = nothing.
        is_open: the user wants an open group.
        begins: without a secret, a new group begins: make one.

    Raises:
        LocalError: none is known and no group begins; malformed; another than the one kept; there is one, and an open
            group is wanted; or the file can be read by others or not be written.
    """
    path = home / SECRET_FILE
    if given:
        group_key(given)
    kept = _kept(path)
    if is_open:
        if given or kept:
            where = "given" if given else f"kept in {home}"
            raise LocalError(
                f"--open lets everybody in, but a closed group's secret is {where}: leave out --open, or use another "
                "--home and no --secret"
            )
        return ""
    if kept and given and kept != given.strip():
        raise LocalError(
            f"{home} belongs to a group with another secret: use another --home for this group, or leave out --secret"
        )
    secret = kept or given.strip() or (new_secret() if begins else "")
    if not secret:
        raise LocalError(
            "the group's secret is missing: take the whole line with which you were invited, with its --secret; only "
            "if the group was begun with --open, say --open"
        )
    if not kept:
        try:
            create_private(path, secret)
        except OSError as error:
            raise LocalError(f"cannot keep the group's secret in {home}: {told(error)}") from error
    return secret


def _kept(path: Path) -> str:
    try:
        return read_private(path)
    except FileNotFoundError:
        return ""
