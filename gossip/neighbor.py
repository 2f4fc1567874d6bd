"""What a node keeps of another peer: one record for each that it has heard of or asked.

It does not decide anything: what a peer is asked for, and when, is ``node.py``'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossip.methods.contribution import Contribution

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
    """

    progress: int = 0
    mixed_round: int = NOTHING_MIXED
    fetches: int = 0
    weight: float = 0.0
    likeness: float | None = None
    unmixed: Contribution | None = None

    @property
    def unmixed_round(self) -> int:
        """Round of the adapter that waits to be mixed; ``NOTHING_MIXED`` if none does."""
        return self.unmixed.round if self.unmixed else NOTHING_MIXED

    @property
    def newest_round(self) -> int:
        """Round of its newest adapter that was mixed or waits to be."""
        return max(self.mixed_round, self.unmixed_round)

    def announced(self, round: int) -> None:
        """Take its word for the rounds that it has completed."""
        self.progress = round
        if round < self.mixed_round - 1:
            # It lost its state and began anew (not merely an old announcement): its next publications are news again.
            self.mixed_round = NOTHING_MIXED

    def went_down(self) -> None:
        """Forget what ended with its life; an adapter that waits is still mixed, and likeness outlives a restart."""
        self.progress, self.mixed_round, self.fetches, self.weight = 0, NOTHING_MIXED, 0, 0.0

    def fetch_ended(self) -> bool:
        """Count a fetch that has ended; False if it was begun before the peer went down."""
        if not self.fetches:
            return False
        self.fetches -= 1
        return True

    def take_unmixed(self) -> Contribution | None:
        """Return the adapter that waits, which from now on counts as mixed."""
        contribution, self.unmixed = self.unmixed, None
        if contribution:
            self.mixed_round = contribution.round
        return contribution
