"""How long to wait for neighbors: learned from the arrivals seen, so that no user has to guess a number.

deadline = median + K x MAD of the last arrival times, held between a floor and the user's ``collect_s``. A neighbor
that is merely slow stretches it, one that has died costs at most one deadline. Source: the estimator of TCP's
retransmission timer with median and MAD in place of mean and deviation (robust to one straggler); K and window: guess.
"""

from __future__ import annotations

from collections import deque
from statistics import median

ARRIVALS_KEPT = 32
MAD_FACTOR = 6.0
MISSED_FACTOR = 1.5
"""A neighbor that missed the deadline counts as having arrived this much later: deadlines can grow back."""
FLOOR_S = 1.0
"""Never wait less than this for a living neighbor: scheduling and disks pause that long on a busy machine."""


class Deadline:
    """The last arrival times, seconds after we began to collect."""

    def __init__(self, arrivals_s: list[float] | None = None) -> None:
        self._arrivals_s = deque(arrivals_s or [], maxlen=ARRIVALS_KEPT)

    def arrived(self, after_s: float) -> None:
        """Count an adapter that came ``after_s`` seconds after we began to collect."""
        self._arrivals_s.append(max(0.0, after_s))

    def missed(self, deadline_s: float) -> None:
        """Count a living neighbor that had not come when the deadline passed."""
        self._arrivals_s.append(MISSED_FACTOR * deadline_s)

    def seconds(self, collect_s: float, train_s: float) -> float:
        """Return how long to wait this round.

        Args:
            collect_s: the user's bound, seconds; returned as it is until anything has been seen.
            train_s: how long our own local steps took: a neighbor half as fast as we are is always waited for.
        """
        if not self._arrivals_s:
            return collect_s
        middle = median(self._arrivals_s)
        spread = median(abs(arrival - middle) for arrival in self._arrivals_s)
        return min(collect_s, max(middle + MAD_FACTOR * spread, train_s, FLOOR_S))

    def snapshot(self) -> list[float]:
        """Return the times seen, for a checkpoint."""
        return list(self._arrivals_s)
