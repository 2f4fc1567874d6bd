"""A figure of the bench with its target, and a stopwatch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Outcome = TypeVar("Outcome")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: a row of the table.

    Attributes:
        name: what was measured, after the name of its section.
        unit: of ``value``; empty for a count or a share.
        target: such as ``"<= 2"``; empty if there is none. The project set them itself.
        met: whether the value is within the target; None without one.
    """

    name: str
    value: float
    unit: str
    target: str = ""
    met: bool | None = None


def row(name: str, value: float, unit: str) -> Row:
    """Return a figure without a target."""
    return Row(name, value, unit)


def at_most(name: str, value: float, unit: str, limit: float) -> Row:
    """Return a figure that must not exceed a limit."""
    return Row(name, value, unit, f"<= {limit:g}", value <= limit)


def at_least(name: str, value: float, unit: str, limit: float) -> Row:
    """Return a figure that must reach a limit."""
    return Row(name, value, unit, f">= {limit:g}", value >= limit)


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Return the median wall time of some runs after one to warm up."""
    work()
    return statistics.median(timed(work)[0] for _ in range(repeats))


def timed(work: Callable[[], Outcome]) -> tuple[float, Outcome]:
    """Return the wall time of one run, seconds, and what it returned."""
    started = time.perf_counter()
    outcome = work()
    return time.perf_counter() - started, outcome
