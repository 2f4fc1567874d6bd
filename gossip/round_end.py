"""The end of a round: a mix is tried, tested on our own held-out rows if it is time to, and kept or not.

A machine within the node's: it asks for one loss after the other (``Check``) until it knows what to keep
(``Settled``)::

    mix as usual ---------------------------------------------------------------> keep the mix
    else its loss? -- in order -------------------------------------------------> keep the mix
         too high: the loss of ours alone?
              too high -------------------------------------------> go back to the last that was in order
              in order: with each neighbor? leave out those that stand out
                   nobody does, and it is not far too high ---------------------> keep the mix
                   without them: its loss? -- in order -------------------------> keep that mix
                   else without the next worst, ``TRIES_MAX`` times; then ------> keep ours alone

So what a round costs is bounded: no measurement if nothing is unusual and it is not its turn (``Health.is_due``; what a
robust rule drops or clips is routine), one if the mix is in order, at most ``MEASUREMENTS_MAX`` whatever others send.
Ours alone is kept even if its loss is too high when the last adapter that was in order is what we have just come from:
then our own rows have made it so, by overfitting perhaps, and nobody else. It knows neither events nor time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Generator
from dataclasses import dataclass, replace

from gossip.adapter import AdapterState
from gossip.events import Action, Check, Distrust, Penalize
from gossip.health import Health
from gossip.methods.contribution import Contribution
from gossip.methods.pipeline import Mixed
from gossip.pipelines import Pipelines, Row

SUSPECTS_MAX = 16
"""So many neighbors are tried one by one at most, those that move us farthest. Source: as many as a small group's final
merge reads; each costs one measurement."""
STANDS_OUT = 2.0
"""Who does more than so many times the harm that half of the row do has more than other data. Source: ours."""
HARD = 4.0
"""If nobody stands out, the row as a whole differs from us, and up to so many times the slack that is borne: peers with
one label each are honest and make each other worse. Source: ours."""
TRIES_MAX = 3
"""Mixes without the guilty that are measured before we go on alone. Source: guess."""
MEASUREMENTS_MAX = 3 + SUSPECTS_MAX + TRIES_MAX
"""No round asks for more losses: of the initial adapter (once in a run), the mix, ours alone, every suspect's mix, and
mixes without the guilty. Most rounds ask for none, those in their turn for one. Source: follows from the others."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What becomes of a round.

    Args:
        mixed: what is kept.
        loss: its loss on our own held-out rows; NaN = it was not measured.
        measurements: how many losses were asked for until it was known what to keep.
        distrust: who is to be left out from now on.
        went_back: the adapter is an earlier one of ours.
    """

    mixed: Mixed
    loss: float = math.nan
    distrust: tuple[Distrust, ...] = ()
    went_back: bool = False
    measurements: int = 0

    @property
    def complaints(self) -> list[Action]:
        """What is to be done about those whose contributions were at fault, or harmful."""
        faults = [(one.sender, one.reason) for one in self.mixed.objections if one.is_fault]
        faults += [(one.peer, "unhealthy") for one in self.distrust]
        return [*self.distrust, *(Penalize(peer, reason) for peer, reason in faults)]


class RoundEnd:
    """One round's end.

    Args:
        pipelines: mix, and are left as the kept mix leaves them.
        health: knows what losses are in order, and is told of what was kept.
        row: what is mixed.
        has_diverged: our own local steps came to nothing again; we go back whatever the mix is.
    """

    def __init__(self, pipelines: Pipelines, health: Health, row: Row, *, has_diverged: bool = False) -> None:
        self._pipelines, self._health, self._row = pipelines, health, row
        self._merging, self._has_diverged = pipelines.is_merging(row.context.round), has_diverged
        self._everybody = frozenset(contribution.sender for contribution in row.contributions)
        self._course = self._settle()
        self._measurements = 0

    def begin(self) -> Check | Settled:
        """Mix; return what is to be measured, or what is kept."""
        return self._go_on(None)

    def measured(self, loss: float) -> Check | Settled:
        """Take the loss that was asked for; not finite = very bad."""
        return self._go_on(loss if math.isfinite(loss) else math.inf)

    def _go_on(self, loss: float | None) -> Check | Settled:
        try:
            check = Check(self._row.context.round, self._course.send(loss))  # type: ignore[arg-type]  # None begins
        except StopIteration as end:
            settled: Settled = end.value
            return replace(settled, measurements=self._measurements)
        self._measurements += 1
        return check

    def _settle(self) -> Generator[AdapterState, float, Settled]:
        """Yield what is to be measured, take its loss, return the outcome."""
        health = self._health
        if not health.is_on:
            return Settled(self._pipelines.mix(self._row))
        if self._has_diverged:
            return self._go_back()
        mixed = self._pipelines.try_mix(self._row)
        was_clipped = not all(objection.is_routine for objection in mixed.objections)
        change = mixed.mixing_change
        round = self._row.context.round
        if not health.is_due(round, merging=self._merging, was_clipped=was_clipped, change=change):
            return Settled(self._pipelines.mix(self._row, tried=mixed))
        if not health.has_measured:
            health.measured_initial((yield health.initial))
        loss = yield mixed.state
        if loss <= health.limit:
            return self._keep(loss)
        alone = (yield self._without(self._everybody)) if mixed.others else loss
        if alone > health.limit and not (health.has_rolled_back and alone < math.inf):
            return self._go_back()
        return (yield from self._leave_out(mixed, loss, alone))

    def _leave_out(self, mixed: Mixed, loss: float, alone: float) -> Generator[AdapterState, float, Settled]:
        """Find out with whom the mix is too bad, and settle without them.

        Args:
            mixed: the mix.
            loss, alone: its loss, and that of ours alone.
        """
        limit, losses = self._health.limit_above(alone), {}
        for suspect in _farthest(mixed):
            # A robust rule knows nobody in a row of one: what is asked is what this one alone would do.
            mix = self._pipelines.try_mix(self._row, self._everybody - {suspect}, is_robust=False)
            losses[suspect] = yield mix.state
        suspects = sorted(losses, key=lambda peer: losses[peer])  # the worst last
        excluded = self._guilty(losses, alone, limit)
        if not excluded:
            if loss <= self._health.limit_above(alone, HARD):
                return self._keep(loss)
            excluded = suspects[-1:]
        suspects = [peer for peer in suspects if peer not in excluded]
        for _ in range(TRIES_MAX):
            if not suspects:
                break
            rest = yield self._without(frozenset(excluded))
            if rest <= limit:
                return self._keep(rest, frozenset(excluded), self._distrust(excluded, loss))
            excluded.append(suspects.pop())
        return self._keep(alone, self._everybody, self._distrust(excluded, loss))

    @staticmethod
    def _guilty(losses: dict[str, float], alone: float, limit: float) -> list[str]:
        """Return those that do more harm than the others of the row, if any beyond the limit then those alone.

        Args:
            losses: sender -> loss of ours with its contribution.
        """
        usual = statistics.median_low([loss - alone for loss in losses.values()]) if len(losses) > 1 else 0.0
        standing_out = [peer for peer, loss in losses.items() if loss - alone > max(0.0, STANDS_OUT * usual)]
        return [peer for peer in standing_out if losses[peer] > limit] or standing_out

    def _without(self, excluded: frozenset[str]) -> AdapterState:
        return self._pipelines.try_mix(self._row, excluded).state

    # -- outcomes

    def _keep(
        self, loss: float, excluded: frozenset[str] = frozenset(), distrust: tuple[Distrust, ...] = ()
    ) -> Settled:
        mixed = self._pipelines.mix(self._row, excluded)
        self._health.kept(mixed.state, loss, self._row.context.round, trained=not self._merging)
        return Settled(mixed, loss, distrust)

    def _go_back(self) -> Settled:
        """Return to the last adapter that was in order, and forget what the methods remember of the present one."""
        mixed = self._pipelines.mix(self._row, self._everybody)
        self._pipelines.reset(self._health.healthy)
        self._health.rolled_back()
        return Settled(replace(mixed, state=self._health.healthy), went_back=True)

    def _distrust(self, excluded: list[str], loss: float) -> tuple[Distrust, ...]:
        """Leave them out from now on; ``loss``: of the mix with all of them."""
        round, limit = self._row.context.round, self._health.limit
        return tuple(
            Distrust(peer, round, loss, limit, self._health.distrust(peer, round))
            for peer in sorted(excluded)
        )


def _farthest(mixed: Mixed) -> list[str]:
    """Return senders, those that move us farthest, at most ``SUSPECTS_MAX``."""

    def pull(other: Contribution) -> float:
        if other.state.spec != mixed.own.state.spec:
            return math.inf  # factors of another rank
        return other.weight * float((other.state.flat - mixed.own.state.flat).norm())

    return [other.sender for other in sorted(mixed.others, key=pull, reverse=True)[:SUSPECTS_MAX]]
