"""Whether our adapter does what it should, as our own held-out rows tell, and whom that leads us to distrust.

A guard sees how far a neighbor is from us; whether going there helps, only a loss says. ``Health`` keeps the numbers:
what the loss was without any learning, what it is usually, the last adapter for which it was in order, and who is left
out for how long. What is done about a mix is decided in ``round_end.py``. A loss is in order up to

    reference + slack * (loss of the initial adapter)

The reference follows the losses of what we keep: down at once, up by at most ``RISE`` of the slack in ``check_every``
rounds, because overfitting and unlike neighbors raise it slowly and rightly. Source: ours, all of it. It knows neither
events nor time.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

from gossip.adapter import AdapterState
from gossip.errors import Diverged
from gossip.settings import NodeSettings

RISE = 0.1
"""How much of the slack the reference may rise in ``check_every`` rounds. Source: ours; an attacker that stays below
the limit needs ten times as many rounds to double what it may do."""
UNUSUAL = 2.0
"""A mix that moves us more than so many times the usual is checked out of turn. Source: ours."""
CHANGES_KEPT = 16
"""Rounds whose median is the usual. Source: ours, as for movements in ``reach.py``."""
LEFT_OUT_FIRST = 4
"""Rounds for which a neighbor is left out at first; doubles each time. Source: guess; an honest one whose adapter was
hurt itself has had time to recover."""
LEFT_OUT_MAX = 1024
"""Rounds for which it is left out at most. Source: guess; longer than most runs."""
ROLLBACKS_MAX = 3
"""So many times our own training may diverge before it has once worked again. Source: as steps in a row."""


class Health:
    """What one peer knows of its own adapter's losses.

    Args:
        settings: of the node.
        initial: the adapter that all peers began with.
        healthy: the last adapter of an earlier life whose loss was in order; None = none is known.
        losses: ``losses`` of an earlier life.
    """

    def __init__(
        self,
        settings: NodeSettings,
        initial: AdapterState,
        healthy: AdapterState | None = None,
        losses: Sequence[float] = (),
    ) -> None:
        self.initial = initial
        self.healthy = healthy or initial
        self.is_on = settings.check_every > 0
        self.has_rolled_back = False  # in the round before: what is amiss now is our own doing
        self._every, self._slack = settings.check_every, settings.check_slack
        self._unlearned, self._reference = losses if len(losses) == 2 else (math.nan, math.nan)
        self._must_check = True  # first of all, and whenever there is doubt
        self._changes: deque[float] = deque(maxlen=CHANGES_KEPT)
        self._left_out: dict[
            str, tuple[int, int]
        ] = {}  # peer -> the round from which it counts again, for how long
        self._divergences = 0
        self._has_failed = False  # our training, in this round
        self._kept_round = 0

    @property
    def losses(self) -> list[float]:
        """What a restart needs; nothing before the first check."""
        return [self._unlearned, self._reference] if self.has_measured else []

    @property
    def has_measured(self) -> bool:
        """Whether the loss of the initial adapter is known."""
        return not math.isnan(self._unlearned)

    @property
    def limit(self) -> float:
        """Up to here a loss is in order."""
        return self.limit_above(self._reference)

    def limit_above(self, loss: float, slacks: float = 1.0) -> float:
        """Return up to where a loss is in order if this one is; ``slacks``: so many times the usual is allowed."""
        return max(loss, self._reference) + slacks * self._slack * abs(self._unlearned)

    def measured_initial(self, loss: float) -> None:
        """Take the loss of the initial adapter, the first that is measured."""
        self._unlearned = self._reference = loss if math.isfinite(loss) else 0.0

    def is_due(self, round: int, *, merging: bool, was_clipped: bool, change: float) -> bool:
        """Tell whether a mix is to be checked.

        Args:
            round: the round.
            merging: it is one of the final merge, whose outcome is what remains.
            was_clipped: a guard has objected to something.
            change: how far the mix moves us, relative to our norm.
        """
        if not self.is_on:
            return False
        usual = statistics.median(self._changes) if self._changes else math.inf
        self._changes.append(change)
        in_turn = round % self._every == 0
        return self._must_check or merging or in_turn or was_clipped or change > UNUSUAL * usual

    def kept(self, state: AdapterState, loss: float, round: int, *, trained: bool) -> None:
        """Take note that an adapter of this loss is kept; ``trained``: local steps of ours went into it."""
        self.healthy = state
        self._must_check = self.has_rolled_back = False
        turns = min(1.0, (round - self._kept_round) / self._every)
        self._kept_round = round
        self._reference = min(loss, self._reference + turns * RISE * self._slack * abs(self._unlearned))
        if trained and not self._has_failed:
            self._divergences = 0
        self._has_failed = False

    def rolled_back(self) -> None:
        """Take note that we go on from the last adapter that was in order."""
        self._must_check = self.has_rolled_back = True
        self._has_failed = False

    def diverged(self, what: str) -> bool:
        """Take note that our own training has come to nothing; return whether to give up where it began, too.

        The first time, where it began is only checked: it may be in order, and one step have gone wrong.

        Raises:
            Diverged: once too often, or there is no adapter to go back to, because nothing is checked.
        """
        self._divergences += 1
        if not self.is_on:
            raise Diverged(f"{what}: lower the learning rate; the last complete checkpoint is unharmed")
        if self._divergences > ROLLBACKS_MAX:
            raise Diverged(
                f"{what}, and so it did after each of {ROLLBACKS_MAX} returns to the last adapter that was in order: "
                "lower the learning rate"
            )
        self._must_check = self._has_failed = True
        return self._divergences > 1

    # -- whom we distrust

    def distrust(self, peer: str, round: int) -> int:
        """Leave a peer out from the next round on; return for how many."""
        _, before = self._left_out.get(peer, (0, 0))
        rounds = min(2 * before, LEFT_OUT_MAX) or LEFT_OUT_FIRST
        self._left_out[peer] = (round + 1 + rounds, rounds)
        return rounds

    def leaves_out(self, peer: str, round: int) -> bool:
        """Tell whether a peer is left out in a round."""
        until, _ = self._left_out.get(peer, (0, 0))
        return round < until
