"""Many real nodes on one virtual clock: the same ``GossipNode``, the real wire and codec bytes, seeded faults.

Every message is encoded, carried with a seeded latency, perhaps lost, and decoded, so codec and aliasing bugs show up
here and not in life. One heap of timed deliveries, one generator for the network: equal seeds give equal event logs,
summed up in ``log_hash``, in any process. Who is up is known to an oracle, or, with memberships, found out by each
peer's own ``Membership`` machine. It does not know trio, libp2p, models or real time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol, assert_never

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from gossip.events import (
    Action,
    Check,
    Checked,
    Distrust,
    Event,
    Fetch,
    Fetched,
    FetchSum,
    Finish,
    Penalize,
    Publish,
    Report,
    RoundReport,
    SetTimer,
    Stop,
    TimerFired,
    Train,
    Trained,
)
from gossip.membership import Membership
from gossip.membership_events import Event as MembershipEvent
from gossip.node import GossipNode
from gossip.rollouts import Rollout
from gossip.simulated_liveness import Liveness, Oracle
from gossip.simulated_membership import SimulatedGroup
from gossip.simulated_network import LinkModel, SimulatedNetwork
from gossip.simulated_pulls import Pulls, SimulatedHost


class LocalSteps(NamedTuple):
    """What simulated training returns: the new state, steps done, mean loss, the virtual time it took, own rollouts."""

    state: AdapterState
    steps: int
    loss: float
    seconds: float
    rollouts: tuple[Rollout, ...] = ()


TrainFunction = Callable[[str, Train], LocalSteps]
"""``(peer, what to do) -> LocalSteps``; deterministic in its arguments and its own seeds."""

EvaluateFunction = Callable[[str, AdapterState], float]
"""``(peer, adapter) -> loss on the peer's own held-out rows``."""


class Observer(Protocol):
    """Looks at a simulation from outside: checks it, counts, or lets faults happen."""

    def handled(self, peer: str, event: Event, actions: Sequence[Action]) -> None:
        """A peer's node has handled an event, and said what to do; none of it is done yet."""


class Simulation:
    """A network of nodes. Deterministic in the nodes' own generators, ``train``, ``links`` and ``seed``.

    Args:
        nodes: peer id -> node, each fresh, made with all of them as members (one tuple shared by all keeps memory
            linear in their number); with memberships, each made with itself alone.
        train: the local steps.
        links: the network's manners.
        seed: seed of latency and loss.
        run: the run fingerprint on the wire.
        on_report: called with (time, peer, report) at the end of every round of every node.
        memberships: peer id -> machine, fresh: then peers find each other themselves, and ``group`` is theirs; None =
            an oracle tells everybody who is up and down.
        joins: with memberships, peer id -> peers whose addresses it is given. Its node starts once it has joined.
        evaluate: answers nodes that check their adapters; as it is, every adapter is as good as any other.
    """

    def __init__(
        self,
        nodes: Mapping[str, GossipNode],
        train: TrainFunction,
        links: LinkModel | None = None,
        *,
        seed: int = 0,
        run: bytes = bytes(16),
        on_report: Callable[[float, str, RoundReport], None] | None = None,
        memberships: Mapping[str, Membership] | None = None,
        joins: Mapping[str, Sequence[str]] | None = None,
        evaluate: EvaluateFunction = lambda peer, state: 0.0,
    ) -> None:
        self.events = 0
        self.penalties: list[tuple[str, str, str]] = []
        self.distrusts: list[tuple[str, Distrust]] = []
        self.train = train
        self.evaluate = evaluate
        self.hosts = {peer: SimulatedHost(nodes[peer]) for peer in sorted(nodes)}
        self.network = SimulatedNetwork(links or LinkModel(), seed)
        self.group: SimulatedGroup | None = None
        if memberships is not None:
            post = partial(self._post, delay_s=0.0)
            self.group = SimulatedGroup(self.network, memberships, joins or {}, post, self._record)
        self._liveness: Liveness = self.group or Oracle(self.network, self.hosts, self._post)
        self.pulls = Pulls(
            self.network, self.hosts, run, self._deliver, self._liveness.refuses, self._penalize
        )
        self.observers: list[Observer] = []
        self._on_report = on_report
        self._started = False
        self._unfinished = set(self.hosts)
        self._log = hashlib.sha256()

    @property
    def now(self) -> float:
        """The virtual time, seconds."""
        return self.network.now

    @property
    def log_hash(self) -> str:
        """SHA-256 (hex) over every event handled so far: time, peer, kind, and the digest of what it carried."""
        return self._log.hexdigest()

    def node(self, peer: str) -> GossipNode:
        """Return one node, for looking at."""
        return self.hosts[peer].node

    def run(self, until_s: float = float("inf")) -> None:
        """Start all nodes (at the first call); go on until nothing is left or the clock passes ``until_s``.

        Memberships never come to rest: without ``until_s``, they go on until all living nodes have finished.
        """
        if not self._started:
            self._started = True
            for peer in self.hosts:
                self._liveness.start(peer)
        is_endless = self.group is not None and until_s == float("inf")
        while (self._unfinished or not is_endless) and self.network.step(until_s):
            pass

    def kill(self, peer: str) -> None:
        """End a peer as kill -9 would: at once, its shelf gone, noticed by the others a little later."""
        self._end(peer)
        self._liveness.kill(peer)

    def leave(self, peer: str) -> None:
        """Let a peer say goodbye and end."""
        self._deliver(peer, self.hosts[peer].life, Stop())
        self._end(peer)
        self._liveness.leave(peer)

    def revive(
        self,
        peer: str,
        node: GossipNode,
        membership: Membership | None = None,
        joins: Sequence[str] = (),
    ) -> None:
        """Start a killed peer again with a new node (fresh, or restored from a snapshot).

        ``membership`` and ``joins``: its new machine and whom it joins, in a simulation of memberships.
        """
        self.hosts[peer] = SimulatedHost(node, life=self.hosts[peer].life + 1)
        self._unfinished.add(peer)
        self._liveness.revive(peer, membership, joins)

    def disconnect(self, peer: str, other: str) -> None:
        """Cut the way from ``peer`` to ``other``: all it sends there is lost, and it finds the other down.

        With memberships finding out is theirs.
        """
        self.network.cut(peer, other)
        self._liveness.disconnect(peer, other)

    def reconnect(self, peer: str, other: str) -> None:
        """Restore the way from ``peer`` to ``other``."""
        self.network.heal(peer, other)
        self._liveness.reconnect(peer, other)

    def _end(self, peer: str) -> None:
        host = self.hosts[peer]
        host.alive = False
        host.life += 1
        host.held.clear()
        self.network.resume(peer)
        self._unfinished.discard(peer)

    # -- the clock

    def _post(self, peer: str, event: Event, delay_s: float) -> None:
        self.network.after(delay_s, partial(self._deliver, peer, self.hosts[peer].life, event), peer)

    def _deliver(self, peer: str, life: int, event: Event) -> None:
        host = self.hosts[peer]
        if not host.alive or host.life != life:
            return  # meant for an earlier life of this peer
        self._record(peer, event)
        actions = host.node.handle(event, self.network.clocks.show(peer, self.network.now))
        for observer in self.observers:
            observer.handled(peer, event, actions)
        for action in actions:
            self._perform(peer, host, action)

    def _penalize(self, peer: str, culprit: str, reason: str) -> None:
        self.penalties.append((peer, culprit, reason))
        self._liveness.penalized(peer, culprit, reason)

    def _record(self, peer: str, event: Event | MembershipEvent) -> None:
        self.events += 1
        self._log.update(_log_line(self.network.now, peer, event))

    # -- actions

    def _perform(self, peer: str, host: SimulatedHost, action: Action) -> None:
        match action:
            case Train():
                steps = self.train(peer, action)
                trained = Trained(steps.state, steps.steps, steps.loss, steps.rollouts)
                self._post(peer, trained, steps.seconds * self.hosts[peer].slowness)
            case Publish():
                self.pulls.publish(peer, action.published)
            case Fetch():
                self.pulls.begin(peer, action)
            case FetchSum():
                raise LocalError("peers of a simulation have no keys to mask with: simulate without masks")
            case SetTimer():
                delay_s = self.network.clocks.real_s(peer, action.delay_s)
                self._post(peer, TimerFired(action.round), delay_s)
            case Check():
                loss = self.evaluate(peer, action.candidate)
                self._post(peer, Checked(action.round, loss), 0.0)
            case Distrust():
                self.distrusts.append((peer, action))
            case Penalize():
                self._penalize(peer, action.peer, action.reason)
            case Report():
                if action.whole:
                    self.pulls.publish(peer, action.whole)
                if self._on_report:
                    self._on_report(self.network.now, peer, action.report)
                self._liveness.reported(peer, action.report)
            case Finish():
                self._unfinished.discard(peer)  # it goes on serving; without memberships the queue runs dry
            case _:
                assert_never(action)


def _log_line(now: float, peer: str, event: Event | MembershipEvent) -> bytes:
    match event:
        case Trained():
            content = event.state.flat.numpy().tobytes()
        case Fetched():
            content = event.published.digest + event.peer.encode()
        case _:
            content = repr(event).encode()
    return b"|".join((now.hex().encode(), peer.encode(), type(event).__name__.encode(), content, b"\n"))
