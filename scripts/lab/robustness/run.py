"""Runs one cell: real trainers on one base in memory, the real node, wire and codecs on a virtual clock.

All local steps take equally long, so that whoever lies has seen what all honest peers publish in the round. Liars act
as one, guard themselves against nobody, and are not measured. Equal cells give equal results.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from gossip.adapter import AdapterState
from gossip.attacks import ATTACKS
from gossip.byzantine import Cheater, look_at
from gossip.events import RoundReport, Train
from gossip.fault_kinds import Byzantine
from gossip.node import GossipNode
from gossip.settings import NodeSettings
from gossip.simulation import LocalSteps, Simulation
from peer.run_plan import plan_run
from scripts.lab.comparison.judge import Judge, Score
from scripts.lab.comparison.peers import Peers, prepare_peers
from scripts.lab.robustness.cell import ALONE, OUTCOMES, UNGUARDED, Attacked
from scripts.lab.robustness.poison import POISONS, Backdoor
from scripts.lab.statistics import Values
from scripts.lab.threads import one_thread

TRAIN_S = 0.5
"""Virtual seconds of local steps. As in ``gossip.quadratic``."""
UNTRAINED = frozenset({"ipm", "alie", "dissensus", "free-rider"})
"""Attacks that do not use what the liar has trained: it need not train."""

APART = frozenset({"ascent"})
"""Attacks whose liars go on from what they have trained themselves: what others send would hold them back."""


@dataclass(frozen=True, slots=True, eq=False)
class AttackedResult:
    """What came out of one cell.

    Args:
        tables: ``peers`` with ``PEER_COLUMNS``, float64.
        outcome: ``OUTCOMES`` -> value.
    """

    tables: dict[str, dict[str, Values]]
    outcome: dict[str, Any]


@dataclass(slots=True, eq=False)
class Watched:
    """What is seen of a run.

    Args:
        states: peer -> its adapter after the last round of training.
        checks: measurements on own held-out rows, of all honest peers.
    """

    states: dict[str, AdapterState] = field(default_factory=dict)
    checks: int = 0


def run_attacked(cell: Attacked) -> AttackedResult:
    """Run one cell.

    Raises:
        LocalError: the spec cannot run; ``Attacked.check`` tells most of that before.
    """
    with one_thread():
        peers = prepare_peers(cell.trial)
        liars = cell.draw_liars(peers.names)
        for name in cell.attacks:
            for liar in liars if name in POISONS else ():
                peers.trainers[liar] = POISONS[name](peers.trainers[liar])
        watched = Watched()
        if cell.topology == ALONE:
            watched.states = {name: _alone(cell, peers, name) for name in peers.names}
            return _result(peers, liars, watched, watched.states)
        simulation = _simulation(cell, peers, liars, watched)
        simulation.run()
        merged = {name: simulation.node(name).state for name in peers.names}
        return _result(peers, liars, watched, merged)


def _alone(cell: Attacked, peers: Peers, name: str) -> AdapterState:
    """Return what a peer comes to that reads nobody."""
    state = peers.model.initial
    for round in range(cell.rounds):
        state = peers.train(name, state, round=round).state
    return state


def _settings(cell: Attacked, peers: Peers, **options: Any) -> NodeSettings:
    config = peers.config.with_options(**{**cell.options, **options})
    plan = plan_run(config, peers=cell.peers)
    return plan.node_settings(plan.methods(peers.model.initial.spec))


def _simulation(cell: Attacked, peers: Peers, liars: frozenset[str], watched: Watched) -> Simulation:
    honest, lying = _settings(cell, peers), _settings(cell, peers, **UNGUARDED)
    names, initial = peers.names, peers.model.initial
    nodes = {
        name: GossipNode(
            name, initial, lying if name in liars else honest, random.Random(f"{cell.seed}/{name}"), names
        )
        for name in names
    }
    check_rows = peers.config.mixing.check_rows
    apart: dict[str, AdapterState] = {}  # where those have come to who take nothing from others

    def train(name: str, action: Train) -> LocalSteps:
        if name in liars and cell.attack in UNTRAINED:
            return LocalSteps(action.state, cell.local_steps, 0.0, TRAIN_S)
        steps = peers.train(name, apart.get(name, action.state), action)
        if name in liars and not APART.isdisjoint(cell.attacks):
            apart[name] = steps.state
        return steps._replace(seconds=TRAIN_S)

    def on_report(now: float, name: str, report: RoundReport) -> None:
        if report.round == cell.rounds - 1:
            watched.states[name] = report.state

    def evaluate(name: str, state: AdapterState) -> float:
        watched.checks += 1
        return peers.trainers[name].probe(state, check_rows)

    simulation = Simulation(nodes, train, seed=cell.seed, on_report=on_report, evaluate=evaluate)
    look = partial(look_at, simulation, liars)
    for name in cell.attacks:
        for liar in sorted(liars) if name in ATTACKS else ():
            simulation.hosts[liar].cheat = Cheater(Byzantine(behavior=name), str(cell.seed), look)
    return simulation


def _result(
    peers: Peers, liars: frozenset[str], watched: Watched, merged: dict[str, AdapterState]
) -> AttackedResult:
    judge, honest = Judge(peers, validates=False), [name for name in peers.names if name not in liars]
    before = {name: judge(watched.states[name]) for name in honest}
    after = {name: judge(merged[name]) for name in honest}
    nothing = Score(math.nan, math.nan)
    rows: dict[str, Values] = {
        "peer": np.arange(float(len(peers.names))),
        "loss": np.array([before.get(name, nothing).loss for name in peers.names]),
        "merged_loss": np.array([after.get(name, nothing).loss for name in peers.names]),
    }
    outcome: dict[str, float | None] = {
        "loss": fmean(score.loss for score in before.values()),
        "merged_loss": fmean(score.loss for score in after.values()),
        "checks": watched.checks / len(honest) / peers.config.run.rounds,
    }
    if peers.config.model.task == "classification":
        groups = {
            "": [watched.states[name] for name in honest],
            "merged_": [merged[name] for name in honest],
            "liar_": [watched.states[name] for name in sorted(liars)],
        }
        backdoor = Backdoor(peers)
        for group, states in groups.items():
            outcome[f"{group}accuracy"] = _mean([judge(state).accuracy for state in states])
            outcome[f"{group}success"] = _mean([backdoor.success(state) for state in states])
    return AttackedResult({"peers": rows}, dict.fromkeys(OUTCOMES) | outcome)


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None
