"""Few values out of many: which ones, and how their positions become bytes.

Positions are 0-based indices into the flat vector, int64[K], strictly increasing. Their size in bytes follows from the
two counts alone. It knows no codec, and nothing of the values that stand at the positions.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gossip.errors import RemoteError
from topology.draws import Draws

Positions = NDArray[np.int64]

DRAWS_KEPT = 8
"""Random choices kept: every neighbor's adapter of a round needs the same one. Source: neighbors are seldom more than
a few rounds apart."""


def count_of(share: float, size: int) -> int:
    """Return how many of ``size`` values a share of them is: rounded to nearest, half to even, at least 1."""
    return min(size, max(1, round(share * size)))


def largest(values: NDArray[np.float32], count: int) -> Positions:
    """Return the positions of the ``count`` values of the largest magnitude."""
    first = len(values) - count
    return np.sort(np.argpartition(np.abs(values), first)[first:]).astype(np.int64)


@lru_cache(maxsize=DRAWS_KEPT)
def random_positions(count: int, size: int, round: int) -> Positions:
    """Return ``count`` random positions of ``size``: the same on every peer in a round, others in the next. Not to
    be written to: all who ask get the same array.

    ceil(size / count) rounds make a sweep in which every position has its turn; each sweep has an order of its own. So
    nothing waits longer than two sweeps. Source: ours; independent draws would leave 35 % untouched in such a time.
    """
    sweep, turn = divmod(round, -(-size // count))
    begin = min(turn * count, size - count)
    keys = Draws("random-k", count, size, sweep).raw(size)
    return np.sort(np.argpartition(keys, (begin, begin + count - 1))[begin : begin + count]).astype(np.int64)


def positions_bytes(count: int, size: int) -> int:
    """Return the number of bytes of ``count`` positions of ``size``."""
    return min(_bytes(size), sum(map(_bytes, _elias_fano_bits(count, size))))


def encode_positions(positions: Positions, size: int) -> bytes:
    """Write positions as a bitmap or in Elias-Fano coding, whichever is smaller.

    Elias-Fano (Elias 1974, Fano 1971): of each position the low bits as they are, the high ones as a bitmap in unary:
    2 + log2(size / count) bits a position, whatever the positions are. 10 % of the values take 0.53 bits a value, a
    bitmap 1.
    """
    count = len(positions)
    if not _is_elias_fano(count, size):
        marks = np.zeros(size, np.uint8)
        marks[positions] = 1
        return _packed(marks)
    low = _low_bits(count, size)
    marks = np.zeros(_elias_fano_bits(count, size)[1], np.uint8)
    marks[(positions >> low) + np.arange(count)] = 1
    return _packed(((positions[:, None] >> np.arange(low)) & 1).astype(np.uint8)) + _packed(marks)


def decode_positions(raw: NDArray[np.uint8], count: int, size: int) -> Positions:
    """Read positions.

    Args:
        raw: uint8[positions_bytes(count, size)].

    Raises:
        RemoteError: ``"malformed"``: not ``count`` positions below ``size``, each larger than the one before.
    """
    if not _is_elias_fano(count, size):
        positions = np.nonzero(np.unpackbits(raw, count=size, bitorder="little"))[0]
        if len(positions) != count:
            raise RemoteError("malformed", f"{len(positions)} positions marked, {count} expected")
        return positions
    low = _low_bits(count, size)
    low_bits, high_bits = _elias_fano_bits(count, size)
    high = np.nonzero(np.unpackbits(raw[_bytes(low_bits) :], count=high_bits, bitorder="little"))[0]
    if len(high) != count:
        raise RemoteError("malformed", f"{len(high)} positions marked, {count} expected")
    bits = np.unpackbits(raw[: _bytes(low_bits)], count=low_bits, bitorder="little").reshape(count, low)
    positions = (high - np.arange(count)) << low
    for place in range(low):
        positions |= bits[:, place].astype(np.int64) << place
    if positions[-1] >= size or (np.diff(positions) <= 0).any():
        raise RemoteError("malformed", f"positions do not increase, or reach beyond {size} values")
    return positions


def _low_bits(count: int, size: int) -> int:
    return (size // count).bit_length() - 1


def _elias_fano_bits(count: int, size: int) -> tuple[int, int]:
    """Return the number of low bits and the length of the unary bitmap, each padded to whole bytes by itself."""
    low = _low_bits(count, size)
    return count * low, count + ((size - 1) >> low)


def _is_elias_fano(count: int, size: int) -> bool:
    return sum(map(_bytes, _elias_fano_bits(count, size))) < _bytes(size)


def _bytes(bits: int) -> int:
    return -(-bits // 8)


def _packed(bits: NDArray[np.uint8]) -> bytes:
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()
