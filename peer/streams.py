"""Our side of all streams: fetches of ours, questions and pulls of others, and what follows from how each ended.

How such a conversation goes is in ``peer/exchange.py``. Here every end becomes an event for the node, a count, or a
strike against a peer that did what no honest peer does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import trio

from gossip.claims import claim_in
from gossip.errors import RemoteError
from gossip.events import ROW, Event, Fetch, Fetched, FetchFailed, FetchSum, Served
from gossip.messages import Offer, Pull
from gossip.offers import RunShape
from gossip.published import PublishedAdapter
from peer.exchange import ADAPTER, CONTROL, MASKS, Traffic, pull
from peer.masked_reading import MaskedReading
from peer.membership import Membership
from peer.network.transport import Stream, Transport, TransportFactory, Unreachable
from peer.prepared_run import PreparedRun
from peer.publisher import Publisher
from peer.signing import is_signed

FAULTS = frozenset({"malformed", "oversized", "shape", "digest", "stale"})
"""Reasons that no honest peer of our run ever gives: they count as strikes."""


@asynccontextmanager
async def open_streams(
    factory: TransportFactory,
    run: PreparedRun,
    membership: Membership,
    traffic: Traffic,
    post: Callable[[Event], None],
) -> AsyncIterator[Streams]:
    """Start the transport, and end it. A stream that others open before we know our own transport waits for it.

    Args:
        factory: starts the transport.
        run, membership, traffic, post: see ``Streams``; the membership is given the transport here.
    """
    listening = trio.Event()

    async def serve_control(stream: Stream) -> None:
        await listening.wait()
        await streams.serve_control(stream)

    async def serve_adapter(stream: Stream) -> None:
        await listening.wait()
        await streams.serve_adapter(stream)

    async def serve_masks(stream: Stream) -> None:
        await listening.wait()
        await streams.serve_masks(stream)

    handlers = {CONTROL: serve_control, ADAPTER: serve_adapter}
    if run.masks:
        handlers[MASKS] = serve_masks
    async with factory(
        handlers=handlers,
        topic=membership.topic,
        on_announced=membership.on_announced,
        on_connection=membership.on_connection,
    ) as transport:
        membership.use(transport)
        streams = Streams(run, transport, membership, traffic, post)
        listening.set()
        yield streams


class Streams:
    """What goes over streams while a peer takes part.

    Args:
        run: our run.
        transport: opens streams, and drops peers that did wrong.
        membership: answers control questions, and counts strikes.
        traffic: where bytes, fetches and refusals are counted.
        post: takes events to the node; never blocks.
    """

    def __init__(
        self,
        run: PreparedRun,
        transport: Transport,
        membership: Membership,
        traffic: Traffic,
        post: Callable[[Event], None],
    ) -> None:
        self._fingerprint = run.manifest.fingerprint
        self._masks = run.masks
        config, masked = run.plan.config, run.masks is not None
        self._shape = RunShape.of(run.methods, config.run.rounds, masked=masked, share=config.mixing.share)
        self._transport = transport
        self._membership = membership
        self._traffic = traffic
        self._post = post
        self._publisher = Publisher(
            self._fingerprint,
            self._shape,
            traffic,
            membership.standing.is_welcome,
            run.signer.signed,
            run.readers,
            run.masks,
        )
        if run.masks:
            self._sums = MaskedReading(
                run.masks, transport, self._pull, membership.standing.until_down, self._failed, traffic
            )
        if initial := run.initial:
            self._publisher.publish(initial)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Full addresses under which others reach us."""
        return self._transport.addresses

    @property
    def refused(self) -> Mapping[str, int]:
        """Reason -> how often the transport refused others for it."""
        return self._transport.refused

    def publish(self, published: PublishedAdapter) -> None:
        """Let others read an adapter."""
        self._publisher.publish(published)

    async def fetch(self, action: Fetch) -> None:
        """Pull an adapter, or rollouts; the node is told how that ended."""
        wanted = (action.round, action.newer_than, action.wait_s)
        request = Pull(self._fingerprint, *wanted, base=action.base, kind=action.kind)
        try:
            published = await self._pull(action.peer, request)
        except RemoteError as error:
            self._failed(action.peer, error)
            self._post(FetchFailed(action.peer, error.reason, action.kind))
        else:
            self._traffic.fetches_ok += 1
            self._post(Fetched(action.peer, published))

    async def fetch_sum(self, action: FetchSum) -> None:
        """Read the sum of our row; the node is told how that ended."""
        try:
            published, weight = await self._sums.read(action)
        except RemoteError as error:
            self._traffic.fetches_failed += 1
            self._post(FetchFailed(ROW, error.reason))
        else:
            self._traffic.fetches_ok += 1
            self._post(Fetched(ROW, published, weight))

    def _failed(self, peer: str, error: RemoteError) -> None:
        """Count what a peer did not do, or did wrong."""
        if error.reason != "nothing":
            self._traffic.fetches_failed += 1
        if error.reason in FAULTS:
            self._membership.strike(peer, error.reason)
        if error.reason == "hello":
            self._membership.suspect(peer)  # finds out that we have to introduce ourselves again

    async def _pull(self, peer: str, request: Pull) -> PublishedAdapter:
        """Pull an adapter whose sender stands by it: the offer is signed, and contradicts nothing it signed before."""

        def judge(offer: Offer) -> None:
            claim = claim_in(peer, offer)
            if not is_signed(self._fingerprint, claim):
                raise RemoteError("malformed", "the offer is not signed by its sender")
            if not self._membership.standing.stands_by(claim):
                raise RemoteError("unreachable", "cut off, or gone")

        return await pull(self._transport, peer, request, self._shape, self._traffic, judge)

    async def serve_control(self, stream: Stream) -> None:
        """Answer a control question of another peer."""
        try:
            await self._membership.serve_control(stream)
        except RemoteError as error:
            await self._rejected(stream, error)

    async def serve_adapter(self, stream: Stream) -> None:
        """Answer a pull of another peer; the node is told of an adapter that was sent."""
        try:
            published = await self._publisher.serve(stream)
            if published and published.kind != "rollouts":
                self._post(Served(stream.peer, published.round))
        except RemoteError as error:
            await self._rejected(stream, error)

    async def serve_masks(self, stream: Stream) -> None:
        """Answer a question about our masks."""
        assert self._masks
        try:
            await self._masks.serve(stream, self._membership.standing.is_welcome, self._traffic)
        except RemoteError as error:
            await self._rejected(stream, error)

    async def _rejected(self, stream: Stream, error: RemoteError) -> None:
        """Count what came over a stream that we were serving; end the stream, and for a fault the connection."""
        await stream.reset()
        if error.reason in FAULTS:
            self._membership.strike(stream.peer, error.reason)
            await self._transport.drop(stream.peer)
        elif not isinstance(error, Unreachable):
            self._traffic.rejected[error.reason] += 1
