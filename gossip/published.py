"""The last few adapters that a peer has published, and which of them answers a request. Pure: holding is the caller's.

Published bytes never change, so serving needs no copy and no lock.
"""

from __future__ import annotations

from collections import deque

from gossip.messages import Parcel, Pull

KEPT = 3
"""Rounds kept: a reader one round behind, one level, and one in the middle of a resumed transfer. Source: ours."""


class Shelf:
    """Parcels by round, newest last."""

    def __init__(self, kept: int = KEPT) -> None:
        self._parcels: deque[Parcel] = deque(maxlen=kept)

    def put(self, parcel: Parcel) -> None:
        """Add the newest parcel; the oldest beyond ``kept`` falls off."""
        self._parcels.append(parcel)

    @property
    def newest(self) -> Parcel | None:
        """The last published parcel, or None before the first."""
        return self._parcels[-1] if self._parcels else None

    def find(self, pull: Pull, *, waited: bool) -> Parcel | None:
        """Return the parcel that answers a request now, or None if it should be held (or, ``waited``, refused).

        The rule, in order: the very bytes being resumed; the round asked for; if that round is past, the newest, seen
        before or not (a reader behind us still averages with where we are, also when we have finished); if it is still
        to come, nothing until the wait is over, and then the newest that is news to the reader.
        """
        newest = self.newest
        if newest is None:
            return None
        if pull.offset:
            variants = (variant for parcel in self._parcels for variant in (parcel, parcel.for_reader(b"")))
            return next((variant for variant in variants if variant.digest == pull.digest), None)
        parcel = self._choose(pull, newest, waited=waited)
        return parcel.for_reader(pull.base) if parcel else None

    def _choose(self, pull: Pull, newest: Parcel, *, waited: bool) -> Parcel | None:
        if pull.round is not None:
            for parcel in self._parcels:
                if parcel.round == pull.round:
                    return parcel
            if newest.round > pull.round:
                return newest
            if not waited:
                return None
        return newest if newest.round > pull.newer_than else None
