"""How a Byzantine member serves its adapters: what readers get instead of what it has trained.

The attacks are those of ``attacks.py``. Values are changed in payloads of the codec float32, of which every four bytes
are one value; what others send in place of a payload of another codec, decoders judge. It draws from seeds alone, so a
reader that asks again gets the same as long as what the liar sees is the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

import numpy as np

from gossip.attacks import ATTACKS, Sight, Vector
from gossip.errors import LocalError
from gossip.fault_kinds import Byzantine
from gossip.published import PublishedAdapter
from gossip.simulation import Simulation


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is around a liar when a reader asks.

    Args:
        start: the adapter that all began with, if known.
        honest: honest peer -> the newest adapter of it that was seen.
        row: peer -> its weight in the reader's row of W; empty = not known, all in sight alike.
    """

    start: Vector | None = None
    honest: Mapping[str, Vector] = field(default_factory=dict)
    row: Mapping[str, float] = field(default_factory=dict)


Look = Callable[[str, PublishedAdapter], Surroundings]
"""``(reader, what an honest peer would send it) -> what is around``."""


def see_nothing(reader: str, published: PublishedAdapter) -> Surroundings:
    """Look at nothing: a liar by itself."""
    return Surroundings()


class Cheater:
    """One Byzantine member.

    Args:
        kind: what it does.
        seed: of what it draws.
        look: what it sees of the others.
    """

    def __init__(self, kind: Byzantine, seed: str, look: Look = see_nothing) -> None:
        self._kind = kind
        self._seed = seed
        self._look = look
        self._first: PublishedAdapter | None = None

    def answer(self, reader: str, published: PublishedAdapter) -> PublishedAdapter | None:
        """Return what a reader gets instead of ``published``; None = nothing, ever.

        Raises:
            LocalError: values are to be changed, and the codec is not float32.
        """
        if self._kind.behavior == "silent":
            return None
        if published.kind == "rollouts":
            return published  # attacks are on values
        self._first = self._first or published
        match self._kind.behavior:
            case "replay":
                return self._first
            case behavior:
                if published.codec != "float32":
                    raise LocalError(f"a member can cheat by {behavior} with codec float32 only")
                attack, factor = ATTACKS[behavior], self._kind.factor
                with np.errstate(over="ignore", invalid="ignore"):  # no number is a payload like any other
                    changed = attack.lie(self._sight(reader, published), factor or attack.usual).astype("<f4")
                return dataclasses.replace(published, payload=changed.tobytes(), base=b"", whole=None)

    def _sight(self, reader: str, published: PublishedAdapter) -> Sight:
        assert self._first is not None
        own, first, around = values_of(published), values_of(self._first), self._look(reader, published)
        honest = {peer: values for peer, values in around.honest.items() if len(values) == len(own)}
        neighbors = [peer for peer in honest if peer != reader and (peer in around.row or not around.row)]
        alike = 1.0 / (len(neighbors) + 2)  # the reader's own weight, and ours
        weights = [around.row.get(peer, alike) for peer in neighbors]
        others = sum(around.row.values()) - sum(weights) if around.row else alike
        is_known = around.start is not None and len(around.start) == len(own)
        return Sight(
            own=own,
            start=around.start if is_known and around.start is not None else np.zeros(len(own)),
            first=first if len(first) == len(own) else own,
            reader=honest.get(reader, own),
            honest=np.array([*honest.values()]).reshape(len(honest), len(own)),
            row=np.array([honest[peer] for peer in neighbors]).reshape(len(neighbors), len(own)),
            weights=np.array(weights),
            lying=others if others > 0 else alike,
            seed=f"{self._seed}/{published.round}",
            to_whom=reader,
        )


def values_of(published: PublishedAdapter) -> Vector:
    """Return the values of a payload of the codec float32; of any other, as many as it has room for."""
    whole = len(published.payload) // 4 * 4
    return np.frombuffer(published.payload[:whole], "<f4").astype(np.float64)


def look_at(
    simulation: Simulation, liars: Container[str], reader: str, published: PublishedAdapter
) -> Surroundings:
    """Return all that liars who act as one can know in a simulation: what honest peers have published, and W.

    Args:
        published: what is asked for; the newest of its kind is looked at.
    """
    newest = {
        peer: host.publications.newest(published.kind)
        for peer, host in simulation.hosts.items()
        if host.alive and peer not in liars
    }
    honest = {peer: values_of(shown) for peer, shown in newest.items() if shown and shown.codec == "float32"}
    node = simulation.node(reader)
    start = node.initial.flat.numpy().astype(np.float64)
    return Surroundings(start, honest, dict(node.links.read_from))
