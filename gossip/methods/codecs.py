"""How a vector becomes bytes: the catalogue of codecs.

A codec is a value with pure functions and no memory; what sender and readers remember of what it lost is
``feedback.py``'s. Lossy codecs are given differences from the adapter that all peers began with, so that what is small
or zero there costs little. Payload sizes follow from the spec alone, so a reader knows the size before the first
byte. To add a codec: write the functions and add one line to ``CODECS``; the laws in tests/laws/test_codecs.py then
hold it to what it declares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gossip.adapter import AdapterSpec
from gossip.errors import RemoteError
from gossip.methods import chunked as chunks
from gossip.methods import lowrank, sparse
from gossip.methods.catalogue import Entry
from gossip.methods.requirements import Requirements, State
from gossip.methods.stage import Encoded, Incoming, RoundContext, Stage
from topology.parameters import Parameter, fraction, whole

INT8_BLOCK = 256
"""Values that share one scale. Source: bitsandbytes' blockwise quantization uses 256 to 4096; 256 measured at a
relative error of 0.004 and 8.06 bits a value (ml-runtime.md section 9)."""
INT4_BLOCK = 64
"""Source: ml-runtime.md section 9: a relative error of 0.07 and 4.25 bits a value with scales of 16 bits."""
SIGN_BLOCK = 1024
"""Source: ml-runtime.md section 9: a relative error of 0.47 and 1.02 bits a value with scales of 16 bits."""
SHARE = 0.1
"""Source: LoRA's changes are dense, 1 % of the values is too little (ml-runtime.md section 9)."""
RANK = 2
"""Source: PowerSGD's (arXiv 1905.13727, section 5), which trains as well with rank 2 as without compression."""
KEEP, BITS = 512, 2
"""Of 4,096 values, and bits for each. Source: SparseLoCo (arXiv 2508.15706) has 2 bits and 64; of small models from
scratch 64 closed less than nothing of the gap to central training, 512 a quarter (docs/results.md)."""
INT4_GAMMA = 0.5
SIGN_GAMMA = 0.2
LOW_RANK_GAMMA = 0.2
"""Mixing step sizes with error feedback; the sparse codecs take their share F. Source: our measurement, a ring of 16
whose vectors have as much in common as they differ in: disagreement left, Xi^2 / Xi_0^2, after 300 rounds

=============  ========  ========  ========  ========  ========  ========
codec          1.0       0.5       0.3       0.2       0.1       0.05
=============  ========  ========  ========  ========  ========  ========
int4           1.8e-2    2.5e-3    7.9e-4    6.9e-4    7.3e-3    3.2e-2
sign           3.1       4.9e-1    1.6e-1    7.0e-2    2.7e-2    3.9e-2
topk:0.1       diverges  2.4       5.0e-1    1.9e-1    4.8e-2    4.2e-2
randomk:0.1    diverges  diverges  diverges  diverges  7.0e-3    3.2e-2
=============  ========  ========  ========  ========  ========  ========

and after 50 rounds, where the slow ones are not there yet: int4 2.0e-2 with 1.0 and 0.5, 6.6e-2 with 0.2; sign 1.4e-1
with 0.2, 1.5e-1 with 0.1. lowrank:2 of 8 x 96 matrices, 50 rounds: 1.6e-1 with 0.3, 1.1e-1 with 0.2, 1.3e-1 with 0.1.
The floor is the codec's error of the whole vector; ``replica`` feedback has none and bears up to three times the step
size (topk:0.1: 6e-7 left after 400 rounds with 0.3)."""
BFLOAT16_ERROR = 2**-8
"""Largest relative error of rounding to bfloat16, with room for float32's own."""


class Codec(NamedTuple):
    """Pure functions between vectors and bytes, and what they promise.

    Attributes:
        encode: ``(values float32[P], spec, round) -> bytes``; the round seeds what all peers draw alike.
        decode: ``(payload, spec, round) -> float32[P]``, which shares no memory with the payload. Raises
            ``RemoteError("shape")`` if the length is not exactly ``payload_bytes(spec)``, ``("malformed")`` if the
            content cannot be. Values may come out as NaN or infinite: guards look at those.
        payload_bytes: spec -> number of bytes, exact.
        relative_error: bound on ``|decode(encode(x)) - x|`` relative to the largest magnitude in x; infinity if none.
        gamma: mixing step size where the user gives none, in (0, 1].
        doc: one line for ``--help`` and tables.
        requires: what it asks of the run.
    """

    encode: Callable[[Tensor, AdapterSpec, int], bytes]
    decode: Callable[[bytes | bytearray, AdapterSpec, int], Tensor]
    payload_bytes: Callable[[AdapterSpec], int]
    relative_error: float
    gamma: float
    doc: str
    requires: Requirements = Requirements()


@dataclass(frozen=True, slots=True)
class Encoding(Stage):
    """The last stage: a vector becomes bytes with a codec."""

    codec: Codec
    spec: AdapterSpec
    name: ClassVar[str] = "codec"

    def publish(
        self, vector: Tensor, context: RoundContext, encode: Callable[[Tensor], Encoded], state: State
    ) -> tuple[Encoded, State]:
        """Encode; nothing follows."""
        payload = self.codec.encode(vector, self.spec, context.round)
        if self.codec.relative_error == 0.0:
            return Encoded(payload, vector), state
        return Encoded(payload, self.codec.decode(payload, self.spec, context.round)), state

    def read(
        self, incoming: Incoming, decode: Callable[[Incoming], Tensor], state: State
    ) -> tuple[Tensor, State]:
        """Decode."""
        published = incoming.published
        return self.codec.decode(published.payload, incoming.spec, published.round), state

    def payload_sizes(self, spec: AdapterSpec) -> tuple[int, ...]:
        """The codec's."""
        return (self.codec.payload_bytes(spec),)


Encode = Callable[[Tensor, AdapterSpec, int], bytes]
Decode = Callable[[Tensor, AdapterSpec, int], Tensor]
"""``(uint8[payload_bytes], a copy of its own to write in; spec, round) -> float32[P]``."""


def float32() -> Codec:
    """Exact: 32 bits a value."""
    return _codec(
        lambda values, spec, round: values.numpy().astype("<f4", copy=False).tobytes(),
        lambda raw, spec, round: raw.view(torch.float32),
        lambda spec: 4 * spec.size,
        relative_error=0.0,
        gamma=1.0,
        doc=_first_line(float32),
    )


def bfloat16() -> Codec:
    """16 bits a value, relative error 0.4 %."""
    return _codec(
        lambda values, spec, round: _to_bfloat16(values),
        lambda raw, spec, round: _from_bfloat16(raw),
        lambda spec: 2 * spec.size,
        relative_error=BFLOAT16_ERROR,
        gamma=1.0,
        doc=_first_line(bfloat16),
    )


def int8() -> Codec:
    """8 bits a value and one float32 scale per 256 values."""

    def encode(values: Tensor, spec: AdapterSpec, round: int) -> bytes:
        padded = _in_blocks(values, INT8_BLOCK)
        scales = padded.abs().amax(dim=1) / 127.0  # float32[blocks]
        steps = _steps(padded, scales).round_().clamp_(-127, 127).to(torch.int8)
        quantized = steps.view(-1)[: values.numel()]
        return scales.numpy().astype("<f4", copy=False).tobytes() + quantized.numpy().tobytes()

    def decode(raw: Tensor, spec: AdapterSpec, round: int) -> Tensor:
        scale_bytes = 4 * _blocks(spec.size, INT8_BLOCK)
        flat = raw[scale_bytes:].view(torch.int8).to(torch.float32)
        return _scaled(flat, raw[:scale_bytes].view(torch.float32), INT8_BLOCK)

    return _codec(
        encode,
        decode,
        lambda spec: spec.size + 4 * _blocks(spec.size, INT8_BLOCK),
        relative_error=0.51 / 127,
        gamma=1.0,
        doc=_first_line(int8),
    )


def int4() -> Codec:
    """4 bits a value and one bfloat16 scale per 64 values."""

    def encode(values: Tensor, spec: AdapterSpec, round: int) -> bytes:
        padded = _in_blocks(values, INT4_BLOCK)
        scales = (padded.abs().amax(dim=1) / 7.0).to(torch.bfloat16)
        steps = _steps(padded, scales.to(torch.float32)).round_().clamp_(-7, 7).add_(8).to(torch.uint8)
        pairs = steps.view(-1, 2)
        packed = (pairs[:, 0] | (pairs[:, 1] << 4))[: -(-values.numel() // 2)]
        return _to_bfloat16(scales) + packed.numpy().tobytes()

    def decode(raw: Tensor, spec: AdapterSpec, round: int) -> Tensor:
        scale_bytes = 2 * _blocks(spec.size, INT4_BLOCK)
        packed = raw[scale_bytes:]
        pairs = torch.empty(len(packed), 2)
        pairs[:, 0] = packed & 15
        pairs[:, 1] = packed >> 4
        flat = pairs.view(-1)[: spec.size].sub_(8)
        return _scaled(flat, _from_bfloat16(raw[:scale_bytes]), INT4_BLOCK)

    return _codec(
        encode,
        decode,
        lambda spec: 2 * _blocks(spec.size, INT4_BLOCK) + -(-spec.size // 2),
        relative_error=0.51 / 7,
        gamma=INT4_GAMMA,
        doc=_first_line(int4),
    )


def sign() -> Codec:
    """One bit a value and the mean magnitude of each 1,024 values (scaled sign, arXiv 1901.09847)."""

    def encode(values: Tensor, spec: AdapterSpec, round: int) -> bytes:
        padded = _in_blocks(values, SIGN_BLOCK).abs_()
        counts = torch.full((len(padded),), float(SIGN_BLOCK))
        counts[-1:] -= padded.numel() - values.numel()
        is_negative = np.packbits(torch.signbit(values).numpy(), bitorder="little")
        return _to_bfloat16(padded.sum(dim=1) / counts) + is_negative.tobytes()

    def decode(raw: Tensor, spec: AdapterSpec, round: int) -> Tensor:
        scale_bytes = 2 * _blocks(spec.size, SIGN_BLOCK)
        is_negative = np.unpackbits(raw[scale_bytes:].numpy(), count=spec.size, bitorder="little")
        flat = torch.from_numpy(is_negative).to(torch.float32).mul_(-2).add_(1)
        return _scaled(flat, _from_bfloat16(raw[:scale_bytes]), SIGN_BLOCK)

    return _codec(
        encode,
        decode,
        lambda spec: 2 * _blocks(spec.size, SIGN_BLOCK) + -(-spec.size // 8),
        relative_error=1.0 + BFLOAT16_ERROR,
        gamma=SIGN_GAMMA,
        doc=_first_line(sign),
    )


def topk(share: float = SHARE) -> Codec:
    """The largest share of the values as bfloat16, and where they stand."""

    def encode(values: Tensor, spec: AdapterSpec, round: int) -> bytes:
        positions = sparse.largest(values.numpy(), sparse.count_of(share, spec.size))
        chosen = _to_bfloat16(values[torch.from_numpy(positions)])
        return chosen + sparse.encode_positions(positions, spec.size)

    def decode(raw: Tensor, spec: AdapterSpec, round: int) -> Tensor:
        count = sparse.count_of(share, spec.size)
        positions = sparse.decode_positions(raw[2 * count :].numpy(), count, spec.size)
        return _scattered(_from_bfloat16(raw[: 2 * count]), positions, spec.size)

    def payload_bytes(spec: AdapterSpec) -> int:
        count = sparse.count_of(share, spec.size)
        return 2 * count + sparse.positions_bytes(count, spec.size)

    return _codec(encode, decode, payload_bytes, relative_error=1.0, gamma=share, doc=_first_line(topk))


def randomk(share: float = SHARE) -> Codec:
    """A random share of the values as bfloat16; all peers draw the same ones in a round, so no positions travel."""

    def chosen(spec: AdapterSpec, round: int) -> sparse.Positions:
        return sparse.random_positions(sparse.count_of(share, spec.size), spec.size, round)

    return _codec(
        lambda values, spec, round: _to_bfloat16(values[torch.from_numpy(chosen(spec, round))]),
        lambda raw, spec, round: _scattered(_from_bfloat16(raw), chosen(spec, round), spec.size),
        lambda spec: 2 * sparse.count_of(share, spec.size),
        relative_error=1.0,
        gamma=share,
        doc=_first_line(randomk),
    )


def chunked(keep: int = KEEP, bits: int = BITS) -> Codec:
    """The K largest of each 4,096 values in BITS bits each, and where they stand (SparseLoCo, arXiv 2508.15706)."""

    return _codec(
        lambda values, spec, round: chunks.encode(values.numpy(), keep, bits),
        lambda raw, spec, round: torch.from_numpy(chunks.decode(raw.numpy(), spec.size, keep, bits)),
        lambda spec: chunks.payload_bytes(spec.size, keep, bits),
        relative_error=1.0 + BFLOAT16_ERROR,
        gamma=keep / chunks.CHUNK,
        doc=_first_line(chunked),
    )


def low_rank(rank: int = RANK) -> Codec:
    """Each matrix as two factors of rank R (PowerSGD, arXiv 1905.13727), the rest as it is, all in bfloat16."""
    return _codec(
        lambda values, spec, round: _to_bfloat16(lowrank.compact(values, spec, rank, round)),
        lambda raw, spec, round: lowrank.expand(_from_bfloat16(raw), spec, rank),
        lambda spec: 2 * lowrank.compact_size(spec, rank),
        relative_error=math.inf,
        gamma=LOW_RANK_GAMMA,
        doc=_first_line(low_rank),
    )._replace(requires=Requirements(all_parts=True))  # a part knows no matrices


# -- what they are made of


def _codec(
    encode: Encode,
    decode: Decode,
    payload_bytes: Callable[[AdapterSpec], int],
    *,
    relative_error: float,
    gamma: float,
    doc: str,
) -> Codec:
    """Put length checks before a decoder that takes bytes of the right length."""

    def decode_checked(payload: bytes | bytearray, spec: AdapterSpec, round: int) -> Tensor:
        expected = payload_bytes(spec)
        if len(payload) != expected:
            raise RemoteError("shape", f"{len(payload)} bytes for {spec.size} values, {expected} expected")
        # A private, writable copy: the bytes are shared with whoever else holds the published adapter.
        return decode(torch.from_numpy(np.frombuffer(payload, dtype=np.uint8).copy()), spec, round)

    return Codec(encode, decode_checked, payload_bytes, relative_error, gamma, doc)


def _to_bfloat16(values: Tensor) -> bytes:
    return values.to(torch.bfloat16).view(torch.int16).numpy().astype("<i2", copy=False).tobytes()


def _from_bfloat16(raw: Tensor) -> Tensor:
    return raw.view(torch.bfloat16).to(torch.float32)


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _in_blocks(values: Tensor, block: int) -> Tensor:
    """Return a copy of float32[P] as float32[blocks, block], padded with zeros."""
    blocks = _blocks(values.numel(), block)
    return torch.nn.functional.pad(values, (0, blocks * block - values.numel())).view(blocks, block)


def _steps(padded: Tensor, scales: Tensor) -> Tensor:
    """Divide each block by its scale, in place. A block of zeros has scale 0: it is divided by 1, and stays zero."""
    return padded.div_(torch.where(scales > 0, scales, 1.0).unsqueeze(1))


def _scaled(flat: Tensor, scales: Tensor, block: int) -> Tensor:
    """Multiply each block of float32[P] by its scale, in place."""
    size = flat.numel()
    full = size // block
    flat[: full * block].view(full, block).mul_(scales[:full].unsqueeze(1))
    if full < len(scales):
        flat[full * block :].mul_(scales[full])
    return flat


def _scattered(values: Tensor, positions: sparse.Positions, size: int) -> Tensor:
    """Return float32[size] with values at the positions and zeros elsewhere."""
    flat = torch.zeros(size)
    flat[torch.from_numpy(positions)] = values
    return flat


def _first_line(make: Callable[..., Codec]) -> str:
    return (make.__doc__ or "").split("\n")[0]


_SHARE = Parameter("F", "share of the values, above 0 to 1", fraction(zero=False), required=False)

CODECS: dict[str, Entry[Codec]] = {
    "float32": Entry(float32, _first_line(float32)),
    "bfloat16": Entry(bfloat16, _first_line(bfloat16)),
    "int8": Entry(int8, _first_line(int8)),
    "int4": Entry(int4, _first_line(int4)),
    "sign": Entry(sign, _first_line(sign)),
    "topk": Entry(topk, _first_line(topk), (_SHARE,)),
    "randomk": Entry(randomk, _first_line(randomk), (_SHARE,)),
    "chunked": Entry(
        chunked,
        _first_line(chunked),
        (
            Parameter("K", "values kept of each 4,096, 1 to 4096", whole(1, chunks.CHUNK), required=False),
            Parameter("BITS", "bits a value with its sign, 1 to 8", whole(1, 8), required=False),
        ),
    ),
    "lowrank": Entry(
        low_rank,
        _first_line(low_rank),
        (Parameter("R", "rank of the factors, at least 1", whole(1), required=False),),
    ),
}
