"""Seeded simulations with random faults, as many as one likes; a failing seed ends it with the line that replays it."""

from __future__ import annotations

import time

from gossip.errors import LocalError
from gossip.fault_trials import draw_trial, run_trial
from gossip.invariants import Broken

TOLD_S = 10.0
"""A line of progress this often, seconds."""


class TrialFailed(LocalError):
    """An invariant does not hold: our bug."""

    exit_code = 1


def run_trials(first: int, count: int) -> str:
    """Run trials ``first`` to ``first + count - 1``; return what to say at the end.

    Raises:
        TrialFailed: an invariant does not hold; the message ends with the line that replays the trial.
    """
    started = told = time.monotonic()
    events = 0
    for seed in range(first, first + count):
        try:
            events += run_trial(draw_trial(seed)).events
        except Broken as broken:
            raise TrialFailed(str(broken)) from broken
        if time.monotonic() - told > TOLD_S:
            told = time.monotonic()
            print(f"{seed - first + 1} of {count} trials, {events} events", flush=True)
    return f"{count} trials with faults, {events} events, {time.monotonic() - started:.0f} s: no invariant broken"
