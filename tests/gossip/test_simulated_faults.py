"""Each fault does in a simulation what it says, and nobody but its target pays for it; 300 networks with many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from gossip.events import Action, Event, Fetched, RoundReport, Train, Trained
from gossip.fault_kinds import (
    BitFlips,
    Byzantine,
    Clock,
    Kind,
    Link,
    OneWay,
    Partition,
    Pause,
    Restart,
    SlowReader,
    Starvation,
)
from gossip.fault_trials import draw_trial, run_trial
from gossip.faults import Fault, schedule
from gossip.invariants import Broken, Watch
from gossip.membership_limits import STRIKES
from gossip.quadratic import Quadratic, positions
from gossip.simulated_faults import Checkpoint, NewLife, SimulatedFaults
from gossip.simulated_network import LinkModel
from gossip.simulation import Simulation

NETWORK = Quadratic(peers=4, topology="complete", rounds=12)
SEEDS = 300
"""Trials of the suite; ``python scripts/testnet.py simulate`` runs as many as one likes."""


class Reports:
    """Every report, and what each node has fetched."""

    def __init__(self) -> None:
        self.ends: dict[str, list[float]] = {}
        self.reports: dict[str, list[RoundReport]] = {}
        self.fetched: list[tuple[str, Fetched]] = []

    def on_report(self, now: float, peer: str, report: RoundReport) -> None:
        self.ends.setdefault(peer, []).append(now)
        self.reports.setdefault(peer, []).append(report)

    def handled(self, peer: str, event: Event, actions: Sequence[Action]) -> None:
        if isinstance(event, Fetched):
            self.fetched.append((peer, event))


def faulty(network: Quadratic, *faults: Fault, joins: bool = False) -> tuple[Simulation, Reports]:
    """Return a network with faults, checked after every event, ready to run."""
    reports = Reports()
    chain = dict.fromkeys(network.names[1:], network.names[:1]) if joins else None
    simulation = network.simulation(reports.on_report, chain)

    def remake(peer: str, checkpoint: Checkpoint | None) -> NewLife:
        node = network.make_node(peer, (peer,))
        if checkpoint:
            state, snapshot = checkpoint
            node = type(node)(peer, state, node.settings, node._rng, (peer,), snapshot, initial=node.state)
        return NewLife(node, network.make_membership(peer) if joins else None)

    SimulatedFaults(simulation, schedule(faults, network.names, network.seed), remake)
    Watch(simulation, events_max=100_000)
    simulation.observers.append(reports)
    return simulation, reports


def ran(network: Quadratic, *faults: Fault, joins: bool = False) -> tuple[Simulation, Reports]:
    simulation, reports = faulty(network, *faults, joins=joins)
    simulation.run()
    assert all(simulation.node(name).round == network.rounds for name in network.names)
    return simulation, reports


def fault(kind: Kind, at_s: float = 2.0, for_s: float = math.inf) -> Fault:
    return Fault(kind=kind, at_s=at_s, for_s=for_s, who="p0001")


def test_a_schedule_of_nothing_changes_nothing() -> None:
    assert ran(NETWORK)[0].log_hash == ran(NETWORK)[0].log_hash
    bare = NETWORK.simulation()
    bare.run()
    assert bare.log_hash == ran(NETWORK)[0].log_hash


def test_equal_seeds_give_equal_histories_with_faults_too() -> None:
    faults = (
        fault(Link(loss=0.3, duplication=0.3, delay_s=0.2, jitter_s=0.1, reordering=0.3, corruption=0.1)),
        fault(Byzantine(behavior="equivocate", factor=0.1)),
        Fault(kind=Restart(), at_s=3.0, who=1),
    )
    first, second = (ran(NETWORK, *faults, joins=True)[0] for _ in range(2))
    assert first.log_hash == second.log_hash
    other, _ = ran(replace(NETWORK, seed=1), *faults, joins=True)
    assert other.log_hash != first.log_hash


@pytest.mark.parametrize("kind", [Partition(), OneWay()])
def test_a_way_that_is_cut_brings_nothing_and_heals(kind: Kind) -> None:
    network = replace(NETWORK, collect_s=5.0, rounds=30)
    _, reports = ran(network, fault(kind, at_s=2.0, for_s=6.0))
    pairs = {(reader, came.peer) for reader, came in reports.fetched}
    assert ("p0000", "p0001") in pairs
    simulation, _ = faulty(network, fault(kind, at_s=0.0))
    cut = Reports()
    simulation.observers.append(cut)
    simulation.run()
    pairs = {(reader, came.peer) for reader, came in cut.fetched}
    assert ("p0000", "p0001") not in pairs  # its answers are lost
    assert ("p0001", "p0000") not in pairs  # its questions too
    assert ("p0000", "p0002") in pairs


def test_copies_and_late_messages_are_harmless() -> None:
    simulation, reports = ran(
        NETWORK, fault(Link(duplication=1.0, reordering=0.5, delay_s=0.5, jitter_s=0.5))
    )
    assert not simulation.penalties
    for name in NETWORK.names:
        mixed = {(sender, round) for report in reports.reports[name] for sender, round, _ in report.mixed}
        assert len(mixed) > 20


def test_what_is_garbled_is_never_mixed_and_costs_its_sender_strikes() -> None:
    simulation, _ = ran(NETWORK, fault(Link(corruption=0.5)))
    reasons = {reason for _, _, reason in simulation.penalties}
    assert "digest" in reasons
    assert all("p0001" in (victim, culprit) for victim, culprit, _ in simulation.penalties)


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped() -> None:
    simulation, reports = ran(replace(NETWORK, dimension=64), fault(Link(breaks=0.6), at_s=0.0))
    assert not simulation.penalties
    readers = ("p0000", "p0002", "p0003")
    of_it = [event for reader, event in reports.fetched if reader in readers and event.peer == "p0001"]
    failed = [
        reason for name in readers for report in reports.reports[name] for peer, reason in report.failed
        if peer == "p0001"
    ]  # fmt: skip
    # With three tries, 1 - 0.6^3 = 78 % of them arrive; without going on it would be 40 %.
    assert len(of_it) > 2 * failed.count("unreachable") > 0


def test_a_slow_reader_keeps_an_upload_of_those_it_reads() -> None:
    network = replace(NETWORK, peers=5, dimension=100, links=LinkModel(uploads=1))
    slow = fault(SlowReader(bytes_s=200.0), at_s=0.0)
    _, usual = ran(network)
    _, delayed = ran(network, slow)
    _, unlimited = ran(replace(network, links=LinkModel()), slow)
    assert delayed.ends["p0003"][-1] > 1.5 * usual.ends["p0003"][-1]
    assert unlimited.ends["p0003"][-1] < 1.3 * delayed.ends["p0003"][-1]
    late = [peer for report in unlimited.reports["p0003"] for peer, _ in report.failed]
    assert set(late) <= {"p0001"}


def test_the_starved_are_slow_and_the_paused_stand_still() -> None:
    _, usual = ran(NETWORK)
    _, starved = ran(NETWORK, fault(Starvation(factor=10.0), for_s=10.0))
    assert starved.ends["p0001"][-1] > usual.ends["p0001"][-1] + 4
    _, paused = ran(NETWORK, fault(Pause(), at_s=2.0, for_s=20.0), joins=True)
    assert not [end for end in paused.ends["p0001"] if 2.0 < end < 22.0]
    assert paused.ends["p0000"][-1] < paused.ends["p0001"][-1]


def test_the_paused_are_found_away_and_come_back_by_themselves() -> None:
    network = replace(NETWORK, rounds=150, collect_s=5.0)
    simulation, _ = faulty(network, fault(Pause(), at_s=5.0, for_s=60.0), joins=True)
    simulation.run(until_s=60.0)
    assert "p0001" not in simulation.node("p0000").members
    simulation.run(until_s=100.0)
    assert simulation.node("p0000").members == simulation.node("p0001").members == network.names
    simulation.run()
    assert all(simulation.node(name).round == 150 for name in network.names)


@pytest.mark.parametrize("clock", [Clock(rate=0.5), Clock(rate=2.0), Clock(jump_s=86400.0)])
def test_a_clock_of_its_own_hurts_nobody(clock: Clock) -> None:
    simulation, reports = ran(replace(NETWORK, rounds=30), fault(clock), joins=True)
    assert not simulation.penalties
    assert simulation.node("p0000").members == NETWORK.names
    assert max(report.collect_s for report in reports.reports["p0000"]) < 5.0


def test_a_restart_goes_on_from_the_checkpoint_that_it_finds() -> None:
    for older in (0, 2):
        _, reports = ran(NETWORK, fault(Restart(after_s=1.0, older=older), at_s=5.0))
        rounds = [report.round for report in reports.reports["p0001"]]
        (again,) = [place for place in range(1, len(rounds)) if rounds[place] <= rounds[place - 1]] or [0]
        lost = rounds[again - 1] + 1 - rounds[again] if again else 0
        assert lost == older
        assert rounds[-1] == 11


def test_a_fault_waits_for_its_round() -> None:
    cut = Fault(kind=Restart(after_s=0.5), at_round=4, who="p0001")
    simulation, _ = faulty(NETWORK, cut)
    (faults,) = (each for each in simulation.observers if isinstance(each, SimulatedFaults))
    simulation.run()
    ((_, begun),) = faults.begun
    assert (begun.at_round, begun.who) == (4, ("p0001",))


@pytest.mark.parametrize("behavior", ["scale", "sign", "noise", "equivocate", "replay", "silent"])
def test_byzantine_members_are_borne(behavior: str) -> None:
    kind = Byzantine(behavior=behavior, factor=0.5)  # type: ignore[arg-type]
    _, reports = ran(replace(NETWORK, collect_s=5.0), fault(kind, at_s=0.0))
    came: dict[int, set[bytes]] = {}
    for _, event in reports.fetched:
        if event.peer == "p0001":
            came.setdefault(event.published.round, set()).add(event.published.digest)
    most = max((len(digests) for digests in came.values()), default=0)
    assert most == {"equivocate": 3, "silent": 0}.get(behavior, 1)
    if behavior == "replay":
        assert set(came) == {0}
        mixed = [sender for report in reports.reports["p0000"] for sender, _, _ in report.mixed]
        assert mixed.count("p0001") <= len(reports.reports["p0000"])


def test_who_sends_what_no_honest_peer_sends_is_cut_off_and_the_others_go_on() -> None:
    """Strikes of the reader reach its membership, which closes the connection and answers no pull of the liar."""
    network = replace(NETWORK, rounds=40, collect_s=5.0)
    simulation, reports = ran(network, fault(Byzantine(behavior="scale", factor=1e38), at_s=0.0), joins=True)
    honest = [name for name in network.names if name != "p0001"]
    for name in honest:
        assert sum(victim == name for victim, _, _ in simulation.penalties) == STRIKES
        assert "p0001" not in simulation.node(name).members
        assert float((positions(simulation, (name,))[0]).abs().max()) < 10
    assert not [event for reader, event in reports.fetched[-20:] if reader == "p0001"]


def test_what_needs_real_processes_is_refused() -> None:
    with pytest.raises(LocalError, match=r"bit-flips needs real processes: python scripts/testnet\.py chaos"):
        faulty(NETWORK, fault(BitFlips()))


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_whatever_befalls_a_network_no_invariant_breaks_and_all_finish(first: int) -> None:
    """A seed that fails says with which line it is run again."""
    for seed in range(first, first + 50):
        run_trial(draw_trial(seed))


def test_a_trial_is_the_same_each_time() -> None:
    for seed in range(8):
        first, second = (run_trial(draw_trial(seed)).log_hash for _ in range(2))
        assert first == second


def test_a_trial_that_fails_says_how_to_replay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch sees a node that trains to values that are not finite, and says when, who and which line."""
    from gossip import quadratic

    class Poisoned(Simulation):
        def _deliver(self, peer: str, life: int, event: Event) -> None:
            if isinstance(event, Trained) and self.hosts[peer].life == life and self.hosts[peer].alive:
                node = self.hosts[peer].node
                node.state = AdapterState(node.state.spec, torch.full((8,), math.nan))
            super()._deliver(peer, life, event)

    monkeypatch.setattr(quadratic, "Simulation", Poisoned)
    monkeypatch.setattr("gossip.pipelines.Pipelines.train", lambda self, state, round, members: Train(
        AdapterState(state.spec, torch.full((8,), math.nan)), round))  # fmt: skip
    with pytest.raises(
        Broken, match=r"not finite[\s\S]*python scripts/testnet\.py simulate --first 3 --count 1"
    ):
        run_trial(draw_trial(3))
