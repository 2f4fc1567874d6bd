"""Who may read what a peer publishes: all members, or only those whose row of W names the publisher.

The second is a rule for a roster, over which everybody computes the same W, whoever is there just now: otherwise
whoever comes and goes would change who reads whom, and in time read everybody. Whoever is not named gets no byte, also
not of an adapter whose digest it knows from others.
"""

from __future__ import annotations

from collections.abc import Callable

from gossip.messages import Kind
from gossip.roster import Rows

Readers = Callable[[str, Kind, int], bool]
"""``(peer, kind, round) -> whether it may read our adapter of that kind and round``."""


def everybody(peer: str, kind: Kind, round: int) -> bool:
    """Let all members read."""
    return True


def row_readers(rows: Rows, me: str) -> Readers:
    """Return the rule that lets those read whose row of W names us in the round that an adapter is of.

    The final merge is read by all of the roster: it is what they end with. The adapter that all began with is no
    secret.

    Args:
        rows: everybody's.
        me: our peer id.
    """

    def may_read(peer: str, kind: Kind, round: int) -> bool:
        return kind == "initial" or me in rows(peer, kind, round)

    return may_read
