"""W over a roster, as each of its peers computes it for itself: everybody's row in a round, and a digest of all rows.

Only for topologies on which all agree. In the final merge each reads all others.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping

from gossip.messages import Kind
from topology.links import Topology

Rows = Callable[[str, Kind, int], Mapping[str, float]]
"""``(reader, kind, round) -> its row of W, peer -> weight``, without itself; empty for whoever is not on the roster."""


def rows_of(topology: Topology, roster: tuple[str, ...]) -> Rows:
    """Return everybody's rows.

    Args:
        topology: one on which all peers agree.
        roster: all peers of the run, sorted.
    """
    topology = Topology(
        topology.name, topology.plan
    )  # with a cache of its own: the node asks in another thread
    nobody_draws = random.Random(0)  # asked for, and not used where all agree

    def drawn(reader: str, round: int) -> Mapping[str, float]:
        return dict(topology(reader, roster, round, nobody_draws).read_from)

    # Found once where they stay: then several threads may look.
    static = {reader: drawn(reader, 0) for reader in roster} if topology.is_static else {}

    def row(reader: str, kind: Kind, round: int) -> Mapping[str, float]:
        if reader not in roster:
            return {}
        if kind == "merge":
            return {peer: 1.0 / len(roster) for peer in roster if peer != reader}
        return static[reader] if static else drawn(reader, round)

    return row


def roster_digest(topology: Topology, roster: tuple[str, ...]) -> bytes:
    """Return the SHA-256 of a roster and of its rows in a static topology: whoever sums by them must have the same."""
    row, digest = rows_of(topology, roster), hashlib.sha256()
    for reader in roster:
        digest.update(f"{reader}\n".encode())
        for peer, weight in row(reader, "round", 0).items():
            digest.update(f"{peer} {weight.hex()}\n".encode())
    return digest.digest()
