"""What must hold whatever happens: of a node, of a membership, and of a whole simulated network. All of it stands here.

The state machines of the tests and the seeded simulations with faults check the same things after every event. A
``Broken`` is a bug of ours; no peer and no fault may be able to provoke one. It changes nothing that it looks at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch

from gossip.events import (
    Action,
    Event,
    Fetch,
    Fetched,
    FetchFailed,
    PeerDown,
    Penalize,
    Report,
    RoundReport,
    SetTimer,
    Start,
    Train,
)
from gossip.membership import Membership
from gossip.membership_limits import ADDRESSES_PER_PEER, NAME_LETTERS, PEERS_MAX
from gossip.neighbor import FETCHES_MAX
from gossip.node import GossipNode
from gossip.round import Phase
from gossip.simulation import Simulation
from gossip.told_addresses import peer_named_by

WEIGHTS_OFF = 1e-6
"""Weights of a row add up to 1, but for rounding by so much."""


class Broken(Exception):
    """An invariant does not hold."""


class NodeLife:
    """One life of a node, followed event by event.

    Checked: rounds count up by one, once it has caught up; ages never fall; parameters are finite; we are a member,
    and nobody twice; at most ``FETCHES_MAX`` requests to a peer at a time, and each ends once; only what came is mixed,
    with weights of a row; nobody is punished but for what it sent; waiting has an end.
    """

    def __init__(self, node: GossipNode) -> None:
        self._node = node
        self._round, self._age = node.round, node.age
        self._open: Counter[tuple[str, bool]] = Counter()
        self._came: set[tuple[str, int, bool]] = set()  # peer, round, whether rollouts
        self._timer_of = -1  # the round that has a timer
        self._catches_up = False

    def handled(self, event: Event, actions: Sequence[Action]) -> None:
        """Check what an event has led to.

        Raises:
            Broken: an invariant does not hold.
        """
        if isinstance(event, Fetched | FetchFailed):
            kind = event.kind if isinstance(event, FetchFailed) else event.published.kind
            place = event.peer, kind == "rollouts"
            _hold(self._open[place] > 0, f"a fetch from {event.peer} ended twice")
            self._open[place] -= 1
        if isinstance(event, Fetched):
            self._came.add((event.peer, event.published.round, event.published.kind == "rollouts"))
        node = self._node
        if self._catches_up:  # it may take over where others are
            self._round = node.round
        self._catches_up = node.phase is Phase.CATCHING_UP
        for action in actions:
            self._did(action)
        _hold(node.round == self._round, f"round {node.round} without a report of round {node.round - 1}")
        _hold(node.age >= self._age, f"age fell from {self._age} to {node.age}")
        self._age = node.age
        members = node.members
        _hold(node.me in members and tuple(sorted(set(members))) == members, f"members are {members}")
        waits = node.phase is Phase.COLLECTING and not node.settings.overlap
        if waits and node._current.waiting_for and not isinstance(event, Start):
            _hold(
                self._timer_of == node.round,
                f"round {node.round} waits for {node._current.waiting_for} for ever",
            )

    def _did(self, action: Action) -> None:
        match action:
            case Fetch(peer=peer, kind=kind):
                place = peer, kind == "rollouts"
                self._open[place] += 1
                _hold(peer != self._node.me, "it reads itself")
                _hold(
                    self._open[place] <= FETCHES_MAX + self._past_fetches(*place),
                    f"{self._open[place]} from {peer}",
                )
            case SetTimer(round=round, delay_s=delay_s):
                _hold(math.isfinite(delay_s) and delay_s >= 0, f"a timer of {delay_s} s")
                self._timer_of = round
            case Penalize(peer=peer):
                _hold(
                    any(sender == peer for sender, *_ in self._came), f"{peer} is punished and sent nothing"
                )
            case Train(state=state):
                _hold(
                    bool(torch.isfinite(state.flat).all()), "training begins from values that are not finite"
                )
            case Report(report=report):
                self._reported(report)

    def _past_fetches(self, peer: str, of_rollouts: bool) -> int:
        """Requests from before the peer went down do not count any more, though each still ends."""
        neighbors = self._node.rollouts.neighbors if of_rollouts else self._node._neighbors
        return max(0, self._open[peer, of_rollouts] - neighbors.of(peer).fetches)

    def _reported(self, report: RoundReport) -> None:
        _hold(report.round == self._round, f"round {report.round} is reported after {self._round - 1}")
        self._round += 1
        _hold(
            bool(torch.isfinite(report.state.flat).all()), f"round {report.round} ends with values not finite"
        )
        weights = [weight for _, _, weight in report.mixed]
        is_row = all(math.isfinite(weight) and weight >= 0 for weight in weights)
        _hold(is_row and sum(weights) <= 1 + WEIGHTS_OFF, f"weights of round {report.round} are {weights}")
        for sender, round, _ in report.mixed:
            _hold(sender != self._node.me, "it mixed its own adapter")
            _hold((sender, round, False) in self._came, f"mixed round {round} of {sender}, which never came")
        _hold(report.collect_s >= 0 and report.mixing_change >= 0, f"{report}")


def check_membership(machine: Membership) -> None:
    """Check the table of a membership: bounded, without ourselves, addresses where they belong.

    Raises:
        Broken: an invariant does not hold.
    """
    members = machine.members
    _hold(len(members.by_id) <= PEERS_MAX, f"{len(members.by_id)} peers in the table")
    _hold(members.places.me not in members.by_id, "it is in its own table")
    for peer, member in members.by_id.items():
        _hold(bool(peer), "a peer without a name")
        _hold(len(member.addresses) <= ADDRESSES_PER_PEER, f"{len(member.addresses)} addresses of {peer}")
        _hold(all(peer_named_by(address) == peer for address in member.addresses), f"addresses of {peer}")
        _hold(len(member.name) <= NAME_LETTERS, f"name of {peer}")
        _hold(member.round >= 0 and member.missed >= 0, f"counts of {peer}")


class Watch:
    """Checks a simulation after every event of every machine.

    Args:
        simulation: it, before it runs.
        events_max: with more events than these it never ends.
    """

    def __init__(self, simulation: Simulation, events_max: int) -> None:
        self._simulation = simulation
        self._events_max = events_max
        self._lives: dict[tuple[str, int], NodeLife] = {}
        simulation.observers.append(self)
        if simulation.group:
            simulation.group.watch = self._checked

    def handled(self, peer: str, event: Event, actions: Sequence[Action]) -> None:
        """Check what a node's event has led to.

        Raises:
            Broken: an invariant does not hold.
        """
        self._check_length()
        host = self._simulation.hosts[peer]
        life = self._lives.setdefault((peer, host.life), NodeLife(host.node))
        try:
            if isinstance(event, Fetched):
                was_sent = (event.peer, event.published.digest) in self._simulation.pulls.sent
                _hold(was_sent, f"{event.peer} has never sent what came from it")
            if isinstance(event, PeerDown):
                _hold(event.peer not in host.node.members, f"{event.peer} is down and a member")
            life.handled(event, actions)
        except Broken as broken:
            raise Broken(f"{self._simulation.now:.3f} s, {peer}, {type(event).__name__}: {broken}") from None

    def _check_length(self) -> None:
        events = self._simulation.events
        _hold(events <= self._events_max, f"no end after {events} events, {self._simulation.now:.0f} s")

    def _checked(self, peer: str, machine: Membership) -> None:
        self._check_length()
        try:
            check_membership(machine)
        except Broken as broken:
            raise Broken(f"{self._simulation.now:.3f} s, membership of {peer}: {broken}") from None

    def check_the_end(self) -> None:
        """Check, once all faults are over and time has passed, that all living peers have finished.

        Raises:
            Broken: one has not, or a fetch of one has not ended.
        """
        for peer, host in self._simulation.hosts.items():
            if host.alive:
                node = host.node
                _hold(node.phase is Phase.DONE, f"{peer} is {node.phase.value} in round {node.round}")


def _hold(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)
