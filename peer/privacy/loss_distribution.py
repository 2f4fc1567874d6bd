"""An accountant by the distribution of the privacy loss, composed by Fourier transforms: as tight as its grid.

The privacy loss of an outcome x is ln(P(x) / Q(x)), where P and Q are what a step publishes on two neighboring data
sets, and x is drawn from P. Losses of steps add up, and delta(epsilon) = E[max(0, 1 - e^(epsilon - loss))] is exact for
their sum. Both directions between neighbors are counted; the larger epsilon is returned.

Every approximation errs to the safe side:

- A loss between two points of the grid is shared between them so that the masses under P and under Q both stay what
  they are. The pair of distributions on the grid dominates the true one ("connecting the dots": Doroshenko, Ghazi,
  Kamath, Kumar, Manurangsi, arXiv 2207.04380), and its error is of second order in the grid's spacing.
- Outcomes in the far tails are counted as certain failures.
- Before the transform, masses are tilted by e^(tilt loss), so that what decides about delta is the bulk, and rounding
  is relative to delta, not to 1. What leaves the transform's window is bounded by Chernoff's inequality and added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, ndtri

from peer.privacy.charge import Charge, merged

Vector = NDArray[np.floating[Any]]

SPREAD_ADDED = 1e-4
"""Share of the loss's variance that sharing between points may add; epsilon grows by about half of that, relatively."""
CELLS_MAX = 100_000
"""Cells of one step's grid; for rare and large losses the spacing is widened to that. Source: ours, for 0.1 s."""
TAIL_SHARE = 1e-6
"""Share of delta that may be counted as failures for what lies in the tails, and again for what leaves the window."""
TILT_MIN, TILT_MAX = 1e-4, 1e4
"""Where the best tilt is looked for; it is about the order of the Rényi divergence that would count best."""
OUTSIDE = 1e-10
"""Mass of the tilted sum that may lie outside the transform's window, rounding included; delta is raised for it."""
SHARE_OUTSIDE = 1e-4
"""Share of delta that what may lie outside of the window takes at most; with more, another tilt is tried."""
LARGE = 100.0
"""Above this, 1 is nothing beside e^x."""
FAR = 500.0
"""Above this epsilon, which promises nothing, a bound by one moment is returned: e^-x is soon no float64 any more."""
PIECES = 8
"""Pieces of the integration in one standard deviation of the noise, at least; each has four nodes."""
NODES, WEIGHTS = np.polynomial.legendre.leggauss(4)


@dataclass(frozen=True)
class Losses:
    """The privacy loss of one step: mass ``exp(log_mass[i])`` at ``(first + i) * spacing``; the rest is failure."""

    first: int
    log_mass: Vector
    spacing: float

    @property
    def points(self) -> Vector:
        """The losses."""
        return (self.first + np.arange(len(self.log_mass))) * self.spacing

    def log_moment(self, tilt: float) -> float:
        """Return ln E[e^(tilt loss)]."""
        return float(logsumexp(self.log_mass + tilt * self.points))


def epsilon(charges: Sequence[Charge], delta: float) -> float:
    """Return an epsilon that holds with ``delta`` after all of these steps; 0 if there are none.

    Args:
        delta: in (0, 1).
    """
    kinds = merged(charges)
    if not kinds:
        return 0.0
    tail = delta * TAIL_SHARE / sum(charge.steps for charge in kinds)
    spacing = _spacing(kinds, tail)
    return max(_Sum(kinds, delta, tail, spacing, is_added).epsilon() for is_added in (True, False))


def loss(charge: Charge, x: Vector) -> Vector:
    """Return ln of (1 - q) N(x; 0, s^2) + q N(x; 1, s^2) over N(x; 0, s^2)."""
    rate = charge.sampling_rate
    exponent = (2 * x - 1) / (2 * charge.noise_multiplier**2)
    if rate == 1:
        return exponent
    small = np.log1p(rate * np.expm1(np.minimum(exponent, LARGE)))
    return np.where(exponent < LARGE, small, math.log(rate) + exponent)


def outcome(charge: Charge, losses: Vector) -> Vector:
    """Return the x whose loss is each of these; all of them lie above ln(1 - q)."""
    rate = charge.sampling_rate
    if rate == 1:
        exponent = losses
    else:
        small = np.log1p(np.expm1(np.minimum(losses, LARGE)) / rate)
        exponent = np.where(losses < LARGE, small, losses - math.log(rate))
    return charge.noise_multiplier**2 * exponent + 0.5


def reach(charge: Charge, tail: float) -> tuple[float, float]:
    """Return the outcomes outside of which both N(0, s^2) and N(1, s^2) have at most the mass ``tail``."""
    far = -charge.noise_multiplier * float(ndtri(tail / 2))
    return -far, 1 + far


def _densities(charge: Charge, x: Vector) -> tuple[Vector, Vector]:
    """Return the densities of an outcome with the unit among the data and without it."""
    noise, rate = charge.noise_multiplier, charge.sampling_rate
    scale = 1 / (noise * math.sqrt(2 * math.pi))
    without = scale * np.exp(-0.5 * (x / noise) ** 2)
    return (1 - rate) * without + rate * scale * np.exp(-0.5 * ((x - 1) / noise) ** 2), without


def _spacing(kinds: Sequence[Charge], tail: float) -> float:
    """Return the spacing of the grid: by the mean variance of the steps' losses, and by how far losses go."""
    variance, widest = 0.0, 0.0
    for charge in kinds:
        low, high = reach(charge, tail)
        x, step = np.linspace(low, high, 2001, retstep=True)
        mass, losses = _densities(charge, x)[0] * step, loss(charge, x)
        mean = float(mass @ losses)
        variance += charge.steps * float(mass @ (losses - mean) ** 2)
        widest = max(widest, float(losses[-1] - losses[0]))
    steps = sum(charge.steps for charge in kinds)
    return max(2 * math.sqrt(SPREAD_ADDED * variance / steps), widest / CELLS_MAX)


def on_grid(charge: Charge, spacing: float, tail: float, is_added: bool) -> Losses:
    """Return the loss of one step, shared between the points of a grid.

    Args:
        tail: of P; that much may be left out.
        is_added: P is with the unit, Q without; otherwise P is without it.
    """
    low, high = reach(charge, tail)
    first, last = (math.floor(float(loss(charge, np.array(x))) / spacing) for x in (low, high))
    inner = outcome(charge, spacing * np.arange(first + 1, last + 1))
    even = np.linspace(low, high, math.ceil(PIECES * (high - low) / charge.noise_multiplier))
    edges = np.unique(np.concatenate([np.clip(inner, low, high), even]))
    half = np.diff(edges)[:, None] / 2
    middle = edges[:-1, None] + half
    cell = np.clip(np.floor(loss(charge, middle) / spacing), first, last)
    x = middle + half * NODES
    above = np.clip(loss(charge, x) - cell * spacing, 0, spacing)
    masses = half * WEIGHTS * _densities(charge, x)[0 if is_added else 1]
    # of a loss at distance d above a point, the share (1 - e^-d) / (1 - e^-spacing) goes to the next point
    # the other direction's loss is the negative, in which the order of the points is the other way round
    sign = -1 if is_added else 1
    to_next = np.expm1(sign * above) / math.expm1(sign * spacing)
    index = (cell - first).astype(np.int64).ravel()
    count = last - first + 2
    mass = np.bincount(index, (masses * (1 - to_next)).sum(1), count)
    mass += np.bincount(index + 1, (masses * to_next).sum(1), count)
    with np.errstate(divide="ignore"):
        log_mass = np.log(mass)
    return Losses(first, log_mass, spacing) if is_added else Losses(-(last + 1), log_mass[::-1], spacing)


class _Sum:
    """The sum of all steps' losses in one direction."""

    def __init__(
        self, kinds: Sequence[Charge], delta: float, tail: float, spacing: float, is_added: bool
    ) -> None:
        self._parts = [(on_grid(charge, spacing, tail, is_added), charge.steps) for charge in kinds]
        self._delta = delta * (1 - TAIL_SHARE)  # the rest is for what lies in the tails
        self._spacing = spacing

    def epsilon(self) -> float:
        """Return the least epsilon that the grid allows."""
        log_delta = math.log(self._delta)

        def by_moment(log_tilt: float) -> float:
            """Canonne, Kamath, Steinke (arXiv 2004.00010), Proposition 12, at the order tilt + 1."""
            tilt = math.exp(log_tilt)
            bound = (self._log_moment(tilt) - log_delta - math.log1p(tilt)) / tilt
            return bound - math.log1p(1 / tilt)

        best = minimize_scalar(
            by_moment,
            bounds=(math.log(TILT_MIN), math.log(TILT_MAX)),
            method="bounded",
            options={"xatol": 0.01},
        )
        bound, tilt = max(0.0, float(best.fun)), math.exp(best.x)
        if bound > FAR:
            return bound
        least, is_done = self._composed(tilt)
        while not is_done:  # a tilt may be so good for the bound that epsilon lies out of its sight
            tilt /= 2
            found, is_tight = self._composed(tilt)
            is_done = is_tight or found > least or tilt < TILT_MIN
            least = min(least, found)
        return min(bound, least)

    def _log_moment(self, tilt: float) -> float:
        return sum(steps * losses.log_moment(tilt) for losses, steps in self._parts)

    def _composed(self, tilt: float) -> tuple[float, bool]:
        """Compose by a Fourier transform under this tilt; return an epsilon that holds, and whether it is the least."""
        log_moment = self._log_moment(tilt)
        first, count = self._window(tilt, log_moment)
        spectrum: Any = np.ones(1)
        shift = 0
        for losses, steps in self._parts:
            mass = np.exp(losses.log_mass + tilt * losses.points - losses.log_moment(tilt))
            centre = round(float(mass @ np.arange(len(mass))))
            place = (np.arange(len(mass)) - centre) % count
            spectrum = spectrum * rfft(np.bincount(place, mass, count)) ** steps
            shift += steps * (losses.first + centre)
        mass = np.maximum(np.roll(irfft(spectrum, count), shift - first), 0)
        sums = (first + np.arange(count)) * self._spacing
        # where the exponent would be larger, delta is far above 1, because of what may lie outside alone
        untilted = np.exp(np.minimum(log_moment - tilt * sums, LARGE))
        return self._solve(sums, mass * untilted, OUTSIDE * untilted)

    def _solve(self, sums: Vector, mass: Vector, outside: Vector) -> tuple[float, bool]:
        """Return an epsilon with E[max(0, 1 - e^(epsilon - sum))] + outside <= delta, and whether it is the least."""
        above = np.cumsum(mass[::-1])[::-1]
        weighted = np.cumsum((mass * np.exp(-np.maximum(sums, 0)))[::-1])[::-1]
        at_points = np.where(sums < 0, math.inf, above - np.exp(np.minimum(sums, FAR)) * weighted + outside)
        found = np.flatnonzero(at_points <= self._delta)
        if not len(found):
            return math.inf, True
        index = int(found[0])
        if index == 0:
            return float(sums[0]), False
        # between this point and the one before, delta is a straight line in e^epsilon
        excess = above[index] + outside[index - 1] - self._delta
        between = math.log(excess / weighted[index]) if excess > 0 and weighted[index] > 0 else math.inf
        least = max(0.0, min(float(sums[index]), max(float(sums[index - 1]), between)))
        return least, bool(outside[index - 1] <= SHARE_OUTSIDE * self._delta)

    def _window(self, tilt: float, log_moment: float) -> tuple[int, int]:
        """Return the first point and the number of points outside of which the tilted sum has mass ``OUTSIDE``."""
        variance = 0.0
        for losses, steps in self._parts:
            mass = np.exp(losses.log_mass + tilt * losses.points - losses.log_moment(tilt))
            mean = float(mass @ losses.points)
            variance += steps * float(mass @ (losses.points - mean) ** 2)
        more = math.log(2 / OUTSIDE)
        tilts = np.array([0.5, 1, 2, 4, 6, 8]) / math.sqrt(max(variance, self._spacing**2))
        high = min((self._log_moment(tilt + by) - log_moment + more) / by for by in tilts)
        low = max((log_moment - self._log_moment(tilt - by) - more) / by for by in tilts)
        first = math.floor(low / self._spacing)
        count = next_fast_len(math.ceil(high / self._spacing) - first + 1, real=True)
        return first, count
