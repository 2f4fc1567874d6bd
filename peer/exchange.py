"""The conversations of the protocol, both sides: hello, ping, and the pull of an adapter.

Written against ``Stream`` alone, so it runs on any transport. Every read is bounded before it allocates, every wait
has an end, and a broken transfer resumes where it stopped. It knows bytes and messages; who is asked, and what is done
with the answer, is decided elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import trio

from gossip import wire
from gossip.errors import RemoteError
from gossip.messages import Message, Offer, Pull, Refusal
from gossip.published import PublishedAdapter, RecentPublications
from peer.network.transport import Stream, Transport, Unreachable, receive_exactly

CONTROL = "/gossip-peer/2/control"
ADAPTER = "/gossip-peer/2/adapter"

STALL_S = 30.0
"""A stream that brings no byte for this long is given up. Source: six times yamux's own 5 s write limit."""
ANSWER_S = 10.0
"""Control questions are answered within this, or not at all. Source: libp2p's default for small requests."""
PULL_ATTEMPTS = 3
"""Tries per pull, each going on at the offset reached. Source: guess."""
PULLS_PER_PEER = 2
"""Requests one peer may have open here (Ethereum's MAX_CONCURRENT_REQUESTS)."""
UPLOADS = 3
"""Payloads sent at a time: more would only share the same uplink (libp2p.md section 6)."""
HASH_INLINE_BYTES = 1 << 20
"""Larger payloads are hashed in a thread: 1 MiB takes about a millisecond."""


@dataclass(slots=True)
class Traffic:
    """What went over the wire, payloads and frames, and how fetches ended."""

    bytes_in: int = 0
    bytes_out: int = 0
    fetches_ok: int = 0
    fetches_failed: int = 0
    rejected: Counter[str] = field(default_factory=Counter)


async def send_message(stream: Stream, message: Message, traffic: Traffic) -> None:
    """Send one frame."""
    frame = wire.framed(message)
    await stream.send(frame)
    traffic.bytes_out += len(frame)


async def receive_message(stream: Stream, wait_s: float, traffic: Traffic) -> Message:
    """Receive one frame within ``wait_s`` seconds.

    Raises:
        RemoteError: ``"oversized"`` or ``"malformed"``.
        Unreachable: nothing came, or the stream broke.
    """
    with trio.move_on_after(wait_s):
        length = wire.frame_length(await receive_exactly(stream, wire.LENGTH_BYTES, wait_s))
        frame = await receive_exactly(stream, length, wait_s)
        traffic.bytes_in += wire.LENGTH_BYTES + length
        return wire.decode(frame)
    raise Unreachable(f"no answer within {wait_s:g} s")


async def ask(transport: Transport, peer: str, message: Message, traffic: Traffic) -> Message:
    """Ask a control question and return the answer, which may be a ``Refusal``.

    Raises:
        RemoteError: no answer, or not a message.
    """
    stream = await transport.open(peer, CONTROL)
    try:
        await send_message(stream, message, traffic)
        await stream.finish()
        return await receive_message(stream, ANSWER_S, traffic)
    finally:
        await stream.close()


async def pull(
    transport: Transport, peer: str, request: Pull, lengths: Collection[int], traffic: Traffic
) -> PublishedAdapter:
    """Pull an adapter, resuming after broken connections; its digest has been verified when this returns.

    Args:
        request: what is wanted, with offset 0.
        lengths: the sizes in bytes that payloads of this run can have; nothing else is accepted.

    Raises:
        RemoteError: ``"nothing"``, ``"run"``, ``"busy"`` (refused), ``"shape"``, ``"digest"``, ``"malformed"``
            (the peer's fault), or ``"unreachable"`` after ``PULL_ATTEMPTS`` tries.
    """
    transfer: _Transfer | None = None
    for attempt in range(PULL_ATTEMPTS):
        try:
            transfer = await _attempt(transport, peer, request, lengths, transfer, traffic)
        except _Interrupted as interrupted:
            transfer = interrupted.transfer
            continue
        except Unreachable:
            if attempt + 1 == PULL_ATTEMPTS:
                raise
            continue
        await _verify(transfer)
        offer = transfer.offer
        return PublishedAdapter(offer.round, offer.age, offer.codec, transfer.payload, offer.base)
    raise Unreachable(f"the connection broke {PULL_ATTEMPTS} times during one transfer")


@dataclass(slots=True)
class _Transfer:
    """A payload on its way: the first ``received`` of its bytes are in place."""

    offer: Offer
    payload: bytearray
    received: int = 0


class _Interrupted(Exception):
    """A transfer broke off after its offer."""

    def __init__(self, transfer: _Transfer) -> None:
        super().__init__(transfer.received)
        self.transfer = transfer


async def _attempt(
    transport: Transport,
    peer: str,
    request: Pull,
    lengths: Collection[int],
    transfer: _Transfer | None,
    traffic: Traffic,
) -> _Transfer:
    """Ask once (from where an earlier attempt stopped), check the offer, receive to the end."""
    if transfer:
        digest = transfer.offer.digest
        request = dataclasses.replace(request, wait_s=0.0, offset=transfer.received, digest=digest)
    stream = await transport.open(peer, ADAPTER)
    try:
        await send_message(stream, request, traffic)
        await stream.finish()
        answer = await receive_message(stream, request.wait_s + STALL_S, traffic)
        offer = _checked_offer(answer, request, lengths)
        if transfer is None:
            transfer = _Transfer(offer, bytearray(offer.length))
        elif offer.digest != transfer.offer.digest:
            raise RemoteError("digest", "another payload was offered for a resumed transfer")
        await _receive_payload(stream, transfer, traffic)
        return transfer
    finally:
        await stream.close()


def _checked_offer(answer: Message, request: Pull, lengths: Collection[int]) -> Offer:
    """Return the offer that answers a request, or raise ``RemoteError``: refused, or not what was asked for."""
    if isinstance(answer, Refusal):
        raise RemoteError(answer.reason, answer.detail)
    if not isinstance(answer, Offer) or answer.offset != request.offset:
        raise RemoteError("malformed", "an offer from the offset asked for was expected")
    if answer.length not in lengths:
        known = " or ".join(map(str, sorted(lengths)[:8]))
        raise RemoteError("shape", f"{answer.length} bytes offered, this run's adapters have {known}")
    return answer


async def _receive_payload(stream: Stream, transfer: _Transfer, traffic: Traffic) -> None:
    """Fill the payload. Only drains: a pause of 5 s between reads would reset the transfer (libp2p.md T3)."""
    view = memoryview(transfer.payload)
    try:
        while transfer.received < len(view):
            piece = b""
            with trio.move_on_after(STALL_S):
                piece = await stream.receive(min(1 << 20, len(view) - transfer.received))
            if not piece:
                raise _Interrupted(transfer)
            view[transfer.received : transfer.received + len(piece)] = piece
            transfer.received += len(piece)
            traffic.bytes_in += len(piece)
    except Unreachable as error:
        raise _Interrupted(transfer) from error


async def _verify(transfer: _Transfer) -> None:
    """Raise ``RemoteError`` unless the payload has the digest that was offered."""
    if len(transfer.payload) > HASH_INLINE_BYTES:
        digest = (await trio.to_thread.run_sync(hashlib.sha256, transfer.payload)).digest()
    else:
        digest = hashlib.sha256(transfer.payload).digest()
    if digest != transfer.offer.digest:
        raise RemoteError("digest", "the payload does not have the digest that was offered")


class Publisher:
    """The serving side of pulls: holds requests until their round is published, then sends.

    Args:
        run: fingerprint of our run; requests of another run are refused.
        traffic: where bytes and rejections are counted.
    """

    def __init__(self, run: bytes, traffic: Traffic) -> None:
        self._run = run
        self._publications = RecentPublications()
        self._traffic = traffic
        self._published = trio.Event()  # a new one after each publication
        self._uploads = trio.CapacityLimiter(UPLOADS)
        self._open: Counter[str] = Counter()  # requests being answered, by peer id

    def publish(self, published: PublishedAdapter) -> None:
        """Add an adapter and wake every held request."""
        self._publications.put(published)
        self._published.set()
        self._published = trio.Event()

    async def serve(self, stream: Stream) -> PublishedAdapter | None:
        """Answer one pull; return what it was answered with, if any.

        Raises:
            RemoteError: what came was not a pull (the caller counts and penalizes).
            Unreachable: the reader went away.
        """
        request = await receive_message(stream, ANSWER_S, self._traffic)
        if not isinstance(request, Pull):
            raise RemoteError("malformed", "a pull was expected")
        refusal = self._refusal(stream.peer, request)
        if refusal:
            await send_message(stream, refusal, self._traffic)
            await stream.finish()
            return None
        self._open[stream.peer] += 1
        try:
            published = await self._find(request)
            if published is None or request.offset >= max(1, len(published.payload)):
                await send_message(stream, Refusal("nothing"), self._traffic)
                await stream.finish()
                return None
            await self._send(stream, published, request.offset)
            return published
        finally:
            self._open[stream.peer] -= 1
            if not self._open[stream.peer]:
                del self._open[stream.peer]

    def _refusal(self, peer: str, request: Pull) -> Refusal | None:
        if request.run != self._run:
            return Refusal("run", "this peer takes part in another run")
        if self._open[peer] >= PULLS_PER_PEER:
            return Refusal("busy", f"at most {PULLS_PER_PEER} pulls at a time for one peer")
        return None

    async def _find(self, request: Pull) -> PublishedAdapter | None:
        with trio.move_on_after(request.wait_s):
            while True:
                published = self._publications.find(request, waited=request.wait_s == 0)
                if published or request.wait_s == 0:
                    return published
                await self._published.wait()
        return self._publications.find(request, waited=True)

    async def _send(self, stream: Stream, published: PublishedAdapter, offset: int) -> None:
        async with self._uploads:
            await send_message(stream, published.offer(offset), self._traffic)
            await stream.send(memoryview(published.payload)[offset:])
        # No finish(): the reader knows the length and may have closed already; the transport ends our side.
        self._traffic.bytes_out += len(published.payload) - offset
