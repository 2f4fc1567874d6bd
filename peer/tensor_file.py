"""The bytes of a safetensors file, as pieces that are the tensors' own memory: nothing large is copied to be written.

What comes out is to the byte what ``safetensors.torch.save`` makes, which holds all of it in memory twice; whole models
with their optimizers are large. Reading is left to the library.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import torch
from torch import Tensor

DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""How the format calls what we write (its README, version 0.8)."""
RANKS = ("BOOL", "U8", "F16", "BF16", "I32", "F32", "F64", "I64")
"""The format's own order of types; tensors of later ones stand first, so that all are aligned."""
ALIGNED = 8
"""The header is filled up with spaces to a multiple of so many bytes."""


def tensor_pieces(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[bytes | memoryview, ...]:
    """Return a file's content: its header, then each tensor's memory.

    Args:
        tensors: of dtypes in ``DTYPES``, on any device; those on the CPU and contiguous are not copied, and must not
            change before the pieces are written.
        metadata: of the file.
    """
    order = sorted(tensors, key=lambda name: (-RANKS.index(DTYPES[tensors[name].dtype]), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    start, pieces = 0, []
    for name in order:
        piece = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        header[name] = {
            "dtype": DTYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, start + len(piece)],
        }
        start += len(piece)
        pieces.append(piece)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNED)
    return struct.pack("<Q", len(text)) + text, *pieces
