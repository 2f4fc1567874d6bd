"""An adapter as it is published, and the last few that a peer has published: which of them answers a request.

Pure: holding a request until there is an answer is the caller's.

Published bytes never change, so serving needs no copy and no lock.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from gossip.messages import Kind, Offer, Pull

KEPT = 3
"""Rounds kept: a reader one round behind, one level, and one in the middle of a resumed transfer. Source: ours."""


@dataclass(frozen=True)
class PublishedAdapter:
    """One published adapter: immutable bytes and what is said of them.

    Args:
        round: the round in which it was trained.
        age: local steps that went into it.
        codec: name of its codec.
        payload: the encoded adapter.
        base: see ``Offer``.
        whole: for a payload with a base: makes the adapter for readers whose replica is another, or who keep none.
        kind: see ``Offer``.
    """

    round: int
    age: int
    codec: str
    payload: bytes | bytearray = field(repr=False)
    base: bytes = b""
    whole: Callable[[], PublishedAdapter] | None = field(default=None, repr=False, compare=False)
    kind: Kind = "round"

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the payload, 32 bytes; computed once."""
        return hashlib.sha256(self.payload).digest()

    def offer(self, offset: int = 0) -> Offer:
        """Return the header under which this adapter travels from ``offset`` on."""
        length = len(self.payload)
        return Offer(self.round, self.age, self.codec, length, self.digest, offset, self.base, kind=self.kind)

    def for_reader(self, base: bytes) -> PublishedAdapter:
        """Return what a reader with this replica can use: the adapter itself, or the whole, which is made once."""
        return self if self.base == base or self.whole is None else self._whole

    @cached_property
    def _whole(self) -> PublishedAdapter:
        assert self.whole is not None
        return self.whole()


class RecentPublications:
    """Adapters of each kind by round, newest last."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._shelves: dict[Kind, deque[PublishedAdapter]] = {}

    def put(self, published: PublishedAdapter) -> None:
        """Add the newest adapter of its kind; the oldest of that kind beyond ``kept`` falls off."""
        kept = 1 if published.kind == "whole" else self._kept  # of these only the newest is asked for
        self._shelves.setdefault(published.kind, deque(maxlen=kept)).append(published)

    def newest(self, kind: Kind) -> PublishedAdapter | None:
        """Return the newest adapter of a kind, if there is one."""
        shelf = self._shelves.get(kind)
        return shelf[-1] if shelf else None

    def find(
        self, pull: Pull, *, waited: bool, may_read: Callable[[PublishedAdapter], bool] = lambda _: True
    ) -> PublishedAdapter | None:
        """Return the adapter that answers a request now, or None if it should be held (or, ``waited``, refused).

        Only those of the kind asked for, which the reader may read, come into question. The rule, in order: the very
        bytes being resumed; the round asked for; if that round is past, the newest, seen before or not (a reader behind
        us still averages with where we are, also when we have finished); if it is still to come, nothing until the wait
        is over, and then the newest that is news to the reader. ``is_news`` is the same as the reader checks it.
        """
        shelf = deque(one for one in self._shelves.get(pull.kind, ()) if may_read(one))
        if not shelf:
            return None
        if pull.offset:
            return _with_digest(shelf, pull.digest)
        published = _choose(shelf, pull, waited=waited)
        return published.for_reader(pull.base) if published else None


def is_news(round: int, pull: Pull) -> bool:
    """Tell whether an adapter of this round may answer a request: the only rule about rounds that a reader checks.

    It is newer than all that the reader has of the sender, or the sender has reached the round that the reader is in:
    then it says where the sender is now, also if that has been read before. So nobody can have an adapter mixed again
    and again by those who have gone on.
    """
    return round > pull.newer_than or (pull.round is not None and round >= pull.round)


def _with_digest(shelf: Iterable[PublishedAdapter], digest: bytes) -> PublishedAdapter | None:
    for published in shelf:
        for variant in (published, published.for_reader(b"")):
            if variant.digest == digest:
                return variant
    return None


def _choose(shelf: deque[PublishedAdapter], pull: Pull, *, waited: bool) -> PublishedAdapter | None:
    newest = shelf[-1]
    if pull.round is not None:
        for published in shelf:
            if published.round == pull.round:
                return published
        if newest.round < pull.round and not waited:
            return None
    return newest if is_news(newest.round, pull) else None
