"""Our announcements and those of the library's own GossipSub: the same wire format, both ways."""

from __future__ import annotations

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr
from networks import SETUPS, TOPIC, Network, Observer, id_of, run

from peer.network.group import OPEN_GROUP

NAME = OPEN_GROUP.name_of(TOPIC)
net = Network(SETUPS["tcp"])


def test_the_library_hears_us_and_we_hear_it() -> None:
    async def main() -> None:
        observer = Observer()
        host = new_host(key_pair=create_new_key_pair(bytes([9]) * 32))
        router = GossipSub([PROTOCOL_ID_V11], 4, 3, 6, heartbeat_interval=1)
        pubsub = Pubsub(host, router)
        async with (
            net.start(1, {}, observer) as ours,
            host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]),
            background_trio_service(router),
            background_trio_service(pubsub),
        ):
            await pubsub.wait_until_ready()
            subscription = await pubsub.subscribe(NAME)
            ours.trust(id_of(9))
            await host.connect(info_from_p2p_addr(Multiaddr(ours.addresses[0])))
            while not observer.announced:
                await pubsub.publish(NAME, b"theirs")
                with trio.move_on_after(0.2):
                    await observer.until(lambda: bool(observer.announced))
            assert observer.announced[0] == (id_of(9), b"theirs")
            heard: set[bytes] = set()
            while b"ours" not in heard:
                await ours.announce(TOPIC, b"ours")
                with trio.move_on_after(0.2):
                    heard.add((await subscription.get()).data)
            assert ours._connections.refused == {}

    run(main)
