"""Cells in which real nodes learn: the real wire and codec on a virtual clock, watched round by round.

``Watch`` turns the nodes' reports into the table of rounds as they come, so that memory does not grow with peers times
rounds; ``run_to_the_end`` also takes peers away and brings them back. The quadratic, whose stationary point theory
knows, is here; language models are in ``tiny.py``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from gossip.adapter import AdapterState
from gossip.events import RoundReport
from gossip.methods.method_set import MethodNames
from gossip.node import GossipNode, Phase
from gossip.quadratic import Quadratic
from gossip.settings import NodeSnapshot
from gossip.simulated_network import LinkModel
from gossip.simulation import Simulation
from scripts.lab.convergence.cell import Cell
from scripts.lab.convergence.run import AWAY, CellResult, Column, outcome, reached_first, table
from topology.links import parse_topology

Vector = NDArray[np.float64]

AWAY_S = 1.0
"""Virtual seconds after which it is drawn anew who is away; a round takes about 0.7. Source: ours."""
PERIODS_MAX = 100
"""Give up after so many times the periods that all rounds should take: with heavy churn some peers never finish."""


class Watch:
    """The table of rounds, filled in from reports.

    Args:
        cell: what runs.
        start: float64[P], the adapter that all begin with.
        optimum: float64[P], the best single adapter, if known.
        stationary: peer -> float64[P], where each would come to rest, if known.
        loss: ``(peer, state) -> nats``, measured after each round; None = the loss that training reports.
        start_loss: of the adapter that all begin with, if measured.
    """

    def __init__(
        self,
        cell: Cell,
        start: Vector,
        *,
        optimum: Vector | None = None,
        stationary: dict[str, Vector] | None = None,
        loss: Callable[[str, AdapterState], float] | None = None,
        start_loss: float = math.nan,
    ) -> None:
        rows = cell.rounds_max + 1
        self.checkpoints: dict[str, tuple[AdapterState, NodeSnapshot]] = {}
        self.simulation: Simulation | None = None
        self._cell, self._optimum, self._stationary, self._loss = cell, optimum, stationary, loss
        self._start_loss = start_loss
        self._sum = np.zeros((rows, len(start)))
        self._totals = {
            name: np.zeros(rows)
            for name in ("peers", "square", "to_optimum", "to_stationary", "loss", "bytes", "seconds")
        }
        for peer in stationary or {}:
            self._add(0, peer, start)
        if not stationary:
            for index in range(cell.peers):
                self._add(0, str(index), start)

    def __call__(self, now: float, peer: str, report: RoundReport) -> None:
        """Take one report of one peer."""
        row, totals = report.round + 1, self._totals
        self._add(row, peer, report.state.flat.double().numpy())
        totals["loss"][row] += report.loss if self._loss is None else self._loss(peer, report.state)
        totals["bytes"][row] += report.payload_bytes
        totals["seconds"][row] += now
        if self._cell.churn:
            assert self.simulation is not None
            self.checkpoints[peer] = report.state, self.simulation.node(peer).snapshot()

    def _add(self, row: int, peer: str, flat: Vector) -> None:
        totals = self._totals
        totals["peers"][row] += 1
        self._sum[row] += flat
        totals["square"][row] += flat @ flat
        if self._optimum is not None:
            totals["to_optimum"][row] += np.square(flat - self._optimum).sum()
        if self._stationary:
            totals["to_stationary"][row] += np.square(flat - self._stationary[peer]).sum()

    def result(self, **known: object) -> CellResult:
        """Return the table of the rounds that any peer completed, and the record of the run."""
        rows = int((self._totals["peers"] > 0).sum())
        totals = {name: total[:rows] for name, total in self._totals.items()}
        peers, mean = totals["peers"], self._sum[:rows] / totals["peers"][:, None]
        columns: dict[str, Column] = {
            "peers": peers,
            "consensus_distance": np.sqrt(
                np.maximum(totals["square"] / peers - np.square(mean).sum(axis=1), 0.0)
            ),
            "bytes_per_peer": totals["bytes"].cumsum() / self._cell.peers,
            "seconds": totals["seconds"] / peers,
            "loss": totals["loss"] / peers,
        }
        columns["loss"][0] = self._start_loss
        reached = None
        if self._optimum is not None:
            columns["mean_error"] = np.linalg.norm(mean - self._optimum, axis=1)
            columns["distance_to_optimum"] = np.sqrt(totals["to_optimum"] / peers)
        if self._stationary:
            columns["distance_to_stationary"] = np.sqrt(totals["to_stationary"] / peers)
            reached = reached_first(columns["distance_to_stationary"], self._cell.tolerance)
        rounds = table(rows, **columns)
        simulation = self.simulation
        assert simulation is not None
        return CellResult(
            rounds, outcome(rounds, reached, events=simulation.events, log_hash=simulation.log_hash, **known)
        )


def link_model(cell: Cell) -> LinkModel:
    """Return the simulated network of a cell."""
    return LinkModel(
        latency_s=cell.latency_s, loss=cell.loss, bandwidth_bytes_s=cell.bandwidth_mbit * 1e6 / 8
    )


def run_quadratic(cell: Cell) -> CellResult:
    """Run local steps on quadratics with known optima through the real node, wire and codec."""
    network = Quadratic(
        peers=cell.peers,
        dimension=cell.dimension,
        rounds=cell.rounds_max,
        topology=cell.topology,
        weights=cell.weights,
        methods=MethodNames(mixing=cell.mixing, codec=cell.codec),
        collect_s=cell.collect_s,
        step_size=cell.step_size,
        local_steps=cell.local_steps,
        heterogeneity=cell.heterogeneity,
        links=link_model(cell),
        seed=cell.seed,
    )
    static = parse_topology(cell.topology, seed=cell.seed, weights=cell.weights).is_static
    rest = dict(zip(network.names, network.stationary_point(), strict=True)) if static else None
    watch = Watch(
        cell,
        np.zeros(cell.dimension),
        optimum=network.optima().double().numpy().mean(axis=0),
        stationary=rest,
    )
    watch.simulation = network.simulation(watch)
    with one_thread():
        run_to_the_end(cell, watch.simulation, watch, network.names)
    return watch.result()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one torch thread inside a ``with``: sums then do not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_to_the_end(cell: Cell, simulation: Simulation, watch: Watch, names: tuple[str, ...]) -> None:
    """Run until all peers have done their rounds; with churn, draw every ``AWAY_S`` who is away meanwhile.

    A peer goes as by kill -9 and comes back from the checkpoint of its last complete round.
    """
    if cell.churn == 0.0:
        simulation.run()
        return
    fresh = {name: (simulation.node(name).state, simulation.node(name).snapshot()) for name in names}
    away: set[str] = set()
    for period in range(int(PERIODS_MAX * cell.rounds_max / (1.0 - cell.churn)) + 1):
        simulation.run(until_s=period * AWAY_S)
        if all(simulation.node(name).phase is Phase.DONE for name in names):
            break
        drawn = np.random.default_rng((cell.seed, AWAY, period)).random(len(names)) < cell.churn
        gone = {name for name, leaves in zip(names, drawn, strict=True) if leaves}
        for name in sorted(away - gone):
            _come_back(simulation, name, *watch.checkpoints.get(name, fresh[name]))
        for name in sorted(gone - away):
            simulation.kill(name)
        away = gone
    for name in sorted(away):
        _come_back(simulation, name, *watch.checkpoints.get(name, fresh[name]))
    simulation.run()


def _come_back(simulation: Simulation, name: str, state: AdapterState, snapshot: NodeSnapshot) -> None:
    settings = simulation.node(name).settings
    simulation.revive(name, GossipNode(name, state, settings, random.Random(), (name,), snapshot))
