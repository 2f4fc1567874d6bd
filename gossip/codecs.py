"""How an adapter becomes bytes: the catalogue of codecs.

A codec is a value: ``init`` makes its state (error feedback keeps one, most need none), ``encode`` and ``decode`` are
pure. Payload sizes follow from the number of values alone, so a reader knows the size before the first byte. To add a
codec: write the functions and add one line to ``CODECS``; the laws in tests/laws/test_codecs.py then hold it to its
declared error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import RemoteError

INT8_BLOCK = 256
"""Values that share one scale. Source: bitsandbytes' blockwise quantization uses 256 to 4096; 256 measured at a
relative error of 0.004 and 8.06 bits a value (ml-runtime.md section 9)."""


class Codec(NamedTuple):
    """A named pair of pure functions and what they promise.

    Attributes:
        init: ``spec -> S``.
        encode: ``(state, S) -> (bytes, S)``.
        decode: ``(bytes, spec) -> AdapterState``; raises ``RemoteError("shape")`` if the length is not exactly
            ``payload_bytes(P)``.
        payload_bytes: number of values -> number of bytes, exact.
        relative_error: bound on ``|decode(encode(x)) - x|`` relative to the largest magnitude in x.
        doc: one line for ``--help`` and tables.
    """

    init: Callable[[AdapterSpec], Any]
    encode: Callable[[AdapterState, Any], tuple[bytes, Any]]
    decode: Callable[[bytes | bytearray, AdapterSpec], AdapterState]
    payload_bytes: Callable[[int], int]
    relative_error: float
    doc: str


def _encode_float32(flat: Tensor) -> bytes:
    return flat.numpy().astype("<f4", copy=False).tobytes()


def _decode_float32(payload: Tensor, size: int) -> Tensor:
    return payload.view(torch.float32)


def _encode_bfloat16(flat: Tensor) -> bytes:
    return flat.to(torch.bfloat16).view(torch.int16).numpy().astype("<i2", copy=False).tobytes()


def _decode_bfloat16(payload: Tensor, size: int) -> Tensor:
    return payload.view(torch.bfloat16).to(torch.float32)


def _int8_blocks(size: int) -> int:
    return -(-size // INT8_BLOCK)


def _encode_int8(flat: Tensor) -> bytes:
    blocks = _int8_blocks(flat.numel())
    padded = torch.nn.functional.pad(flat, (0, blocks * INT8_BLOCK - flat.numel())).view(blocks, INT8_BLOCK)
    scales = padded.abs().amax(dim=1) / 127.0  # float32[blocks]
    # A block of zeros has scale 0: divide by 1 there, its values are zeros all the same.
    steps = padded / torch.where(scales > 0, scales, 1.0).unsqueeze(1)
    quantized = steps.round_().clamp_(-127, 127).to(torch.int8).view(-1)[: flat.numel()]
    return scales.numpy().astype("<f4", copy=False).tobytes() + quantized.numpy().tobytes()


def _decode_int8(payload: Tensor, size: int) -> Tensor:
    blocks = _int8_blocks(size)
    scales = payload[: 4 * blocks].view(torch.float32)
    flat = payload[4 * blocks :].view(torch.int8).to(torch.float32)
    whole = size // INT8_BLOCK
    flat[: whole * INT8_BLOCK].view(whole, INT8_BLOCK).mul_(scales[:whole].unsqueeze(1))
    if whole < blocks:
        flat[whole * INT8_BLOCK :].mul_(scales[whole])
    return flat


def _stateless(
    encode: Callable[[Tensor], bytes],
    decode: Callable[[Tensor, int], Tensor],
    payload_bytes: Callable[[int], int],
    relative_error: float,
    doc: str,
) -> Codec:
    """Lift a pair of functions on flat vectors to a codec that keeps no state and checks lengths."""

    def decode_checked(payload: bytes | bytearray, spec: AdapterSpec) -> AdapterState:
        expected = payload_bytes(spec.size)
        if len(payload) != expected:
            raise RemoteError("shape", f"{len(payload)} bytes for {spec.size} values, {expected} expected")
        # A private, writable copy: the bytes are shared with whoever else holds the parcel.
        raw = torch.from_numpy(np.frombuffer(payload, dtype=np.uint8).copy())
        return AdapterState(spec, decode(raw, spec.size))

    return Codec(
        init=lambda spec: (),
        encode=lambda state, codec_state: (encode(state.flat), codec_state),
        decode=decode_checked,
        payload_bytes=payload_bytes,
        relative_error=relative_error,
        doc=doc,
    )


CODECS: dict[str, Codec] = {
    "float32": _stateless(
        _encode_float32, _decode_float32, lambda p: 4 * p, 0.0, "exact, 32 bits a value, little-endian"
    ),
    "bfloat16": _stateless(
        _encode_bfloat16, _decode_bfloat16, lambda p: 2 * p, 2**-8, "16 bits a value, relative error 0.4 %"
    ),
    "int8": _stateless(
        _encode_int8,
        _decode_int8,
        lambda p: p + 4 * _int8_blocks(p),
        0.51 / 127,
        f"8 bits a value and one float32 scale per {INT8_BLOCK} values",
    ),
}
