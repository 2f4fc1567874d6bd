"""Relaying announcements: GossipSub 1.1 for one topic, as a pure machine whose tables are all bounded.

Ours instead of the library's, which keeps a table entry for every topic, sequence number, backoff and identity that
anybody names, dials whom others tell it to, and ends the host when one of its tasks raises. This one knows one topic,
the neighbors that are members, and nothing else: ``handle`` what one of them said, ``beat`` once a second; both return
what to send to whom. It takes no exchange of peers, keeps no scores and trusts no field; what is well formed, and who
signed it, was checked before (``libp2p_rpc.py``). It has no clock and no socket.

Every neighbor hears our own announcements from us; those of others travel through a mesh of a few neighbors each, and
the rest learns from their ids what it has missed (libp2p specification, pubsub/gossipsub).
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

Item = TypeVar("Item")

DEGREE, DEGREE_LOW, DEGREE_HIGH = 4, 3, 6
"""Neighbors in the mesh. The specification says 6, 4, 12, for thousands of peers. Source: measured with 24 peers that
announce once a second: 100 % heard within that second."""
BEAT_S = 1.0
"""Seconds between two beats. Source: specification."""
HISTORY_BEATS, GOSSIP_BEATS = 5, 3
"""Beats for which a message can be asked for, and is named to others. Source: specification."""
LAZY_DEGREE, LAZY_SHARE = 6, 0.25
"""Neighbors outside of the mesh that ids are named to at each beat: so many, or this share. Source: specification."""
BACKOFF_S = 60
"""Whom we prune, or who prunes us, is not grafted for so long. Source: specification."""
BACKOFF_MAX_S = 600
"""The longest that we let a neighbor ask for. Source: guess."""
SEEN_S = 120.0
"""A message is not taken twice within it. Source: specification."""
SEEN_MAX = 20_000
"""Ids remembered; beyond, the oldest go early. Source: guess: 160 new ones a second, about 4 MB."""
HISTORY_BYTES_MAX = 4 << 20
"""Messages kept for those who ask, above which new ones are relayed but not kept. Source: guess."""
BACKOFFS_MAX = 1024
"""Neighbors whose backoff is remembered. Source: ``gossip/membership_limits.py``, PEERS_MAX."""
WANTED_MAX = 64
"""Messages that we ask one neighbor for, or give it because it asks, within a beat. Source: guess."""


@dataclass(frozen=True, slots=True)
class Message:
    """A signed announcement.

    Attributes:
        id: author and number, which no other message has.
        author: peer id of who signed it.
        data: what was announced.
        wire: the whole message as it travels.
    """

    id: bytes
    author: str
    data: bytes
    wire: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """What neighbors say to each other at once, of our topic.

    Attributes:
        subscribed: whether the sender takes part from now on; None: as before.
        messages: announcements.
        have: ids of messages that can be asked for.
        want: ids of messages that are asked for.
        graft: whether the receiver is in the sender's mesh from now on.
        prune_s: the receiver is not in it any more, and should not ask for so many seconds; None: as before.
    """

    subscribed: bool | None = None
    messages: tuple[Message, ...] = ()
    have: tuple[bytes, ...] = ()
    want: tuple[bytes, ...] = ()
    graft: bool = False
    prune_s: int | None = None


Outgoing = list[tuple[str, Rpc]]
"""What to send: pairs of a neighbor's peer id and what to tell it."""


@dataclass(slots=True)
class _Neighbor:
    is_subscribed: bool = False
    is_in_mesh: bool = False
    wanted: int = 0  # messages that we asked it for in this beat
    given: Counter[bytes] = field(default_factory=Counter)  # messages that it asked for in this beat


class GossipSub:
    """The mesh of one peer.

    Args:
        rng: chooses neighbors; not shared with anybody.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._neighbors: dict[str, _Neighbor] = {}
        self._backoffs: OrderedDict[str, float] = OrderedDict()  # peer id -> until when
        self._seen: OrderedDict[bytes, float] = OrderedDict()  # id -> until when, oldest first
        self._history: list[dict[bytes, Message]] = [{}]  # newest beat first
        self._history_bytes = 0

    # -- who is there

    def joined(self, peer: str) -> None:
        """Take a neighbor."""
        self._neighbors.setdefault(peer, _Neighbor())

    def greeting(self, peer: str) -> Rpc:
        """Return what to say first on each stream to a neighbor: the other side may have lost what we said before."""
        neighbor = self._neighbors.get(peer)
        return Rpc(subscribed=True, graft=neighbor is not None and neighbor.is_in_mesh)

    def left(self, peer: str) -> None:
        """Let a neighbor go."""
        self._neighbors.pop(peer, None)

    @property
    def mesh(self) -> frozenset[str]:
        """The neighbors that announcements of others are passed on to."""
        return frozenset(peer for peer, neighbor in self._neighbors.items() if neighbor.is_in_mesh)

    # -- what is said

    def publish(self, message: Message, now: float) -> Outgoing:
        """Announce a message of our own, to all neighbors that take part."""
        self._remember(message, now)
        return self._to(self._subscribed(), Rpc(messages=(message,)))

    def is_new(self, id: bytes) -> bool:
        """Whether a message was not taken yet. Ask before its signature is checked, which costs more."""
        return id not in self._seen

    def take(self, message: Message, relay: str, now: float) -> Outgoing:
        """Take a new message, whose signature was checked, from the neighbor that relayed it; pass it on."""
        self._remember(message, now)
        others = self.mesh - {relay, message.author}
        return self._to(sorted(others), Rpc(messages=(message,)))

    def handle(self, peer: str, rpc: Rpc, now: float) -> Outgoing:
        """Take all that a neighbor said but its messages, which ``take`` is for."""
        neighbor = self._neighbors.get(peer)
        if neighbor is None:
            return []
        outgoing: Outgoing = []
        if rpc.subscribed is not None:
            outgoing += self._subscription(peer, neighbor, rpc.subscribed, now)
        if rpc.prune_s is not None:
            neighbor.is_in_mesh = False
            self._back_off(peer, now + min(max(rpc.prune_s, 1), BACKOFF_MAX_S))
        if rpc.graft:
            outgoing += self._grafted(peer, neighbor, now)
        if wanted := self._wanted(neighbor, rpc.have):
            outgoing.append((peer, Rpc(want=wanted)))
        outgoing += [(peer, Rpc(messages=(message,))) for message in self._asked_for(neighbor, rpc.want)]
        return outgoing

    def _subscription(self, peer: str, neighbor: _Neighbor, is_subscribed: bool, now: float) -> Outgoing:
        neighbor.is_subscribed = is_subscribed
        if not is_subscribed:
            neighbor.is_in_mesh = False
        elif not neighbor.is_in_mesh and len(self.mesh) < DEGREE_LOW and self._may_graft(peer, now):
            neighbor.is_in_mesh = True
            return [(peer, Rpc(graft=True))]
        return []

    def _grafted(self, peer: str, neighbor: _Neighbor, now: float) -> Outgoing:
        if neighbor.is_in_mesh:
            return []
        if neighbor.is_subscribed and self._may_graft(peer, now) and len(self.mesh) < DEGREE_HIGH:
            neighbor.is_in_mesh = True
            return []
        self._back_off(peer, now + BACKOFF_S)
        return [(peer, Rpc(prune_s=BACKOFF_S))]

    def _wanted(self, neighbor: _Neighbor, have: Iterable[bytes]) -> tuple[bytes, ...]:
        unknown = [id for id in dict.fromkeys(have) if self.is_new(id)]
        wanted = unknown[: WANTED_MAX - neighbor.wanted]
        neighbor.wanted += len(wanted)
        return tuple(wanted)

    def _asked_for(self, neighbor: _Neighbor, want: Iterable[bytes]) -> list[Message]:
        messages = []
        for id in dict.fromkeys(want):
            message = next((beat[id] for beat in self._history if id in beat), None)
            if message is not None and not neighbor.given[id] and neighbor.given.total() < WANTED_MAX:
                neighbor.given[id] += 1
                messages.append(message)
        return messages

    # -- once a second

    def beat(self, now: float) -> Outgoing:
        """Mend the mesh, name what was heard lately to some outside of it, and forget what is old."""
        self._forget(now)
        outgoing = [*self._mend(now), *self._gossip()]
        for neighbor in self._neighbors.values():
            neighbor.wanted = 0
            neighbor.given.clear()
        self._history.insert(0, {})
        for old in self._history[HISTORY_BEATS:]:
            self._history_bytes -= sum(len(message.wire) for message in old.values())
        del self._history[HISTORY_BEATS:]
        return outgoing

    def _forget(self, now: float) -> None:
        while self._seen and next(iter(self._seen.values())) <= now:
            self._seen.popitem(last=False)
        for peer in [peer for peer, until in self._backoffs.items() if until <= now]:
            del self._backoffs[peer]

    def _mend(self, now: float) -> Outgoing:
        mesh = sorted(self.mesh)
        if len(mesh) < DEGREE_LOW:
            outside = [peer for peer in self._subscribed() if peer not in mesh and self._may_graft(peer, now)]
            chosen = self._some(outside, DEGREE - len(mesh))
            for peer in chosen:
                self._neighbors[peer].is_in_mesh = True
            return self._to(chosen, Rpc(graft=True))
        if len(mesh) > DEGREE_HIGH:
            chosen = self._some(mesh, len(mesh) - DEGREE)
            for peer in chosen:
                self._neighbors[peer].is_in_mesh = False
                self._back_off(peer, now + BACKOFF_S)
            return self._to(chosen, Rpc(prune_s=BACKOFF_S))
        return []

    def _gossip(self) -> Outgoing:
        ids = [id for beat in self._history[:GOSSIP_BEATS] for id in beat]
        if not ids:
            return []
        outside = [peer for peer in self._subscribed() if peer not in self.mesh]
        count = max(LAZY_DEGREE, int(LAZY_SHARE * len(outside)))
        return [(peer, Rpc(have=tuple(self._some(ids, WANTED_MAX)))) for peer in self._some(outside, count)]

    # -- tables

    def _remember(self, message: Message, now: float) -> None:
        self._seen[message.id] = now + SEEN_S
        if len(self._seen) > SEEN_MAX:
            self._seen.popitem(last=False)
        if self._history_bytes + len(message.wire) <= HISTORY_BYTES_MAX:
            self._history[0][message.id] = message
            self._history_bytes += len(message.wire)

    def _back_off(self, peer: str, until: float) -> None:
        self._backoffs[peer] = max(until, self._backoffs.pop(peer, 0.0))
        if len(self._backoffs) > BACKOFFS_MAX:
            self._backoffs.popitem(last=False)

    def _may_graft(self, peer: str, now: float) -> bool:
        return self._backoffs.get(peer, 0.0) <= now

    def _subscribed(self) -> list[str]:
        return sorted(peer for peer, neighbor in self._neighbors.items() if neighbor.is_subscribed)

    def _some(self, items: list[Item], count: int) -> list[Item]:
        return self._rng.sample(items, min(count, len(items)))

    def _to(self, peers: Iterable[str], rpc: Rpc) -> Outgoing:
        return [(peer, rpc) for peer in peers]
