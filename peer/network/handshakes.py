"""Incoming handshakes: how many at once, whose turn it is, and who has to go when there are too many.

A handshake costs milliseconds of computation, so that no address may have many of them a second; a socket that says
nothing costs none, and one that waits has not begun. Knows addresses and turns; nothing of libp2p or peers.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

import trio

from peer.network.admission import place_of
from peer.network.limits import Limits
from peer.network.pace import Bucket

PLACES_REMEMBERED_MAX = 1024
"""Addresses whose rate is remembered. Source: guess."""


class Handshake:
    """One incoming connection before or in its handshake.

    Attributes:
        place: where it comes from; see ``admission.place_of``.
        scope: cancelled when it has to go in favor of others.
        turn: set when it may begin.
    """

    def __init__(self, place: str, deadline: float) -> None:
        self.place = place
        self.scope = trio.CancelScope(deadline=deadline)
        self.turn = trio.Event()


class Handshakes:
    """Incoming handshakes under way. When there are too many, the oldest of the greediest address has to go (T10).

    An honest handshake takes milliseconds, so what has waited longest is most likely a silent socket. For the same
    reason the latest of an address has its turn first: who floods us delays himself.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._under_way: dict[Handshake, None] = {}  # oldest first
        self._asking: list[Handshake] = []  # for their turn, oldest first
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()  # by place
        self._news = trio.lowlevel.ParkingLot()

    def begin(self, ip: str) -> Handshake:
        """Take one more; pass it to ``end`` afterwards."""
        if len(self._under_way) >= self._limits.handshakes_max:
            places = Counter(handshake.place for handshake in self._under_way)
            greediest, _ = places.most_common(1)[0]
            oldest = next(handshake for handshake in self._under_way if handshake.place == greediest)
            oldest.scope.cancel()
            self.end(oldest)
        handshake = Handshake(place_of(ip), trio.current_time() + self._limits.dial_s)
        self._under_way[handshake] = None
        return handshake

    async def ask(self, handshake: Handshake) -> None:
        """Wait until it is a handshake's turn."""
        self._asking.append(handshake)
        self._news.unpark_all()
        await handshake.turn.wait()

    def end(self, handshake: Handshake) -> None:
        """Forget a handshake that is over."""
        self._under_way.pop(handshake, None)
        if handshake in self._asking:
            self._asking.remove(handshake)

    def punish(self, ip: str) -> None:
        """Let an address that flooded us wait for a second more."""
        self._bucket(place_of(ip)).take(self._limits.handshakes_per_s, trio.current_time())

    async def run(self) -> None:
        """Give turns until cancelled."""
        while True:
            if not self._asking:
                await self._news.park()
                continue
            now = trio.current_time()
            # The latest of each place, and of these whoever waits least for its rate.
            latest = {handshake.place: handshake for handshake in self._asking}
            wait_s, place = min((self._bucket(place).wait_s(now), place) for place in latest)
            if wait_s:
                with trio.move_on_after(wait_s):
                    await self._news.park()
                continue
            self._bucket(place).take(1.0, now)
            self._asking.remove(latest[place])
            latest[place].turn.set()
            await trio.lowlevel.checkpoint()

    def _bucket(self, place: str) -> Bucket:
        bucket = self._buckets.get(place) or Bucket(
            self._limits.handshakes_per_s, self._limits.handshakes_burst
        )
        self._buckets[place] = bucket
        self._buckets.move_to_end(place)
        if len(self._buckets) > PLACES_REMEMBERED_MAX:
            self._buckets.popitem(last=False)
        return bucket
