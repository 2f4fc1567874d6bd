"""What peers announce of their data, where a topology asks for it: how many rows, and of which labels.

Both are claims, and both tell others something about private data: a peer announces only what the topology of its own
configuration needs (``Topology.wants``). Who has not announced anything counts as an average peer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROWS_MAX = 10**12
"""A larger count of rows is no honest one. Source: guess; a thousand times the largest public corpora."""
LABELS_MAX = 64
"""Labels in a histogram. Source: the longest list that a control frame may hold (``gossip/wire.py``)."""


@dataclass(frozen=True, slots=True)
class Announced:
    """What one peer says of its data.

    Args:
        rows: rows it learns from, 0 to ``ROWS_MAX``; 0 = it does not say.
        labels: rows of each label, in the run's order of labels; empty = it does not say.
    """

    rows: int = 0
    labels: tuple[int, ...] = ()


Announcements = Mapping[str, Announced]
"""Peer -> what it has announced."""

NOTHING: Announcements = {}
WANTS_NOTHING: frozenset[str] = frozenset()
"""Fields of ``Announced`` that most topologies go by."""


def row_counts(members: Sequence[str], announced: Announcements) -> NDArray[np.float64]:
    """Return ``float64[n]`` > 0, rows of each member; who does not say has as many as the mean of the others."""
    rows = np.asarray(
        [announced[peer].rows if peer in announced else 0 for peer in members], dtype=np.float64
    )
    said = rows > 0
    rows[~said] = rows[said].mean() if said.any() else 1.0
    return rows


def label_counts(members: Sequence[str], announced: Announcements) -> NDArray[np.float64]:
    """Return ``float64[n, labels]`` >= 0, a row of label counts for each member, none of them all 0.

    Who does not say, or says nothing usable, has as many of each label as the others have on average.
    """
    said = {
        peer: announced[peer].labels
        for peer in members
        if peer in announced and sum(announced[peer].labels) > 0
    }
    width = max((len(labels) for labels in said.values()), default=1)
    counts = np.zeros((len(members), width))
    for index, peer in enumerate(members):
        labels = said.get(peer, ())
        counts[index, : len(labels)] = labels
    silent = counts.sum(axis=1) == 0
    counts[silent] = counts[~silent].mean(axis=0) if (~silent).any() else 1.0
    return counts
