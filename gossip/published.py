"""An adapter as it is published, and the last few that a peer has published: which of them answers a request.

Pure: holding a request until there is an answer is the caller's.

Published bytes never change, so serving needs no copy and no lock.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from gossip.messages import Offer, Pull

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
    """

    round: int
    age: int
    codec: str
    payload: bytes | bytearray = field(repr=False)
    base: bytes = b""
    whole: Callable[[], PublishedAdapter] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the payload, 32 bytes; computed once."""
        return hashlib.sha256(self.payload).digest()

    def offer(self, offset: int = 0) -> Offer:
        """Return the header under which this adapter travels from ``offset`` on."""
        return Offer(self.round, self.age, self.codec, len(self.payload), self.digest, offset, self.base)

    def for_reader(self, base: bytes) -> PublishedAdapter:
        """Return what a reader with this replica can use: the adapter itself, or the whole, which is made once."""
        return self if self.base == base or self.whole is None else self._whole

    @cached_property
    def _whole(self) -> PublishedAdapter:
        assert self.whole is not None
        return self.whole()


class RecentPublications:
    """Adapters by round, newest last."""

    def __init__(self, kept: int = KEPT) -> None:
        self._publications: deque[PublishedAdapter] = deque(maxlen=kept)

    def put(self, published: PublishedAdapter) -> None:
        """Add the newest adapter; the oldest beyond ``kept`` falls off."""
        self._publications.append(published)

    @property
    def newest(self) -> PublishedAdapter | None:
        """What was published last, or None before the first."""
        return self._publications[-1] if self._publications else None

    def find(self, pull: Pull, *, waited: bool) -> PublishedAdapter | None:
        """Return the adapter that answers a request now, or None if it should be held (or, ``waited``, refused).

        The rule, in order: the very bytes being resumed; the round asked for; if that round is past, the newest, seen
        before or not (a reader behind us still averages with where we are, also when we have finished); if it is still
        to come, nothing until the wait is over, and then the newest that is news to the reader.
        """
        newest = self.newest
        if newest is None:
            return None
        if pull.offset:
            return self._with_digest(pull.digest)
        published = self._choose(pull, newest, waited=waited)
        return published.for_reader(pull.base) if published else None

    def _with_digest(self, digest: bytes) -> PublishedAdapter | None:
        for published in self._publications:
            for variant in (published, published.for_reader(b"")):
                if variant.digest == digest:
                    return variant
        return None

    def _choose(self, pull: Pull, newest: PublishedAdapter, *, waited: bool) -> PublishedAdapter | None:
        if pull.round is not None:
            for published in self._publications:
                if published.round == pull.round:
                    return published
            if newest.round > pull.round:
                return newest
            if not waited:
                return None
        return newest if newest.round > pull.newer_than else None
