"""How the learning rate changes over a run: the share of it that each step is taken with.

A schedule goes by the step's place in the *run*, not by how many steps a peer has taken itself: one that was restarted,
skipped a round or came late takes its steps at the rate of all others; the last if it could take over their round
(``gossip/catching_up.py``), else it begins at the schedule's beginning. A run that is prolonged is stretched. Pure; it
knows neither optimizers nor peers. The catalogue stands at the foot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

COOLDOWN = 0.2
"""Share of the steps over which ``wsd`` falls. Source: arXiv 2405.18392, where 20 % does as well as cosine."""

Schedule = Callable[[int, int], float]
"""(step, steps) -> factor of the rate, above 0 and at most 1, for ``0 <= step < steps``: it begins at 1, never rises.

It is that of the step's beginning, such as (steps - step) / steps: the last step is not thrown away on a rate of 0.
Source: Hugging Face's schedules."""


class Position(NamedTuple):
    """Where in a run a call of ``Trainer.train`` stands.

    Attributes:
        round: from 0, below ``rounds``.
        rounds: of the whole run.
    """

    round: int
    rounds: int

    def factor(self, schedule: str, warmup_steps: int, step: int, local_steps: int) -> float:
        """Return the share of the learning rate of a round's step; see ``factor``.

        Args:
            schedule: its name in ``SCHEDULES``.
            warmup_steps: of the run, at least 0.
            step: number within the round, 0 to ``local_steps - 1``.
            local_steps: steps a round.
        """
        steps = local_steps * self.rounds
        return factor(schedule, warmup_steps, local_steps * self.round + step, steps)


WHOLE_RUN = Position(0, 1)
"""Of a call that is all the training there is."""


def factor(schedule: str, warmup_steps: int, step: int, steps: int) -> float:
    """Return the share of the learning rate at one step: it rises evenly over the warm-up, then follows the schedule.

    Args:
        schedule: a name of ``SCHEDULES``.
        warmup_steps: how many first steps rise; the one after them is the first at the full rate.
        step: from 0.
        steps: of the whole run.

    Raises:
        ValueError: the step is not in the run (our bug).
    """
    if not 0 <= step < steps:
        raise ValueError(f"step {step} is none of {steps}")
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return SCHEDULES[schedule](step - warmup_steps, steps - warmup_steps)


def _constant(step: int, steps: int) -> float:
    return 1.0


def _linear(step: int, steps: int) -> float:
    """Fall evenly; the step after the last would have 0."""
    return (steps - step) / steps


def _cosine(step: int, steps: int) -> float:
    """Half a cosine (arXiv 1608.03983, without restarts)."""
    return (1.0 + math.cos(math.pi * step / steps)) / 2.0


def _wsd(step: int, steps: int) -> float:
    """Stay, then fall evenly over the last part (warm-up, stable, decay; arXiv 2404.06395)."""
    return min(1.0, (steps - step) / (COOLDOWN * steps))


SCHEDULES: dict[str, Schedule] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "wsd": _wsd,
}
"""Schedules by name. A new one stands in ``ScheduleName`` of ``learning_options.py`` too."""
