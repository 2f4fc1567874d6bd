"""Announcements over libp2p: GossipSub for one topic, in the specification's form and within bounds.

Knows signed frames and their authors; nothing of what is announced.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from libp2p.abc import IHost
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service

from gossip.errors import LocalError
from peer.network.transport import ANNOUNCEMENT_BYTES_MAX, Announced

log = logging.getLogger(__name__)

RPC_BYTES_MAX = 1 << 18
"""Largest message of a neighbor's GossipSub: 16 of the largest announcements. Source: guess."""
SEND_S = 2.0
"""An announcement that the library has not taken by then is given up. Source: guess."""


class Router(GossipSub):
    """GossipSub with the specification's heartbeat and a small mesh, sending nothing that nobody here reads.

    Measured with 24 peers in one process, 5 connections each, all announcing once a second: 100 % heard within that
    second and 0.5 % of a core when idle; with version 1.2, degree 6 and the signed records 74 %, most of it late, and
    a core busy for ten seconds more.
    """

    def __init__(self) -> None:
        super().__init__(
            protocols=[PROTOCOL_ID_V11],  # 1.2 adds an IDONTWANT to every neighbor for every small frame
            degree=4,  # the specification says 6, 4, 12: for thousands of peers; every duplicate costs 0.5 ms here
            degree_low=3,
            degree_high=6,
            heartbeat_interval=1,  # specification; the library's default is 120 s
            max_messages_per_topic_per_second=200.0,  # counts what a neighbor relays: 10 would silence all but ten
        )

    def send_rpc(self, peer_id: ID, rpc: rpc_pb2.RPC, priority: bool = False) -> None:
        """Queue one message, without the signed record of our addresses, which every receiver would verify anew."""
        rpc.ClearField("senderRecord")
        super().send_rpc(peer_id, rpc, priority)


class Announcements(Pubsub):
    """GossipSub for one topic of small signed frames, handed over without the library's lossy queue of 32.

    The library has checked before that the author's key made the signature and belongs to the author's peer id.

    Args:
        host: whose connections the frames travel over.
        router: how they are relayed.
        topic: the one topic that is subscribed to and relayed.
        on_announced: told every frame of others.
    """

    def __init__(self, host: IHost, router: Router, topic: str, on_announced: Announced) -> None:
        super().__init__(
            host, router, strict_signing=True, allowed_topics={topic}, max_inbound_rpc_size=RPC_BYTES_MAX
        )
        self._topic = topic
        self._on_announced = on_announced
        # Seconds in the library: after a quick restart numbers would repeat and our announcements be taken for old.
        self.counter = time.time_ns()

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Check, deliver and relay one message. Runs as a task of the service: an exception would end the host (T1)."""
        try:
            if len(msg.data) <= ANNOUNCEMENT_BYTES_MAX and list(msg.topicIDs) == [self._topic]:
                await super().push_msg(msg_forwarder, msg)
        except Exception as error:  # noqa: BLE001 - e.g. a key that cannot be parsed, made by a stranger
            log.info("announcement relayed by %s refused: %r", msg_forwarder, error)

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        """Deliver one message, whose signature was checked."""
        author = ID(publish_message.from_id)
        if author == self.my_id:
            return
        try:
            self._on_announced(str(author), bytes(publish_message.data))
        except Exception:
            log.exception("on_announced raised")  # our own bug, yet no reason to stop relaying

    async def send(self, topic: str, frame: bytes) -> None:
        """Publish a frame to the topic, best effort.

        Raises:
            LocalError: the frame is too large.
        """
        if len(frame) > ANNOUNCEMENT_BYTES_MAX:
            raise LocalError(f"an announcement of {len(frame)} bytes: at most {ANNOUNCEMENT_BYTES_MAX}")
        try:
            with trio.move_on_after(SEND_S):
                await self.publish(topic, frame)
        except Exception as error:  # noqa: BLE001 - announcements are best effort: the network's failures are nobody's
            log.info("announcement not sent: %r", error)


@asynccontextmanager
async def announcing(host: IHost, topic: str, on_announced: Announced) -> AsyncIterator[Announcements]:
    """Take part in a topic over a running host, until the context is left."""
    router = Router()
    announcements = Announcements(host, router, topic, on_announced)
    async with background_trio_service(router), background_trio_service(announcements):
        await announcements.wait_until_ready()
        await announcements.subscribe(topic)
        yield announcements
