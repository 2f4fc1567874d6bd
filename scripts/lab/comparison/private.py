"""What differential privacy costs, and what learning together buys back: one task, three ways, three promises.

Alone, each peer trains on its own rows. With gossip, peers read four neighbors after every second step and take the
mean of all at the end. Centrally, somebody whom all trust has all rows and adds noise once; each step then takes as
many rows as all peers' steps together. Every promise is kept by the program's own private steps, with a ledger and the
noise that a run of its length needs. Each way has the best of the same learning rates at each promise, tuned on a seed
that is not reported (tuning is not counted in epsilon). Noise is secret: a repetition differs by the spread given.
"""

from __future__ import annotations

import json
import math
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gossip.adapter import AdapterState
from peer.config import PeerConfig
from peer.training import data
from peer.training.adapted_model import AdaptedModel
from peer.training.local_steps import OPTIMIZERS, Learner, Shift
from peer.training.sequences import BatchSampler, Tokens
from peer.training.shard import Shard
from peer.training.step_kinds import steps_of
from peer.training.units import Unit
from scripts.lab.comparison.cached_model import (
    Features,
    LastLayer,
    accuracy,
    config_of,
    features_of,
    task_on,
)
from scripts.lab.comparison.server import mean_adapter
from scripts.lab.records import Record, Value, record_of_table, table_of, value_of, write_record
from scripts.lab.statistics import interval, paired_difference
from scripts.lab.workloads import lay_out, parse_workload
from topology.links import parse_topology

WAYS = ("alone", "gossip", "central")
EPSILONS = (math.inf, 8.0, 2.0)
RATES = {math.inf: (3e-3, 1e-2, 3e-2), 8.0: (1e-2, 3e-2, 1e-1), 2.0: (1e-2, 3e-2, 1e-1)}
"""Promise -> the grid of all ways."""
TUNING_SEED, TUNING_PEERS = 1000, 2
"""Rates are chosen on that seed, which is not reported; alone, by so many of the peers."""
PEERS, STEPS, LOCAL_STEPS, BATCH, DELTA = 8, 60, 2, 64, 1e-5
TOPOLOGY = "random-regular:4"
RESULTS = "private.jsonl"
TITLE = "What differential privacy costs MiniLM, and what learning together buys back"
COMMAND = "python scripts/compare.py privacy --out runs/private"
"""That made the record."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run: a way, a promise (infinite = none), a learning rate and a seed."""

    way: str
    epsilon: float
    rate: float
    seed: int


class Texts:
    """The rows of a seed, laid out for the peers, as numbers of ``features``.

    Attributes:
        settings: of the workload.
        rows: all rows.
        of_peers: the numbers of each peer's.
        held_out: the numbers of those that nobody trains on.
    """

    def __init__(self, seed: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            layout = lay_out(parse_workload("sources"), PEERS, Path(folder), seed=seed, partition="iid")
            self.settings: Mapping[str, Any] = layout.settings
            labels = layout.settings["labels"]
            shards = [data.load([file], labels=labels).rows for file in layout.train]
            measured = [
                row
                for file in layout.measured
                for row in data.split(
                    data.load([file], labels=labels).rows, PeerConfig().data.held_out, seed
                )[1]
            ]
        self.rows = [row for shard in (*shards, measured) for row in shard]
        ends = np.cumsum([len(shard) for shard in shards])
        self.of_peers = [
            range(int(end) - len(shard), int(end)) for shard, end in zip(shards, ends, strict=True)
        ]
        self.held_out = range(int(ends[-1]), len(self.rows))


@lru_cache(maxsize=1)
def prepared(seed: int) -> tuple[Texts, AdaptedModel, Features]:
    """Return a seed's rows, its model, and what the frozen layers make of the rows; the last one is remembered."""
    texts = Texts(seed)
    place, features = frozen()
    order = [place[data.said(row)] for row in texts.rows]
    model = AdaptedModel(config_of(texts.settings, seed))
    return texts, model, Features(*(getattr(features, name)[order] for name in Features.__slots__))


@lru_cache(maxsize=1)
def frozen() -> tuple[dict[str, int], Features]:
    """Return what the frozen layers make of all rows, which no seed changes, and where each row stands in it."""
    texts = Texts(TUNING_SEED)
    model = AdaptedModel(config_of(texts.settings, TUNING_SEED))
    return {data.said(row): index for index, row in enumerate(texts.rows)}, features_of(model, texts.rows)


class LocalPeer:
    """One who trains on some rows, as the program does it.

    Args:
        home: where its ledger is kept.
        at_once: rows a step, on average.
    """

    def __init__(self, trial: Trial, numbers: Sequence[int], at_once: int, home: Path) -> None:
        texts, self._model, features = prepared(trial.seed)
        promise = {} if math.isinf(trial.epsilon) else {"dp_epsilon": trial.epsilon, "dp_delta": DELTA}
        config = config_of(
            texts.settings,
            trial.seed,
            learning_rate=trial.rate,
            batch_size=at_once,
            local_steps=LOCAL_STEPS,
            rounds=STEPS // LOCAL_STEPS,
            home=home,
            **promise,
        )
        task = task_on(features)
        module = LastLayer(self._model).eval()
        sequences = [Tokens(array("i", [number])) for number in numbers]
        units = [
            Unit((data.said(texts.rows[number]).encode(),), b"", (one,), (1,))
            for number, one in zip(numbers, sequences, strict=True)
        ]
        sampler = BatchSampler(len(sequences), at_once, trial.seed)
        parameters = self._model.parameters
        optimizer = OPTIMIZERS["adamw"](list(parameters.values()), config.training)
        self._steps = steps_of(
            Learner(
                config,
                module,
                parameters,
                task,
                Shard(sequences, {}, len(units), 0, "", (), units),
                optimizer,
                lambda batch: task.collate(batch, 0),
                lambda: [sequences[index] for index in sampler.draw()],
                len(texts.rows),
            )
        )

    def round(self, state: AdapterState) -> AdapterState:
        """Take a round's local steps."""
        self._model.put(state)
        stopped = self._steps.begin()
        assert not stopped, stopped
        shift = Shift(self._model.parameters, state, None, 0.0)
        for _ in range(LOCAL_STEPS):
            self._steps.take(shift)
        return self._model.state()


def run_trial(trial: Trial) -> float:
    """Return the share of held-out texts that are given the right label at the end, over peers."""
    texts, model, features = prepared(trial.seed)
    with tempfile.TemporaryDirectory() as folder:
        shards, at_once = texts.of_peers, BATCH
        if trial.way == "central":
            shards, at_once = [range(texts.held_out[0])], BATCH * PEERS
        if trial.way == "alone" and trial.seed == TUNING_SEED:
            shards = shards[:TUNING_PEERS]
        peers = [
            LocalPeer(trial, shard, at_once, Path(folder) / f"{index}") for index, shard in enumerate(shards)
        ]
        states = [model.initial] * len(peers)
        topology = parse_topology(TOPOLOGY, seed=trial.seed)
        for round in range(STEPS // LOCAL_STEPS):
            states = [peer.round(state) for peer, state in zip(peers, states, strict=True)]
            if trial.way == "gossip":
                states = _mixed(states, topology.matrix(len(peers), round).toarray())
    if trial.way == "gossip":
        states = [mean_adapter(states)]
    found = [accuracy(model, state, features, texts.held_out) for state in states]
    return sum(found) / len(found)


def _mixed(states: Sequence[AdapterState], matrix: np.ndarray[Any, Any]) -> list[AdapterState]:
    mixed = torch.from_numpy(matrix).float() @ torch.stack([state.flat for state in states])
    return [AdapterState(states[0].spec, row) for row in mixed]


def compare(out: Path, seeds: int) -> Iterator[tuple[Trial, float]]:
    """Run what is not in the file yet: rates on the tuning seed, then all ways and promises with the best of them."""
    out.mkdir(parents=True, exist_ok=True)
    kinds = [(way, epsilon) for epsilon in EPSILONS for way in WAYS]
    known = results(out)
    tuning = [Trial(way, epsilon, rate, TUNING_SEED) for way, epsilon in kinds for rate in RATES[epsilon]]
    yield from _missing(tuning, known, out)
    best = {
        (way, epsilon): max(RATES[epsilon], key=lambda rate: known[Trial(way, epsilon, rate, TUNING_SEED)])
        for way, epsilon in kinds
    }
    final = [Trial(*kind, best[kind], seed) for seed in range(seeds) for kind in kinds]
    yield from _missing(final, known, out)


def _missing(trials: Sequence[Trial], known: dict[Trial, float], out: Path) -> Iterator[tuple[Trial, float]]:
    for trial in trials:
        if trial not in known:
            known[trial] = run_trial(trial)
            with (out / RESULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps({**asdict(trial), "accuracy": known[trial]}) + "\n")
            yield trial, known[trial]


def results(out: Path) -> dict[Trial, float]:
    """Return the accuracies that have been measured so far."""
    file = out / RESULTS
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {
        Trial(record["way"], record["epsilon"], record["rate"], record["seed"]): record["accuracy"]
        for record in records
    }


def table(out: Path) -> list[str]:
    """Write ``record.json``; return it as lines of Markdown."""
    record = record_in(out)
    write_record(out / "record.json", record)
    return table_of(record, {})


def record_in(out: Path) -> Record:
    """Return what has been measured: accuracy in percent, mean and half of the 95 % interval over seeds."""
    found = {trial: value for trial, value in results(out).items() if trial.seed != TUNING_SEED}
    rows: list[list[Value]] = [["epsilon", *WAYS, "gossip minus alone"]]
    for epsilon in EPSILONS:
        by_way = {
            way: {
                trial.seed: 100 * value
                for trial, value in found.items()
                if (trial.way, trial.epsilon) == (way, epsilon)
            }
            for way in WAYS
        }
        cells = [value_of(interval(list(by_way[way].values())), _rates(found, way, epsilon)) for way in WAYS]
        gain = value_of(paired_difference(by_way["gossip"], by_way["alone"]))
        rows.append([f"{epsilon:g}", *cells, gain])
    return record_of_table(TITLE, COMMAND, rows, 1, {"inf": "none promised"})


def _rates(found: Mapping[Trial, float], way: str, epsilon: float) -> str:
    rates = {trial.rate for trial in found if (trial.way, trial.epsilon) == (way, epsilon)}
    return "rate " + ", ".join(f"{rate:g}" for rate in sorted(rates))
