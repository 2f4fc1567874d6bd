"""How far a neighbor may lie from us: measured by how far rounds have moved us and others lay, not by our own norm.

A bound relative to our own norm lets whoever pulls us to it pull farther the next time: with 9.9 times the norm each
round, the adapter of its readers grew to 5e11 in 18 rounds. What our own local steps do is bounded by their optimizer,
whatever neighbors send; so with m_t the length of our own round t, and d the distances of neighbors from us,

    radius = min(F max(median m, lower median d), R L),    L = |x_0 - initial| + sum of all m_t

F m lets through what F rounds of local steps could have made; F d lets slow mixing and differing data be as far as they
are, but for what lies far outside of what others do (the lower median of the last rounds' and this row's: half of them
may lie). Both could be driven up by a majority, and L cannot: it is our own path. The bound, then, grows with the
number of rounds and no faster. Self-centered clipping is ClippedGossip's (arXiv 2202.01545), whose radius needs a known
variance; these radii are ours. It knows neither peers nor rounds.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from gossip.adapter import AdapterState

MOVEMENTS_KEPT = 16
"""Own rounds whose median counts. Source: ours; a learning rate schedule changes little in so many."""
DISTANCES_KEPT = 64
"""Distances whose lower median counts: 16 rounds of 4 neighbors. Source: ours."""
PATHS_MAX = 20.0
"""R: no neighbor is farther than so many times our own path. Two peers that began together and went opposite ways all
along are 2 paths apart; the rest is for those that take shorter or fewer steps than others. Source: guess."""

DISTANCE_BLOCK = 64 * 1024
"""Values whose difference is taken at a time, 256 KiB, so that it stays in the cache. Source: our bench."""

Distance = Callable[[AdapterState, AdapterState], float]
"""Of two adapters, in the space in which they are mixed."""


class Distances:
    """Distances of the adapters of a round, each measured once, however many rules ask for it.

    Args:
        measure: how.
    """

    def __init__(self, measure: Distance) -> None:
        self._measure = measure
        self._known: dict[tuple[int, int], tuple[AdapterState, AdapterState, float]] = {}

    def __call__(self, one: AdapterState, other: AdapterState) -> float:
        """Return how far apart two adapters are."""
        # Both are kept, so that no other tensor can come to lie where they do while their distance is known.
        key = id(one.flat), id(other.flat)
        if key not in self._known:
            self._known[key] = one, other, self._measure(one, other)
        return self._known[key][2]

    def forget(self) -> None:
        """Let go of a round."""
        self._known.clear()


class RoundReach(NamedTuple):
    """The bound as it is in one round.

    Attributes:
        distance: how far apart two adapters are.
        radius: distances of a row from us -> how far is too far.
        by_weight: who lies too far is given less weight in place of being drawn nearer, where only weights count.
    """

    distance: Distance
    radius: Callable[[Sequence[float]], float]
    by_weight: bool


def vector_distance(one: AdapterState, other: AdapterState) -> float:
    """Return |one - other|, Euclidean; their specs are equal."""
    lengths = []
    for start in range(0, one.flat.numel(), DISTANCE_BLOCK):
        block = slice(start, start + DISTANCE_BLOCK)
        lengths.append(float(torch.linalg.vector_norm(one.flat[block] - other.flat[block])))
    return lengths[0] if len(lengths) == 1 else math.hypot(*lengths)


class Reach:
    """What one peer has seen of movements and distances.

    Args:
        factor: F > 0; infinity = everything passes.
        path: L at the beginning: how far our adapter already is from the one that all began with.
    """

    def __init__(self, factor: float, path: float) -> None:
        self._factor = factor
        self._path = path
        self._movements: deque[float] = deque(maxlen=MOVEMENTS_KEPT)
        self._distances: deque[float] = deque(maxlen=DISTANCES_KEPT)

    def went_to(self, distance: float) -> None:
        """Take note that we go on so far from the adapter that all began with: no path there is shorter."""
        self._path = max(self._path, distance)

    @property
    def is_on(self) -> bool:
        """Whether anything can be too far."""
        return self._factor < math.inf

    def radius(self, movement: float, distances: Sequence[float]) -> float:
        """Return how far is too far.

        Args:
            movement: length of our local steps of this round, at least 0.
            distances: of this row's neighbors from us.
        """
        if not self.is_on:
            return math.inf
        usual = statistics.median([*self._movements, movement])
        seen = [*self._distances, *distances]
        typical = max(usual, statistics.median_low(seen)) if seen else usual
        return min(self._factor * typical, self.longest(movement))

    def longest(self, movement: float, distances: Sequence[float] = ()) -> float:
        """Return the bound by our own path alone, whatever the distances are."""
        longest = PATHS_MAX * (self._path + movement)
        return (
            longest if self.is_on and longest > 0.0 else math.inf
        )  # who has never moved has nothing to go by

    def record(self, movement: float, distances: Sequence[float]) -> None:
        """Take note of a round that has been mixed: our local steps, and the others as they were mixed in."""
        self._path += movement
        self._movements.append(movement)
        self._distances.extend(distances)
