"""What a peer has seen of each neighbor whose adapter came: how far it is, where it heads, how often it was refused.

Numbers for people and programs that watch a run; nothing is decided by them. Distances are exact, as the row's rules
have measured them anyway. Direction and drift come from a sample of values at equal steps, so that watching costs next
to nothing and a neighbor's last adapter need not be kept: with 4096 values an estimate is off by a few percent.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gossip.adapter import AdapterSpec, AdapterState
from gossip.events import NeighborReport
from gossip.methods.contribution import Contribution, Objection

SAMPLE = 4096
"""Values of an adapter that are looked at. Source: ours; their mean square is that of all to about 2 %."""
NEIGHBORS_MAX = 1024
"""Neighbors of whom something is kept, 32 KiB each; whoever was seen longest ago is forgotten first. Source: ours."""

Values = NDArray[np.float64]


@dataclass(slots=True)
class _Seen:
    """What is kept of a neighbor: samples of its last adapter, and how often it came, was trimmed and objected to."""

    samples: dict[AdapterSpec, Values | None] = field(default_factory=dict)
    rounds: int = 0
    trimmed: int = 0
    objections: int = 0


class Sightings:
    """What one peer has seen of its neighbors since it started.

    Args:
        initial: what travels of the adapter that all began with, in each of its parts.
    """

    def __init__(self, *initial: AdapterState) -> None:
        self._sample_size = SAMPLE // len(initial)
        self._initial: dict[AdapterSpec, Values | None] = {part.spec: None for part in initial}
        self._initial = {part.spec: self._sample(part) for part in initial}
        self._seen: dict[str, _Seen] = {}  # whoever was seen last stands last

    def note(
        self,
        own: AdapterState,
        came: Iterable[Contribution],
        distances: Mapping[str, float],
        objections: Iterable[Objection],
    ) -> tuple[NeighborReport, ...]:
        """Take note of a row; return what there is to say of each neighbor in it.

        Args:
            own: our adapter as it was mixed.
            came: what came of the others, before any guard.
            distances: sender -> how far it was from us.
            objections: of guards and robust rule.
        """
        finite = [distance for distance in distances.values() if math.isfinite(distance)]
        usual = statistics.median_low(finite) if finite else math.nan
        ours, reasons = self._sample(own), list(objections)
        return tuple(self._report(one, ours, distances[one.sender], usual, reasons) for one in came)

    def _report(
        self,
        one: Contribution,
        ours: Values | None,
        distance: float,
        usual: float,
        objections: list[Objection],
    ) -> NeighborReport:
        seen = self._seen.pop(one.sender, None) or _Seen()
        self._seen[one.sender] = seen
        if len(self._seen) > NEIGHBORS_MAX:
            del self._seen[next(iter(self._seen))]
        of_it = [objection for objection in objections if objection.sender == one.sender]
        seen.rounds += 1
        seen.trimmed += any(objection.reason == "trimmed" for objection in of_it)
        seen.objections += any(not objection.is_routine for objection in of_it)
        sample, spec = self._sample(one.state), one.state.spec
        before, seen.samples = seen.samples.get(spec), {**seen.samples, spec: sample}
        return NeighborReport(
            peer=one.sender,
            distance=distance,
            ratio=distance / usual if usual > 0.0 else math.nan,
            cosine=_cosine(ours, sample, self._initial.get(spec)),
            drift=_length(before, sample, spec.size),
            rounds=seen.rounds,
            trimmed=seen.trimmed,
            objections=seen.objections,
        )

    def _sample(self, state: AdapterState) -> Values | None:
        """Return every so many-th value; None if not finite, or of another rank: then values mean something else."""
        if state.spec not in self._initial:
            return None
        step = (
            max(1, state.spec.size // self._sample_size) | 1
        )  # odd, so that it does not keep to some columns
        sample = state.flat.numpy()[::step].astype(np.float64)  # in which nothing that is finite overflows
        return sample if np.isfinite(sample).all() else None


def _length(before: Values | None, after: Values | None, size: int) -> float:
    """Return how long the way between two adapters of so many values is, by samples; NaN where there is none."""
    if before is None or after is None:
        return math.nan
    difference = after - before
    return math.sqrt(float(difference @ difference) * size / max(1, len(after)))


def _cosine(ours: Values | None, theirs: Values | None, initial: Values | None) -> float:
    """Return the cosine of what two have learned, in [-1, 1]; NaN where one has learned nothing, or they do not fit."""
    if ours is None or theirs is None or initial is None:
        return math.nan
    one, other = ours - initial, theirs - initial
    scale = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / scale if scale > 0.0 else math.nan
