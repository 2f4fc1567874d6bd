"""The largest values of every chunk of a vector, in few bits: which ones, and how their sizes become levels and back.

What is kept of a chunk is its own affair: a tensor whose values are small loses no place to one whose values are large.
Chunks of 4,096 values and two bits a value are SparseLoCo's (arXiv 2508.15706); the levels are ours. It knows no codec.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gossip.errors import RemoteError
from gossip.methods import sparse

CHUNK = 4096
"""Values that share levels. Source: SparseLoCo (arXiv 2508.15706)."""
FITS = 8
"""So often the outer levels move to the mean of what is nearest to them. Source: ours; then two bits
leave 0.345 of a normal distribution, where the best levels leave 0.343."""

Floats = NDArray[np.float32]


def counts(size: int, keep: int) -> NDArray[np.int64]:
    """Return int64[chunks], how many values of each chunk are kept: ``keep`` of a whole one, of the last its share."""
    lengths = np.full(-(-size // CHUNK), CHUNK)
    lengths[-1:] = size - CHUNK * (len(lengths) - 1)
    shares: NDArray[np.int64] = -(-keep * lengths // CHUNK)
    return shares


def payload_bytes(size: int, keep: int, bits: int) -> int:
    """Return the number of bytes of a vector of so many values."""
    per_chunk = counts(size, keep)
    count = int(per_chunk.sum())
    return 4 * len(per_chunk) + _code_bytes(count, bits) + sparse.positions_bytes(count, size)


def encode(values: Floats, keep: int, bits: int) -> bytes:
    """Write the ``keep`` values of the largest magnitude of each 4,096, in so many bits with their signs.

    Levels of all chunks as bfloat16, first the lowest ones, then the highest; then the codes, twice the level and 1
    for a negative value; then the positions (``sparse.py``).
    """
    positions, codes, levels = [], [], []
    for begin, chunks in _in_chunks(values):
        first = chunks.shape[1] - int(counts(chunks.shape[1], keep)[0])
        places = np.sort(np.argpartition(np.abs(chunks), first, axis=1)[:, first:], axis=1)
        chosen = np.take_along_axis(chunks, places, axis=1)
        outer, nearest = _fitted(np.abs(chosen), 2 ** (bits - 1))
        positions.append((begin + CHUNK * np.arange(len(chunks))[:, None] + places).reshape(-1))
        codes.append((2 * nearest + np.signbit(chosen)).reshape(-1))
        levels.append(outer)
    flags = (np.concatenate(codes)[:, None] >> np.arange(bits)) & 1
    coded = np.packbits(flags.astype(np.uint8), bitorder="little").tobytes()
    written = (np.concatenate(levels, axis=1).view(np.uint32) >> 16).astype("<u2").tobytes()
    return written + coded + sparse.encode_positions(np.concatenate(positions), len(values))


def decode(raw: NDArray[np.uint8], size: int, keep: int, bits: int) -> Floats:
    """Read float32[size]; what was not kept is 0.

    Args:
        raw: uint8[payload_bytes(size, keep, bits)].

    Raises:
        RemoteError: ``"malformed"``: positions that are none, or other than ``keep`` in a chunk.
    """
    per_chunk = counts(size, keep)
    count, level_bytes = int(per_chunk.sum()), 4 * len(per_chunk)
    code_bytes = _code_bytes(count, bits)
    positions = sparse.decode_positions(raw[level_bytes + code_bytes :], count, size)
    if not np.array_equal(np.bincount(positions // CHUNK, minlength=len(per_chunk)), per_chunk):
        raise RemoteError("malformed", f"other than {keep} positions in a chunk of {CHUNK}")
    written = raw[:level_bytes].view("<u2").astype(np.uint32) << 16
    low, high = np.repeat(written.view(np.float32).reshape(2, -1), per_chunk, axis=1)
    packed = raw[level_bytes : level_bytes + code_bytes]
    flags = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    codes = (flags << np.arange(bits)).sum(axis=1)
    share = (codes >> 1).astype(np.float32) / np.float32(max(1, 2 ** (bits - 1) - 1))
    with np.errstate(
        invalid="ignore", over="ignore"
    ):  # levels may be anything: guards look at what comes of them
        magnitudes = low * (1 - share) + high * share
    values: Floats = np.zeros(size, np.float32)
    values[positions] = np.where(codes & 1, -magnitudes, magnitudes)
    return values


def _code_bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def _in_chunks(values: Floats) -> Iterator[tuple[int, Floats]]:
    """Yield where chunks of one length begin, and these, float32[chunks, length]: the whole ones, then the rest."""
    whole = len(values) // CHUNK * CHUNK
    if whole:
        yield 0, values[:whole].reshape(-1, CHUNK)
    if whole < len(values):
        yield whole, values[whole:].reshape(1, -1)


def _fitted(magnitudes: Floats, count: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return the outer two of ``count`` levels at equal steps, float32[2, chunks], and the nearest of each magnitude.

    They begin at the smallest and the largest, and move to the mean of those that are nearest to them.
    """
    levels = np.stack([magnitudes.min(axis=1), magnitudes.max(axis=1)])
    if count == 1:
        levels[:] = magnitudes.mean(axis=1)
    for _ in range(FITS if count > 1 else 0):
        nearest = _nearest(magnitudes, levels, count)
        for row, level in enumerate((0, count - 1)):
            is_of = nearest == level
            total, members = (magnitudes * is_of).sum(axis=1), is_of.sum(axis=1)
            levels[row] = np.where(members, total / np.maximum(members, 1), levels[row])
    levels = _as_bfloat16(levels)
    return levels, _nearest(magnitudes, levels, count)


def _nearest(magnitudes: Floats, levels: Floats, count: int) -> NDArray[np.int64]:
    low, high = levels[0][:, None], levels[1][:, None]
    width = np.where(high > low, high - low, np.float32(1.0))
    steps = np.rint((magnitudes - low) / width * np.float32(count - 1))
    nearest: NDArray[np.int64] = np.clip(steps, 0, count - 1).astype(np.int64)
    return nearest


def _as_bfloat16(values: Floats) -> Floats:
    """Round to the upper half of float32, to nearest even: so levels travel."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32).reshape(values.shape)
