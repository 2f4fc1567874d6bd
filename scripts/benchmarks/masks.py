"""Masking a million values for a reader with four publishers, and unmasking their sum, against sending them as float32.

The other side of the ratios is what a run without masks does: encode and hash one payload, and mix four that have come.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from gossip import fixed_point
from gossip.masked_sums import CODEC, MaskingPublisher, keys_digest, unmasked
from gossip.messages import MaskKey, MaskSeeds, Summand, SumProposal, SumSigned
from gossip.methods.mixing import weighted_sum
from gossip.published import Payload, PublishedAdapter
from gossip.wire import framed
from peer.mask_keys import MaskSecrets
from scripts.benchmarks.rows import Row, at_most, row, seconds

VALUES, QUICK_VALUES = 1_000_000, 1000
PUBLISHERS = 4
RUN, ROSTER, READER = bytes(16), bytes(32), "reader"


def rows(quick: bool = False) -> Iterator[Row]:
    """Measure publishing, unmasking and what is said besides."""
    values = torch.randn(QUICK_VALUES if quick else VALUES)
    secrets = [MaskSecrets(os.urandom(32), RUN, ROSTER) for _ in range(PUBLISHERS)]
    secrets.sort(key=lambda one: one.peer)
    weights = {one.peer: 1 / (PUBLISHERS + 1) for one in secrets}
    publishers = {
        one.peer: MaskingPublisher(RUN, ROSTER, lambda *_: weights, one) for one in secrets
    }  # fmt: skip
    keys = tuple(one.key for one in secrets)
    published = PublishedAdapter(0, 1, "float32", values.numpy().tobytes())
    payloads = {peer: one.masked(READER, published, keys) for peer, one in publishers.items()}
    assert all(len(one.payload) == 4 * values.numel() and one.codec == CODEC for one in payloads.values())
    seeds, control = _agreed(publishers, payloads, keys_digest(keys))
    first = secrets[0]
    mask_s = seconds(partial(_publish_masked, publishers[first.peer], published, keys))
    bytes_of = {peer: one.payload for peer, one in payloads.items()}
    unmask_s = seconds(partial(_unmask, bytes_of, seeds, first))
    plain_s = seconds(partial(_publish_plain, values))
    vectors = [torch.from_numpy(np.frombuffer(published.payload, dtype="<f4").copy()) for _ in range(5)]
    mix_s = seconds(partial(weighted_sum, vectors, [0.2] * 5))
    millions = values.numel() / 1e6
    yield at_most("masks: publish, per reader and million values", 1e3 * mask_s / millions, "ms", 10.0)
    yield at_most("masks: unmask, per million values", 1e3 * unmask_s / millions, "ms", 10.0)
    yield row("masks: publish / float32", mask_s / plain_s, "x")
    yield row("masks: unmask and mix / mix", (unmask_s + mix_s) / mix_s, "x")
    yield at_most("masks: payload / float32", len(bytes_of[first.peer]) / len(published.payload), "x", 1.0)
    yield row(
        "masks: agreement, share of a float32 payload", 100 * control / PUBLISHERS / (4 * values.numel()), "%"
    )


def _publish_masked(
    publisher: MaskingPublisher, published: PublishedAdapter, keys: tuple[MaskKey, ...]
) -> bytes:
    return publisher.masked(READER, published, keys).digest


def _publish_plain(values: torch.Tensor) -> bytes:
    return hashlib.sha256(values.numpy().tobytes()).digest()


def _unmask(payloads: dict[str, Payload], seeds: dict[str, MaskSeeds], secrets: MaskSecrets) -> bytes:
    return fixed_point.mean_of(unmasked(payloads, seeds, frozenset(), secrets), 0.8)


def _agreed(
    publishers: dict[str, MaskingPublisher], payloads: dict[str, PublishedAdapter], keys: bytes
) -> tuple[dict[str, MaskSeeds], int]:
    """Return what each publisher reveals, and the bytes of questions about it and answers."""
    summands = tuple(Summand(peer, payloads[peer].digest) for peer in sorted(payloads))
    proposal = SumProposal(RUN, 0, "round", keys, summands)
    signatures = tuple(publishers[one.peer].agree(READER, proposal) for one in summands)
    signed = SumSigned(RUN, 0, "round", keys, signatures)
    seeds = {one.peer: publishers[one.peer].reveal(READER, signed) for one in summands}
    answers = sum(len(framed(one)) for one in seeds.values())
    return seeds, len(summands) * (len(framed(proposal)) + len(framed(signed))) + answers
