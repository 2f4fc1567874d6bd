"""Masks that cancel in a row's sum: what a publisher does and refuses, so that a reader learns the sum and no more.

For a reader r whose row of W is {j: w_rj}, publisher j sends, modulo 2^32,

    w_rj x_j  +  own mask of j  +  sum over j < k of mask(j, k)  -  sum over k < j of mask(k, j)

over the publishers k of the row whose keys the reader has shown it. Then the reader names the set U of those whose
payloads it has. Each of U signs that, once for a reader and round, and never that somebody is gone who is in another
reader's sum of that round, nor the reverse; with the signatures of all of U, each of U reveals
the seed of its own mask, and those of its masks with publishers that are not in U. So no publisher's own mask and pair
masks are ever revealed together, and whoever has fewer than ``minimum(row) - 1`` of U on its side learns the sum of at
least two others at best. The argument is in docs/masks.md. Sources: Bonawitz et al. (CCS 2017) for the masks; a
reader in place of the server, signatures in place of Shamir's shares: ours.

Pure: how keys are agreed on and signatures are made is given (``Secrets``); it knows neither time nor transport.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol, get_args

from gossip import fixed_point
from gossip.errors import RemoteError
from gossip.fixed_point import Words
from gossip.messages import Kind, MaskKey, MaskSeeds, PairSeed, Summand, SumProposal, SumSigned
from gossip.published import Payload, PublishedAdapter
from gossip.roster import Rows

CODEC = "pairs"
"""What an offer of a masked payload calls its codec."""
READS_MIN = 4
"""No row may read fewer. Source: with three, one publisher away would close the row."""
SUMMANDS_MIN = 3
"""No sum may have fewer summands. Source: a reader with one publisher on its side then sees the sum of two others."""
BASE_BYTES = 8
KEPT = 8
"""So many publications' sums are remembered, more than the three that are served: once one is forgotten, nothing of it
can be had any more. Source: ours."""
LISTS_MAX = 4
"""So many lists of keys a reader may show for one sum: a publisher may restart meanwhile. Source: guess."""

KEY_DOMAIN = b"gossip-peer/3 mask key\0"
SUM_DOMAIN = b"gossip-peer/3 sum\0"
_FIXED = struct.Struct(">QB")


def minimum(row: int) -> int:
    """Return how many summands a row of so many publishers must have: 3, and two thirds of it.

    Two sets of two thirds have a third in common, so that two different sums of one round need as many liars.
    """
    return max(SUMMANDS_MIN, -(-2 * row // 3))


def key_statement(run: bytes, roster: bytes, peer: str, key: bytes) -> bytes:
    """Return what a peer signs of its key: no other run, roster or peer has the same."""
    return b"".join((KEY_DOMAIN, run, roster, key, peer.encode()))


def keys_digest(keys: Iterable[MaskKey]) -> bytes:
    """Return the SHA-256 of a list of keys."""
    digest = hashlib.sha256()
    for one in keys:
        digest.update(_prefixed(one.peer) + one.key)
    return digest.digest()


def _prefixed(text: str) -> bytes:
    """Return a text after its length in bytes, so that no two lists of texts are the same bytes."""
    encoded = text.encode()
    return struct.pack(">H", len(encoded)) + encoded


@dataclass(frozen=True, slots=True)
class Sum:
    """Which sum: everything that masks and signatures are bound to.

    Args:
        run: the run fingerprint, 16 bytes.
        roster: digest of roster and W, 32 bytes.
        round, kind: of the adapters that are summed.
        reader: whose row it is.
        keys: digest of the list of keys that it is masked with, 32 bytes.
    """

    run: bytes
    roster: bytes
    round: int
    kind: Kind
    reader: str
    keys: bytes

    @property
    def statement(self) -> bytes:
        """The same as bytes: no two sums have the same."""
        fixed = _FIXED.pack(self.round, get_args(Kind).index(self.kind))
        return b"".join((SUM_DOMAIN, self.run, self.roster, self.keys, fixed, _prefixed(self.reader)))

    @property
    def base(self) -> bytes:
        """A short name of it, which its offers carry."""
        return hashlib.sha256(self.statement).digest()[:BASE_BYTES]

    def of_pair(self, one: str, other: str) -> bytes:
        """Return what the masks of a pair are derived with."""
        low, high = sorted((one, other))
        return b"".join((self.statement, b"pair", _prefixed(low), _prefixed(high)))

    def of_own(self, peer: str) -> bytes:
        """Return what a peer's own mask is derived with."""
        return b"".join((self.statement, b"own", _prefixed(peer)))

    def signed_of(self, summands: Iterable[Summand]) -> bytes:
        """Return what the publishers of a sum sign: the sum, and whose payloads it is of."""
        each = (_prefixed(one.peer) + one.digest for one in summands)
        return b"".join((self.statement, b"of", *each))


class Secrets(Protocol):
    """A peer's keys in one life, and what is made with them.

    Attributes:
        peer: our peer id.
        key: our public key of this life, signed.
    """

    peer: str
    key: MaskKey

    def pair_seed(self, key: bytes, info: bytes) -> bytes:
        """Return 32 bytes that whoever has this public key can derive as well, and nobody else."""

    def own_seed(self, info: bytes) -> bytes:
        """Return 32 bytes that nobody else can derive."""

    def add_mask(self, seed: bytes, words: Words, sign: int) -> None:
        """Add the mask of a seed to words, in place; ``sign``: 1, or -1 to take it away."""

    def sign(self, statement: bytes) -> bytes:
        """Sign with the key of our peer id; 64 bytes."""

    def has_signed(self, peer: str, signature: bytes, statement: bytes) -> bool:
        """Tell whether a peer has signed a statement."""


def check_keys(sum: Sum, keys: tuple[MaskKey, ...], row: Mapping[str, float], secrets: Secrets) -> None:
    """Refuse a list of keys that no honest reader shows for its row.

    Raises:
        RemoteError: ``"mask"``: not sorted, of others than the row's, too few, or not signed.
    """
    peers = [one.peer for one in keys]
    if any(one >= following for one, following in pairwise(peers)) or not row.keys() >= set(peers):
        raise RemoteError("mask", "the keys are not those of publishers of the row, in order")
    if len(keys) < minimum(len(row)):
        raise RemoteError("mask", f"{len(keys)} keys for a row of {len(row)}: {minimum(len(row))} are needed")
    for one in keys:
        statement = key_statement(sum.run, sum.roster, one.peer, one.key)
        if not secrets.has_signed(one.peer, one.signature, statement):
            raise RemoteError("mask", f"the key of {one.peer} is not signed by it for this run and roster")


@dataclass(slots=True)
class _Promise:
    """What a publisher has done for one reader and publication.

    Args:
        lists: by digest of its keys: the peers of each list, their keys, and the digest of the payload masked with it.
        signed: the one sum that was signed, and of whose payloads.
    """

    lists: dict[bytes, tuple[dict[str, bytes], bytes]] = field(default_factory=dict)
    signed: tuple[Sum, tuple[Summand, ...]] | None = None


@dataclass(slots=True)
class _Publication:
    """What a publisher has done about one of its adapters.

    Args:
        digest: of the adapter.
        promises: by reader.
        here, gone: peers that are in the sums signed, and those of their rows that are not. They have nobody in common:
            or two readers on one side would learn a single adapter, as the difference of two sums.
    """

    digest: bytes
    promises: dict[str, _Promise] = field(default_factory=dict)
    here: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)


class MaskingPublisher:
    """One peer as a publisher of masked payloads.

    Args:
        run, roster: see ``Sum``.
        rows: the rows of W over the roster, as the publisher itself finds them.
        secrets: of this life of ours.
    """

    def __init__(self, run: bytes, roster: bytes, rows: Rows, secrets: Secrets) -> None:
        self._run, self._roster = run, roster
        self._rows = rows
        self._secrets = secrets
        self._publications: OrderedDict[tuple[Kind, int], _Publication] = OrderedDict()

    def _begin(self, kind: Kind, round: int, digest: bytes) -> _Publication:
        """Return what was done about an adapter of ours; what is long past is forgotten.

        Args:
            digest: of our adapter. Never are two of them masked for one round and life: their difference would show.

        Raises:
            RemoteError: ``"mask"``: it is another one than before; nothing of it may be served.
        """
        publication = self._publications.setdefault((kind, round), _Publication(digest))
        if publication.digest != digest:
            raise RemoteError("mask", f"round {round} was published twice in one life")
        while len(self._publications) > KEPT:
            self._publications.popitem(last=False)
        return publication

    def sum_of(self, reader: str, kind: Kind, round: int, keys: bytes) -> Sum:
        """Return which sum a reader speaks of."""
        return Sum(self._run, self._roster, round, kind, reader, keys)

    def masked(self, reader: str, published: PublishedAdapter, keys: tuple[MaskKey, ...]) -> PublishedAdapter:
        """Return our payload for a reader; the same bytes for the same list of keys.

        Args:
            published: our adapter, float32.
            keys: of those with whom it is masked, as the reader shows them, sorted by peer; ours is among them.

        Raises:
            RemoteError: ``"readers"``: its row does not name us. ``"mask"``: the keys do not go, or too many lists.
            LocalError: our adapter cannot be written in fixed point.
        """
        kind, round, me, secrets = published.kind, published.round, self._secrets.peer, self._secrets
        row = self._rows(reader, kind, round)
        if me not in row:
            raise RemoteError("readers", "your row of the mixing matrix does not name this peer")
        sum = self.sum_of(reader, kind, round, keys_digest(keys))
        check_keys(sum, keys, row, secrets)
        if secrets.key not in keys:
            raise RemoteError("mask", "the key shown of this peer is not that of its present life")
        promise = self._begin(kind, round, published.digest).promises.setdefault(reader, _Promise())
        if len(promise.lists) >= LISTS_MAX and sum.keys not in promise.lists:
            raise RemoteError("mask", f"more than {LISTS_MAX} lists of keys for one sum")
        words = fixed_point.to_words(published.payload, row[me])
        secrets.add_mask(secrets.own_seed(sum.of_own(me)), words, 1)
        for one in keys:
            if one.peer != me:
                seed = secrets.pair_seed(one.key, sum.of_pair(me, one.peer))
                secrets.add_mask(seed, words, sign_of(me, one.peer))
        masked = replace(published, codec=CODEC, payload=fixed_point.to_bytes(words), base=sum.base)
        promise.lists[sum.keys] = ({one.peer: one.key for one in keys}, masked.digest)
        return masked

    def agree(self, reader: str, said: SumProposal) -> bytes:
        """Return our signature under whose payloads a reader says that it has.

        Raises:
            RemoteError: ``"mask"``: not of a payload that we gave it, too few, or another one was signed before.
        """
        publication, promise, peers, digest = self._promise(reader, said.kind, said.round, said.keys)
        summands = said.summands
        names = [one.peer for one in summands]
        if any(one >= following for one, following in pairwise(names)) or not peers.keys() >= set(names):
            raise RemoteError("mask", "a sum of others than those whose keys were shown, or not in order")
        row = self._rows(reader, said.kind, said.round)
        if len(names) < minimum(len(row)):
            raise RemoteError("mask", f"a sum of {len(names)} where {minimum(len(row))} are needed")
        if Summand(self._secrets.peer, digest) not in summands:
            raise RemoteError("mask", "our own payload is not in the sum, or another one")
        wanted = (self.sum_of(reader, said.kind, said.round, said.keys), summands)
        if promise.signed not in (None, wanted):
            raise RemoteError("mask", "another sum was signed for this round")
        here, gone = set(names), row.keys() - set(names)
        if here & publication.gone or gone & publication.here:
            raise RemoteError("mask", "sums of others in this round have it otherwise who is gone")
        promise.signed = wanted
        publication.here |= here
        publication.gone |= gone
        return self._secrets.sign(wanted[0].signed_of(summands))

    def reveal(self, reader: str, said: SumSigned) -> MaskSeeds:
        """Return the seeds with which a reader takes our masks off the sum that all of its publishers have signed.

        Raises:
            RemoteError: ``"mask"``: we have not signed it, or somebody else has not.
        """
        _, promise, peers, _ = self._promise(reader, said.kind, said.round, said.keys)
        if promise.signed is None or promise.signed[0].keys != said.keys:
            raise RemoteError("mask", "this sum was not signed by us")
        sum, summands = promise.signed
        statement, secrets = sum.signed_of(summands), self._secrets
        if len(said.signatures) != len(summands) or not all(
            secrets.has_signed(one.peer, signature, statement)
            for one, signature in zip(summands, said.signatures, strict=True)
        ):
            raise RemoteError("mask", "the sum is not signed by all of its publishers")
        gone = peers.keys() - {one.peer for one in summands}
        pairs = (
            PairSeed(peer, secrets.pair_seed(peers[peer], sum.of_pair(secrets.peer, peer))) for peer in gone
        )
        own = secrets.own_seed(sum.of_own(secrets.peer))
        return MaskSeeds(own, tuple(sorted(pairs, key=lambda pair: pair.peer)))

    def _promise(
        self, reader: str, kind: Kind, round: int, keys: bytes
    ) -> tuple[_Publication, _Promise, dict[str, bytes], bytes]:
        publication = self._publications.get((kind, round))
        promise = publication.promises.get(reader) if publication else None
        if publication is None or promise is None or keys not in promise.lists:
            raise RemoteError("mask", "no payload was given for this sum")
        return (publication, promise, *promise.lists[keys])


def sign_of(me: str, other: str) -> int:
    """Return with which sign a pair's mask is in my payload."""
    return 1 if me < other else -1


def unmasked(
    payloads: Mapping[str, Payload],
    seeds: Mapping[str, MaskSeeds],
    gone: frozenset[str],
    secrets: Secrets,
) -> Words:
    """Return the sum of payloads without their masks.

    Args:
        payloads: publisher -> its payload.
        seeds: publisher -> what it has revealed; the same publishers.
        gone: publishers whose keys were shown and whose payloads did not come.

    Raises:
        RemoteError: ``"mask"``: others than the seeds that belong to the sum were revealed. ``"shape"``: unequal
            lengths.
    """
    if len({len(payload) for payload in payloads.values()}) != 1:
        raise RemoteError("shape", "payloads of unequal lengths")
    peers = sorted(payloads)
    total = fixed_point.words_of(payloads[peers[0]]).copy()
    for peer in peers[1:]:
        total += fixed_point.words_of(payloads[peer])
    for peer in peers:
        revealed = seeds[peer]
        if len(revealed.pairs) != len(gone) or {pair.peer for pair in revealed.pairs} != gone:
            raise RemoteError("mask", f"{peer} has not revealed its masks with those that are gone")
        secrets.add_mask(revealed.own, total, -1)
        for pair in revealed.pairs:
            secrets.add_mask(pair.seed, total, -sign_of(peer, pair.peer))
    return total
