"""What differential privacy costs a language model on a corpus of thousands of rows: SmolLM2 on movie reviews, alone.

One peer, its program's own trainer, and the share of the gain in held-out loss that is left at a promise. Rates are
tried side by side and all reported (the choice among them is not counted in epsilon). A run takes minutes.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from peer.config import PeerConfig
from peer.training import base_models
from peer.training.adapted_model import AdaptedModel
from peer.training.local_trainer import LocalTrainer
from peer.training.schedules import Position
from scripts.lab import corpus
from scripts.lab.records import Record, Value, record_of_table, table_of, write_record

SOURCE = "movie"
TRIALS = ((math.inf, 2e-3), (8.0, 1e-2), (math.inf, 5e-3), (8.0, 2e-2), (8.0, 5e-3))
"""Promise (infinite = none) and learning rate of each run, in this order."""
SETTINGS: dict[str, Any] = {
    "model": "smollm2-135m",
    "device": "cpu",
    "threads": 1,
    "lora_r": 4,
    "lora_layers": "24-29",
    "max_length": 24,
    "batch_size": 64,
    "local_steps": 10,
    "rounds": 4,
    "held_out": 0.05,
    "eval_blocks_max": 128,
    "dp_delta": 1e-5,
}
"""Source: ours: few values (noise grows with their root) and large batches, and what a core computes in minutes."""
RESULTS = "private-text.jsonl"
TITLE = "What is left of what SmolLM2 learns alone, with differential privacy"
COMMAND = "python scripts/compare.py privacy-text --out runs/text"
"""That made the record."""


class Outcome(NamedTuple):
    """A run: its promise, its rate, rows learned from, and held-out losses before and after, nats a token."""

    epsilon: float
    rate: float
    rows: int
    before: float
    after: float


def compare(out: Path) -> Iterator[Outcome]:
    """Run what is not in the file yet."""
    out.mkdir(parents=True, exist_ok=True)
    known = {(one.epsilon, one.rate) for one in results(out)}
    missing = [trial for trial in TRIALS if trial not in known]
    if not missing:
        return
    texts = corpus.sources(base_models.cache_folder(), lambda stage, done: None)[SOURCE]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in sorted(set(texts))))
        config = PeerConfig.of(data=(file,), **SETTINGS)
        model = AdaptedModel(config)
        for epsilon, rate in missing:
            home = Path(folder) / f"{epsilon}-{rate}"
            outcome = run_trial(config.with_options(home=home), model, epsilon, rate)
            with (out / RESULTS).open("a", encoding="utf-8") as results_file:
                results_file.write(json.dumps(outcome._asdict()) + "\n")
            yield outcome


def run_trial(config: PeerConfig, model: AdaptedModel, epsilon: float, rate: float) -> Outcome:
    """Train from the beginning, and measure."""
    promised = 0.0 if math.isinf(epsilon) else epsilon
    trainer = LocalTrainer(config.with_options(dp_epsilon=promised, learning_rate=rate), model)
    state, before = trainer.initial, trainer.evaluate(trainer.initial).own
    for round in range(config.run.rounds):
        state = trainer.train(state, position=Position(round, config.run.rounds)).state
    return Outcome(epsilon, rate, trainer.shard.rows, before, trainer.evaluate(state).own)


def results(out: Path) -> list[Outcome]:
    """Return what has been measured so far."""
    file = out / RESULTS
    return [Outcome(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def table(out: Path) -> list[str]:
    """Write ``record.json``; return it as lines of Markdown."""
    record = record_in(out)
    write_record(out / "record.json", record)
    return table_of(record, {})


def record_in(out: Path) -> Record:
    """Return what has been measured, with the share of the best gain without a promise that is kept."""
    found = results(out)
    best = max((one.before - one.after for one in found if math.isinf(one.epsilon)), default=math.nan)
    rows: list[list[Value]] = [["epsilon, rate", "rows", "loss before", "loss after", "gain kept, %"]]
    for one in sorted(found, key=lambda one: (-one.epsilon, one.rate)):
        kept = 100 * (one.before - one.after) / best
        name = f"{one.epsilon:g}".replace("inf", "none promised")
        rows.append([f"{name}, {one.rate:g}", one.rows, one.before, one.after, kept])
    record = record_of_table(TITLE, COMMAND, rows, 3)
    return replace(record, digits={**record.digits, "gain kept, %": 0})
