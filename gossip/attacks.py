"""What members who lie send in place of their adapters: the catalogue of attacks on values, as pure functions.

Tests, the simulator, the chaos testnet and ``scripts/compare.py robustness`` read it. An attack sees what ``Sight``
holds: in simulations liars act as one and see all honest peers (the worst case), in real processes each sees what it
has read. Formulas are those of the papers named, for adapters that travel whole: where a paper attacks gradients, what
has been learned since the common beginning stands for the gradient. (To flip the signs of all values would be no
attack on LoRA: the product of its factors stays what it was.) Attacks on data and on training, which any trainer can
make, are in ``scripts/lab/robustness/poison.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
"""float64[P], the values of one adapter."""
Vectors = NDArray[np.float64]
"""float64[k, P], of k adapters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a liar knows when a reader asks for its adapter of a round.

    Args:
        own: what it would send if it were honest.
        start: the adapter that all began with.
        first: what it published first.
        reader: the reader's newest adapter; its own, where it has not seen that.
        honest: the newest adapters of the honest peers in sight.
        row: those of them that the reader reads besides liars, and ``weights``, float64[k], theirs in its row of W.
        lying: weight of all liars together in that row, above 0.
        seed: of what is random in this round, the same for all readers.
        to_whom: the reader's name.
    """

    own: Vector
    start: Vector
    first: Vector
    reader: Vector
    honest: Vectors
    row: Vectors
    weights: Vector
    lying: float
    seed: str
    to_whom: str

    @property
    def mean(self) -> Vector:
        """The mean of the honest adapters in sight; its own, if there are none."""
        return np.asarray(self.honest.mean(axis=0)) if len(self.honest) else self.own


def scale(sight: Sight, factor: float) -> Vector:
    """What it has learned, ``factor`` times (boosting; arXiv 1807.00459)."""
    return sight.start + factor * (sight.own - sight.start)


def sign(sight: Sight, factor: float) -> Vector:
    """The opposite of what it has learned, ``factor`` times (sign flip; arXiv 1811.03761)."""
    return sight.start - factor * (sight.own - sight.start)


def ipm(sight: Sight, factor: float) -> Vector:
    """The opposite of what the honest have learned in the mean (inner product manipulation; arXiv 1903.03936)."""
    return sight.start - factor * (sight.mean - sight.start)


def noise(sight: Sight, factor: float) -> Vector:
    """Its adapter with normal noise of ``factor`` times its norm (Gaussian; arXiv 1703.02757)."""
    return _noisy(sight.own, factor, sight.seed)


def equivocate(sight: Sight, factor: float) -> Vector:
    """The same with noise of its own for each reader: no two are told the same."""
    return _noisy(sight.own, factor, f"{sight.seed}/{sight.to_whom}")


def alie(sight: Sight, factor: float) -> Vector:
    """The honest mean less ``factor`` of their standard deviations, value by value (ALIE; arXiv 1902.06156)."""
    if not len(sight.honest):
        return sight.own
    return np.asarray(sight.mean - factor * sight.honest.std(axis=0))


def dissensus(sight: Sight, factor: float) -> Vector:
    """What takes back from the reader what its honest neighbors give it (arXiv 2202.01545): x_i - e sum_H w_ij
    (x_j - x_i) / sum_B w_ij. With ``factor`` 1 and plain averaging the reader stays where it is."""
    pull = sight.weights @ (sight.row - sight.reader)
    return np.asarray(sight.reader - factor / sight.lying * pull)


def drift(sight: Sight, factor: float) -> Vector:
    """As far from the reader as the nearest of its honest neighbors, ``factor`` times, in every round the same way:
    against what it learned first. No bound on distances that lets the honest through keeps it out (ours)."""
    way = _unit(sight.start - sight.first, sight.seed.partition("/")[0])
    far = np.linalg.norm(sight.row - sight.reader, axis=1) if len(sight.row) else None
    distance = float(far.min()) if far is not None else float(np.linalg.norm(sight.reader - sight.start))
    return sight.reader + factor * distance * way


def stale(sight: Sight, factor: float) -> Vector:
    """What it published first, as if it were new."""
    return sight.first


def free_ride(sight: Sight, factor: float) -> Vector:
    """The mean of what others have learned, with nothing of its own."""
    return sight.mean


def alie_z(peers: int, liars: int) -> float:
    """Return the factor that the paper of ALIE takes: so that s honest peers lie farther out than the liars.

    z = Phi^-1((n - m - s) / (n - m)) with s = floor(n / 2 + 1) - m, for n peers of which m lie; 0 for small groups.
    """
    honest, supporters = peers - liars, peers // 2 + 1 - liars
    share = (honest - supporters) / honest
    return NormalDist().inv_cdf(share) if 0 < share < 1 else 0.0


def _noisy(values: Vector, factor: float, seed: str) -> Vector:
    return values + factor * float(np.linalg.norm(values)) * _direction(len(values), seed)


def _direction(size: int, seed: str) -> Vector:
    """Return a direction drawn from a text: float64[size] of length 1."""
    digest = hashlib.sha256(seed.encode()).digest()
    drawn = np.random.default_rng(int.from_bytes(digest[:8])).standard_normal(size)
    return np.asarray(drawn / (float(np.linalg.norm(drawn)) or 1.0))


def _unit(values: Vector, seed: str) -> Vector:
    """Return values at length 1; where they have none, a direction drawn from the seed."""
    length = float(np.linalg.norm(values))
    return values / length if 0 < length < np.inf else _direction(len(values), seed)


class Attack(NamedTuple):
    """One line of the catalogue.

    Args:
        lie: ``(sight, factor) -> what is sent``; deterministic.
        usual: the factor where nothing else is said.
        doc: one line for tables.
    """

    lie: Callable[[Sight, float], Vector]
    usual: float
    doc: str


ATTACKS: dict[str, Attack] = {
    "scale": Attack(scale, 10.0, "what it has learned, 10 times"),
    "sign": Attack(sign, 4.0, "the opposite of what it has learned, 4 times"),
    "noise": Attack(noise, 5.0, "Gaussian noise, 5 times as long as its adapter"),
    "stale": Attack(stale, 1.0, "its first adapter, as if it were new"),
    "equivocate": Attack(equivocate, 5.0, "such noise, another for each reader"),
    "ipm": Attack(ipm, 1.0, "inner product manipulation: the opposite of what the honest learned"),
    "alie": Attack(alie, 1.5, "a little is enough: 1.5 standard deviations off the honest mean"),
    "dissensus": Attack(dissensus, 1.0, "takes back what each reader's honest neighbors give"),
    "drift": Attack(drift, 1.0, "slow drift: as near as the nearest honest neighbor, always one way"),
    "free-rider": Attack(free_ride, 1.0, "the mean of others, no training"),
}
"""Attacks on values by name. To add one: a function ``(sight, factor) -> vector`` and a line here. Factors: those of
the papers or, for scale, sign and alie, of docs/robustness.md; ``alie_z`` gives less for groups as small as these."""
