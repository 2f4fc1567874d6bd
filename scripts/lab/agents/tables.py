"""Trials of agents side by side: means over seeds, and paired differences to learning alone, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from scripts.lab.agents.trial import METHODS, Method, Outcome, Setting
from scripts.lab.records import Record, Value, record_of_table, value_of
from scripts.lab.statistics import interval, paired_difference

Outcomes = Mapping[tuple[Setting, Method, int], Outcome]
"""By setting, method and seed."""

TITLE = "Agents that learn from one another: share of held-out questions answered right"
HEADING = ("setting, method", "start", "all skills", "own skill", "over alone", "kB read", "CPU s", "seeds")
TITLES: Mapping[Method, str] = {
    "isolated": "alone",
    "own-replay": "its own right answers again (control)",
    "rollouts": "answers",
    "weights": "weights",
    "both": "answers and weights",
    "central": "one with everything (central)",
    "hostile": "answers, one of four hostile",
    "without-one": "answers, without that one",
}
SETTINGS: Mapping[Setting, str] = {"one": "a skill each", "all": "all skills each"}


def record(outcomes: Outcomes, command: str) -> Record:
    """Return a row of each setting and method, in the order of the methods.

    Args:
        outcomes: of trials that are done.
        command: that made them.
    """
    rows: list[list[Value]] = [list(HEADING)]
    titles = {}
    for setting, called in SETTINGS.items():
        alone = _of(outcomes, setting, "isolated")
        for method in METHODS:
            if not (found := _of(outcomes, setting, method)):
                continue
            name = f"{setting} {method}"
            titles[name] = f"{called}: {TITLES[method]}"
            gain = paired_difference(
                {seed: one.all for seed, one in found.items()},
                {seed: one.all for seed, one in alone.items()},
            )
            ends = list(found.values())
            rows.append(
                [
                    name,
                    value_of(interval([one.start for one in ends])),
                    value_of(interval([one.all for one in ends])),
                    value_of(interval([one.own for one in ends])),
                    value_of(gain) if method != "isolated" and gain.mean is not None else None,
                    value_of(interval([one.read_bytes / 1000 for one in ends])),
                    value_of(interval([one.seconds for one in ends])),
                    len(ends),
                ]
            )
    made = record_of_table(TITLE, command, rows, 3, titles)
    return replace(made, digits={**made.digits, "kB read": 0, "CPU s": 0, "seeds": 0})


def _of(outcomes: Outcomes, setting: Setting, method: Method) -> dict[int, Outcome]:
    """Return the outcomes of a method by seed."""
    return {seed: one for (where, how, seed), one in outcomes.items() if (where, how) == (setting, method)}
