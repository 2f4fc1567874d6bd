"""What peers say to each other: frozen records, nothing else. ``wire.py`` turns them into bytes and back.

``docs/protocol.md`` is the same in prose, with byte-exact examples that a test keeps true.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from topology.announced import Announced

Kind = Literal["round", "merge", "initial", "rollouts", "whole"]
"""What a payload is: an adapter of a round, one of the final merge (always the adapter itself, whatever the run's
codec), the one that all peers began with, rollouts of a round (``rollouts.py``), or the adapter that a round begins
with, coded as in the merge. Payloads of one length may be any of them: only this tells."""

Reason = Literal["manifest", "run", "hello", "readers", "mask", "busy", "nothing", "malformed"]
"""Why a question is refused: another run's manifest; another run; no hello of this run came first; our adapters are
for other readers; our masks would not hide them; too much at a time; there is nothing to answer with; no honest peer
asks that."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a peer has signed about one adapter of its own; see ``claims.py``.

    Args:
        peer: peer id of the signer.
        incarnation: number of its life, higher after each restart.
        round, kind, base, digest: as in ``Offer``.
        signature: Ed25519, 64 bytes, over ``claims.statement``.
    """

    peer: str
    incarnation: int
    round: int
    kind: Kind
    base: bytes
    digest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Evidence:
    """Two claims of one peer that contradict each other. Announced by whoever finds it, and told in hellos."""

    first: Claim
    second: Claim


@dataclass(frozen=True, slots=True)
class Hello:
    """First words on a new connection, and the answer to them.

    Args:
        manifest: the sender's ``RunManifest`` as plain fields; a difference ends in a ``Refusal`` that names it.
        name: what the user calls the peer, for display only.
        round: rounds completed, those of the final merge included.
        addresses: multiaddrs under which the sender can be dialed.
        known: multiaddrs of others that the sender is connected to: how a newcomer finds the rest.
        data: what the sender announces of its data, where its topology asks for that; None = nothing.
        incarnation: number of the sender's life, higher after each restart.
        evidence: against whom the sender has evidence.
    """

    manifest: Mapping[str, str | int]
    name: str
    round: int
    addresses: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    data: Announced | None = None
    incarnation: int = 0
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A polite no; ``detail`` is for people."""

    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Ping:
    """Heartbeat of a peer that has been greeted, answered by another ``Ping``. ``round``: as in ``Hello``."""

    round: int


@dataclass(frozen=True, slots=True)
class MaskKey:
    """A peer's X25519 key of one life, for masks; the answer to ``MaskKeyQuery``, and shown to others in pulls.

    Args:
        peer: whose it is.
        key: the public key, 32 bytes.
        signature: Ed25519, 64 bytes, over ``masked_sums.key_statement``.
    """

    peer: str
    key: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class MaskKeyQuery:
    """Ask for a peer's key. ``run``: the run fingerprint, 16 bytes, as in all that follows."""

    run: bytes


@dataclass(frozen=True, slots=True)
class Summand:
    """A payload that a reader has: its publisher, and its SHA-256, 32 bytes."""

    peer: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class SumProposal:
    """A reader names the payloads whose sum it wants; answered by ``SumAgreed``.

    Args:
        round, kind: of the payloads.
        keys: digest of the keys with which they are masked (``masked_sums.keys_digest``), 32 bytes.
        summands: whose payloads it has, in order of peers.
    """

    run: bytes
    round: int
    kind: Kind
    keys: bytes
    summands: tuple[Summand, ...]


@dataclass(frozen=True, slots=True)
class SumAgreed:
    """A publisher has signed a proposal (``masked_sums.Sum.signed_of``), 64 bytes."""

    signature: bytes


@dataclass(frozen=True, slots=True)
class SumSigned:
    """A reader shows that all publishers have signed its proposal, in their order; answered by ``MaskSeeds``."""

    run: bytes
    round: int
    kind: Kind
    keys: bytes
    signatures: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class PairSeed:
    """Seed of the mask that a publisher shares with ``peer``, 32 bytes."""

    peer: str
    seed: bytes


@dataclass(frozen=True, slots=True)
class MaskSeeds:
    """What takes a publisher's masks off a sum: the seed of its own, 32 bytes, and those it shares with the absent."""

    own: bytes
    pairs: tuple[PairSeed, ...]


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
        kind: what is asked for; nothing else will do.
        keys: with which the payload is to be masked, in order of peers; None = it is not to be masked.
    """

    run: bytes
    round: int | None
    newer_than: int
    wait_s: float
    offset: int = 0
    digest: bytes = b""
    base: bytes = b""
    kind: Kind = "round"
    keys: tuple[MaskKey, ...] | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """Header before the payload bytes.

    Args:
        round: number of the round whose adapter this is, counted from 0: as its local steps left it, before it was
            mixed. Those of the final merge go on counting where the run's rounds end.
        age: local steps that went into it, a claim (mixing rules clamp it).
        codec: name of the codec of the payload.
        length: payload length in bytes, whole (not from ``offset``).
        digest: SHA-256 of the whole payload, 32 bytes.
        offset: first payload byte that follows.
        base: fingerprint of the replica that the payload is to be added to; empty = it stands for itself.
        kind: what the payload is; what was asked for.
        incarnation: number of the sender's life.
        signature: the sender's under all this but age, codec, length and offset (``claims.statement``), 64 bytes;
            empty only in simulations.
    """

    round: int
    age: int
    codec: str
    length: int
    digest: bytes
    offset: int = 0
    base: bytes = b""
    kind: Kind = "round"
    incarnation: int = 0
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Presence:
    """Announced over GossipSub every few seconds: who is alive, where, at which round; ``leaving`` = goodbye.

    ``incarnation`` and ``sequence``, which rises with each announcement of a life, order them: an older one than was
    heard is a replay. ``claims``: what the sender was offered by others of late.
    """

    run: bytes
    name: str
    round: int
    addresses: tuple[str, ...] = ()
    leaving: bool = False
    incarnation: int = 0
    sequence: int = 0
    claims: tuple[Claim, ...] = ()


Message = (
    Hello
    | Refusal
    | Ping
    | Pull
    | Offer
    | Presence
    | Evidence
    | MaskKeyQuery
    | MaskKey
    | SumProposal
    | SumAgreed
    | SumSigned
    | MaskSeeds
)
