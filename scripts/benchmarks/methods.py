"""What methods cost a round, beside the local steps of the default demo, both on one thread in the same run.

A round of a method is everything between the end of our local steps and the next ones, but for the network: encode our
adapter, decode three neighbors', guard and mix them, measure the cross term.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from gossip.adapter import AdapterState
from gossip.methods.method_set import MethodNames, resolve
from gossip.methods.pipeline import Pipeline
from gossip.methods.stage import RoundContext
from peer.config import PeerConfig
from peer.training.local_trainer import LocalTrainer
from scripts.benchmarks.rows import Row, at_most, row, timed
from scripts.lab import corpus

NEIGHBORS = ("b", "c", "d")
TRAININGS, ROUNDS, QUICK_ROUNDS = 3, 5, 1
VARIANTS: dict[str, MethodNames] = {
    "average": MethodNames(),
    "factors ffa": MethodNames(factors="ffa"),
    "factors alternate": MethodNames(factors="alternate:1"),
    "factors share-a": MethodNames(factors="share-a"),
    "factors tsvd": MethodNames(factors="tsvd"),
    "mixing age": MethodNames(mixing="age"),
    "mixing push-sum": MethodNames(mixing="push-sum"),
    "optimizer qg": MethodNames(optimizer="qg"),
    "optimizer k-gt": MethodNames(optimizer="k-gt"),
    "optimizer noloco": MethodNames(optimizer="noloco"),
    "codec bfloat16": MethodNames(codec="bfloat16"),
    "codec int8": MethodNames(codec="int8"),
    "codec int4 with error feedback": MethodNames(codec="int4"),
    "codec topk with replicas": MethodNames(codec="topk:0.1", feedback="replica", gamma=0.3),
    "codec lowrank": MethodNames(codec="lowrank:2"),
}
"""What is measured; everything else is as in the default run."""


def rows(quick: bool = False) -> Iterator[Row]:
    """Yield the seconds of local steps, and each method's round as a share of them; quick: with the tiny model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        local_s, initial, moved = _local_steps("tiny" if quick else "smollm2-135m")
        yield row("methods: local steps of a round, default demo", local_s, "s")
        for name, names in VARIANTS.items():
            share = 100.0 * _round_s(names, initial, moved, QUICK_ROUNDS if quick else ROUNDS) / local_s
            limit = 20.0 if "tsvd" in name else 5.0
            yield at_most(f"methods: {name}, share of the local steps", share, "%", limit)
    finally:
        torch.set_num_threads(threads)


def _local_steps(model: str) -> tuple[float, AdapterState, AdapterState]:
    """Return the median seconds of a round's local steps, the seeded adapter, and what the steps made of it."""
    with tempfile.TemporaryDirectory() as folder:
        file = corpus.write(Path(folder))["spanish"]
        trainer = LocalTrainer(PeerConfig.of(data=(file,), model=model, threads=1))
        initial = trainer.model.initial
        times = []
        for _ in range(TRAININGS):
            elapsed_s, trained = timed(lambda: trainer.train(initial))
            times.append(elapsed_s)
    return statistics.median(times), initial, trained.state


def _round_s(names: MethodNames, initial: AdapterState, moved: AdapterState, rounds: int) -> float:
    """Return the median seconds of a round's numbers at one peer, with three neighbors, after one to warm up."""
    methods = resolve(names, initial.spec)
    pipelines = {peer: Pipeline(peer, methods.parts[0], initial, 10.0) for peer in ("a", *NEIGHBORS)}
    noise = torch.Generator().manual_seed(0)
    times = []
    for round in range(rounds + 1):
        contexts = {
            peer: RoundContext(
                round=round,
                age=2 * round + 2,
                steps=2,
                start=initial,
                trained=_disturbed(moved, noise),
                readers=lambda: len(NEIGHBORS),
            )
            for peer in pipelines
        }
        publications = {peer: pipelines[peer].publish(contexts[peer]) for peer in NEIGHBORS}
        started = time.perf_counter()
        own = pipelines["a"]
        own.publish(contexts["a"])
        contributions = [own.read(peer, published, 0.25) for peer, published in publications.items()]
        own.mix(contexts["a"], contributions, neighbor_weight=0.75)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _disturbed(adapter: AdapterState, noise: torch.Generator) -> AdapterState:
    flat = adapter.flat + 1e-3 * torch.randn(adapter.flat.shape, generator=noise)
    return AdapterState(adapter.spec, flat)
