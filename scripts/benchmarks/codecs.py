"""Encoding and decoding a million values of pairs of LoRA factors, each vector in a round of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch

from gossip.adapter import AdapterSpec
from gossip.methods.codecs import CODECS, Codec
from gossip.published import Payload
from scripts.benchmarks.rows import Row, row, seconds

PAIRS, QUICK_PAIRS = 100, 2
FACTORS = (("a", (10, 500)), ("b", (500, 10)))


def rows(quick: bool = False) -> Iterator[Row]:
    """Measure every codec of the catalogue."""
    pairs = range(QUICK_PAIRS if quick else PAIRS)
    spec = AdapterSpec(tuple((f"{pair}{name}", shape) for pair in pairs for name, shape in FACTORS))
    values, numbers = torch.randn(spec.size), itertools.count()
    size_bytes = 4 * spec.size
    for name, entry in CODECS.items():
        codec = entry.make()
        payload = codec.encode(values, spec, 0)
        encode_s = seconds(partial(_encode_next, codec, values, spec, numbers))
        decode_s = seconds(partial(codec.decode, payload, spec, 0))
        yield row(f"codec {name}: encode", size_bytes / 1e6 / encode_s, "MB/s")
        yield row(f"codec {name}: decode", size_bytes / 1e6 / decode_s, "MB/s")
        yield row(f"codec {name}: size of float32", len(payload) / size_bytes, "x")


def _encode_next(codec: Codec, values: torch.Tensor, spec: AdapterSpec, numbers: Iterator[int]) -> Payload:
    """Encode in the next round: codecs may draw by the round's number, and keep what they drew."""
    return codec.encode(values, spec, next(numbers))
