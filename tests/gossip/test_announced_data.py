"""What peers announce of their data reaches the topology that goes by it, and nobody announces it without need."""

from __future__ import annotations

import random

import msgpack
import numpy as np
import pytest
import torch

from gossip import wire
from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError, RemoteError
from gossip.events import Fetch, PeerUp, Start, Trained
from gossip.messages import Hello
from gossip.node import GossipNode
from gossip.settings import NodeSettings
from peer.config import PeerConfig
from peer.run_plan import plan_run
from topology.announced import LABELS_MAX, ROWS_MAX, Announced
from topology.links import parse_topology

SPEC = AdapterSpec((("w", (2,)),))
PEERS = ("a", "b", "c", "d")


def hello(data: Announced | None) -> Hello:
    return Hello({"codec": "int8"}, "anna", 3, data=data)


@pytest.mark.parametrize("data", [None, Announced(), Announced(7), Announced(0, (3, 0, ROWS_MAX))])
def test_a_hello_carries_what_is_announced(data: Announced | None) -> None:
    frame = wire.encode(hello(data))
    assert wire.decode(frame) == hello(data)
    assert ("data" in msgpack.unpackb(frame)) == (data is not None)


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        {},
        {"rows": 1},
        {"rows": 1, "labels": [], "more": 1},
        {"rows": -1, "labels": []},
        {"rows": 1.0, "labels": []},
        {"rows": True, "labels": []},
        {"rows": ROWS_MAX + 1, "labels": []},
        {"rows": 1, "labels": "ab"},
        {"rows": 1, "labels": [-1]},
        {"rows": 1, "labels": [1] * (LABELS_MAX + 1)},
    ],
)
def test_anything_else_is_malformed(said: object) -> None:
    body = msgpack.unpackb(wire.encode(hello(Announced(7))))
    with pytest.raises(RemoteError, match="malformed"):
        wire.decode(msgpack.packb(body | {"data": said}))


def node(topology: str, weights: str, data: Announced | None) -> GossipNode:
    settings = NodeSettings(
        topology=parse_topology(topology, seed=0, weights=weights),
        rounds=3,
        collect_s=10.0,
        norm_cap=10.0,
        data=data,
    )
    return GossipNode("a", AdapterState(SPEC, torch.zeros(2)), settings, random.Random(0), PEERS)


def read_from(peer: GossipNode) -> list[str]:
    """Whom a node asks in its first round."""
    peer.handle(Start(), 0.0)
    actions = peer.handle(Trained(AdapterState(SPEC, torch.ones(2)), 1, 0.5), 1.0)
    return [action.peer for action in actions if isinstance(action, Fetch)]


def test_a_node_draws_cliques_from_what_it_is_told() -> None:
    labels = {"a": (9, 0), "b": (9, 0), "c": (0, 9), "d": (0, 9)}
    told = node("d-cliques:2", "metropolis-hastings", Announced(labels=labels["a"]))
    for peer in PEERS[1:]:
        told.handle(PeerUp(peer, 0, Announced(labels=labels[peer])), 0.0)
    known = {peer: Announced(labels=counts) for peer, counts in labels.items()}
    expected = parse_topology("d-cliques:2", seed=0).knowing(known).links("a", PEERS, 0, random.Random(0))
    assert read_from(told) == [peer for peer, _ in expected.read_from]
    assert {"c", "d"} & {peer for peer, _ in expected.read_from}, "a clique of both labels"


def test_weights_go_by_the_rows_that_all_have_announced() -> None:
    counts = {"a": 40, "b": 30, "c": 20, "d": 10}
    told = node("complete", "data-size", Announced(rows=40))
    for peer in PEERS[1:]:
        told.handle(PeerUp(peer, 0, Announced(rows=counts[peer])), 0.0)
    read_from(told)
    links = told._current.links
    matrix = parse_topology("complete", seed=0, weights="data-size").knowing(
        {peer: Announced(rows) for peer, rows in counts.items()}
    )
    assert dict(links.read_from) == pytest.approx(
        dict(matrix.links("a", PEERS, 0, random.Random(0)).read_from)
    )
    plain = parse_topology("complete", seed=0).links("a", PEERS, 0, random.Random(0))
    assert not np.allclose([w for _, w in links.read_from], [w for _, w in plain.read_from])


def test_cliques_by_labels_are_for_classifications() -> None:
    with pytest.raises(LocalError, match="only a classification has labels"):
        plan_run(PeerConfig.of(topology="d-cliques:2"))
    plan = plan_run(
        PeerConfig.of(topology="d-cliques:2", task="classification", labels=("good", "bad"), merge="average")
    )
    assert plan.topology.wants == {"labels"}
