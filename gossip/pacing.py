"""How long a round waits for its neighbors: as long as the user says, or less where arrivals tell (``Deadline``)."""

from __future__ import annotations

from collections.abc import Sequence

from gossip.deadline import Deadline
from gossip.events import SetTimer
from gossip.final_merge import MERGE_S
from gossip.neighbor import Neighbors
from gossip.pipelines import Pipelines
from gossip.round import Round
from gossip.settings import NodeSettings


class Pacing:
    """One peer's waits.

    Args:
        settings: of the node.
        pipelines: know which rounds are of the final merge.
        arrivals_s: ``deadline.snapshot()`` of an earlier life.

    Attributes:
        deadline: what arrivals have told.
    """

    def __init__(
        self, settings: NodeSettings, pipelines: Pipelines, arrivals_s: Sequence[float] = ()
    ) -> None:
        self.deadline = Deadline(list(arrivals_s))
        self._settings, self._pipelines = settings, pipelines

    def bound_s(self, round: int) -> float:
        """Return the user's bound, seconds; 0 = nobody is waited for."""
        collect_s = self._settings.collect_s
        return max(collect_s, MERGE_S) if self._pipelines.is_merging(round) else collect_s

    def is_fixed(self, round: int) -> bool:
        """Tell whether the bound alone counts.

        Deadlines are not learned where one side gave up earlier than the other and the two would not make the same
        exchange; in the final merge, in which a peer left out is left out for good; and where a sum comes with its last
        summand.
        """
        merging, confirms = self._pipelines.is_merging(round), self._pipelines.confirms(round)
        return merging or confirms or self._settings.masked

    def longest_wait_s(self, round: int, train_s: float) -> float:
        """Return how long a round waits, as far as is known by now; ``train_s``: of our last local steps, seconds."""
        bound_s = self.bound_s(round)
        return bound_s if self.is_fixed(round) else self.deadline.seconds(bound_s, train_s)

    def first_deadline(self, round: int, current: Round, now: float) -> list[SetTimer]:
        """Set the first deadline once half of the neighbors are here; before, only the user's bound is known."""
        is_first = current.deadline_s == self.bound_s(round)
        if not is_first or self.is_fixed(round) or not current.half_are_here:
            return []
        current.deadline_s = self.longest_wait_s(round, current.train_s)
        return [SetTimer(round, max(0.0, current.since_s + current.deadline_s - now))]

    def is_over(self, current: Round, waited_for: Neighbors) -> None:
        """Wait no longer for those who have not come: they are late, or away."""
        for peer in sorted(current.waiting_for):
            if waited_for.of(peer).missed():
                self.deadline.missed(current.deadline_s)
            current.failed.append((peer, "late"))
        current.waiting_for.clear()
        current.is_over = True
