"""Rounds that share rollouts: what a node asks, waits for and hands to its training; whole networks with faults."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from gossip.adapter import AdapterSpec, AdapterState
from gossip.claims import Claims, statement
from gossip.errors import RemoteError
from gossip.events import (
    Action,
    Event,
    Fetch,
    Fetched,
    FetchFailed,
    Penalize,
    Publish,
    Report,
    Start,
    TimerFired,
    Train,
    Trained,
)
from gossip.invariants import Watch
from gossip.messages import Claim, Offer, Pull
from gossip.methods.method_set import MethodNames, resolve
from gossip.node import GossipNode
from gossip.offers import RunShape
from gossip.published import PublishedAdapter
from gossip.readers import row_readers
from gossip.rollouts import ROLLOUTS_BYTES_MAX, Buffer, Received, Rollout, Share, encode
from gossip.roster import rows_of
from gossip.settings import NodeSettings, NodeSnapshot
from gossip.simulated_network import LinkModel
from gossip.simulation import LocalSteps, Simulation
from topology.links import parse_topology

SPEC = AdapterSpec((("w", (4,)),))
START = AdapterState(SPEC, torch.zeros(4))
MEMBERS = ("a", "b", "c")


def settings(share: Share, rounds: int = 4, collect_s: float = 10.0, overlap: bool = False) -> NodeSettings:
    complete = parse_topology("complete", seed=0)
    return NodeSettings(
        topology=complete, rounds=rounds, collect_s=collect_s, norm_cap=1e6, share=share, overlap=overlap
    )


def make(share: Share = "both", me: str = "b", snapshot: NodeSnapshot | None = None) -> GossipNode:
    return GossipNode(me, START, settings(share), random.Random(0), MEMBERS, snapshot)


def answers(peer: str, round: int) -> tuple[Rollout, ...]:
    return tuple(Rollout("sort", 0, 10 * round + index, f"{peer} says {index}") for index in range(2))


def trained(round: int = 0, value: float = 1.0) -> Trained:
    return Trained(AdapterState(SPEC, torch.full((4,), value)), 2, 0.5, answers("b", round))


def rollouts_of(peer: str, round: int, payload: bytes | None = None) -> Fetched:
    payload = encode(answers(peer, round)) if payload is None else payload
    return Fetched(peer, PublishedAdapter(round, 2, "rollouts", payload, kind="rollouts"))


def adapter_of(peer: str, round: int) -> Fetched:
    return Fetched(peer, PublishedAdapter(round, 2, "float32", torch.full((4,), 3.0).numpy().tobytes()))


def all_of(kind: type[Action], actions: Sequence[Action]) -> list[Action]:
    return [action for action in actions if isinstance(action, kind)]


def given(actions: Sequence[Action]) -> tuple[Received, ...]:
    (train,) = [action for action in actions if isinstance(action, Train)]
    return train.rollouts


def collecting(node: GossipNode) -> list[Action]:
    assert given(node.handle(Start(), 0.0)) == ()
    return node.handle(trained(), 1.0)


def test_a_round_publishes_and_asks_for_what_is_shared() -> None:
    for share, kinds in {
        "weights": ["round"],
        "both": ["round", "rollouts"],
        "rollouts": ["rollouts"],
    }.items():
        actions = collecting(make(share))  # type: ignore[arg-type]
        assert [one.published.kind for one in actions if isinstance(one, Publish)] == kinds
        asked = [(one.kind, one.peer, one.round) for one in actions if isinstance(one, Fetch)]
        assert asked == [(kind, peer, 0) for kind in kinds for peer in ("a", "c")]
        published = [one.published.payload for one in actions if isinstance(one, Publish)]
        if "rollouts" in kinds:
            assert published[-1] == encode(answers("b", 0))


def test_beside_adapters_nobody_waits_for_rollouts_and_late_ones_are_of_use_a_round_later() -> None:
    node = make("both")
    collecting(node)
    assert node.handle(rollouts_of("a", 0), 1.5) == []
    node.handle(adapter_of("a", 0), 2.0)
    actions = node.handle(adapter_of("c", 0), 3.0)
    assert given(actions) == tuple(Received("a", 0, one) for one in answers("a", 0))
    (report,) = [action.report for action in actions if isinstance(action, Report)]
    assert report.rollouts
    assert (report.rollouts.published, report.rollouts.came, report.rollouts.usable) == (2, (("a", 2),), ())
    node.handle(rollouts_of("c", 0), 3.5)  # while the next local steps run
    node.handle(FetchFailed("a", "unreachable", "rollouts"), 3.6)
    node.handle(trained(1), 4.0)
    node.handle(adapter_of("a", 1), 5.0)
    actions = node.handle(adapter_of("c", 1), 6.0)
    assert {(item.sender, item.round) for item in given(actions)} == {("a", 0), ("c", 0)}


def test_a_failed_fetch_of_rollouts_ends_no_wait_for_an_adapter() -> None:
    node = make("both")
    collecting(node)
    for peer in ("a", "c"):
        assert node.handle(FetchFailed(peer, "unreachable", "rollouts"), 2.0) == []
    node.handle(adapter_of("a", 0), 2.0)
    assert all_of(Report, node.handle(adapter_of("c", 0), 3.0))


def test_rollouts_alone_pace_the_round_and_leave_the_adapter_alone() -> None:
    node = make("rollouts")
    collecting(node)
    assert not all_of(Report, node.handle(rollouts_of("a", 0), 2.0))
    actions = node.handle(rollouts_of("c", 0), 3.0)
    (report,) = [action.report for action in actions if isinstance(action, Report)]
    assert torch.equal(report.state.flat, torch.full((4,), 1.0))
    assert report.mixed == ()
    assert len(given(actions)) == 4
    node.handle(trained(1, 2.0), 4.0)
    actions = node.handle(TimerFired(1), 99.0)
    (report,) = [action.report for action in actions if isinstance(action, Report)]
    assert report.failed == (("a", "late"), ("c", "late"))
    assert torch.equal(report.state.flat, torch.full((4,), 2.0))


@pytest.mark.parametrize("share", ["rollouts", "both"])
@pytest.mark.parametrize("payload", [b"\xff", b"\x91" * 600, bytes(ROLLOUTS_BYTES_MAX + 1)])
def test_malformed_rollouts_are_a_fault_and_leave_the_buffer_alone(share: Share, payload: bytes) -> None:
    node = make(share)
    collecting(node)
    actions = node.handle(rollouts_of("a", 0, payload), 2.0)
    assert all_of(Penalize, actions) == [Penalize("a", "malformed")]
    assert node.rollouts.buffer == Buffer()
    other_codec = Fetched("c", replace(rollouts_of("c", 0).published, codec="float32"))
    assert Penalize("c", "malformed") in node.handle(other_codec, 3.0)


def test_what_claims_to_be_of_a_later_round_is_not_fresh_for_longer() -> None:
    node = make("rollouts")
    collecting(node)
    node.handle(rollouts_of("a", 3), 2.0)
    actions = node.handle(rollouts_of("c", 0), 2.0)
    assert {(item.sender, item.round) for item in given(actions)} == {("a", 0), ("c", 0)}


def test_a_restart_trains_with_what_it_would_have_trained_with() -> None:
    node = make("rollouts")
    collecting(node)
    node.handle(rollouts_of("a", 0), 2.0)
    expected = given(node.handle(rollouts_of("c", 0), 3.0))
    again = make("rollouts", snapshot=node.snapshot())
    assert given(again.handle(Start(), 0.0)) == expected != ()


def test_the_order_of_arrivals_does_not_matter() -> None:
    came = []
    for order in (("a", "c"), ("c", "a")):
        node = make("rollouts")
        collecting(node)
        actions = [action for peer in order for action in node.handle(rollouts_of(peer, 0), 2.0)]
        came.append(given(actions))
    assert came[0] == came[1]


# -- what travels


def pull(kind: str, **more: object) -> Pull:
    return replace(Pull(bytes(16), 0, -1, 1.0), kind=kind, **more)  # type: ignore[arg-type]


def test_offers_of_rollouts_are_short_and_of_the_runs_rounds() -> None:
    shape = RunShape.of(resolve(MethodNames(), SPEC), 4, share="both")
    offer = Offer(0, 1, "rollouts", ROLLOUTS_BYTES_MAX, bytes(32), kind="rollouts")
    shape.check(offer, pull("rollouts"))
    shape.check(replace(offer, length=0), pull("rollouts"))
    for wrong, reason in (
        (replace(offer, length=ROLLOUTS_BYTES_MAX + 1), "shape"),
        (replace(offer, round=4), "malformed"),
        (replace(offer, kind="round"), "malformed"),
    ):
        with pytest.raises(RemoteError) as refused:
            shape.check(wrong, pull("rollouts"))
        assert refused.value.reason == reason


def test_only_what_is_shared_is_asked_for() -> None:
    methods = resolve(MethodNames(), SPEC)
    kinds = {"weights": {"round", "merge", "initial"}, "rollouts": {"rollouts"}}
    kinds["both"] = kinds["weights"] | kinds["rollouts"]
    for share, shared in kinds.items():
        shape = RunShape.of(methods, 4, share=share)  # type: ignore[arg-type]
        for kind in kinds["both"]:
            if kind in shared:
                shape.check_pull(pull(kind))
            else:
                with pytest.raises(RemoteError, match="malformed"):
                    shape.check_pull(pull(kind))


def test_readers_of_a_row_read_its_rollouts_too() -> None:
    may_read = row_readers(rows_of(parse_topology("ring", seed=0), tuple("abcdef")), "b")
    for peer in "acdefx":
        assert may_read(peer, "rollouts", 1) == may_read(peer, "round", 1) == (peer in "ac")


def test_two_answers_to_one_question_are_evidence() -> None:
    claims = Claims(bytes(16), lambda run, claim: True)
    first = Claim("a", 1, 2, "rollouts", b"", bytes(32), bytes(64))
    assert claims.read(first) is None
    assert claims.read(replace(first, kind="round", digest=b"r" * 32)) is None  # its adapter of that round
    proof = claims.heard(replace(first, digest=b"x" * 32))
    assert proof
    assert Claims(bytes(16), lambda run, claim: True).convict(proof)
    assert statement(bytes(16), first) != statement(bytes(16), replace(first, kind="round"))


# -- whole networks


class Junk:
    """A member that serves another flood of distinct answers in each round."""

    def answer(self, reader: str, published: PublishedAdapter) -> PublishedAdapter:
        items = [Rollout("sort", 0, index, f"junk {published.round}") for index in range(1500)]
        return replace(published, payload=encode(items))


def network(share: Share, links: LinkModel | None = None, **more: object) -> tuple[Simulation, list[int]]:
    """Return a network of four, and the sizes of what the trainings of its first peer are given."""
    sizes: list[int] = []

    def train(peer: str, action: Train) -> LocalSteps:
        if peer == "a":
            sizes.append(len(action.rollouts))
        flat = (action.state.flat + ord(peer)) / 2
        return LocalSteps(AdapterState(SPEC, flat), 1, 0.0, 0.5, answers(peer, action.round))

    members = ("a", "b", "c", "d")
    chosen = settings(share, rounds=10, **more)  # type: ignore[arg-type]
    nodes = {peer: GossipNode(peer, START, chosen, random.Random(peer), members) for peer in members}
    return Simulation(nodes, train, links, seed=3), sizes


def test_a_flood_costs_its_quarter_and_no_more() -> None:
    simulation, _ = network("rollouts")
    simulation.hosts["d"].cheat = Junk()
    simulation.run()
    for peer in ("a", "b", "c"):
        buffer = simulation.node(peer).rollouts.buffer
        assert buffer.of("d") == buffer.quota
        honest = set("abc") - {peer}
        assert {one: buffer.of(one) for one in honest} == dict.fromkeys(honest, 4)  # two rounds of two


@pytest.mark.parametrize(
    ("share", "collect_s", "overlap"),
    [
        ("rollouts", 10.0, False),
        ("rollouts", 0.0, False),
        ("both", 10.0, False),
        ("both", 0.0, False),
        ("both", 10.0, True),
    ],
)
def test_networks_with_losses_and_a_death_go_on_and_repeat(
    share: Share, collect_s: float, overlap: bool
) -> None:
    hashes = []
    for _ in range(2):
        simulation, sizes = network(share, LinkModel(loss=0.1), collect_s=collect_s, overlap=overlap)
        watch = Watch(simulation, 20_000)
        simulation.run(until_s=2.0)
        simulation.kill("c")
        simulation.run()
        watch.check_the_end()
        assert len(sizes) == 10
        assert max(sizes) > 0
        hashes.append((simulation.log_hash, sizes, simulation.node("a").rollouts.buffer))
    assert hashes[0] == hashes[1]


def test_what_an_honest_node_sends_is_never_a_fault() -> None:
    simulation, _ = network("both", LinkModel(loss=0.1))
    seen: list[Event] = []

    class Look:
        def handled(self, peer: str, event: Event, actions: Sequence[Action]) -> None:
            seen.extend([event] if isinstance(event, Fetched) else [])
            assert not all_of(Penalize, actions)

    simulation.observers.append(Look())
    simulation.run()
    assert {one.published.kind for one in seen if isinstance(one, Fetched)} == {"round", "rollouts"}
    assert not simulation.penalties
