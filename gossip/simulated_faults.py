"""Faults in a simulation: carries out a schedule of the fault language, and keeps the checkpoints to restart from.

What needs a real machine (memory, disks, files, strangers on sockets) is refused here; the chaos testnet does it. It
draws nothing: targets are drawn by ``faults.schedule``, fates of messages by the network.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, assert_never

from gossip.adapter import AdapterState
from gossip.byzantine import Cheater, Surroundings, look_at
from gossip.errors import LocalError
from gossip.events import Action, Event, Report
from gossip.fault_kinds import (
    BitFlips,
    Byzantine,
    Clock,
    Kill,
    Link,
    MemoryCap,
    OneWay,
    Partition,
    Pause,
    Restart,
    SlowReader,
    Starvation,
    Strangers,
    TinyDisk,
)
from gossip.faults import Injection, name_of
from gossip.membership import Membership
from gossip.node import GossipNode
from gossip.published import PublishedAdapter
from gossip.settings import NodeSnapshot
from gossip.simulation import Simulation

CHECKPOINTS = 8
"""Checkpoints kept of each peer. Source: ours; a restart from an older one than the first kept begins anew."""
REMEMBERED = 3
"""Other peers whose addresses a peer remembers when it starts again. Source: ours; peers.json keeps more."""


class Checkpoint(NamedTuple):
    """What a peer goes on from."""

    state: AdapterState
    snapshot: NodeSnapshot


class NewLife(NamedTuple):
    """What a peer starts again with; ``membership``: None where an oracle knows who is up."""

    node: GossipNode
    membership: Membership | None


Remake = Callable[[str, Checkpoint | None], NewLife]
"""``(peer, where to go on; None = from the beginning)``: makes the machines of its next life."""


class SimulatedFaults:
    """Lets a schedule happen to a simulation; made before it runs.

    Args:
        remake: makes the machines of peers that start again.

    Attributes:
        begun: (time, injection) of all that has happened.

    Raises:
        LocalError: a kind that needs real processes.
    """

    def __init__(self, simulation: Simulation, injections: Sequence[Injection], remake: Remake) -> None:
        self.begun: list[tuple[float, Injection]] = []
        self._simulation = simulation
        self._remake = remake
        self._checkpoints: dict[str, deque[Checkpoint]] = {}
        self._cheaters: dict[str, Cheater] = {}
        self._keeps = any(isinstance(injection.kind, Restart) for injection in injections)
        self._waiting = [injection for injection in injections if injection.at_round is not None]
        for injection in injections:
            if isinstance(injection.kind, MemoryCap | TinyDisk | BitFlips | Strangers):
                raise LocalError(
                    f"{name_of(injection.kind)} needs real processes: python scripts/testnet.py chaos"
                )
            if injection.at_round is None:
                simulation.network.after(injection.at_s, partial(self._begin, injection))
        simulation.observers.append(self)

    def handled(self, peer: str, event: Event, actions: Sequence[Action]) -> None:
        """Keep a checkpoint of every round, and begin what waits for one."""
        for action in actions:
            if isinstance(action, Report):
                self._completed(peer, action.report.round + 1, action.report.state)

    def _completed(self, peer: str, rounds: int, state: AdapterState) -> None:
        if self._keeps:
            kept = self._checkpoints.setdefault(peer, deque(maxlen=CHECKPOINTS))
            kept.append(Checkpoint(state, self._simulation.node(peer).snapshot()))
        for injection in [waiting for waiting in self._waiting if (waiting.at_round or 0) <= rounds]:
            self._waiting.remove(injection)
            self._simulation.network.after(0.0, partial(self._begin, injection))

    # -- beginnings and ends

    def _begin(self, injection: Injection) -> None:
        network, kind = self._simulation.network, injection.kind
        self.begun.append((network.now, injection))
        match kind:
            case Kill() | Restart():
                self._kill(injection)
            case Partition() | OneWay():
                self._part(injection)
            case Link():
                for one, other in injection.ways:
                    network.worsen(one, other, kind)
            case Pause() | SlowReader() | Starvation() | Clock() | Byzantine():
                for peer in injection.who:
                    self._afflict(peer, injection)
            case MemoryCap() | TinyDisk() | BitFlips() | Strangers():
                raise AssertionError("refused at the beginning")
            case _:
                assert_never(kind)
        if injection.for_s < math.inf:
            network.after(injection.for_s, partial(self._end, injection))

    def _end(self, injection: Injection) -> None:
        network, kind = self._simulation.network, injection.kind
        match kind:
            case Partition() | OneWay():
                for one, other in injection.ways:
                    self._simulation.reconnect(one, other)
            case Link():
                for one, other in injection.ways:
                    network.relieve(one, other, kind)
            case _:
                for peer in injection.who:
                    self._relieve(peer, injection)

    def _kill(self, injection: Injection) -> None:
        for peer in injection.who:
            if self._simulation.hosts[peer].alive:
                self._simulation.kill(peer)
                if isinstance(injection.kind, Restart):
                    again = partial(self._restart, peer, injection.kind.older)
                    self._simulation.network.after(injection.kind.after_s, again)

    def _restart(self, peer: str, older: int) -> None:
        kept = self._checkpoints.get(peer, deque())
        for _ in range(min(older, len(kept))):
            kept.pop()  # as a peer that found them damaged
        life = self._remake(peer, kept[-1] if kept else None)
        remembered = [other for other in self._simulation.hosts if other != peer][:REMEMBERED]
        self._simulation.revive(peer, life.node, life.membership, remembered)
        self._simulation.hosts[peer].cheat = self._cheaters.get(peer)

    def _part(self, injection: Injection) -> None:
        for one, other in injection.ways:
            self._simulation.disconnect(one, other)

    def _afflict(self, peer: str, injection: Injection) -> None:
        network, host = self._simulation.network, self._simulation.hosts[peer]
        match injection.kind:
            case Pause():
                network.pause(peer)
            case SlowReader(bytes_s=bytes_s):
                network.read_bytes_s[peer] = bytes_s
            case Starvation(factor=factor):
                host.slowness = factor
            case Clock() as clock:
                network.clocks.set(peer, clock, network.now)
            case Byzantine() as kind:
                host.cheat = self._cheaters[peer] = Cheater(kind, f"{injection.seed}/{peer}", self._look)

    def _look(self, reader: str, published: PublishedAdapter) -> Surroundings:
        return look_at(self._simulation, self._cheaters, reader, published)

    def _relieve(self, peer: str, injection: Injection) -> None:
        network, host = self._simulation.network, self._simulation.hosts[peer]
        match injection.kind:
            case Pause():
                network.resume(peer)
            case SlowReader():
                network.read_bytes_s.pop(peer, None)
            case Starvation():
                host.slowness = 1.0
            case Clock():
                network.clocks.set(peer, Clock(), network.now)
            case Byzantine():
                host.cheat = None
                self._cheaters.pop(peer, None)
