"""The conversations of the protocol: questions and answers, and the pull of an adapter as its reader sees it.

Written against ``Stream`` alone, so it runs on any transport. Every read is bounded before it allocates, every wait
has an end, and a broken transfer resumes where it stopped. It knows bytes and messages; who is asked, and what is done
with the answer, is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from gossip import wire
from gossip.errors import RemoteError
from gossip.messages import Message, Offer, Pull, Refusal
from gossip.offers import RunShape
from gossip.published import PublishedAdapter
from peer.network.transport import Ended, Stream, Transport, Unreachable, receive_exactly

CONTROL = "/gossip-peer/3/control"
ADAPTER = "/gossip-peer/3/adapter"
MASKS = "/gossip-peer/3/masks"

STALL_S = 30.0
"""A stream that brings no byte for this long is given up. Source: six times yamux's own 5 s write limit."""
ANSWER_S = 10.0
"""Control questions are answered within this, or not at all. Source: libp2p's default for small requests."""
RATE_MIN = 16 * 1024
"""A transfer that is slower than this on the whole, bytes a second, is given up: 5 MB may take five minutes. Source:
guess; a link as slow as that holds every round up."""
PULL_ATTEMPTS = 3
"""Tries per pull, each going on at the offset reached. Source: guess."""
END_S = 2.0
"""After a payload the stream must end; whether it does is looked at for this long. Source: ours."""
HASH_INLINE_BYTES = 1 << 20
"""Larger payloads are hashed in a thread: 1 MiB takes about a millisecond."""


@dataclass(slots=True)
class Traffic:
    """What went over the wire, payloads and frames, and how fetches ended; ``mask_bytes``: of both, about masks."""

    bytes_in: int = 0
    bytes_out: int = 0
    mask_bytes: int = 0
    fetches_ok: int = 0
    fetches_failed: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    def add_of_masks(self, counted: Traffic) -> None:
        """Count frames of a conversation about masks."""
        self.bytes_in += counted.bytes_in
        self.bytes_out += counted.bytes_out
        self.mask_bytes += counted.bytes_in + counted.bytes_out


async def send_message(stream: Stream, message: Message, traffic: Traffic) -> None:
    """Send one frame."""
    frame = wire.framed(message)
    await stream.send(frame)
    traffic.bytes_out += len(frame)
    traffic.mask_bytes += _about_masks(message, len(frame))


def _about_masks(message: Message, frame_bytes: int) -> int:
    """Return the bytes of a frame that is as long as it is because it shows keys."""
    return frame_bytes if isinstance(message, Pull) and message.keys else 0


async def receive_message(stream: Stream, wait_s: float, traffic: Traffic) -> Message:
    """Receive one frame within ``wait_s`` seconds.

    Raises:
        RemoteError: ``"oversized"`` or ``"malformed"``.
        Unreachable: nothing came, or the stream broke.
    """
    with trio.move_on_after(wait_s):
        length = wire.frame_length(await receive_exactly(stream, wire.LENGTH_BYTES, wait_s))
        try:
            frame = await receive_exactly(stream, length, wait_s)
        except Ended as error:
            raise Ended(error.received + wire.LENGTH_BYTES, length + wire.LENGTH_BYTES) from error
        traffic.bytes_in += wire.LENGTH_BYTES + length
        message = wire.decode(frame)
        traffic.mask_bytes += _about_masks(message, wire.LENGTH_BYTES + length)
        return message
    raise Unreachable(f"no answer within {wait_s:g} s")


async def receive_question(stream: Stream, traffic: Traffic) -> Message:
    """Receive what a peer has opened a stream for.

    Raises:
        RemoteError: ``"oversized"`` or ``"malformed"``, also for one that ends halfway.
        Unreachable: nothing came, or the stream broke.
    """
    try:
        return await receive_message(stream, ANSWER_S, traffic)
    except Ended as error:
        if error.received:  # who changes its mind, says nothing at all
            raise RemoteError("malformed", f"the question {error.detail}") from error
        raise


async def ask(
    transport: Transport, peer: str, message: Message, traffic: Traffic, protocol: str = CONTROL
) -> Message:
    """Ask a short question and return the answer, which may be a ``Refusal``.

    Raises:
        RemoteError: no answer, or not a message.
    """
    stream = await transport.open(peer, protocol)
    try:
        await send_message(stream, message, traffic)
        await stream.finish()
        return await receive_message(stream, ANSWER_S, traffic)
    finally:
        await stream.close()


async def pull(
    transport: Transport,
    peer: str,
    request: Pull,
    shape: RunShape,
    traffic: Traffic,
    judge: Callable[[Offer], None],
) -> PublishedAdapter:
    """Pull an adapter, resuming after broken connections; its digest has been verified when this returns.

    Args:
        request: what is wanted, with offset 0.
        shape: what offers of this run are like; nothing else is accepted.
        judge: raises ``RemoteError`` for an offer that is not to be taken, before its payload comes.

    Raises:
        RemoteError: ``"nothing"``, ``"run"``, ``"hello"``, ``"busy"`` (refused), ``"shape"``, ``"digest"``,
            ``"stale"``, ``"malformed"`` (the peer's fault), or ``"unreachable"`` after ``PULL_ATTEMPTS`` tries.
    """
    transfer: _Transfer | None = None
    with trio.move_on_after(request.wait_s + STALL_S) as limit:
        for attempt in range(PULL_ATTEMPTS):
            try:
                transfer = await _attempt(transport, peer, request, shape, transfer, limit, traffic, judge)
            except _Interrupted as interrupted:
                transfer = interrupted.transfer
                continue
            except Unreachable:
                if attempt + 1 == PULL_ATTEMPTS:
                    raise
                continue
            await _verify(transfer)
            offer = transfer.offer
            return PublishedAdapter(
                offer.round, offer.age, offer.codec, transfer.payload, offer.base, kind=offer.kind
            )
        raise Unreachable(f"the connection broke {PULL_ATTEMPTS} times during one transfer")
    raise Unreachable("the transfer took too long" if transfer else "no answer in time")


@dataclass(slots=True)
class _Transfer:
    """A payload on its way: as much of it as has come; no memory is kept for what has not."""

    offer: Offer
    payload: bytearray


class _Interrupted(Exception):
    """A transfer broke off after its offer."""

    def __init__(self, transfer: _Transfer) -> None:
        super().__init__(len(transfer.payload))
        self.transfer = transfer


async def _attempt(
    transport: Transport,
    peer: str,
    request: Pull,
    shape: RunShape,
    transfer: _Transfer | None,
    limit: trio.CancelScope,
    traffic: Traffic,
    judge: Callable[[Offer], None],
) -> _Transfer:
    """Ask once (from where an earlier attempt stopped), check the offer, receive to the end.

    Args:
        limit: ends the whole transfer; once the length is known, it is set by that.
    """
    if transfer:
        digest = transfer.offer.digest
        request = dataclasses.replace(request, wait_s=0.0, offset=len(transfer.payload), digest=digest)
    stream = await transport.open(peer, ADAPTER)
    try:
        await send_message(stream, request, traffic)
        await stream.finish()
        answer = await receive_message(stream, request.wait_s + STALL_S, traffic)
        offer = _offer_in(answer)
        shape.check(offer, request)
        judge(offer)
        if transfer is None:
            transfer = _Transfer(offer, bytearray())
            limit.deadline = trio.current_time() + STALL_S + offer.length / RATE_MIN
        elif dataclasses.replace(offer, offset=0) != transfer.offer:
            raise RemoteError("digest", "another payload was offered for a resumed transfer")
        await _receive_payload(stream, transfer, traffic)
        return transfer
    finally:
        await stream.close()


def _offer_in(answer: Message) -> Offer:
    """Return an answer that is an offer, or raise ``RemoteError``: refused, or no answer to a pull."""
    if isinstance(answer, Refusal):
        raise RemoteError(answer.reason, answer.detail)
    if not isinstance(answer, Offer):
        raise RemoteError("malformed", "an offer was expected")
    return answer


async def _receive_payload(stream: Stream, transfer: _Transfer, traffic: Traffic) -> None:
    """Receive to the end. Only drains: a pause of 5 s between reads would reset the transfer (libp2p.md T3)."""
    payload, length = transfer.payload, transfer.offer.length
    try:
        while len(payload) < length:
            piece = b""
            with trio.move_on_after(STALL_S):
                piece = await stream.receive(min(1 << 20, length - len(payload)))
            if not piece:
                raise _Interrupted(transfer)
            payload += piece
            traffic.bytes_in += len(piece)
    except Unreachable as error:
        raise _Interrupted(transfer) from error
    with contextlib.suppress(Unreachable), trio.move_on_after(END_S):
        if await stream.receive(1):
            raise RemoteError("malformed", "bytes came after the payload")


async def _verify(transfer: _Transfer) -> None:
    """Raise ``RemoteError`` unless the payload has the digest that was offered."""
    if len(transfer.payload) > HASH_INLINE_BYTES:
        digest = (await trio.to_thread.run_sync(hashlib.sha256, transfer.payload)).digest()
    else:
        digest = hashlib.sha256(transfer.payload).digest()
    if digest != transfer.offer.digest:
        raise RemoteError("digest", "the payload does not have the digest that was offered")
