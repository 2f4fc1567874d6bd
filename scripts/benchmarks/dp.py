"""What a local step with differential privacy costs, beside a plain one on the same sequences, in turns in one run.

Every row takes part in every step (as many rows as a batch has), so that both kinds compute the same; the ledger's
entry of each round is counted in.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from peer.config import PeerConfig
from peer.training.adapted_model import AdaptedModel
from peer.training.local_trainer import LocalTrainer
from peer.training.secret_noise import SecretNoise
from scripts.benchmarks.rows import Row, at_most, row, seconds, timed

RATIO_MAX = 1.25
"""What the project set itself."""
PAIRS, STEPS = 5, 4
"""Rounds of each kind, and steps of a round."""


class Case(NamedTuple):
    """A model and a batch: so many rows, each of so many tokens."""

    name: str
    rows: int
    tokens: int
    settings: Mapping[str, Any]


CLASSIFYING = {"model": "minilm", "task": "classification", "labels": ("even", "odd")}
CASES = (
    Case("tiny, 16 rows", 16, 64, {"model": "tiny", "lora_target_modules": ("all-linear",)}),
    Case("MiniLM, 64 rows", 64, 24, {**CLASSIFYING, "lora_target_modules": ("query", "value")}),
    Case("SmolLM2, 4 rows of 48 tokens", 4, 48, {"model": "smollm2-135m"}),
)


def rows(quick: bool = False) -> Iterator[Row]:
    """Yield the ratio of each case, and what noise costs by itself; quick: the tiny model, a pair of rounds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for case in CASES[:1] if quick else CASES:
            pairs = 1 if quick else PAIRS
            yield at_most(f"dp: step / plain step, {case.name}", _ratio(case, pairs), "x", RATIO_MAX)
        noise = SecretNoise()
        yield row("dp: a million values of noise", 1e3 * seconds(lambda: noise.normal(1_000_000)), "ms")
    finally:
        torch.set_num_threads(threads)


def _ratio(case: Case, pairs: int) -> float:
    """Return the median, over pairs of rounds, of the time with privacy over the time without."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(one) + "\n" for one in _texts(case)))
        config = PeerConfig.of(
            data=(file,),
            threads=1,
            batch_size=case.rows,
            max_length=case.tokens,
            local_steps=STEPS,
            rounds=pairs + 1,
            held_out=0.01,
            home=Path(folder) / "home",
            **case.settings,
        )
        model = AdaptedModel(config)
        plain = LocalTrainer(config, model)
        private = LocalTrainer(config.with_options(dp_epsilon=8.0), model)
        times = [
            (timed(lambda: private.train(model.initial))[0], timed(lambda: plain.train(model.initial))[0])
            for _ in range(pairs + 1)
        ]
    return statistics.median(ours / theirs for ours, theirs in times[1:] or times)


def _texts(case: Case) -> list[dict[str, str]]:
    """Return rows that fill the model's sequences, one more than a batch has: it is held out."""
    draw = np.random.default_rng(0)
    texts = [" ".join(map(str, draw.integers(0, 10, 2 * case.tokens))) for _ in range(case.rows + 1)]
    if "labels" in case.settings:
        return [
            {"text": text, "label": case.settings["labels"][index % 2]} for index, text in enumerate(texts)
        ]
    return [{"prompt": "digits:", "completion": text} for text in texts]
