"""The processes of a regime, each with its home, its identity and the flags of its ``peer run``. It starts nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from peer.config import OPTIONS
from peer.network.group import new_secret, secret_of
from peer.network.identity import load_or_create_identity, peer_id
from scripts.lab.testnet.config import Regime, TestnetConfig

JOIN_S = 600.0
"""Longest wait of a peer for the others, seconds. Source: guess; peers that share cores start at different speeds, and
the slowest import sets the pace."""


@dataclass(frozen=True, slots=True)
class PlannedPeer:
    """One process to start.

    Attributes:
        home: its ``--home``.
        flags: of its ``peer run``, besides home and name.
        peer_id: empty where nobody needs to know it.
    """

    name: str
    regime: Regime
    home: Path
    flags: tuple[str, ...]
    peer_id: str = ""


def plan_regime(config: TestnetConfig, regime: Regime, shards: Mapping[str, Path]) -> list[PlannedPeer]:
    """Return the processes of a regime; makes the homes and identities of those that must find each other.

    Args:
        shards: peer name -> data file.
    """
    match regime:
        case "gossip":
            return _together(config, shards)
        case "local":
            return _alone(config, shards)
        case "central":
            return [_central(config, shards)]
        case _:
            assert_never(regime)


def _together(config: TestnetConfig, shards: Mapping[str, Path]) -> list[PlannedPeer]:
    """All peers, with each other's ids and a group's secret, the first of them being where the others join."""
    is_open = OPTIONS["open"].flag in config.options
    secret = "" if is_open else new_secret()
    homes = {name: config.out / "peers" / name for name in shards}
    ids = {}
    for name, home in homes.items():
        home.mkdir(parents=True, exist_ok=True)
        ids[name] = peer_id(load_or_create_identity(home))
        secret_of(home, secret, is_open=is_open, begins=False)  # kept there: no command line shows it
    addresses = [f"/ip4/127.0.0.1/tcp/{port}" for port in free_ports(len(shards))]
    first = next(iter(shards))
    together = [*_many("roster", ids.values())]
    together += ["--wait-peers", str(len(shards) - 1), "--wait-peers-s", str(JOIN_S)]
    join = ["--join", f"{addresses[0]}/p2p/{ids[first]}", "--join-timeout-s", str(JOIN_S)]
    planned = []
    for name, address in zip(shards, addresses, strict=True):
        flags = [*_flags_of(config, name, shards), "--listen", address, *together]
        flags += join if name != first else []
        planned.append(PlannedPeer(name, "gossip", homes[name], tuple(flags), ids[name]))
    return planned


def _alone(config: TestnetConfig, shards: Mapping[str, Path]) -> list[PlannedPeer]:
    return [
        PlannedPeer(name, "local", config.out / "local" / name, (*_flags_of(config, name, shards), *ANY_PORT))
        for name in shards
    ]


def _central(config: TestnetConfig, shards: Mapping[str, Path]) -> PlannedPeer:
    """One peer with all text, all cores and as many times the batch."""
    files = shards.values()
    flags = [*shared_flags(config, 0), *_many("data", files), *_many("eval-data", files)]
    flags = _with_batch_times(flags, len(shards))
    return PlannedPeer("central", "central", config.out / "central", (*flags, *ANY_PORT))


ANY_PORT = ("--listen", "/ip4/127.0.0.1/tcp/0")


def _flags_of(config: TestnetConfig, name: str, shards: Mapping[str, Path]) -> list[str]:
    """Return the flags of one of several peers on this machine: its cores, its text, the others' to be measured on."""
    threads = max(1, (os.cpu_count() or 1) // len(shards))
    others = [path for other, path in shards.items() if other != name]
    return [*shared_flags(config, threads), *_many("data", [shards[name]]), *_many("eval-data", others)]


def shared_flags(config: TestnetConfig, threads: int) -> list[str]:
    """Return the flags that do not depend on whose process it is; the user's own come last."""
    flags = ["--model", config.model, "--seed", str(config.seed), "--threads", str(threads)]
    for name, value in (
        ("rounds", config.rounds),
        ("topology", config.topology),
        ("codec", config.codec),
        ("collect-s", config.collect_s),
    ):
        if value is not None:
            flags += [f"--{name}", str(value)]
    return [*flags, *config.options]


def _many(name: str, values: Iterable[object]) -> list[str]:
    """Return a flag that is given once for each value."""
    return [word for value in values for word in (f"--{name}", str(value))]


def _with_batch_times(flags: Sequence[str], factor: int) -> list[str]:
    """Return the flags with the batch size, given or default, times ``factor``."""
    option = OPTIONS["batch_size"]
    if option.flag not in flags:
        flags = [*flags, option.flag, str(option.default)]
    value = list(flags).index(option.flag) + 1
    return [*flags[:value], str(factor * int(flags[value])), *flags[value + 1 :]]


def free_ports(count: int) -> list[int]:
    """Return TCP ports that are free now; all are held at once, so they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in sockets]
