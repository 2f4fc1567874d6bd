"""What can be refused at once: missing files, malformed addresses, a port that is taken, a mistyped topology.

``peer run`` looks at these before it imports torch and libp2p, which takes seconds: who has mistyped a name is told in
one. It imports nothing heavy itself.
"""

from __future__ import annotations

from pathlib import Path

from gossip.errors import LocalError
from peer.config import PeerConfig
from peer.network.catalogue import check_listen, peer_of
from peer.network.identity import is_peer_id
from peer.training.readers import DataError
from topology.errors import TopologyError
from topology.links import Topology, parse_topology


def check_inputs(config: PeerConfig) -> None:
    """Refuse missing files, malformed addresses, a port that is taken and a topology that does not exist.

    Raises:
        LocalError: no data, a file that does not exist, an address or a peer id that is none, a port that another
            program has, or see ``topology_of``.
    """
    if not config.data.data and config.model.task != "agent":
        raise LocalError("--data is missing: give a .jsonl, .json, .csv, .parquet or .txt file to learn from")
    for path in (*config.data.data, *config.data.eval_data):
        if not path.exists():
            raise DataError(f"there is no data file {path} (seen from {Path.cwd()})")
    for peer in config.network.allow:
        if not is_peer_id(peer):
            raise LocalError(
                f"--allow {peer}: not a peer id; your friends' `peer id` prints theirs, 12D3KooW..."
            )
    for address in config.network.join:
        peer_of(address)
    check_listen(config.network.listen)
    topology_of(config)


def topology_of(config: PeerConfig, peers: int | None = None) -> Topology:
    """Return the topology, which exists for the roster or so many peers, if one of them is known.

    Raises:
        LocalError: unknown, impossible, or its file cannot be used; the message says what would be valid.
    """
    mixing = config.mixing
    try:
        topology = parse_topology(
            mixing.topology, seed=config.run.seed, weights=mixing.weights, roster=mixing.roster or None
        )
        if peers:
            topology.check(peers)
    except TopologyError as error:
        raise LocalError(f"--topology {mixing.topology}: {error}") from error
    try:
        if mixing.roster:
            topology.check(mixing.roster)
    except TopologyError as error:
        raise LocalError(f"--topology {mixing.topology} does not fit the roster: {error}") from error
    return topology
