"""Numbers that nobody can guess: what draws rows for a private step, and the noise that is added to it.

Whoever can repeat the noise subtracts it, and whoever can repeat the draw knows who took part. So both come from a
keystream, AES-256 in counter mode, whose key is taken from the operating system when training begins and is never
written anywhere: not from the run's seed, which everybody has, and not from torch's generators, which are saved. It
knows nothing of gradients or rows.

Normal values are made of 53 random bits by Box and Muller's transform in float64, so none is beyond 8.6 standard
deviations (probability 1e-17). What float64 leaves out between two values (Mironov, CCS 2012) is not counted.
"""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

Values = NDArray[np.floating[Any]]

KEY_BYTES = 32
"""AES-256."""


class SecretNoise:
    """An endless stream of secret numbers.

    Args:
        key: 32 bytes; only tests give one. By default it is drawn by the operating system.
    """

    def __init__(self, key: bytes | None = None) -> None:
        cipher = Cipher(algorithms.AES(key or secrets.token_bytes(KEY_BYTES)), modes.CTR(bytes(16)))
        self._stream = cipher.encryptor()

    def uniform(self, count: int) -> Values:
        """Return float64[count], uniform on multiples of 2^-53 in [0, 1)."""
        words = np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")
        return np.ldexp((words >> np.uint64(11)).astype(np.float64), -53)

    def normal(self, count: int) -> Values:
        """Return float64[count], independent, of mean 0 and standard deviation 1."""
        pairs = (count + 1) // 2
        radius = np.sqrt(-2.0 * np.log1p(-self.uniform(pairs)))
        angle = 2.0 * np.pi * self.uniform(pairs)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def chosen(self, count: int, probability: float) -> list[int]:
        """Return, in order, the numbers from 0 to ``count`` - 1 that are drawn, each by itself with ``probability``."""
        drawn: list[int] = np.flatnonzero(self.uniform(count) < probability).tolist()
        return drawn

    def some(self, count: int, size: int) -> list[int]:
        """Return ``size`` different numbers below ``count``, all sets alike likely; all of them if there are fewer."""
        picked: list[int] = np.argsort(self.uniform(count), kind="stable")[:size].tolist()
        return sorted(picked)
