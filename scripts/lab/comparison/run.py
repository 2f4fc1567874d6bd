"""Runs one trial: real trainers on one base in memory; for methods the real node, wire and codecs on a virtual clock.

Equal trials give equal results. Training and measuring take turns on one model, so everything here is one thread. It
writes no results and tunes nothing. The catalogue of baselines stands at the foot.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from gossip.adapter import AdapterState
from gossip.errors import Diverged, LocalError
from gossip.events import RoundReport, Train
from gossip.node import GossipNode
from gossip.simulated_network import LinkModel
from gossip.simulation import LocalSteps, Simulation
from peer.run_plan import plan_run
from peer.training.local_trainer import LocalTrainer
from peer.training.sequences import Tokens
from scripts.lab.comparison.method import BASELINES
from scripts.lab.comparison.peers import Peers, prepare_peers
from scripts.lab.comparison.record import Converged, Moment, Record, TrialResult, average
from scripts.lab.comparison.server import Server
from scripts.lab.comparison.trial import Trial
from scripts.lab.threads import one_thread

JITTER = 0.1
"""Local steps take up to this share longer, drawn; as in ``gossip.quadratic``."""


def run_trial(trial: Trial) -> TrialResult:
    """Run one trial; one that diverges is a result, too.

    Raises:
        LocalError: the spec cannot run; ``Trial.check`` tells most of that before.
    """
    with one_thread():
        peers = prepare_peers(trial)
        record = Record(trial, peers)
        try:
            record.add(Moment(0, dict.fromkeys(peers.names, peers.model.initial)))
            REGIMES.get(trial.what.regime, _gossip)(trial, peers, record)
        except Converged:
            pass  # the record holds the best round
        except LocalError as error:
            if error.exit_code != Diverged.exit_code:
                raise
            record.diverged = True
        return record.result()


# -- regimes


def _steps_s(trial: Trial, clock: random.Random) -> float:
    return trial.local_steps * trial.step_s * (1 + JITTER * clock.random())


def _clocks(trial: Trial, names: Sequence[str]) -> dict[str, random.Random]:
    return {name: random.Random(f"{trial.seed}/clock/{name}") for name in names}


def _links(trial: Trial) -> LinkModel:
    return LinkModel(
        latency_s=trial.latency_s, loss=trial.loss, bandwidth_bytes_s=trial.bandwidth_mbit * 1e6 / 8
    )


def _gossip(trial: Trial, peers: Peers, record: Record) -> None:
    """Peers read one another through the real node, wire and codecs."""
    names, initial = peers.names, peers.model.initial
    plan = plan_run(peers.config, peers=trial.peers)
    settings = plan.node_settings(plan.methods(initial.spec))
    nodes = {
        name: GossipNode(name, initial, settings, random.Random(f"{trial.seed}/{name}"), names)
        for name in names
    }
    clocks = _clocks(trial, names)
    last = nodes[names[0]].rounds
    waiting: dict[int, dict[str, tuple[float, RoundReport]]] = {}

    def train(name: str, action: Train) -> LocalSteps:
        return peers.train(name, action.state, action)._replace(seconds=_steps_s(trial, clocks[name]))

    def on_report(now: float, name: str, report: RoundReport) -> None:
        reports = waiting.setdefault(report.round, {})
        reports[name] = now, report
        if len(reports) == len(names):
            del waiting[report.round]
            record.add(_moment([(name, *reports[name]) for name in names], last))

    simulation = Simulation(nodes, train, _links(trial), seed=trial.seed, on_report=on_report)
    try:
        simulation.run()
    finally:
        record.simulated |= {"events": simulation.events, "log_hash": simulation.log_hash}


def _moment(reports: Sequence[tuple[str, float, RoundReport]], last: int) -> Moment:
    first = reports[0][2]
    terms = [report.cross_term for _, _, report in reports if math.isfinite(report.cross_term)]
    return Moment(
        round=first.round + 1,
        states={name: report.state for name, _, report in reports},
        bytes=average([report.payload_bytes for _, _, report in reports]),
        seconds=max(now for _, now, _ in reports),
        train_loss=average([report.loss for _, _, report in reports]),
        cross_term=average(terms) if terms and not first.merging else math.nan,
        merging=first.merging,
        last=first.merging and first.round + 1 == last,
    )


class Exchange(NamedTuple):
    """What follows a round of training: new adapters, bytes and seconds of each peer."""

    between: Callable[[dict[str, AdapterState]], dict[str, AdapterState]]
    bytes: float
    seconds: float


def _in_rounds(trial: Trial, peers: Peers, record: Record, exchange: Exchange | None = None) -> None:
    """Train all peers round by round, with an exchange after each of them."""
    states = dict.fromkeys(peers.names, peers.model.initial)
    clocks = _clocks(trial, peers.names)
    seconds = dict.fromkeys(peers.names, 0.0)
    for round in range(1, trial.rounds + 1):
        trained = {name: peers.train(name, states[name], round=round - 1) for name in peers.names}
        for name in peers.names:
            seconds[name] += _steps_s(trial, clocks[name])
        states = {name: steps.state for name, steps in trained.items()}
        if exchange is not None:  # all wait for the slowest
            seconds = dict.fromkeys(peers.names, max(seconds.values()) + exchange.seconds)
            states = exchange.between(states)
        train_loss = average([steps.loss for steps in trained.values()])
        record.add(
            Moment(round, states, exchange.bytes if exchange else 0.0, max(seconds.values()), train_loss)
        )


def _local(trial: Trial, peers: Peers, record: Record) -> None:
    _in_rounds(trial, peers, record)


def _fedavg(trial: Trial, peers: Peers, record: Record) -> None:
    """One adapter up and one down for every peer and round, in float32, all peers at once."""
    server = Server(trial.what.all_settings.get("optimizer", "none"), peers.model.initial, trial.local_steps)

    def served(states: dict[str, AdapterState]) -> dict[str, AdapterState]:
        return dict.fromkeys(states, server.step(states))

    adapter_bytes = 4.0 * peers.model.spec.size
    transfer_s = trial.latency_s + adapter_bytes / (trial.bandwidth_mbit * 1e6 / 8)
    _in_rounds(trial, peers, record, Exchange(served, 2 * adapter_bytes, 2 * transfer_s))


def _central(trial: Trial, peers: Peers, record: Record) -> None:
    """Steps of ``batch_size`` sequences, which the peers' texts give in turn, one after the other on one machine."""
    sequences = in_turn([peers.trainers[name] for name in peers.names])
    size = peers.config.training.batch_size
    _on_pool(trial, peers, record, size, lambda: list(islice(sequences, size)))


def _central_large(trial: Trial, peers: Peers, record: Record) -> None:
    """Steps on a batch of every peer, each as fast as a peer's: n machines that exchange gradients at no cost."""
    trainers = [peers.trainers[name] for name in peers.names]
    size = peers.config.training.batch_size * len(trainers)
    _on_pool(
        trial, peers, record, size, lambda: [one for trainer in trainers for one in trainer.draw_batch()]
    )


def in_turn(trainers: Sequence[LocalTrainer]) -> Iterator[Tokens]:
    """Yield training sequences without end, one of each peer in turn.

    Drawing from all sequences alike would favor peers with much text, whom neither gossip nor what is measured favors.
    """
    drawn: list[deque[Tokens]] = [deque() for _ in trainers]
    while True:
        for trainer, waiting in zip(trainers, drawn, strict=True):
            if not waiting:
                waiting.extend(trainer.draw_batch())
            yield waiting.popleft()


def _on_pool(trial: Trial, peers: Peers, record: Record, size: int, draw: Callable[[], list[Tokens]]) -> None:
    """Train one adapter on batches of ``size`` sequences that ``draw`` gives."""
    pooled = peers.config.with_options(data=peers.layout.train, batch_size=size)
    peers.trainers["all"] = LocalTrainer(pooled, peers.model, draw=draw)
    clock = random.Random(f"{trial.seed}/clock/all")
    state, seconds = peers.model.initial, 0.0
    for round in range(1, trial.rounds + 1):
        trained = peers.train("all", state, round=round - 1)
        state = trained.state
        seconds += _steps_s(trial, clock)
        record.add(Moment(round, dict.fromkeys(peers.names, state), 0.0, seconds, trained.loss))


REGIMES: dict[str, Callable[[Trial, Peers, Record], None]] = {
    "local": _local,
    "central": _central,
    "central-large": _central_large,
    "fedavg": _fedavg,
    "fedopt": _fedavg,
}
"""Baselines; everything else is a topology. A new one stands in ``BASELINES`` of ``method.py``, too."""
assert REGIMES.keys() == BASELINES.keys()
