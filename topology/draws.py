"""Random numbers on which all peers of a run agree, whatever their library versions.

A shared random graph is only shared if every peer draws the same one. numpy promises a stable stream only for the raw
64 bits of a bit generator, not for ``Generator.permutation`` and the like, and networkx promises nothing. So
everything here is made of raw bits of PCG64 seeded with SHA-256 over the labels (run seed, topology, n, round). It
knows no graph.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


class Draws:
    """A stream of random numbers named by labels: equal labels give equal numbers on every machine.

    Args:
        labels: anything whose ``str`` is canonical, such as integers and names.
    """

    __slots__ = ("_bits",)

    def __init__(self, *labels: object) -> None:
        digest = hashlib.sha256("\x1f".join(str(label) for label in labels).encode()).digest()
        self._bits = np.random.PCG64(int.from_bytes(digest, "big"))

    def raw(self, size: int) -> NDArray[np.uint64]:
        """Return ``uint64[size]`` uniform bits."""
        return np.asarray(self._bits.random_raw(size), dtype=np.uint64)

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Return ``float64[size]`` in [0, 1), 53 bits each."""
        return (self.raw(size) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def below(self, bound: int, size: int) -> NDArray[np.int64]:
        """Return ``int64[size]`` in 0..bound-1; the bias of the modulo is below bound / 2**64."""
        return (self.raw(size) % np.uint64(bound)).astype(np.int64)

    def permutation(self, n: int) -> NDArray[np.int64]:
        """Return 0..n-1 in random order (``int64[n]``)."""
        return np.argsort(self.raw(n), kind="stable").astype(np.int64)

    def choose(self, n: int, size: int) -> NDArray[np.int64]:
        """Return ``size`` distinct numbers of 0..n-1, sorted. Needs 0 <= size <= n."""
        return np.sort(self.permutation(n)[:size])

    def choose_others(self, n: int, size: int) -> NDArray[np.int64]:
        """Return ``int64[n, size]``: ``size`` <= n - 1 distinct others of each i of 0..n-1, sorted."""
        if (
            size * size < n
        ):  # collisions are rare: draw with replacement, and again the rows that hold a double
            chosen = np.sort(self.below(max(n - 1, 1), n * size).reshape(n, size), axis=1)
            while len(again := np.nonzero((np.diff(chosen, axis=1) == 0).any(axis=1))[0]):
                chosen[again] = np.sort(self.below(n - 1, len(again) * size).reshape(-1, size), axis=1)
        else:
            chosen = np.stack([self.choose(n - 1, size) for _ in range(n)])
        return chosen + (chosen >= np.arange(n)[:, None])
