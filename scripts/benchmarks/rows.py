"""One figure of the bench: a row of its table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def row(name: str, value: float, unit: str, target: str = "", met: bool | None = None) -> Row:
    """Return one figure; ``met`` is None where there is no target."""
    return {"name": name, "value": value, "unit": unit, "target": target, "met": met}


def at_most(name: str, value: float, unit: str, limit: float) -> Row:
    """Return a figure that must not exceed a limit."""
    return row(name, value, unit, f"<= {limit:g}", value <= limit)


def at_least(name: str, value: float, unit: str, limit: float) -> Row:
    """Return a figure that must reach a limit."""
    return row(name, value, unit, f">= {limit:g}", value >= limit)


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Return the median wall time of some runs after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
