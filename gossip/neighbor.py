"""What a node keeps of other peers: one record for each that it has heard of or asked.

It does not decide anything: what a peer is asked for, and when, is ``node.py``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gossip.events import ROW, Fetch, FetchSum, PeerUp
from gossip.messages import Kind
from gossip.methods.contribution import Contribution
from topology.announced import Announced

FETCHES_MAX = 2
"""Fetches from one peer at a time, when we wait for them (peer/publisher.py admits as many). An asynchronous node waits
for none and so cannot tell a lost fetch from a slow one: it has one at a time, which ends by itself."""
NOTHING_MIXED = -1
"""Stands for a round before the first: of this peer nothing has been mixed."""
PATIENCE = 8
"""A neighbor that has missed so many more rounds than it has delivered in is asked, but no longer waited for. Source:
ours; where a third of all fetches is lost that befalls an honest one in a hundred rounds or so."""
MISSES_MAX = 12
"""No more misses are remembered: one that was away for long is waited for again after five adapters. Source: ours."""
SLOW_MISSES = 3
"""So many misses in a row may be a slow neighbor's, for which deadlines grow; more are not, nor are those of one that
has never delivered. Source: ours."""


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
        incarnation: number of its present life, the highest that we have heard of.
        misses: rounds in which it was asked and did not deliver, less those in which it did; 0 to ``MISSES_MAX``.
    """

    progress: int = 0
    mixed_round: int = NOTHING_MIXED
    fetches: int = 0
    weight: float = 0.0
    likeness: float | None = None
    unmixed: Contribution | None = None
    data: Announced | None = None
    incarnation: int = 0
    misses: int = 0

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

    @property
    def is_waited_for(self) -> bool:
        """Whether it is worth waiting for: it may say that it is alive and never deliver."""
        return self.misses < PATIENCE

    def missed(self) -> bool:
        """Count a round in which it was asked and did not deliver; return whether it may only be slow."""
        self.misses = min(self.misses + 1, MISSES_MAX)
        return self.misses <= SLOW_MISSES and self.newest_round > NOTHING_MIXED

    def failed(self, reason: str, our_round: int) -> None:
        """Count a fetch that has ended without an adapter, unless its neighbor only had too much to do, or is behind.

        One that is behind is asked for what there is: that there is nothing yet is no failure.
        """
        if reason != "busy" and (reason != "nothing" or not self.is_behind(our_round)):
            self.missed()

    def delivered(self) -> None:
        """Count an adapter that has come: whoever delivers in half of the rounds is waited for in half of them."""
        self.misses = max(self.misses - 1, 0)

    def question(self, peer: str, kind: Kind, round: int, hold_s: float, base: bytes) -> Fetch:
        """Return what to ask it for in a round; ``hold_s``: how long it may keep the question, seconds; 0 = at once.

        Whoever cannot have this round in time is asked for its newest adapter at once.
        """
        is_late = kind != "merge" and self.is_behind(round)
        if not hold_s or is_late or not self.is_waited_for:
            return Fetch(peer, None, self.newest_round, 0.0, base, kind)
        return Fetch(peer, round, self.newest_round, hold_s, base, kind)

    def is_news(self, round: int, our_round: int, *, newest_only: bool) -> bool:
        """Tell whether its adapter of a round is to be mixed by us, who are in ``our_round``.

        What has been mixed, or is older, is not mixed again, unless its sender is where we are or ahead of us: then it
        is its present adapter, such as that of a peer that has finished.

        Args:
            newest_only: never anything older than what was mixed last.
        """
        if round < (self.newest_round if newest_only else self.unmixed_round):
            return False  # of two fetches the newer one counts
        return round > self.mixed_round or round >= our_round

    def heard_of(self, said: PeerUp) -> bool:
        """Take its word for the rounds that it has completed and for its data; return whether the latter is news."""
        is_news = said.data != self.data
        self.progress, self.data = said.round, said.data
        if said.incarnation > self.incarnation:
            # A new life may begin at an older checkpoint, or anew: its publications are news again.
            self.incarnation, self.mixed_round = said.incarnation, NOTHING_MIXED
        return is_news

    def went_down(self) -> None:
        """Forget what ended with its connection; an adapter that waits is still mixed, and likeness outlives it."""
        self.progress, self.fetches, self.weight = 0, 0, 0.0

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

    def ask(
        self, row: Mapping[str, float], round: int, kind: Kind, hold_s: float, base_of: Callable[[str], bytes]
    ) -> list[Fetch]:
        """Note the weights of a round's row, and return what to ask its neighbors for.

        Args:
            row: neighbor -> its weight.
            kind: what our round is.
            hold_s: how long they may keep the question, seconds; 0 = asynchronous.
            base_of: see ``Fetch``.
        """
        fetches = []
        for peer, weight in row.items():
            neighbor = self.of(peer)
            neighbor.weight = weight
            # A fetch that is late may be slow (then it goes on) or lost (then only a second one brings anything).
            if neighbor.fetches < (FETCHES_MAX if hold_s else 1):
                neighbor.fetches += 1
                fetches.append(neighbor.question(peer, kind, round, hold_s, base_of(peer)))
        return fetches

    def ask_for_sum(self, weight: float, round: int, kind: Kind, wait_s: float) -> list[FetchSum]:
        """Note the weight of a round's row, and return what to ask for where only its sum is read."""
        row = self.of(ROW)
        row.weight = weight
        if row.fetches >= FETCHES_MAX:
            return []
        row.fetches += 1
        return [FetchSum(round, wait_s, kind)]

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
                neighbor.mixed_round, neighbor.unmixed = neighbor.newest_round, None
        return taken
