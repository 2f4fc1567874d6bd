"""What consensus costs: bytes for a payload size, and seconds under a model of latencies and bandwidths.

A message takes latency + bytes / min(up of the sender / its readers, down of the reader / its reads), all messages of
a round run at once, and the slowest ends it. Loss is symmetric drop in expectation. It knows no protocol overhead but
``overhead_bytes``. Source: ours; limits of the model are the tests (no bandwidth limit, no latency).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from topology.errors import TopologyError

PerPeer = float | NDArray[np.float64]
"""One number for all peers, or ``float64[n]``."""


@dataclass(frozen=True, slots=True)
class LinkModel:
    """How fast messages travel.

    Args:
        latency_s: one way, >= 0; a peer's own half where an array is given (both ends add up, halved otherwise).
        up_mbit: of each peer, > 0; may be infinite.
        down_mbit: likewise.
        compute_s: local work between two rounds, added to each.
        overhead_bytes: added to each payload (headers, framing).
    """

    latency_s: PerPeer = 0.0
    up_mbit: PerPeer = math.inf
    down_mbit: PerPeer = math.inf
    compute_s: float = 0.0
    overhead_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("up_mbit", "down_mbit"):
            if not (np.asarray(getattr(self, name)) > 0).all():
                raise TopologyError(f"{name} must be greater than 0, not {getattr(self, name)!r}")
        for name in ("latency_s", "compute_s", "overhead_bytes"):
            if not (np.asarray(getattr(self, name)) >= 0).all():
                raise TopologyError(f"{name} must not be negative: {getattr(self, name)!r}")

    def round_s(self, matrix: csr_array, payload_bytes: float) -> float:
        """Return the seconds of one round with these reads, all messages at once; compute included."""
        n = matrix.shape[0]
        reader, read = _arcs(matrix)
        if not len(reader):
            return self.compute_s
        reads, served = np.bincount(reader, minlength=n), np.bincount(read, minlength=n)
        up = np.broadcast_to(np.asarray(self.up_mbit, dtype=np.float64), n)[read] / served[read]
        down = np.broadcast_to(np.asarray(self.down_mbit, dtype=np.float64), n)[reader] / reads[reader]
        latency = np.asarray(self.latency_s, dtype=np.float64)
        one_way = latency[reader] + latency[read] if latency.ndim else np.full(len(reader), float(latency))
        megabits = 8e-6 * (payload_bytes + self.overhead_bytes)
        return float((one_way + megabits / np.minimum(up, down)).max()) + self.compute_s


def _arcs(matrix: csr_array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    coo = matrix.tocoo()
    keep = (coo.row != coo.col) & (coo.data != 0)
    return coo.row[keep].astype(np.int64), coo.col[keep].astype(np.int64)


def round_bytes(matrix: csr_array, payload_bytes: float) -> tuple[float, float]:
    """Return (bytes all peers read in one round, bytes the busiest peer sends or reads)."""
    n = matrix.shape[0]
    reader, read = _arcs(matrix)
    busiest = max(int(np.bincount(side, minlength=n).max(initial=0)) for side in (reader, read))
    return len(reader) * payload_bytes, busiest * payload_bytes


def slem_under_loss(second: float, smallest: float, loss: float) -> float:
    """Return the SLEM of the expected W when each message is lost independently under symmetric drop.

    An edge lives with q = (1 - loss)^2, and E[W] = I - q (I - W): eigenvalues become 1 - q (1 - l).

    Args:
        second: second largest eigenvalue of a symmetric W.
        smallest: its smallest.
        loss: probability in [0, 1].
    """
    q = (1.0 - loss) ** 2
    return max(1.0 - q * (1.0 - second), -(1.0 - q * (1.0 - smallest)))
