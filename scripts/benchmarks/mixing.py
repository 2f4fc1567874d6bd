"""Mixing 8 neighbors' adapters and our own against one memory copy per contribution."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gossip.methods.mixing import weighted_sum
from scripts.benchmarks.rows import Row, at_most, row, seconds

VECTORS = 9
VALUES, QUICK_VALUES = 10_000_000, 10_000


def rows(quick: bool = False) -> Iterator[Row]:
    """Measure both in the same run."""
    vectors = [torch.randn(QUICK_VALUES if quick else VALUES) for _ in range(VECTORS)]
    target = torch.empty_like(vectors[0])

    def copy_all() -> None:
        for vector in vectors:
            target.copy_(vector)

    copied_s = seconds(copy_all)
    mixed_s = seconds(lambda: weighted_sum(vectors, [1 / VECTORS] * VECTORS))
    yield row("mixing: 9 x 10M values", mixed_s, "s")
    yield row("mixing: 9 copies of 10M values", copied_s, "s")
    yield at_most("mixing / copies", mixed_s / copied_s, "x", 2.0)
