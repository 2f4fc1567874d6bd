"""Cells in which real adapters of a tiny language model learn: the trainer, node, wire and codec of a real run.

Each peer has its optimizer, sampler and text, as in life; all adapters sit on the same frozen base, whose weights are
mapped from one file. Time is virtual: a peer's local steps take as long as any other's. The loss is measured after
every round, on held-out text of every language that is nobody's training text.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from gossip.events import Train
from gossip.methods.method_set import MethodNames
from gossip.node import GossipNode
from gossip.settings import NodeSettings
from gossip.simulation import LocalSteps, Simulation
from peer.config import PeerConfig
from peer.training import data
from peer.training.local_trainer import LocalTrainer
from scripts.lab import corpus
from scripts.lab.convergence.cell import Cell
from scripts.lab.convergence.learning import Watch, link_model, one_thread, run_to_the_end
from scripts.lab.convergence.run import CellResult
from scripts.lab.workloads import TINY
from topology.links import parse_topology

PEERS_MAX = 64
"""Four languages cut into more pieces would leave a few lines each."""
TRAIN_S = 0.5
"""Virtual seconds of local steps; up to a tenth more, drawn. As in ``gossip.quadratic``."""


@dataclass(frozen=True, slots=True)
class _Text:
    """One peer's training file, and the files whose held-out rows all are measured on."""

    train: Path
    measured: tuple[Path, ...]


def run_tiny(cell: Cell) -> CellResult:
    """Run one cell.

    Raises:
        LocalError: too many peers, or the extra ``demo`` (texts) is not installed.
    """
    if cell.peers > PEERS_MAX:
        raise LocalError(f"the kind 'tiny' has text for at most {PEERS_MAX} peers, not {cell.peers}")
    names = tuple(f"p{index:04d}" for index in range(cell.peers))
    with tempfile.TemporaryDirectory() as folder, one_thread():
        texts = _texts(cell, Path(folder))
        trainers = {
            name: LocalTrainer(
                PeerConfig(
                    data=(text.train,),
                    eval_data=text.measured,
                    seed=cell.seed,
                    local_steps=cell.local_steps,
                    **TINY,
                )
            )
            for name, text in zip(names, texts, strict=True)
        }
        return _learn(cell, names, trainers, texts[0].measured)


def _learn(
    cell: Cell, names: tuple[str, ...], trainers: dict[str, LocalTrainer], measured: tuple[Path, ...]
) -> CellResult:
    settings = NodeSettings(
        topology=parse_topology(cell.topology, seed=cell.seed, weights=cell.weights),
        names=MethodNames(mixing=cell.mixing, codec=cell.codec),
        rounds=cell.rounds_max,
        collect_s=cell.collect_s,
        norm_cap=PeerConfig().norm_cap,
    )
    initial = trainers[names[0]].initial
    nodes = {
        name: GossipNode(name, initial, settings, random.Random(f"{cell.seed}/{name}"), names)
        for name in names
    }
    clocks = {name: random.Random(f"{cell.seed}/clock/{name}") for name in names}

    def train(name: str, action: Train) -> LocalSteps:
        made = trainers[name].train(action.state, trainable=action.trainable, correction=action.correction)
        return LocalSteps(made.state, made.steps, made.loss, TRAIN_S * (1 + 0.1 * clocks[name].random()))

    def loss(name: str, state: AdapterState) -> float:
        per_file = trainers[name].evaluate(state).per_file
        return sum(per_file[str(file)] for file in measured) / len(measured)

    watch = Watch(cell, initial.flat.double().numpy(), loss=loss, start_loss=loss(names[0], initial))
    watch.simulation = Simulation(nodes, train, link_model(cell), seed=cell.seed, on_report=watch)
    run_to_the_end(cell, watch.simulation, watch, names)
    return watch.result()


def _texts(cell: Cell, folder: Path) -> list[_Text]:
    """Share the languages' training rows out: a peer's own language first, the rest of its rows from all alike."""
    files = tuple(corpus.write(folder / "corpus", seed=cell.seed).values())
    training: list[list[str]] = []
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept, _ = data.split(data.load([file]).rows, PeerConfig().held_out, cell.seed)
        training.append([lines[row.line - 1] for row in kept])
    every = [line for lines in training for line in lines]
    texts = []
    for index in range(cell.peers):
        language, place = index % len(files), index // len(files)
        share = training[language][place :: -(-(cell.peers - language) // len(files))]
        own = round(min(cell.heterogeneity, 1.0) * len(share))
        drawn = random.Random(f"{cell.seed}/text/{index}").sample(every, len(share) - own)
        target = folder / f"{index}.jsonl"
        target.write_text("".join(share[:own] + drawn), encoding="utf-8")
        texts.append(_Text(target, files))
    return texts
