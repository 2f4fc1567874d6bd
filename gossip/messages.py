"""What peers say to each other: frozen records, nothing else. ``wire.py`` turns them into bytes and back.

``docs/protocol.md`` is the same in prose, with byte-exact examples that a test keeps true.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from topology.announced import Announced


@dataclass(frozen=True, slots=True)
class Hello:
    """First words on a new connection, and the answer to them.

    Args:
        manifest: the sender's ``RunManifest`` as plain fields; a difference ends in a ``Refusal`` that names it.
        name: what the user calls the peer, for display only.
        round: rounds completed.
        addresses: multiaddrs under which the sender can be dialed.
        known: multiaddrs of others that the sender is connected to: how a newcomer finds the rest.
        data: what the sender announces of its data, where its topology asks for that; None = nothing.
    """

    manifest: Mapping[str, str | int]
    name: str
    round: int
    addresses: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    data: Announced | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A polite no. ``reason`` is a stable word: manifest, run, busy, nothing, malformed; ``detail`` is for people."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Ping:
    """Heartbeat, answered by another ``Ping``. ``round``: rounds completed by the sender."""

    round: int


@dataclass(frozen=True, slots=True)
class Pull:
    """Ask for a published adapter; answered by ``Offer`` and raw bytes, or by ``Refusal``.

    Args:
        run: the run fingerprint, 16 bytes.
        round: the round wanted, held for up to ``wait_s`` seconds if not published yet; None = the newest, at once.
        newer_than: the answer may not be of this round or older; -1 = anything will do.
        wait_s: how long to hold the request, 0 to 600 seconds.
        offset: first payload byte wanted; above 0 to resume.
        digest: SHA-256 of the payload being resumed; empty when ``offset`` is 0.
        base: fingerprint of the replica that the reader keeps of the peer asked; empty = it keeps none.
    """

    run: bytes
    round: int | None
    newer_than: int
    wait_s: float
    offset: int = 0
    digest: bytes = b""
    base: bytes = b""


@dataclass(frozen=True, slots=True)
class Offer:
    """Header before the payload bytes.

    Args:
        round: the round in which the adapter was trained, from 0.
        age: local steps that went into it, a claim (mixing rules clamp it).
        codec: name of the codec of the payload.
        length: payload length in bytes, whole (not from ``offset``).
        digest: SHA-256 of the whole payload, 32 bytes.
        offset: first payload byte that follows.
        base: fingerprint of the replica that the payload is to be added to; empty = it stands for itself.
    """

    round: int
    age: int
    codec: str
    length: int
    digest: bytes
    offset: int = 0
    base: bytes = b""


@dataclass(frozen=True, slots=True)
class Presence:
    """Announced over GossipSub every few seconds: who is alive, where, at which round; ``leaving`` = goodbye."""

    run: bytes
    name: str
    round: int
    addresses: tuple[str, ...] = ()
    leaving: bool = False


Message = Hello | Refusal | Ping | Pull | Offer | Presence
