"""What a node keeps of other peers: one record for each that it has heard of or asked.

It does not decide anything: what a peer is asked for, and when, is ``node.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gossip.methods.contribution import Contribution
from topology.announced import Announced

NOTHING_MIXED = -1
"""Stands for a round before the first: of this peer nothing has been mixed."""


@dataclass(slots=True)
class Neighbor:
    """One peer, as far as we know it.

    Args:
        progress: rounds that it has completed, by its own word; 0 until it is heard of.
        mixed_round: round of its last adapter that was mixed.
        fetches: requests for its adapters that are under way.
        weight: its weight in the row of W for which it was asked last.
        likeness: cosine of what its adapter and ours have learned, in [-1, 1]; None until one was mixed.
        unmixed: its newest adapter that waits to be mixed.
        data: what it has announced of its data, if anything.
    """

    progress: int = 0
    mixed_round: int = NOTHING_MIXED
    fetches: int = 0
    weight: float = 0.0
    likeness: float | None = None
    unmixed: Contribution | None = None
    data: Announced | None = None

    @property
    def unmixed_round(self) -> int:
        """Round of the adapter that waits to be mixed; ``NOTHING_MIXED`` if none does."""
        return self.unmixed.round if self.unmixed else NOTHING_MIXED

    @property
    def newest_round(self) -> int:
        """Round of its newest adapter that was mixed or waits to be."""
        return max(self.mixed_round, self.unmixed_round)

    def is_behind(self, round: int) -> bool:
        """Tell whether it is more than a round behind and so cannot have this round in time.

        Progress is its own word; a lie costs the liar (it is read at an older round) or us one deadline.
        """
        return max(self.progress, self.newest_round + 1) < round - 1

    def heard_of(self, round: int, data: Announced | None) -> bool:
        """Take its word for the rounds that it has completed and for its data; return whether the latter is news."""
        is_news = data != self.data
        self.progress, self.data = round, data
        if round < self.mixed_round - 1:
            # It lost its state and began anew (not merely an old announcement): its next publications are news again.
            self.mixed_round = NOTHING_MIXED
        return is_news

    def went_down(self) -> None:
        """Forget what ended with its life; an adapter that waits is still mixed, and likeness outlives a restart."""
        self.progress, self.mixed_round, self.fetches, self.weight = 0, NOTHING_MIXED, 0, 0.0

    def fetch_ended(self) -> bool:
        """Count a fetch that has ended; False if it was begun before the peer went down."""
        if not self.fetches:
            return False
        self.fetches -= 1
        return True


class Neighbors:
    """The records, by peer id; each begins when the peer is asked for first."""

    def __init__(self) -> None:
        self._records: dict[str, Neighbor] = {}

    def of(self, peer: str) -> Neighbor:
        """Return the record of a peer."""
        return self._records.setdefault(peer, Neighbor())

    def likeness(self) -> dict[str, float]:
        """Return peer -> cosine of what its adapter and ours have learned, of all that were mixed."""
        known = ((peer, neighbor.likeness) for peer, neighbor in self._records.items())
        return {peer: cosine for peer, cosine in known if cosine is not None}

    def learn_likeness(self, cosines: Mapping[str, float]) -> None:
        """Keep the cosines, peer -> cosine, of those just mixed."""
        for peer, cosine in cosines.items():
            self.of(peer).likeness = cosine

    def announced(self, me: str, own: Announced | None) -> dict[str, Announced]:
        """Return what has been announced of data, by those that have said something; ``own``: by ourselves."""
        said = [(me, own), *((peer, neighbor.data) for peer, neighbor in self._records.items())]
        return {peer: data for peer, data in said if data is not None}

    def with_unmixed(self) -> set[str]:
        """Return the peers whose adapters wait to be mixed."""
        return {peer for peer, neighbor in self._records.items() if neighbor.unmixed}

    def take_unmixed(self) -> list[Contribution]:
        """Return all adapters that wait, in sorted order of senders; from now on they count as mixed."""
        taken = []
        for peer in sorted(self.with_unmixed()):
            neighbor = self._records[peer]
            if neighbor.unmixed:
                taken.append(neighbor.unmixed)
                neighbor.mixed_round, neighbor.unmixed = neighbor.unmixed.round, None
        return taken
