"""Seeded simulations with random faults: one number makes a network, its faults, and the same history every time.

Each trial checks all invariants after every event, and at its end, with all faults over, that every living peer has
finished: whatever befell it cost rounds at most. ``python scripts/testnet.py simulate --first SEED --count 1`` is the
line that replays one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from gossip.events import RoundReport
from gossip.fault_kinds import (
    BEHAVIORS,
    Byzantine,
    Clock,
    Kill,
    Kind,
    Link,
    OneWay,
    Partition,
    Pause,
    Restart,
    SlowReader,
    Starvation,
)
from gossip.faults import Fault, schedule
from gossip.invariants import Broken, Watch
from gossip.membership_events import Progressed
from gossip.methods.method_set import MethodNames
from gossip.node import GossipNode
from gossip.quadratic import Quadratic
from gossip.simulated_faults import Checkpoint, NewLife, SimulatedFaults
from gossip.simulated_network import LinkModel
from gossip.simulation import Simulation

TRIAL_S = 30.0
"""Faults begin within so many virtual seconds. Source: ours; most of the rounds of a trial take less."""
EVENTS_MAX = 200_000
"""A trial that is not over after so many events never ends. Source: ours; usual are some hundreds to ten thousand."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One network with its faults.

    Args:
        joins: whether peers find each other by membership; otherwise an oracle tells them.
    """

    seed: int
    network: Quadratic
    joins: bool
    faults: tuple[Fault, ...]

    @property
    def replay(self) -> str:
        """The line that runs it again."""
        return f"python scripts/testnet.py simulate --first {self.seed} --count 1"


def draw_trial(seed: int) -> Trial:
    """Return the trial of a seed."""
    rng = random.Random(f"trial/{seed}")
    overlap = rng.random() < 0.2
    mixing = rng.choice(("average", "average", "age", "staleness", "push-sum"))
    methods = MethodNames(
        mixing=mixing,
        codec="float32" if mixing == "push-sum" else rng.choice(("float32", "float32", "bfloat16", "int8")),
        merge=rng.choice(("none", "average")),
    )
    links = LinkModel(loss=rng.choice((0.0, 0.05, 0.2)), uploads=rng.choice((0, 1, 3)))
    network = Quadratic(
        peers=rng.randint(2, 6),
        dimension=8,
        rounds=rng.randint(3, 10),
        topology="exponential" if mixing == "push-sum" else rng.choice(("ring", "complete", "epidemic:2")),
        methods=methods,
        collect_s=rng.choice((0.0, 5.0, 60.0)),
        overlap=overlap,
        train_s=3.0,
        links=links,
        seed=seed,
    )
    changes_values = methods.codec == "float32"
    faults = tuple(_draw_fault(rng, changes_values) for _ in range(rng.randint(1, 5)))
    return Trial(seed, network, rng.random() < 0.6, faults)


def _draw_fault(rng: random.Random, changes_values: bool) -> Fault:
    kind = rng.choice(_MAKERS)(rng)
    if isinstance(kind, Byzantine) and not changes_values:
        kind = replace(kind, behavior=rng.choice(("silent", "replay")))
    lasts = isinstance(kind, Pause) or rng.random() < 0.8
    return Fault(
        kind=kind,
        at_s=round(rng.uniform(0.1, TRIAL_S), 3),
        for_s=round(rng.uniform(0.5, 60.0), 3) if lasts else TRIAL_S,
        who=rng.choice((1, 1, 0.3, 0.5)),
        other=rng.choice((None, 1)),
        seed=rng.randrange(1000),
    )


def _link(rng: random.Random) -> Kind:
    delay_s = rng.choice((0.0, 0.2, 2.0))
    shares = [rng.choice((0.0, 0.0, 0.05, 0.5)) for _ in range(5)]
    loss, duplication, reordering, corruption, breaks = shares
    return Link(
        delay_s=delay_s, jitter_s=delay_s / 4, loss=loss, duplication=duplication, reordering=reordering,
        corruption=corruption, breaks=breaks, rate_bytes_s=rng.choice((0.0, 10.0, 1000.0)),
    )  # fmt: skip


def _byzantine(rng: random.Random) -> Kind:
    return Byzantine(behavior=rng.choice(BEHAVIORS), factor=rng.choice((1.0, 9.9, 1e6, 1e38)))


_MAKERS: tuple[Callable[[random.Random], Kind], ...] = (
    lambda rng: Kill(),
    lambda rng: Restart(after_s=round(rng.uniform(0, 20), 3), older=rng.choice((0, 0, 1, 3, 9))),
    lambda rng: Pause(),
    lambda rng: Partition(),
    lambda rng: OneWay(),
    _link,
    _link,
    lambda rng: SlowReader(bytes_s=rng.choice((1.0, 20.0))),
    lambda rng: Starvation(factor=rng.choice((3.0, 30.0))),
    lambda rng: Clock(rate=rng.choice((0.5, 0.9, 1.1, 2.0)), jump_s=rng.choice((0.0, 86400.0))),
    _byzantine,
    _byzantine,
)


def run_trial(trial: Trial, on_report: Callable[[float, str, RoundReport], None] | None = None) -> Simulation:
    """Run a trial and return the simulation at its end.

    Raises:
        Broken: an invariant does not hold; the message ends with the line that replays it.
    """
    network = trial.network
    joins = dict.fromkeys(network.names[1:], network.names[:1]) if trial.joins else None
    simulation = network.simulation(on_report, joins)
    injections = schedule(trial.faults, network.names, trial.seed)
    SimulatedFaults(simulation, injections, lambda peer, checkpoint: _new_life(trial, peer, checkpoint))
    watch = Watch(simulation, EVENTS_MAX)
    try:
        simulation.run()
        watch.check_the_end()
    except Broken as broken:
        raise Broken(f"{broken}\n{trial}\nagain: {trial.replay}") from None
    return simulation


def _new_life(trial: Trial, peer: str, checkpoint: Checkpoint | None) -> NewLife:
    network = trial.network
    node = network.make_node(peer, (peer,))
    if checkpoint:
        rng = random.Random(f"{trial.seed}/{peer}/again")
        node = GossipNode(
            peer, checkpoint.state, node.settings, rng, (peer,), checkpoint.snapshot, initial=node.state
        )
    if not trial.joins:
        return NewLife(node, None)
    membership = network.make_membership(peer)
    membership.handle(Progressed(node.round), 0.0)
    return NewLife(node, membership)
