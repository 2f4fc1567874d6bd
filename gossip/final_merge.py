"""The final merge: after the last round nobody trains, and all adapters become one (ICLR 2026: one such phase is the
cheapest large win on data that differ; algorithms.md section 0).

Small groups read everybody in one round, which is exact. Larger ones take the rounds of a finite-time schedule, exact
as well if nobody is lost.
"""

from __future__ import annotations

from topology.links import Topology, parse_topology

MERGE_S = 60.0
"""A round of the final merge waits at least so long for the others, seconds, also in an asynchronous run: it is the
one round in which being late costs accuracy. Source: as long as a peer lingers for others at its end."""
ALL_MAX = 16
"""Up to so many peers, all read all. Source: ours; 15 reads of a few megabytes."""
DEGREE = 4
"""Neighbors a round beyond that. Source: ours; 3 rounds for 100 peers, 5 for 1,000 (Base-(k+1), arXiv 2305.11420)."""

MERGE_ROUNDS_MAX = 64
"""No final merge takes more rounds: a round beyond is a lie. Source: ours; 64 would be enough for 4^64 peers."""


def merge_topology(members: int) -> Topology:
    """Return who reads whom in the final merge, as all peers that see so many members find it."""
    name = "complete" if members <= ALL_MAX else f"base:{DEGREE}"
    return parse_topology(name, seed=0)


def merge_rounds(members: int) -> int:
    """Return how many rounds the final merge takes."""
    return merge_topology(members).period(members) if members > 1 else 0
