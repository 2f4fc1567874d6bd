"""The serving side of pulls: holds requests until their round is published, then sends, fairly.

Who has not exchanged a hello of this run with us, or is not among those who may read us, gets nothing. Payloads go out
a few at a time; a reader that takes its bytes slowly gives its slot to the next one and goes on beside them, and one
that is too slow is cut off, by what it has taken, not by time alone. A reader that asks again for what it has got comes
last for a while.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import get_args

import trio

from gossip import wire
from gossip.errors import RemoteError
from gossip.messages import Kind, Offer, Pull, Refusal
from gossip.offers import RunShape
from gossip.published import PublishedAdapter, RecentPublications
from gossip.readers import Readers, everybody
from peer.exchange import RATE_MIN, Traffic, receive_question, send_message
from peer.masks import Masks
from peer.network.transport import CHUNK_BYTES, Stream

PULLS_PER_PEER = 2
"""Requests for adapters one peer may have open here (Ethereum's MAX_CONCURRENT_REQUESTS), and as many for rollouts."""
UPLOADS = 3
"""Payloads sent at a time: more would only share the same uplink (libp2p.md section 6)."""
SLOT_S = 2.0
"""A reader that has not taken ``CHUNK_BYTES`` after this many seconds gives its slot back. Source: ours, 1 Mbit/s."""
CHUNK_S = CHUNK_BYTES / RATE_MIN
"""And one that has not after this many seconds, 16, is cut off."""
READERS_MAX = 1024
"""So many readers' last reads are remembered. Source: as many as members (gossip/membership_limits.py)."""
REPEATS_FORGIVEN = 1
"""So often a reader may read the same again without having gone on. Source: ours, an answer may be lost."""
LAST_FOR = 3
"""Whoever does so once more is told that we are busy until we have published so many more adapters.
Source: guess; as many as are kept."""

_Reader = tuple[str, Kind]
"""A peer, as a reader of one kind of payload."""


class Publisher:
    """Answers pulls.

    Args:
        run: fingerprint of our run; requests of another run are refused.
        shape: what questions of this run are like.
        traffic: where bytes and rejections are counted.
        is_welcome: tells whether a peer has exchanged a hello of this run with us; waits for one under way.
        signed: returns an offer with our signature.
        may_read: tells who may read what.
        masks: hides what is read of single adapters; None = nothing is hidden.
    """

    def __init__(
        self,
        run: bytes,
        shape: RunShape,
        traffic: Traffic,
        is_welcome: Callable[[str], Awaitable[bool]],
        signed: Callable[[Offer], Offer],
        may_read: Readers = everybody,
        masks: Masks | None = None,
    ) -> None:
        self._run = run
        self._shape = shape
        self._publications = RecentPublications()
        self._traffic = traffic
        self._is_welcome = is_welcome
        self._signed = signed
        self._may_read = may_read
        self._masks = masks
        self._count: Counter[Kind] = Counter()  # publications so far
        self._published = trio.Event()  # a new one after each publication
        self._slots = trio.CapacityLimiter(UPLOADS)
        self._open: Counter[_Reader] = Counter()  # requests being answered
        self._reads: OrderedDict[_Reader, _Read] = OrderedDict()  # the last one of each reader
        self._last_until: dict[_Reader, int] = {}  # publications before which a reader comes last

    def publish(self, published: PublishedAdapter) -> None:
        """Add an adapter, or rollouts, and wake every held request."""
        self._publications.put(published)
        self._count[published.kind] += 1
        self._last_until = {
            reader: until for reader, until in self._last_until.items() if until > self._count[reader[1]]
        }
        self._published.set()
        self._published = trio.Event()

    async def serve(self, stream: Stream) -> PublishedAdapter | None:
        """Answer one pull; return what it was answered with, if any.

        Raises:
            RemoteError: what came was not a pull of this run (the caller counts and penalizes), or the reader takes its
                bytes too slowly (``"slow"``).
            Unreachable: the reader went away.
        """
        request = await receive_question(stream, self._traffic)
        if refusal := await self._refusal(stream.peer, request):
            await self._refuse(stream, refusal)
            return None
        assert isinstance(request, Pull)
        reader = stream.peer, request.kind
        self._open[reader] += 1
        try:
            try:
                published = await self._answer(stream.peer, request)
            except RemoteError as error:
                await self._refuse(stream, Refusal("mask", error.detail))
                return None
            if published is None or request.offset >= max(1, len(published.payload)):
                await self._refuse(stream, Refusal("nothing"))
                return None
            if self._is_useless(stream.peer, request, published):
                await self._refuse(stream, Refusal("busy", "others first: you have read that more than once"))
                return None
            await self._send(stream, published, request.offset)
            self._remember(stream.peer, request, published)
            return published
        finally:
            self._open[reader] -= 1
            if not self._open[reader]:
                del self._open[reader]

    async def _refusal(self, peer: str, request: object) -> Refusal | None:
        """Return why a question is not answered; raise ``RemoteError`` if it is none that our members ask."""
        if not await self._is_welcome(peer):
            return Refusal("hello", "exchange a hello of this run first")
        if not isinstance(request, Pull):
            raise RemoteError("malformed", "a pull was expected")
        if request.run != self._run:
            return Refusal("run", "this peer takes part in another run")
        self._shape.check_pull(request)
        if request.round is not None and not self._may_read(peer, request.kind, request.round):
            return Refusal("readers", "your row of the mixing matrix does not name this peer")
        is_of_rollouts = request.kind == "rollouts"
        open_now = sum(
            self._open[peer, kind] for kind in get_args(Kind) if (kind == "rollouts") == is_of_rollouts
        )
        if open_now >= PULLS_PER_PEER:
            return Refusal("busy", f"at most {PULLS_PER_PEER} pulls at a time for one peer")
        return None

    async def _refuse(self, stream: Stream, refusal: Refusal) -> None:
        await send_message(stream, refusal, self._traffic)
        await stream.finish()

    async def _answer(self, peer: str, request: Pull) -> PublishedAdapter | None:
        """Return what a reader gets, masked where it shows keys; None = nothing.

        Raises:
            RemoteError: the masks would not hide it.
        """
        if self._masks is None or request.keys is None:
            return await self._find(peer, request)
        whole = replace(request, offset=0, digest=b"", base=b"")
        published = await self._find(peer, whole)
        if published is None or published.round != request.round:
            return None
        masked = await self._masks.masked(peer, published, request.keys)
        return masked if request.digest in (b"", masked.digest) else None

    async def _find(self, peer: str, request: Pull) -> PublishedAdapter | None:
        def may_read(published: PublishedAdapter) -> bool:
            return self._may_read(peer, published.kind, published.round)

        with trio.move_on_after(request.wait_s):
            while True:
                waited = request.wait_s == 0
                published = self._publications.find(request, waited=waited, may_read=may_read)
                if published or waited:
                    return published
                await self._published.wait()
        return self._publications.find(request, waited=True, may_read=may_read)

    # -- who has read what

    def _is_useless(self, peer: str, request: Pull, published: PublishedAdapter) -> bool:
        """Tell whether a reader has nothing from an answer; whoever asks so comes last for a while.

        A reader that has gone on to a later round mixes what it had before once more: that is of use. Once is forgiven:
        an answer can be lost on its last metre, and a peer can be restarted.
        """
        reader = peer, request.kind
        if reader in self._last_until:
            return True
        last = self._reads.get(reader)
        if last is None or last.digest != published.digest or _round_of(request) > last.round:
            return False
        last.repeats += 1
        if last.repeats > REPEATS_FORGIVEN:
            self._last_until[reader] = self._count[request.kind] + LAST_FOR
        return last.repeats > REPEATS_FORGIVEN

    def _remember(self, peer: str, request: Pull, published: PublishedAdapter) -> None:
        last = self._reads.pop((peer, request.kind), None)
        if last is None or last.digest != published.digest or _round_of(request) > last.round:
            last = _Read(published.digest, _round_of(request))
        self._reads[peer, request.kind] = last
        if len(self._reads) > READERS_MAX:
            self._reads.popitem(last=False)

    # -- sending

    async def _send(self, stream: Stream, published: PublishedAdapter, offset: int) -> None:
        slot = _Slot(self._slots)
        await slot.take()
        try:
            payload = memoryview(published.payload)
            starts = range(offset, len(payload), CHUNK_BYTES)
            frame = wire.framed(self._signed(published.offer(offset)))
            pieces: Iterable[bytes | memoryview] = (payload[start : start + CHUNK_BYTES] for start in starts)
            for piece in itertools.chain((frame,), pieces):
                await slot.send(stream, piece)
                self._traffic.bytes_out += len(piece)
        finally:
            slot.give_back()
        # No finish(): the reader knows the length and may have closed already; the transport ends our side.


@dataclass(slots=True)
class _Read:
    """What a reader read last: digest, the round that it asked for, and how often it has read that again."""

    digest: bytes
    round: int
    repeats: int = 0


def _round_of(request: Pull) -> int:
    return request.newer_than if request.round is None else request.round


class _Slot:
    """One place among the payloads that are sent at a time, held as long as its reader keeps up."""

    def __init__(self, slots: trio.CapacityLimiter) -> None:
        self._slots = slots
        self._is_held = False

    async def take(self) -> None:
        """Wait for a place."""
        await self._slots.acquire_on_behalf_of(self)
        self._is_held = True

    def give_back(self) -> None:
        """Let the next one have the place, if it is still held."""
        if self._is_held:
            self._is_held = False
            self._slots.release_on_behalf_of(self)

    async def send(self, stream: Stream, piece: bytes | memoryview) -> None:
        """Send a piece; whoever takes long over it does so without a slot, and not for ever."""
        failure: RemoteError | None = RemoteError("slow", f"less than {RATE_MIN} bytes a second")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_back_later)
            with trio.move_on_after(CHUNK_S):
                try:
                    await stream.send(piece)
                    failure = None
                except RemoteError as error:
                    failure = error
            nursery.cancel_scope.cancel()
        if failure:
            raise failure

    async def _give_back_later(self) -> None:
        await trio.sleep(SLOT_S)
        self.give_back()
