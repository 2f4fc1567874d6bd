"""Who may read what a peer publishes: all members, or only those whose row of W names the publisher.

The second is a rule for a roster, over which everybody computes the same W, whoever is there just now: otherwise
whoever comes and goes would change who reads whom, and in time read everybody. Whoever is not named gets no byte, also
not of an adapter whose digest it knows from others.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from gossip.messages import Kind
from topology.links import Topology

Readers = Callable[[str, Kind, int], bool]
"""``(peer, kind, round) -> whether it may read our adapter of that kind and round``."""


def everybody(peer: str, kind: Kind, round: int) -> bool:
    """Let all members read."""
    return True


def row_readers(topology: Topology, me: str, roster: tuple[str, ...]) -> Readers:
    """Return the rule that lets those read whose row of W names us in the round that an adapter is of.

    The final merge is read by all of the roster: it is what they end with. The adapter that all began with is no
    secret.

    Args:
        topology: one on which all peers agree.
        me: our peer id.
        roster: all peers of the run, sorted.
    """
    topology = Topology(
        topology.name, topology.plan
    )  # with a cache of its own: the node asks in another thread
    nobody_draws = random.Random(0)  # asked for, and not used where all agree

    def may_read(peer: str, kind: Kind, round: int) -> bool:
        if kind == "initial":
            return True
        if peer not in roster or peer == me:
            return False
        row = topology(peer, roster, round, nobody_draws).read_from
        return kind == "merge" or any(read == me for read, _ in row)

    return may_read
