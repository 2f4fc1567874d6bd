"""Mixing 8 neighbors' adapters and our own against one memory copy each; what a robust rule adds to a round."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from gossip.adapter import AdapterSpec, AdapterState
from gossip.methods.contribution import Contribution
from gossip.methods.method_set import MethodNames
from gossip.methods.mixing import weighted_sum
from gossip.methods.stage import RoundContext
from gossip.pipelines import Pipelines, Row
from gossip.settings import NodeSettings
from gossip.sightings import Sightings
from scripts.benchmarks.rows import Row as ResultRow
from scripts.benchmarks.rows import at_most, row, seconds
from topology.links import parse_topology

VECTORS = 9
VALUES, QUICK_VALUES = 10_000_000, 10_000
READS = 4
"""Neighbors of a row with a robust rule: as many as the default needs."""
ROW_VALUES, QUICK_ROW_VALUES = 1_000_000, 10_000
RULES = ("auto", "trimmed", "geometric-median")


def rows(quick: bool = False) -> Iterator[ResultRow]:
    """Measure all in the same run."""
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
    yield from _rounds(QUICK_ROW_VALUES if quick else ROW_VALUES)


def _rounds(values: int) -> Iterator[ResultRow]:
    """Measure all that a round does with 4 neighbors, from their adapters to ours: guards, rule, mean, statistics."""
    spec = AdapterSpec((("w", (values,)),))
    initial = AdapterState(spec, torch.randn(values))
    start, trained = (AdapterState(spec, initial.flat + scale * torch.randn(values)) for scale in (0.1, 0.2))
    others = [
        Contribution(
            f"p{place}", AdapterState(spec, trained.flat + 0.1 * torch.randn(values)), 1 / (READS + 1), 1, 0
        )
        for place in range(READS)
    ]
    context = RoundContext(round=0, age=1, steps=1, start=start, trained=trained, readers=lambda: READS)
    taken = {}
    for rule in ("none", *RULES):
        settings = NodeSettings(
            topology=parse_topology("epidemic:4", seed=0),
            names=MethodNames(),
            rounds=1,
            collect_s=60.0,
            norm_cap=10.0,
            step_cap=5.0,
            robust=rule,
        )
        pipelines = Pipelines("me", settings, initial)
        pipelines.publish(context)
        taken[rule] = seconds(partial(pipelines.mix, Row(context, others, READS / (READS + 1), READS)))
    yield row("a round of 4 x 1M values, as they came", taken["none"], "s")
    for rule in RULES:
        ratio = taken[rule] / taken["none"]
        name = f"the same, --robust {rule} / as they came"
        yield at_most(name, ratio, "x", 2.0) if rule == "auto" else row(name, ratio, "x")
    sightings, distances = Sightings(initial), dict.fromkeys((one.sender for one in others), 1.0)
    noted_s = seconds(lambda: sightings.note(trained, others, distances, []))
    yield at_most("statistics of neighbors / the round", noted_s / taken["none"], "x", 0.03)
