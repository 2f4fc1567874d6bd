"""The processes of a regime, each with its home, its identity and the flags of its ``peer run``. It starts nothing."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from gossip.errors import LocalError
from peer.config import OPTIONS
from peer.network.group import new_secret, secret_of
from peer.network.identity import load_or_create_identity, peer_id
from scripts.lab.testnet.config import Regime, TestnetConfig
from scripts.lab.testnet.settings import demo_settings

JOIN_S = 600.0
"""Longest wait of a peer for the others, seconds. Source: guess; peers that share cores start at different speeds, and
the slowest import sets the pace."""


EVERY_SHARD = "scripts.lab.testnet.every_shard:make_trainer"
"""Who trains centrally, as ``--trainer`` has it; named here because importing it takes seconds."""


@dataclass(frozen=True, slots=True)
class PlannedPeer:
    """One process to start.

    Attributes:
        home: its ``--home``.
        flags: of its ``peer run``, besides home and name.
        peer_id: empty where nobody needs to know it.
        round_tokens: what all processes of its regime train on in a round, tokens: sequences times ``--max-length``, so
            at most; of text, which is packed, a few less.
    """

    name: str
    regime: str
    home: Path
    flags: tuple[str, ...]
    peer_id: str = ""
    round_tokens: int = 0


def plan_regime(config: TestnetConfig, regime: Regime, shards: Mapping[str, Path]) -> list[PlannedPeer]:
    """Return the processes of a regime; makes the homes and identities of those that must find each other.

    Args:
        shards: peer name -> data file.

    Raises:
        LocalError: a number among the user's flags is none.
    """
    match regime:
        case "gossip":
            planned = _together(config, shards)
        case "local":
            planned = _alone(config, shards)
        case "central" | "central-large":
            planned = [_central(config, regime, shards)]
        case _:
            assert_never(regime)
    flags = planned[0].flags
    tokens = math.prod(
        number_of(flags, name) for name in ("local_steps", "accumulate", "batch_size", "max_length")
    )
    return [replace(one, round_tokens=len(planned) * tokens) for one in planned]


def _together(config: TestnetConfig, shards: Mapping[str, Path]) -> list[PlannedPeer]:
    """All peers, so that they find each other."""
    flags = {name: _flags_of(config, "gossip", name, shards) for name in shards}
    return meeting("gossip", config.out / "peers", flags, is_open=gives(config.options, "open"))


def meeting(
    regime: str, folder: Path, flags: Mapping[str, Sequence[str]], *, is_open: bool
) -> list[PlannedPeer]:
    """Return peers with each other's ids and a group's secret, the first of them being where the others join.

    Args:
        folder: of their homes.
        flags: of each, by its name.
        is_open: whether the group has no secret.
    """
    secret = "" if is_open else new_secret()
    homes = {name: folder / name for name in flags}
    ids = {}
    for name, home in homes.items():
        home.mkdir(parents=True, exist_ok=True)
        ids[name] = peer_id(load_or_create_identity(home))
        secret_of(home, secret, is_open=is_open, begins=False)  # kept there: no command line shows it
    addresses = [f"/ip4/127.0.0.1/tcp/{port}" for port in free_ports(len(flags))]
    first = next(iter(flags))
    together = [*_many("roster", ids.values())]
    together += ["--wait-peers", str(len(flags) - 1), "--wait-peers-s", str(JOIN_S)]
    join = ["--join", f"{addresses[0]}/p2p/{ids[first]}", "--join-timeout-s", str(JOIN_S)]
    planned = []
    for name, address in zip(flags, addresses, strict=True):
        words = [*flags[name], "--listen", address, *together, *(join if name != first else [])]
        planned.append(PlannedPeer(name, regime, homes[name], tuple(words), ids[name]))
    return planned


def _alone(config: TestnetConfig, shards: Mapping[str, Path]) -> list[PlannedPeer]:
    return [
        PlannedPeer(
            name, "local", config.out / "local" / name, (*_flags_of(config, "local", name, shards), *ANY_PORT)
        )
        for name in shards
    ]


def _central(config: TestnetConfig, regime: Regime, shards: Mapping[str, Path]) -> PlannedPeer:
    """One peer with all text and all cores, and as many times a peer's steps or a peer's batch as there are peers.

    Rounds are as many as the peers', so that it is measured after as many tokens; and every peer's text is drawn as
    often, as in gossip.
    """
    files = shards.values()
    flags = [*shared_flags(config, regime, 0), *_many("data", files), *_many("eval-data", files), *ANY_PORT]
    if not gives(flags, "trainer"):
        flags += [OPTIONS["trainer"].flag, EVERY_SHARD]
    for name in ("local_steps", "warmup_steps") if regime == "central" else ("batch_size",):
        size = len(shards) * number_of(flags, name)
        flags = [*_without(flags, name), OPTIONS[name].flag, str(size)]
    return PlannedPeer("central", regime, config.out / regime, tuple(flags))


ANY_PORT = ("--listen", "/ip4/127.0.0.1/tcp/0")


def _flags_of(config: TestnetConfig, regime: Regime, name: str, shards: Mapping[str, Path]) -> list[str]:
    """Return the flags of one of several peers on this machine: its cores, its text, the others' to be measured on."""
    threads = max(1, (os.cpu_count() or 1) // len(shards))
    others = [path for other, path in shards.items() if other != name]
    return [
        *shared_flags(config, regime, threads),
        *_many("data", [shards[name]]),
        *_many("eval-data", others),
    ]


def shared_flags(config: TestnetConfig, regime: Regime, threads: int) -> list[str]:
    """Return the flags that do not depend on whose process it is; the user's own come last, and win."""
    given = {
        "rounds": config.rounds,
        "topology": config.topology,
        "codec": config.codec,
        "collect_s": config.collect_s,
    }
    options = {
        **({"from_scratch": config.from_scratch} if config.from_scratch else {"model": config.model}),
        "seed": config.seed,
        "threads": threads,
        **demo_settings(config, regime),
        **{name: value for name, value in given.items() if value is not None},
    }
    flags: list[str] = []
    for name, value in options.items():
        if not gives(config.options, name):
            flags += [OPTIONS[name].flag, str(value)]
    return [*flags, *config.options]


def _many(name: str, values: Iterable[object]) -> list[str]:
    """Return a flag that is given once for each value."""
    return [word for value in values for word in (f"--{name}", str(value))]


def _place_of(flags: Sequence[str], name: str) -> slice | None:
    """Return where an option and its value stand among flags, as ``--name value`` or ``--name=value``."""
    flag = OPTIONS[name].flag
    for index, word in enumerate(flags):
        if word == flag:
            return slice(index, index + 2)
        if word.startswith(f"{flag}="):
            return slice(index, index + 1)
    return None


def gives(flags: Sequence[str], name: str) -> bool:
    """Tell whether an option stands among flags."""
    return _place_of(flags, name) is not None


def _without(flags: Sequence[str], name: str) -> list[str]:
    """Return the flags without an option."""
    place = _place_of(flags, name)
    return list(flags) if place is None else [*flags[: place.start], *flags[place.stop :]]


def number_of(flags: Sequence[str], name: str) -> int:
    """Return an option that is a whole number: as flags give it, or its default.

    Raises:
        LocalError: it is none.
    """
    place = _place_of(flags, name)
    if place is None:
        return int(OPTIONS[name].default)
    text = flags[place][-1].removeprefix(f"{OPTIONS[name].flag}=")
    try:
        return int(text)
    except ValueError:
        raise LocalError(f"{OPTIONS[name].flag} must be a whole number, not {text!r}") from None


def free_ports(count: int) -> list[int]:
    """Return TCP ports that are free now; all are held at once, so they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in sockets]
