"""Cells in which real nodes learn: the real wire and codec on a virtual clock, watched round by round.

``Watch`` turns the nodes' reports into the table of rounds as they come, so that memory does not grow with peers times
rounds; ``run_watched`` also takes peers away and brings them back. The quadratic, whose stationary point theory knows,
is here; language models are in ``tiny.py``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gossip.adapter import AdapterState
from gossip.events import RoundReport
from gossip.methods.method_set import MethodNames
from gossip.node import GossipNode
from gossip.quadratic import Quadratic
from gossip.round import Phase
from gossip.settings import NodeSnapshot
from gossip.simulated_network import LinkModel
from gossip.simulation import Simulation
from scripts.lab.convergence.cell import AWAY, Cell
from scripts.lab.convergence.result import CellResult, Column, first_within, outcome_of, rounds_table
from scripts.lab.threads import one_thread
from topology.links import parse_topology

Vector = NDArray[np.float64]
"""float64[P], the values of one adapter."""
Checkpoints = dict[str, tuple[AdapterState, NodeSnapshot]]
"""Peer -> what it comes back with."""
OnReport = Callable[[float, str, RoundReport], None]
"""``(virtual seconds, peer, report)``."""

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

    def add(self, now: float, peer: str, report: RoundReport) -> None:
        """Take one report of one peer; ``now``: virtual seconds since the start."""
        row, totals = report.round + 1, self._totals
        self._add(row, peer, report.state.flat.double().numpy())
        totals["loss"][row] += report.loss if self._loss is None else self._loss(peer, report.state)
        totals["bytes"][row] += report.payload_bytes
        totals["seconds"][row] += now

    def _add(self, row: int, peer: str, flat: Vector) -> None:
        totals = self._totals
        totals["peers"][row] += 1
        self._sum[row] += flat
        totals["square"][row] += flat @ flat
        if self._optimum is not None:
            totals["to_optimum"][row] += np.square(flat - self._optimum).sum()
        if self._stationary:
            totals["to_stationary"][row] += np.square(flat - self._stationary[peer]).sum()

    def result(self, simulation: Simulation) -> CellResult:
        """Return the table of the rounds that any peer completed, and the record of the run that was watched."""
        rows = int((self._totals["peers"] > 0).sum())
        totals = {name: total[:rows] for name, total in self._totals.items()}
        peers = totals["peers"]
        mean = self._sum[:rows] / peers[:, None]
        variance = totals["square"] / peers - np.square(mean).sum(axis=1)
        columns: dict[str, Column] = {
            "peers": peers,
            "consensus_distance": np.sqrt(np.maximum(variance, 0.0)),
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
            reached = first_within(columns["distance_to_stationary"], self._cell.tolerance)
        rounds = rounds_table(rows, **columns)
        outcome = outcome_of(rounds, reached, events=simulation.events, log_hash=simulation.log_hash)
        return CellResult(rounds, outcome)


def link_model(cell: Cell) -> LinkModel:
    """Return the simulated network of a cell."""
    return LinkModel(
        latency_s=cell.latency_s, loss=cell.loss, bandwidth_bytes_s=cell.bandwidth_mbit * 1e6 / 8
    )


def run_quadratic_cell(cell: Cell) -> CellResult:
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
    with one_thread():
        return run_watched(cell, watch, network.names, network.simulation)


def run_watched(
    cell: Cell, watch: Watch, names: tuple[str, ...], make_simulation: Callable[[OnReport], Simulation]
) -> CellResult:
    """Run until all peers have done their rounds, some of them away meanwhile if the cell has churn.

    Args:
        names: of all peers.
        make_simulation: of those peers, which tells what it is given of every report.
    """
    checkpoints: Checkpoints = {}

    def on_report(now: float, peer: str, report: RoundReport) -> None:
        watch.add(now, peer, report)
        if cell.churn:
            checkpoints[peer] = report.state, simulation.node(peer).snapshot()

    simulation = make_simulation(on_report)
    if cell.churn:
        for name in names:
            checkpoints[name] = simulation.node(name).state, simulation.node(name).snapshot()
        _churn(cell, simulation, names, checkpoints)
    simulation.run()
    return watch.result(simulation)


def _churn(cell: Cell, simulation: Simulation, names: tuple[str, ...], checkpoints: Checkpoints) -> None:
    """Draw every ``AWAY_S`` who is away, until all have done their rounds; who is away then comes back.

    A peer goes as by kill -9 and comes back from the checkpoint of its last complete round.
    """
    away: set[str] = set()
    for period in range(int(PERIODS_MAX * cell.rounds_max / (1.0 - cell.churn)) + 1):
        simulation.run(until_s=period * AWAY_S)
        if all(simulation.node(name).phase is Phase.DONE for name in names):
            break
        drawn = np.random.default_rng((cell.seed, AWAY, period)).random(len(names)) < cell.churn
        away_now = {name for name, leaves in zip(names, drawn, strict=True) if leaves}
        for name in sorted(away - away_now):
            _come_back(simulation, name, *checkpoints[name])
        for name in sorted(away_now - away):
            simulation.kill(name)
        away = away_now
    for name in sorted(away):
        _come_back(simulation, name, *checkpoints[name])


def _come_back(simulation: Simulation, name: str, state: AdapterState, snapshot: NodeSnapshot) -> None:
    settings = simulation.node(name).settings
    simulation.revive(name, GossipNode(name, state, settings, random.Random(), (name,), snapshot))
