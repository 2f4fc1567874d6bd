"""The simulator: its speed, and how its memory grows with the number of nodes. ``scripts/bench.py simulation``."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator

from gossip.quadratic import Quadratic
from peer.child_python import child_environment, python_module
from scripts.benchmarks.rows import Row, at_most


def rows() -> Iterator[Row]:
    """Run a thousand nodes here, and 500 and 2,000 in processes of their own."""

    def run(peers: int) -> None:
        Quadratic(peers=peers).simulation().run()

    started = time.perf_counter()
    run(1000)
    yield at_most("simulation: 1,000 nodes x 20 rounds", time.perf_counter() - started, "s", 10.0)
    small, large = (_memory_of(peers) for peers in (500, 2000))
    yield at_most("simulation: memory of 2,000 / 500 nodes", large / small, "x", 4.5)


def _memory_of(peers: int) -> float:
    """Return the bytes that a network of nodes takes, measured in a fresh process."""
    command = python_module("scripts.benchmarks.simulation", str(peers))
    return float(subprocess.check_output(command, env=child_environment(), text=True))


def simulate(peers: int) -> None:
    """Print the memory, in bytes, that a network of nodes takes beyond what was there before."""
    Quadratic(peers=8).simulation().run()
    gc.collect()
    tracemalloc.start()
    Quadratic(peers=peers, rounds=4).simulation().run()
    print(tracemalloc.get_traced_memory()[1])


if __name__ == "__main__":
    simulate(int(sys.argv[1]))
