"""Cells in which real adapters of a tiny language model learn: the trainer, node, wire and codec of a real run.

Each peer has its optimizer, sampler and text, as in life; all adapters sit on the same frozen base, whose weights are
mapped from one file. Time is virtual: a peer's local steps take as long as any other's. The loss is measured after
every round, on held-out text of every language that is nobody's training text.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import NamedTuple

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
from peer.training.schedules import Position
from scripts.lab import corpus
from scripts.lab.convergence.cell import Cell
from scripts.lab.convergence.learning import OnReport, Watch, link_model, run_watched
from scripts.lab.convergence.result import CellResult
from scripts.lab.threads import one_thread
from scripts.lab.workloads import TINY
from topology.links import parse_topology

PEERS_MAX = 64
"""Four languages cut into more pieces would leave a few lines each."""
TRAIN_S = 0.5
"""Virtual seconds of local steps. As in ``gossip.quadratic``."""
JITTER = 0.1
"""Up to this share more, drawn for each round. As in ``gossip.quadratic``."""


class Texts(NamedTuple):
    """Text of the peers of a cell.

    Args:
        train: one file a peer.
        measured: one file a language; on their held-out rows, which are nobody's training text, all are measured.
    """

    train: tuple[Path, ...]
    measured: tuple[Path, ...]


def run_tiny_cell(cell: Cell) -> CellResult:
    """Run one cell.

    Raises:
        LocalError: too many peers, or the extra ``demo`` (texts) is not installed.
    """
    if cell.peers > PEERS_MAX:
        raise LocalError(f"the kind 'tiny' has text for at most {PEERS_MAX} peers, not {cell.peers}")
    with tempfile.TemporaryDirectory() as folder, one_thread():
        texts = share_texts(cell, Path(folder))
        trainers = {f"p{index:04d}": _trainer(cell, file, texts) for index, file in enumerate(texts.train)}
        return _learn(cell, trainers, texts.measured)


def _trainer(cell: Cell, file: Path, texts: Texts) -> LocalTrainer:
    settings = {"seed": cell.seed, "local_steps": cell.local_steps, **TINY}
    return LocalTrainer(PeerConfig.of(data=(file,), eval_data=texts.measured, **settings))


def _learn(cell: Cell, trainers: dict[str, LocalTrainer], measured: tuple[Path, ...]) -> CellResult:
    """Let the peers learn; ``measured``: files on whose held-out rows adapters are measured."""
    names = tuple(trainers)
    settings = NodeSettings(
        topology=parse_topology(cell.topology, seed=cell.seed, weights=cell.weights),
        names=MethodNames(mixing=cell.mixing, codec=cell.codec),
        rounds=cell.rounds_max,
        collect_s=cell.collect_s,
        norm_cap=PeerConfig().mixing.norm_cap,
        step_cap=PeerConfig().mixing.step_cap,
    )
    initial = trainers[names[0]].initial
    nodes = {
        name: GossipNode(name, initial, settings, random.Random(f"{cell.seed}/{name}"), names)
        for name in names
    }
    clocks = {name: random.Random(f"{cell.seed}/clock/{name}") for name in names}

    def train(name: str, action: Train) -> LocalSteps:
        position = Position(action.round, cell.rounds_max)
        trained = trainers[name].train(action.state, action.trainable, action.correction, position=position)
        seconds = TRAIN_S * (1 + JITTER * clocks[name].random())
        return LocalSteps(trained.state, trained.steps, trained.loss, seconds)

    def loss(name: str, state: AdapterState) -> float:
        per_file = trainers[name].evaluate(state).per_file
        return sum(per_file[str(file)] for file in measured) / len(measured)

    def simulation(on_report: OnReport) -> Simulation:
        return Simulation(nodes, train, link_model(cell), seed=cell.seed, on_report=on_report)

    watch = Watch(cell, initial.flat.double().numpy(), loss=loss, start_loss=loss(names[0], initial))
    return run_watched(cell, watch, names, simulation)


def share_texts(cell: Cell, folder: Path) -> Texts:
    """Share the languages' training rows out: a peer's own language first, the rest of its rows from all alike.

    Args:
        folder: where the files are written.
    """
    languages = tuple(corpus.write(folder / "corpus", seed=cell.seed).values())
    training = [_training_lines(file, cell.seed) for file in languages]
    all_lines = [line for lines in training for line in lines]
    files = []
    for index in range(cell.peers):
        language, place = index % len(languages), index // len(languages)
        share = training[language][place :: -(-(cell.peers - language) // len(languages))]
        own = round(min(cell.heterogeneity, 1.0) * len(share))
        drawn = random.Random(f"{cell.seed}/text/{index}").sample(all_lines, len(share) - own)
        files.append(folder / f"{index}.jsonl")
        files[-1].write_text("".join(share[:own] + drawn), encoding="utf-8")
    return Texts(tuple(files), languages)


def _training_lines(file: Path, seed: int) -> list[str]:
    """Return the lines of a file that are not held out."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    kept, _ = data.split(data.load([file]).rows, PeerConfig().data.held_out, seed)
    return [lines[row.line - 1] for row in kept]
