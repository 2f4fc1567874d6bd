"""Who is at an address: libp2p's handshake and nothing after it, beside whatever connections there are."""

from __future__ import annotations

import trio
from libp2p.abc import IRawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from peer.network.dialing import ConnectFailed


async def shake_hands(swarm: Swarm, address: str, peer: str) -> None:
    """Return once the handshake at a full address has proven that ``peer`` is there; hang up in any case.

    The other side sees a handshake that is broken off, and makes no connection of it.

    Raises:
        ConnectFailed: nobody is there.
        Exception: somebody else is there, or no peer; whatever the library raises for it.
    """
    where = Multiaddr(address)
    transport = swarm.transport_manager.transport_for_dialing(where)
    if transport is None:
        raise ConnectFailed(f"no transport can dial {address}")
    try:
        raw = await transport.dial(where)
    except SwarmException as error:
        raise ConnectFailed(str(error)) from error
    assert isinstance(raw, IRawConnection), "what TCP makes"
    try:
        await swarm.upgrader.upgrade_security(raw, True, ID.from_base58(peer))
    finally:
        with trio.CancelScope(shield=True):
            await raw.close()
