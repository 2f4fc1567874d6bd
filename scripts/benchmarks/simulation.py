"""The simulator: its speed, and how its memory grows with the number of nodes."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator

from gossip.quadratic import Quadratic
from peer.child_python import child_environment, python_module
from scripts.benchmarks.rows import Row, at_most, timed

PEERS, QUICK_PEERS = 1000, 10


def rows(quick: bool = False) -> Iterator[Row]:
    """Run a thousand nodes here, and half and twice as many in processes of their own."""
    peers = QUICK_PEERS if quick else PEERS
    elapsed_s, _ = timed(Quadratic(peers=peers).simulation().run)
    yield at_most("simulation: 1,000 nodes x 20 rounds", elapsed_s, "s", 10.0)
    small, large = _memory_of(peers // 2), _memory_of(2 * peers)
    yield at_most("simulation: memory of 2,000 / 500 nodes", large / small, "x", 4.5)


def _memory_of(peers: int) -> float:
    """Return the bytes that a network of nodes takes, measured in a fresh process."""
    command = python_module("scripts.benchmarks.simulation", str(peers))
    return float(subprocess.check_output(command, env=child_environment(), text=True))


def print_memory(peers: int) -> None:
    """Print the memory, in bytes, that a network of nodes takes beyond what was there before."""
    Quadratic(peers=8).simulation().run()
    gc.collect()
    tracemalloc.start()
    Quadratic(peers=peers, rounds=4).simulation().run()
    print(tracemalloc.get_traced_memory()[1])


if __name__ == "__main__":
    print_memory(int(sys.argv[1]))
